"""Matrices as products of thin ones: the best in their metric, no larger than what they replace."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

from xtclib.artefact import format, ledger
from xtclib.bert import encoder_layers, encoder_linears
from xtclib.costs import breakdown
from xtclib.deployment.onnx import export_onnx
from xtclib.deployment.runtimes import OnnxModel
from xtclib.recipes import recipe
from xtclib.study.compress import compress
from xtclib.tasks.rows import Calibration
from xtclib.techniques import (
    Factorize,
    LayerReduction,
    PruneHeads,
    PruneVocabulary,
    Quantize,
    Sparsify,
    apply_all,
    measured,
)
from xtclib.techniques.factorization import decompositions as d
from xtclib.techniques.factorization.layers import LowRankEmbedding, LowRankLinear

FAR = 1e-10


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(size=6, rows=40, seed=1):
    x = random(rows, size, seed=seed) * torch.arange(1, size + 1)
    return x, x.T @ x / rows


def product(spectrum, rank):
    up, down = spectrum.factors(rank)
    return up @ down


@pytest.fixture
def rows(data, tokenizer):
    return Calibration(data, tokenizer, 16, rows=24)


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


# The decompositions.


def spectra(weight):
    x, second = moment(weight.shape[1])
    importance = torch.arange(1.0, weight.shape[1] + 1, dtype=torch.float64)
    return {"svd": d.svd(weight), "fisher": d.weighted_svd(weight, importance),
            "data": d.whitened_svd(weight, second)}  # fmt: skip


@pytest.mark.parametrize("shape", [(6, 6), (9, 6), (4, 6)])
def test_full_rank_is_the_matrix_in_every_metric(shape):
    weight = random(*shape)
    for name, one in spectra(weight).items():
        assert (product(one, min(shape)) - weight).abs().max() < FAR, name
        assert float(one.tail()[-1]) == 0


def test_no_matrix_of_that_rank_is_nearer():
    weight, (x, _) = random(5, 6), moment()
    importance = torch.arange(1.0, 7.0, dtype=torch.float64)
    errors = {
        "svd": lambda change: change.square().sum(),
        "fisher": lambda change: (change.square() * importance).sum(),
        "data": lambda change: (x @ change.T).square().sum() / len(x),
    }
    for name, one in spectra(weight).items():
        best = errors[name](weight - product(one, 2))
        assert float(best) == pytest.approx(float(one.tail()[2]), rel=1e-6)
        # Alternating least squares from random starts finds no nearer one.
        metric = {"svd": torch.eye(6).double(), "fisher": importance.sqrt().diag(),
                  "data": torch.linalg.cholesky(x.T @ x / len(x))}[name]  # fmt: skip
        target = weight @ metric
        for seed in range(5):
            up = random(5, 2, seed=seed)
            for _ in range(200):
                down = torch.linalg.lstsq(up, target).solution
                up = torch.linalg.lstsq(down.T, target.T).solution.T
            found = (target - up @ down).square().sum()
            assert float(found) >= float(best) - 1e-9
            assert float(found) == pytest.approx(float(best), rel=1e-3)


def test_whitening_by_the_root_and_by_cholesky_is_one_product():
    weight, (_, second) = random(5, 6), moment()
    lower = torch.linalg.cholesky(second)
    up, values, down = torch.linalg.svd(weight @ lower, full_matrices=False)
    wanted = up[:, :3] * values[:3] @ (down[:3] @ torch.linalg.inv(lower))
    assert (product(d.whitened_svd(weight, second), 3) - wanted).abs().max() < FAR


def test_inputs_that_never_come_do_not_break_it():
    weight, second = random(5, 6), torch.zeros(6, 6, dtype=torch.float64)
    second[0, 0] = 1.0
    near = product(d.whitened_svd(weight, second), 1)
    assert near.isfinite().all() and (near[:, 0] - weight[:, 0]).abs().max() < 1e-3
    assert product(d.weighted_svd(weight, second[0]), 5).isfinite().all()


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.01, 1))
@settings(max_examples=60)
def test_a_share_is_kept_and_break_even_saves(rows, columns, share):
    rank, most = d.rank_for(share, rows, columns), d.break_even(rows, columns)
    assert rank == 1 or rank * (rows + columns) <= share * rows * columns + 1e-6
    assert most * (rows + columns) <= rows * columns < (most + 1) * (rows + columns)


def test_energy_is_kept_by_the_lowest_rank_that_does():
    one = d.svd(torch.tensor([3.0, 2.0, 1.0]).diag().double())
    assert [one.rank_of(e) for e in (0.1, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]


def test_ranks_go_where_a_value_buys_most():
    shapes = [(8, 8), (16, 8), (8, 8)]
    found = [d.svd(random(*shape, seed=i)) for i, shape in enumerate(shapes)]
    ranks = d.allocate(found, shapes, 0.6, [1.0, 1.0, 0.0])
    spent = sum(rank * sum(shape) for rank, shape in zip(ranks, shapes, strict=True))
    budget = 0.6 * sum(m * n for m, n in shapes)
    assert spent <= budget < spent + 24 and ranks[2] == 1

    def saved(ranks):
        kept = [float(one.tail()[0] - one.tail()[r]) for one, r in zip(found, ranks, strict=True)]
        return kept[0] + kept[1]

    others = [(a, b, 1) for a in range(1, 5) for b in range(1, 6) if a * 16 + b * 24 + 16 <= spent]
    assert saved(ranks) >= max(map(saved, others)) - 1e-9


# What rows say.


def test_second_moments_are_those_of_real_tokens(bert, rows):
    name = "bert.encoder.layer.1.intermediate.dense"
    found, seen = measured.second_moments(bert, rows.batches())[name], []
    hook = bert.get_submodule(name).register_forward_hook(lambda m, x, y: seen.append(x[0]))
    sums, count = 0, 0
    with torch.no_grad():
        for batch in rows.batches():
            bert(**batch)
            x = seen.pop()[batch["attention_mask"].bool()]
            sums, count = sums + x.T @ x, count + len(x)
    hook.remove()
    assert torch.allclose(found, sums / count, rtol=1e-4, atol=1e-4)


def test_fisher_is_the_mean_of_squared_gradients_of_single_rows(bert, rows, data, tokenizer):
    name = "bert.encoder.layer.2.attention.self.key"
    found = measured.fisher(bert, rows.batches(), data.task)[name]
    single, sums = Calibration(data, tokenizer, 16, rows=24, batch_size=1), 0
    for batch in single.batches():
        bert.zero_grad()
        bert(**batch).loss.backward()
        sums = sums + bert.get_submodule(name).weight.grad.square().sum(0)
    assert torch.allclose(found, sums / 24, rtol=1e-3, atol=1e-9)
    assert bert.bert.pooler.dense.weight.requires_grad


def test_of_a_layer_that_is_used_in_turns_a_row_has_one_gradient(data, tokenizer):
    torch.manual_seed(0)
    sizes = dict(vocab_size=200, hidden_size=16, embedding_size=8, num_hidden_layers=3,
                 num_attention_heads=2, intermediate_size=16, initializer_range=0.3)  # fmt: skip
    model = AlbertForSequenceClassification(AlbertConfig(**sizes)).eval()
    single = Calibration(data, tokenizer, 16, rows=6, batch_size=1)
    batches = Calibration(data, tokenizer, 16, rows=6, batch_size=3).batches()
    found, wanted = measured.fisher(model, batches, data.task), {}
    linears = encoder_linears(model)
    for batch in single.batches():
        model.zero_grad()
        model(**batch).loss.backward()
        for name, linear in linears.items():
            wanted[name] = wanted.get(name, 0) + linear.weight.grad.square().sum(0) / 6
    assert len(found) == len(linears) == 6
    assert all(torch.allclose(found[n], wanted[n], rtol=1e-3, atol=1e-9) for n in linears)


def test_moved_is_how_far_one_matrix_moves_the_answers(bert, rows, data):
    name = "bert.encoder.layer.0.output.dense"
    weight = bert.get_submodule(name).weight.detach().clone()
    far = measured.moved(bert, {name: weight * 0.5}, rows.batches(), data.task)[name]
    assert far > 1e-6 and torch.equal(bert.get_submodule(name).weight, weight)
    assert measured.moved(bert, {name: weight}, rows.batches(), data.task)[name] == 0


def test_what_lies_below_a_weight_is_computed_once_and_changes_nothing(bert, rows, data):
    weights = {n: 0.5 * m.weight.detach() for n, m in encoder_linears(bert).items()}
    together = measured.moved(bert, weights, rows.batches(), data.task)
    for name, weight in weights.items():
        assert (
            together[name] == measured.moved(bert, {name: weight}, rows.batches(), data.task)[name]
        )
    first, calls = encoder_layers(bert)[0], []
    first.attention.self.register_forward_hook(lambda *_: calls.append(1))
    measured.moved(bert, weights, rows.batches(), data.task)
    of_first = sum(name.startswith("bert.encoder.layer.0.") for name in weights)
    above = len(encoder_layers(bert)) - 1  # each computes it for the first of its weights
    assert len(calls) == (1 + of_first + above) * len(list(rows.batches()))


# The technique.


def test_at_high_rank_nothing_changes_and_at_low_rank_it_does(bert, batch, rows):
    whole = Factorize(energy=1.0).apply(bert)
    assert not [m for m in whole.modules() if isinstance(m, LowRankLinear)]  # none would be smaller
    before = logits(bert, batch)
    for criterion in ("svd", "fisher", "data"):
        found = Factorize(criterion, rank=16).apply(bert, rows)
        ranks = {m.rank for m in found.modules() if isinstance(m, LowRankLinear)}
        assert ranks == {16}  # of a 32 × 32 matrix break-even, which stays whole
        half = Factorize(criterion).apply(bert, rows)
        far = (logits(half, batch) - before).abs().max()
        assert far > (logits(found, batch) - before).abs().max() > 1e-4


def test_of_a_matrix_of_low_rank_half_is_all_of_it(bert, batch):
    for linear in encoder_linears(bert).values():
        linear.weight.data = product(d.svd(linear.weight.data), 4)
    found = Factorize(rank=4).apply(bert)
    assert (logits(found, batch) - logits(bert, batch)).abs().max() < 1e-4
    assert bert.bert.encoder.layer[0].output.dense.weight.shape == (32, 64)  # as it was


def test_layers_are_cut_out_of_a_factorized_modernbert_too():
    """Its first layer has no norm: the one that becomes the first takes its norm's scale."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                 intermediate_size=16, pad_token_id=0, initializer_range=0.3)  # fmt: skip
    model = ModernBertForSequenceClassification(ModernBertConfig(**sizes)).eval()
    for name, linear in encoder_linears(model).items():
        linear.weight.data = product(d.svd(linear.weight.data), 4)
        norm = model.get_submodule(name.rsplit(".", 2)[0]).attn_norm
        if hasattr(norm, "weight"):
            norm.weight.data = torch.linspace(0.5, 2, 16)
    ids = torch.arange(5, 25).reshape(2, 10)
    thin, whole = (LayerReduction([1, 2]).apply(m) for m in (Factorize(rank=4).apply(model), model))
    with torch.no_grad():
        far = (thin(ids).logits - whole(ids).logits).abs().max()
        assert far < 1e-4 < (thin(ids).logits - model(ids).logits).abs().max()


