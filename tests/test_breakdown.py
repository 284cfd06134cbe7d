"""Costs: parameters, matrix products, and timing in turns."""

from transformers import BertConfig

from xtclib import artefact, breakdown, recipes, techniques


def test_parameters_count_packed_weights_as_what_they_stand_for(bert):
    before = breakdown.parameters(bert)
    chosen = recipes.load("xtc-1bit").techniques
    packed = artefact.finalize(techniques.apply_all(bert, chosen), chosen)
    assert breakdown.parameters(packed) == before == sum(p.numel() for p in bert.parameters())


def test_flops_are_those_of_the_matrix_products():
    h, ff, n, layers, b = 32, 64, 10, 3, 2
    config = BertConfig(
        vocab_size=50, hidden_size=h, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=ff, max_position_embeddings=16,
    )  # fmt: skip
    linear = 4 * h * h + 2 * h * ff
    products = 2 * n * h  # query·key and probabilities·value, a token
    macs = b * (layers * n * (linear + products) + h * h + h * 2)  # then pooler and classifier
    assert breakdown.flops(config, b, n) == 2 * macs


def test_latency_runs_in_turns_after_warming_up():
    calls = []
    found = breakdown.latency(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=4, warm_up=2
    )
    assert calls == ["a", "b"] * 6
    assert all(t["low"] <= t["median"] <= t["high"] for t in found.values())
