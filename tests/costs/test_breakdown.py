"""Costs: by formula against PyTorch's counter, conventions, sums, and errors."""

import pytest
from torch import nn
from transformers import BertConfig, ViTConfig

from xtclib import techniques
from xtclib.artefact import format
from xtclib.costs import breakdown
from xtclib.costs.architectures import ARCHITECTURES, build
from xtclib.costs.breakdown import break_down, component_of, deformer
from xtclib.costs.parts import COMPONENTS, Convention, Part
from xtclib.recipes import recipe

H, FF, N, LAYERS, B, V = 32, 64, 10, 3, 2, 50
SMALL = BertConfig(
    vocab_size=V, hidden_size=H, num_hidden_layers=LAYERS, num_attention_heads=4,
    intermediate_size=FF, max_position_embeddings=16,
)  # fmt: skip


def test_parameters_count_packed_weights_as_what_they_stand_for(bert):
    before = breakdown.parameters(bert)
    chosen = recipe.load("xtc-1bit").techniques
    packed = format.finalize(techniques.apply_all(bert, chosen), chosen)
    assert breakdown.parameters(packed) == before == sum(p.numel() for p in bert.parameters())


def test_the_counter_counts_the_matrix_products():
    linear = 4 * H * H + 2 * H * FF
    products = 2 * N * H  # query·key and probabilities·value, a token
    macs = B * (LAYERS * N * (linear + products) + H * H + H * 2)  # then pooler and classifier
    assert breakdown.flops(SMALL, B, N) == 2 * macs


def test_what_differs_in_its_weights_alone_is_counted_once(bert, monkeypatch):
    whole = breakdown.flops(bert.config, 1, 9)
    chosen = recipe.load("xtc-1bit").techniques
    packed = format.finalize(techniques.apply_all(bert, chosen), chosen)
    with monkeypatch.context() as patch:
        patch.setattr(breakdown, "_counted", lambda *_: pytest.fail("was counted again"))
        assert breakdown.flops(packed.config, 1, 9) == whole
    for chosen in ([techniques.PruneHeads(0.5)], [techniques.LayerReduction(layers=2)]):
        smaller = format.finalize(techniques.apply_all(bert, chosen), chosen)
        assert breakdown.flops(smaller.config, 1, 9) < whole