def test_data_aware_outputs_are_nearest_on_held_out_rows(bert, data, tokenizer):
    """On a model whose inputs are far from round; the real one is in the notebook."""
    for layer in bert.bert.encoder.layer:
        layer.attention.output.LayerNorm.weight.data *= torch.linspace(0.05, 4, 32)
    rows = Calibration(data, tokenizer, 16, rows=24)
    held = Calibration(data, tokenizer, 16, rows=24, seed=5)
    moments = measured.second_moments(bert, held.batches())
    lost = {}
    for criterion in ("svd", "fisher", "data"):
        spectra = Factorize(criterion).spectra(bert, rows)
        for name, linear in encoder_linears(bert).items():
            change = linear.weight.detach() - product(spectra[name], 8)
            error = torch.einsum("oi,ij,oj->", change, moments[name], change)
            lost.setdefault(criterion, []).append(float(error))
    assert all(a < b for a, b in zip(lost["data"], lost["svd"], strict=True))
    assert np.mean(np.array(lost["data"]) < np.array(lost["fisher"])) == 1


def test_sensitivity_divides_the_same_budget_otherwise(bert, rows):
    def ranks(**how):
        found = Factorize("data", share=0.4, **how).apply(bert, rows)
        return [m.rank for m in found.modules() if isinstance(m, LowRankLinear)], sum(
            p.numel() for p in encoder_linears(found).values() for p in [p.weight]
        )

    even, by_need = ranks(), ranks(allocate="sensitivity")
    assert even[0] != by_need[0] and len(set(by_need[0])) > 2
    assert by_need[1] <= 0.4 * sum(n.weight.numel() for n in encoder_linears(bert).values())
    assert by_need[1] >= even[1]


