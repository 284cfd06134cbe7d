"""Rounding by what a matrix reads: as the slow rule has it, better than nearest, for good."""

import copy

import pytest
import torch
from made import far
from transformers import AutoModelForSequenceClassification

from xtclib.artefact import format
from xtclib.deployment.onnx import export_onnx
from xtclib.deployment.runtimes import OnnxModel
from xtclib.recipes import recipe
from xtclib.study.compress import compress
from xtclib.tasks.rows import Calibration
from xtclib.techniques import Quantize, measured
from xtclib.techniques.quantization import gptq as g
from xtclib.techniques.quantization.packed import PackedLinear
from xtclib.techniques.quantization.quantizers import Scheme

SCHEMES = "binary-row", "ternary-row", "int3-row", "int4-group2", "uint2-row", "int4"


@pytest.fixture
def rows(data, tokenizer):
    return Calibration(data, tokenizer, 16, rows=24)


def drawn(rows=6, columns=8, seed=0, count=60):
    """A weight and the second moment of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(count, columns, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return weight, x.T @ x / count


def slowly(weight, moment, grid, order, damp):
    """Column by column, the inverse of what is left computed anew (OBQ's own rule)."""
    size = len(moment)
    h = moment + damp * moment.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    w, codes, left = weight.clone(), torch.zeros_like(weight), list(order)
    for i in order:
        inverse = torch.linalg.inv(h[left][:, left])
        at = left.index(i)
        codes[:, i : i + 1] = grid.codes(w[:, i : i + 1])
        off = w[:, i] - codes[:, i] * grid.scale[:, 0]
        w[:, left] -= off[:, None] / inverse[at, at] * inverse[at]
        left.remove(i)
    return codes


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("order", ["stand", "falling"])
def test_gptq_is_the_slow_rule(name, order):
    weight, moment = drawn()
    grid = g.grid(weight, Scheme.parse(name))
    rank = moment.diagonal().argsort(descending=True).tolist()
    wanted = slowly(weight, moment, grid, rank if order == "falling" else range(8), 0.01)
    assert torch.equal(g.gptq(weight, moment, grid, order, 0.01), wanted)


def test_blocks_of_columns_change_nothing(monkeypatch):
    weight, moment = drawn(columns=20)
    grid = g.grid(weight, Scheme.parse("int3-row"))
    whole = g.gptq(weight, moment, grid)
    monkeypatch.setattr(g, "_BLOCK", 3)
    assert torch.equal(g.gptq(weight, moment, grid), whole)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_step_lowers_the_error_of_the_output(name):
    weight, moment = drawn(rows=32, columns=32, count=200)
    scheme = Scheme.parse(name)

    def error(scale, method):
        found = g.rounded(weight, moment, scheme, g.Calibrated(scale=scale, method=method))
        return float(g.error(weight, found.dequantize(), moment).sum())

    plain, searched = error("range", "nearest"), error("search", "nearest")
    assert searched <= plain
    assert error("search", "gptq") < 0.9 * searched


def test_a_fitted_scale_is_the_best_for_its_integers():
    weight, moment = drawn()
    grid = g.grid(weight, Scheme.parse("int3-row"))
    codes = grid.codes(weight)
    fitted = g.refitted(weight, moment, grid, codes)
    least = g.error(weight, codes * fitted.scale, moment)
    for factor in (0.99, 1.01):
        assert (g.error(weight, codes * fitted.scale * factor, moment) > least).all()


def test_inputs_that_nobody_has_seen_are_damped():
    weight, moment = drawn(count=3)  # three rows for eight columns
    grid = g.grid(weight, Scheme.parse("int4-row"))
    assert g.gptq(weight, moment, grid, damp=0.0).isfinite().all()
    assert g.gptq(weight, torch.zeros_like(moment), grid, damp=0.0).isfinite().all()


def test_following_is_least_squares():
    weight, _ = drawn()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 8, generator=generator, dtype=torch.float64)
    rough = x + 0.3 * torch.randn(400, 8, generator=generator, dtype=torch.float64)
    read = measured.Inputs(rough.T @ rough / 400, x.T @ rough / 400, rough.mean(0), x.mean(0))
    wanted = torch.linalg.lstsq(rough, x @ weight.T).solution.T
    assert g.followed(weight, read, 0.0) == pytest.approx(wanted, abs=1e-9)
    same = measured.Inputs(read.moment, read.moment, read.mean, read.mean)
    assert g.followed(weight, same, 0.01) == pytest.approx(weight, abs=1e-12)


