"""Smoothing: the same answers, inputs that are easier to round."""

import pytest
import torch

from xtclib.artefact import format
from xtclib.bert import encoder_linears
from xtclib.deployment.onnx import export_onnx, operators
from xtclib.deployment.runtimes import OnnxModel
from xtclib.tasks.rows import Calibration
from xtclib.techniques import LayerReduction, PruneHeads, Quantize, Smooth, measured
from xtclib.techniques.quantization.quantizers import quantize
from xtclib.techniques.quantization.smoothing import SmoothLinear, migration


@pytest.fixture
def rows(data, tokenizer):
    return Calibration(data, tokenizer, 16, rows=24)


@pytest.fixture
def loud(make_bert):
    """A model one of whose hidden dimensions is fifty times as large as the rest."""
    model = make_bert(layers=2)
    for norm in [m for m in model.bert.modules() if isinstance(m, torch.nn.LayerNorm)]:
        norm.weight.data[3] = 50.0
    for linear in encoder_linears(model).values():
        if linear.in_features == 32:
            linear.weight.data[:, 3] /= 50.0
    return model


def test_a_factor_moves_half_of_the_outlier():
    x, w = torch.tensor([64.0, 1.0]), torch.tensor([1.0, 1.0])
    assert migration(x, w).tolist() == [8.0, 1.0]
    assert migration(x, w, alpha=1.0).tolist() == [64.0, 1.0]
    assert migration(x, w, alpha=0.0).tolist() == [1.0, 1.0]


def test_answers_stay_to_the_last_bit_and_inputs_come_nearer(loud, rows):
    model = Smooth().apply(loud, rows)
    batch = next(rows.batches())
    batch.pop("labels")
    assert torch.equal(model(**batch).logits, loud(**batch).logits)
    before = measured.largest_inputs(loud, rows.batches())
    after = measured.largest_inputs(model, rows.batches())
    name = "bert.encoder.layer.1.intermediate.dense"
    spread = [float(each.max() / each.median()) for each in (before[name], after[name + ".linear"])]
    assert spread[1] < spread[0] / 3
    block = model.bert.encoder.layer[0].attention.self
    assert torch.equal(block.query.factor, block.key.factor)


def test_one_scale_for_all_inputs_loses_less(loud, rows):
    name, scheme = "bert.encoder.layer.1.intermediate.dense", "uint6-tensor"
    smooth = Smooth().apply(loud, rows).get_submodule(name)
    (call, *_) = measured.calls_of(loud, loud.bert.encoder.layer[1], rows.batches())
    (x,) = measured.reads(call, [loud.get_submodule(name)])
    weight = loud.get_submodule(name).weight
    plain = (quantize(x, scheme).dequantize() - x) @ weight.T
    eased = x * smooth.factor
    after = (quantize(eased, scheme).dequantize() - eased) @ smooth.linear.weight.T
    assert after.norm() < 0.5 * plain.norm()


@pytest.mark.slow
def test_a_smooth_model_is_packed_and_exported(loud, rows, tokenizer, tmp_path):
    techniques = [Smooth(), Quantize("int8-row", None, "uint8-tensor")]
    model = techniques[1].apply(techniques[0].apply(loud, rows), rows)
    model = format.finalize(model, techniques)
    batch = next(rows.batches())
    batch.pop("labels")
    folder = format.save(model, tokenizer, tmp_path / "smooth")
    format.check_reopens(model, folder)
    model, _ = format.load(folder)
    export_onnx(model, tmp_path / "m.onnx")
    found = OnnxModel(tmp_path / "m.onnx")(**batch).logits
    assert found.numpy() == pytest.approx(model(**batch).logits.detach().numpy(), abs=0.02)
    # Query, key and value divide and round their input once.
    assert operators(tmp_path / "m.onnx")["DynamicQuantizeLinear"] == 4 * 2


def test_order_and_rows(make_bert, rows):
    with pytest.raises(ValueError, match="smooth looks at the task's rows"):
        Smooth().apply(make_bert(layers=1))
    smooth = Smooth().apply(make_bert(layers=2), rows)
    with pytest.raises(ValueError, match="prune_heads comes before smooth: list it first"):
        PruneHeads().apply(smooth)
    with pytest.raises(ValueError, match="smooth comes before smooth"):
        Smooth().apply(smooth, rows)
    half = LayerReduction().apply(smooth)
    assert sum(isinstance(m, SmoothLinear) for m in half.modules()) == 6