def test_spectra_that_are_given_are_taken(bert, rows, batch):
    technique = Factorize("data", share=0.4)
    given = technique.spectra(bert, rows)
    own, same, other = (
        technique.apply(bert, rows, spectra)(**batch).logits
        for spectra in (None, given, Factorize("svd").spectra(bert))
    )
    assert torch.equal(own, same) and not torch.equal(own, other)


def test_factors_learn(bert, batch):
    found = Factorize(words=0.5).apply(bert).train()
    found(**batch, labels=torch.ones(len(batch["input_ids"]), dtype=torch.long)).loss.backward()
    grown = [n for n, p in found.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert grown == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "techniques",
    [
        [Factorize(words=0.5)],
        [Factorize(), Quantize()],
        [Factorize(words=0.3), Quantize("int8-row", "int8-row")],
        [LayerReduction(), PruneHeads(), Factorize(share=0.7), Quantize()],
        [Factorize(share=0.8), Sparsify(0.5)],
    ],
    ids=lambda techniques: "-".join(t.name for t in techniques),
)
def test_it_is_saved_opened_exported_and_priced(make_bert, batch, techniques, tokenizer, tmp_path):
    bert = make_bert(2 if isinstance(techniques[0], LayerReduction) else 1)
    made = format.finalize(apply_all(bert, techniques), techniques)
    format.save(made, tokenizer, tmp_path / "out")
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(found, batch), logits(made, batch))
    assert (logits(found, batch) - logits(bert, batch)).abs().max() > 1e-3

    entries, planned = ledger.byte_ledger(tmp_path / "out"), ledger.plan(bert.config, techniques)
    plain = {e.tensor: e.bytes for e in entries[:-1]}
    if not any(t.name in ("sparsify", "prune_heads") for t in techniques):
        assert plain == {e.tensor: e.bytes for e in planned[:-1]}
    export_onnx(found, tmp_path / "m.onnx", "trained")
    exported = OnnxModel(tmp_path / "m.onnx")(**batch).logits
    assert torch.allclose(torch.as_tensor(exported), logits(made, batch), atol=1e-2)  # a code apart
    priced = breakdown.break_down(made.config, 1, 16)
    assert priced.flops() == breakdown.flops(made.config, 1, 16)
    assert priced.by("component").get("other", 0) == 0