def test_matrices_that_read_one_tensor_come_together(make_bert, rows):
    order = measured.in_order(make_bert(layers=2), next(rows.batches()))
    assert [[name.split("layer.")[1] for name in names] for names in order[:4]] == [
        ["0.attention.self.query", "0.attention.self.key", "0.attention.self.value"],
        ["0.attention.output.dense"], ["0.intermediate.dense"], ["0.output.dense"],
    ]  # fmt: skip
    assert sum(map(len, order)) == 12


def test_inputs_are_those_of_real_tokens(make_bert, rows):
    model, batches = make_bert(layers=2), list(rows.batches())
    name = "bert.encoder.layer.1.intermediate.dense"
    matrix = model.get_submodule(name)
    calls = measured.calls_of(model, model.bert.encoder.layer[1], batches)
    found = measured.inputs_of(matrix, matrix, calls, calls)
    wanted = measured.second_moments(model, batches)[name]
    assert found.moment == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert torch.equal(found.moment, found.cross)
    centred = found.centred().moment
    assert centred == pytest.approx(wanted - torch.outer(found.mean, found.mean), abs=1e-4)


@pytest.mark.slow
def test_a_rounded_model_is_nearer_to_its_teacher_and_reopens(make_bert, rows, tokenizer, tmp_path):
    teacher = make_bert(layers=2)
    before = copy.deepcopy(teacher.state_dict())
    plain = {"weights": "int3-row", "embeddings": None, "activations": None}
    lost = {}
    for how in (None, {"method": "nearest"}, {}, {"follow": True}):
        technique = Quantize(**plain, calibrated=how)
        model = format.finalize(technique.apply(teacher, rows), [technique])
        lost[str(how)] = far(model, teacher, rows)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    nearest = lost["{'method': 'nearest'}"]
    assert lost["{'follow': True}"] < 0.5 * lost["{}"] < 0.5 * lost["None"]
    assert lost["{'follow': True}"] < nearest < lost["None"]
    format.save(model, tokenizer, tmp_path / "packed")
    format.check_reopens(model, tmp_path / "packed")
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert far(opened, model, rows) == 0
    export_onnx(opened, tmp_path / "m.onnx")
    batch = next(rows.batches())
    batch.pop("labels")
    found = OnnxModel(tmp_path / "m.onnx")(**batch)
    assert found.logits.numpy() == pytest.approx(opened(**batch).logits.detach().numpy(), abs=1e-4)
    trained = format.trainable(opened)
    assert not any(isinstance(module, PackedLinear) for module in trained.modules())


def test_means_that_are_lost_go_into_the_biases(make_bert, rows):
    teacher = make_bert(layers=1)
    technique = Quantize("binary-row", None, None, calibrated={"method": "nearest", "rows": 24})
    model = technique.apply(teacher, rows)
    name = "bert.encoder.layer.0.attention.self.query"
    packed, own = (each.get_submodule(name) for each in (model, teacher))
    calls = measured.calls_of(teacher, teacher.bert.encoder.layer[0], rows.batches())
    read = measured.inputs_of(own, own, calls, calls)
    wanted = own(read.mean).detach().numpy()
    assert packed(read.mean).detach().numpy() == pytest.approx(wanted, abs=5e-3)  # fp16's bias


def test_too_few_rows_are_told(make_bert, rows):
    with pytest.warns(
        UserWarning, match=r"tokens were read for the \d+ inputs .* singular, and dam"
    ):
        Quantize("int4-row", None, None, calibrated={"rows": 1}).apply(make_bert(layers=1), rows)


def test_calibrated_weights_are_the_last_thing_that_is_done(make_bert, rows):
    with pytest.raises(ValueError, match="looks at the task's rows"):
        Quantize("int4-row", calibrated={}).apply(make_bert(layers=1))
    with pytest.raises(ValueError, match="calibrated rounds weights: give weights a scheme"):
        Quantize(None, "int8-row", None, calibrated={})
    with pytest.raises(ValueError, match="unknown method of calibrated 'gtpq': did you mean"):
        Quantize("int4-row", calibrated={"method": "gtpq"})


@pytest.mark.slow
def test_nothing_trains_after_calibrated_weights():
    stages = [{"late": {"techniques": [{"quantize": {"weights": "int4-row", "calibrated": {}}}],
                        "objective": {"logits": 1}}}]  # fmt: skip
    late = recipe.from_dict("late", {"stages": stages})
    with pytest.raises(ValueError, match="trains, and `calibrated` rounds for good: list it last"):
        compress(late, profile="smoke", progress=False)