TESTED = [n for n in ARCHITECTURES if not n.startswith("bert-")]
TESTED += ["bert-base", "bert-large", "bert-2-128", "bert-6-512"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_formula_and_counter_agree_and_no_parameter_is_lost(name):
    found = break_down(name, 2, 24)
    assert found.flops() == breakdown.flops(name, 2, 24)
    assert found.parameters == sum(p.numel() for p in build(name).parameters())
    assert found.by("component").get("other", 0) == 0


def test_every_component_of_a_small_bert_by_hand():
    found = break_down(SMALL, B, N).by("component")
    assert found == {
        "word embeddings": V * H,
        "position embeddings": 16 * H,
        "type embeddings": 2 * H,
        "norm and residual": 2 * H * (1 + 2 * LAYERS),
        "query, key, value": LAYERS * 3 * (H * H + H),
        "attention": 0,
        "attention output": LAYERS * (H * H + H),
        "feed-forward": LAYERS * (2 * H * FF + FF + H),
        "pooler": H * H + H,
        "head": 2 * H + 2,
        "other": 0,
    }
    macs = break_down(SMALL, B, N).by("component", lambda p: p.macs + p.products)
    assert macs["attention"] == LAYERS * B * 2 * N * N * H
    assert macs["query, key, value"] == LAYERS * B * N * 3 * H * H
    assert macs["word embeddings"] == 0


def test_activations_and_elementwise_operations_by_hand():
    found = break_down(SMALL, B, N)
    written = found.by("component", "activations")
    tokens, scores = B * N, B * 4 * N * N
    assert written["attention"] == LAYERS * (2 * scores + tokens * H)
    assert written["feed-forward"] == LAYERS * tokens * (2 * FF + H)  # with the GELU's output
    assert written["word embeddings"] == tokens * H
    other = found.by("component", "elementwise")
    assert other["attention"] == LAYERS * 6 * scores
    assert other["feed-forward"] == LAYERS * tokens * (FF + 8 * FF + H)  # biases and GELU
    norms, residuals = 5 * (1 + 2 * LAYERS), 2 + 2 * LAYERS  # three embeddings: two additions
    assert other["norm and residual"] == tokens * H * (norms + residuals)
    assert found.by("component", "lookups")["word embeddings"] == tokens * V * H


def test_layers_are_alike_and_add_up():
    found = break_down("bert-base")
    layers = found.by("layer")
    assert [layers[i] for i in range(12)] == [7_087_872] * 12
    assert sum(layers.values()) == found.parameters == 109_483_778
    assert set(layers) == {None, *range(12)}


def test_a_shared_layer_has_its_parameters_once_and_its_operations_each_time():
    found = break_down("albert-base", 1, 16)
    layers = found.by("layer")
    assert layers[0] > 7e6 and all(layers[i] == 0 for i in range(1, 12))
    assert len({found.by("layer", Part.flops)[i] for i in range(12)}) == 1


def test_conventions():
    found = break_down("bert-base", 1, 128)
    assert found.flops("MACs") * 2 == found.flops()
    assert found.flops("weights only") == 2 * 12 * 128 * 12 * 768**2
    assert found.flops("everything") > found.flops()
    lookups = 2 * 128 * 768 * (30522 + 512 + 2)
    # Positions are one table for all sentences: looked up once a token of one.
    assert found.flops("one-hot lookups") == found.flops("everything") + lookups
    assert found.flops(Convention(products=False)) < found.flops()
    with pytest.raises(ValueError, match="1 or 2, received 3"):
        Convention(multiply_add=3)
    with pytest.raises(ValueError, match="unknown convention 'FLOPS'.*FLOPs"):
        found.flops("FLOPS")


def test_bytes_at_any_width():
    found = break_down("bert-base")
    assert sum(found.bytes().values()) == 4 * found.parameters
    assert sum(found.bytes(1).values()) == found.parameters / 8
    mixed = found.bytes({"feed-forward": 2})
    assert mixed["feed-forward"] == found.by("component")["feed-forward"] / 4
    assert mixed["pooler"] == 4 * found.by("component")["pooler"]
    with pytest.raises(ValueError, match="unknown component 'feedforward'.*feed-forward"):
        found.bytes({"feedforward": 2})
    with pytest.raises(ValueError, match="received 0"):
        found.bytes(0)


def test_attention_crosses_where_the_formula_says():
    # 4 n² h = 4 n h f, so n = f
    parts = break_down(SMALL, 1, FF, extend=True).by("component", Part.flops)
    assert parts["attention"] == parts["feed-forward"]


@pytest.mark.slow
def test_deformer_saves_by_its_cache():
    whole = break_down("bert-base", 1, 320).flops()
    apart = deformer("bert-base", 320, 32, 9, cached=False)
    cached = deformer("bert-base", 320, 32, 9)
    saved = 9 * 4 * 768 * (320**2 - 32**2 - 288**2)  # attention between question and passage
    assert apart.flops() == whole - saved
    assert 0.3 < cached.flops() / whole < 0.33
    assert apart.parameters == cached.parameters == break_down("bert-base").parameters
    with pytest.raises(ValueError, match="1 to 319 tokens, received 320"):
        deformer("bert-base", 320, 320, 9)
    with pytest.raises(ValueError, match="12 layers: the split must be 0 to 12"):
        deformer("bert-base", 320, 32, 13)


def test_the_table_names_sums_and_shares():
    text = break_down(SMALL, B, N).table()
    assert text.splitlines()[0] == "BertForSequenceClassification, batch 2, length 10"
    last = text.splitlines()[-1].split()
    assert last[0] == "all" and last[1] == f"{break_down(SMALL, B, N).parameters:,}"
    by_layer = break_down(SMALL, B, N).table("layer", 1, "everything").splitlines()
    assert by_layer[1].split()[0] == "layer" and len(by_layer) == 2 + 1 + LAYERS + 1


@pytest.mark.parametrize(
    "name, component",
    [
        ("distilbert.transformer.layer.0.attention.k_lin", "query, key, value"),
        ("transformer.h.3.attn.c_proj", "attention output"),
        ("transformer.h.3.mlp.c_proj", "feed-forward"),
        ("mobilebert.encoder.layer.0.ffn.1.output.dense", "feed-forward"),
        ("mobilebert.encoder.layer.0.output.bottleneck.LayerNorm", "norm and residual"),
        ("electra.embeddings_project", "embedding projection"),
        ("pre_classifier", "head"),
        ("", "other"),
    ],
)
def test_names_tell_components(name, component):
    assert component_of(name) == component and component in COMPONENTS


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_batch_and_length_must_be_whole_and_positive(value):
    with pytest.raises(ValueError, match="length must be a whole number of at least 1"):
        break_down(SMALL, 1, value)
    with pytest.raises(ValueError, match="batch must be a whole number of at least 1"):
        break_down(SMALL, value, 1)


def test_a_length_past_the_positions_is_refused_or_extended():
    with pytest.raises(ValueError, match="length of 17 is past the model's 16 positions"):
        break_down(SMALL, 1, 17)
    longer = break_down(SMALL, 1, 17, extend=True)
    assert longer.by("component")["position embeddings"] == 17 * H
    with pytest.raises(ValueError, match="past the model's 512 positions"):
        break_down("openai-gpt", 1, 513)


def test_roberta_has_two_positions_less_than_its_table():
    from transformers import RobertaConfig

    config = RobertaConfig(
        num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=32,
        vocab_size=50, max_position_embeddings=18,
    )  # fmt: skip
    assert break_down(config, 1, 16).by("component")["position embeddings"] == 18 * 16
    with pytest.raises(ValueError, match="past the model's 16 positions"):
        break_down(config, 1, 17)


@pytest.mark.slow
def test_residuals_are_counted_wherever_a_model_adds_them():
    """Two a layer, whichever block adds them: ALBERT's attention, DistilBERT's whole layer."""
    norm = lambda name: break_down(name, 1, 16).by("layer", lambda p: p.elementwise)[1]  # noqa: E731
    assert norm("albert-base") == norm("bert-base") == norm("distilbert") == norm("electra-base")


def test_a_model_is_left_as_it_was(make_bert):
    model = make_bert(1).train()
    break_down(model, 1, 8)
    assert model.training and not any(m._forward_hooks for m in model.modules())


def test_a_structure_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="structure of Linear .model_type 'none'. is not known"):
        break_down(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="bilstm has no layers to split"):
        deformer("bilstm", 32, 8, 1)
    with pytest.raises(ValueError, match="ViTConfig.*not known here; known are albert, bert"):
        break_down(ViTConfig())
    with pytest.raises(ValueError, match="unknown key 'layers'.*layer"):
        break_down(SMALL, B, N).by("layers")