def test_an_opened_one_trains_on_and_its_checkpoint_opens(bert, batch, tokenizer, tmp_path):
    techniques = [Factorize(), Quantize()]
    made = format.finalize(apply_all(bert, techniques), techniques)
    format.save(made, tokenizer, tmp_path / "out")
    found = format.trainable(format.load(tmp_path / "out")[0], pack=False)
    found.save_pretrained(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    kinds = {type(m) for m in encoder_linears(plain).values()}
    assert kinds == {nn.Linear} and plain.config.ranks == found.config.ranks
    assert plain.bert.encoder.layer[0].output.dense.rank == 10


def test_break_even_has_parameters_and_operations_of_the_whole(bert):
    made = format.finalize(Factorize(rank=8).apply(bert), [Factorize(rank=8)])
    found, whole = (breakdown.break_down(m.config, 1, 16) for m in (made, bert))
    assert found.parameters == sum(p.numel() for p in made.parameters())
    attention = [b.by("component", "macs")["query, key, value"] for b in (found, whole)]
    assert attention[0] * 2 == attention[1]  # half of break-even, 16


@pytest.mark.slow
def test_a_recipe_of_it_runs(data, tokenizer):
    found = compress("drone-25", "sst2", "smoke", progress=False)
    assert found.record.recipe == "drone-25"
    assert found.student.config.ranks["bert.encoder.layer.0.intermediate.dense"] >= 1
    half = recipe.load("svd-1bit-distilled").techniques
    assert [t.name for t in half] == ["factorize", "quantize"]
    assert recipe.load("fwsvd-30").techniques[0] == Factorize("fisher", share=0.3)


# What cannot be.


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (dict(rank=0), "a whole number from 1, received 0"),
        (dict(rank=17), "32 × 32 matrix hold more than it does: give a rank up to 16, mn/"),
        (dict(rank=1000), "give a rank up to 16"),
        (dict(share=0.0), "above 0 and at most 1, received 0"),
        (dict(share=0.5, rank=3), "one of them; received {'share': 0.5, 'rank': 3}"),
        (dict(energy=0.9, allocate="sensitivity"), "divides a share"),
        (dict(criterion="data"), "looks at the task's rows"),
        (dict(criterion="fisher"), "looks at the task's rows"),
        (dict(allocate="sensitivity"), "looks at the task's rows"),
        (dict(criterion="drone"), "drone"),
    ],
    ids=lambda how: "-".join(how) if isinstance(how, dict) else "",
)
def test_what_it_cannot_do_it_says(bert, how, says):
    with pytest.raises(ValueError) as error:
        Factorize(**how).apply(bert)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("techniques", "says"),
    [
        ([Quantize(), Factorize()], "factorize comes before quantize: list it first"),
        ([Sparsify(0.5), Factorize()], "factorize comes before sparsify: list it first"),
        ([Factorize(), Factorize()], "factorized already"),
        ([Factorize(), PruneHeads()], "prune_heads comes before factorize: list it first"),
        ([Quantize(weights=None, activations=None), Factorize(words=0.5)], "before quantize"),
        ([Factorize(words=0.5), PruneVocabulary(0.5)], "before"),
    ],
    ids=lambda value: "-".join(t.name for t in value) if isinstance(value, list) else "",
)
def test_an_order_that_cannot_be_is_refused(bert, rows, techniques, says):
    with pytest.raises(ValueError) as error:
        apply_all(bert, techniques, rows)
    assert says in str(error.value)


def test_a_packed_model_and_one_with_nan_are_refused(bert):
    packed = format.finalize(Quantize().apply(bert), [Quantize()])
    with pytest.raises(ValueError, match=r"already packed; apply `xtclib\.trainable` first"):
        Factorize().apply(packed)
    bert.bert.encoder.layer[1].output.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(
        ValueError,
        match=r"cannot factorize this model: .*layer\.1\.output\.dense\.weight' holds NaN",
    ):
        Factorize().apply(bert)


@pytest.mark.parametrize(
    ("ranks", "says"),
    [("many", "expected names with numbers"), ({"bert.pooler": 2}, "expected 1 to 0"),
     ({"bert.encoder.layer.0.output.dense": 0}, "expected 1 to 32"),
     ({"bert.encoder.layer.0.output.dense": 33}, "expected 1 to 32")],
)  # fmt: skip
def test_altered_ranks_are_named(bert, ranks, says):
    bert.config.ranks = ranks
    with pytest.raises(ValueError) as error:
        Factorize().rebuild(bert)
    assert says in str(error.value)


def test_an_embedding_of_factors_is_a_narrower_table(bert):
    found = Factorize(words=0.5).apply(bert).get_input_embeddings()
    assert isinstance(found, LowRankEmbedding) and found.table.weight.shape == (200, 13)
    assert found(torch.tensor([[3, 4]])).shape == (1, 2, 32)
