"""LSQ and PACT: values and gradients, training, storage."""

from dataclasses import replace

import pytest
import torch
from made import taught

from xtclib.artefact import format
from xtclib.deployment import onnx
from xtclib.deployment.runtimes import OnnxModel
from xtclib.distillation.objective import Objective
from xtclib.tasks.rows import Calibration
from xtclib.techniques import technique
from xtclib.techniques.quantization.quantizers import Scheme, first_clip, round_between
from xtclib.techniques.quantization.technique import Quantize, Storage
from xtclib.training.budget import Budget

BOTH = pytest.mark.parametrize("how", ["lsq", "pact"])


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@BOTH
def test_values_are_those_of_the_symmetric_scheme_with_its_end_at_the_clip(how):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clip = torch.tensor([1.5], dtype=torch.float64)
    found, codes = round_between(x, clip, 7, how)
    wanted = (x.clamp(-1.5, 1.5) * 7 / 1.5).round()
    assert torch.equal(codes, wanted)
    torch.testing.assert_close(found, wanted * 1.5 / 7)


@BOTH
def test_gradients_equal_the_papers_formulas(how):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, generator=generator, dtype=torch.float64).requires_grad_(True)
    clip = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    weights = torch.randn(50, generator=generator, dtype=torch.float64)
    (round_between(x, clip, 7, how)[0] * weights).sum().backward()
    inside = x.detach().abs() <= 1
    assert torch.equal(x.grad, weights * inside)
    ratio = x.detach() * 7
    within = (ratio.round() - ratio) / 7 if how == "lsq" else torch.zeros(50, dtype=torch.float64)
    wanted = (weights * torch.where(inside, within, x.detach().sign())).sum()
    torch.testing.assert_close(clip.grad, wanted.reshape(1))


def test_pact_is_the_derivative_of_clipping_alone():
    """Between roundings the value moves with the clip's end only where it is cut off."""
    x = torch.tensor([-3.0, 0.2, 5.0], dtype=torch.float64)
    clip = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    round_between(x, clip, 127, "pact")[0].sum().backward()
    assert float(clip.grad) == 0.0  # −1 and +1
    first = first_clip(x, 127, "pact")
    assert float(first) == 5 and float(first_clip(x, 4, "lsq")) == pytest.approx(4 * 8.2 / 3)


@pytest.mark.slow
@BOTH
def test_ends_start_at_the_first_input_learn_and_are_stored(
    make_bert, tokenizer, data, batch, tmp_path, how, fresh_logits
):
    bert = make_bert(1)
    quantize = Quantize("binary", "binary-row", f"int8-{how}")
    model = quantize.apply(bert)
    budget = Budget(steps=6, batch_size=8, learning_rate=1e-3, max_length=16)
    model, _ = taught(model, tokenizer, data, Objective(logits=1), budget, tmp_path / "run", bert)
    layer = model.bert.encoder.layer[0].intermediate.dense
    start = Quantize("binary", "binary-row", f"int8-{how}").apply(bert)
    logits(start, batch)
    other = start.bert.encoder.layer[0].intermediate.dense
    assert float(other.input_clip) > 0 and layer.input_clip.requires_grad
    assert float(layer.input_clip) != float(other.input_clip)
    packed = format.finalize(model, [quantize])
    wanted = logits(packed, batch)
    format.save(packed, tokenizer, tmp_path / "a")
    found = fresh_logits(tmp_path / "a")
    assert found == wanted.tolist()
    loaded, _ = format.load(tmp_path / "a")
    for module in loaded.modules():
        if hasattr(module, "integers"):
            module.integers = False
    assert torch.equal(logits(loaded, batch), wanted)  # both paths, the same bits
    again = format.trainable(loaded)
    torch.testing.assert_close(logits(again, batch), wanted, rtol=1e-4, atol=1e-5)
    exported = OnnxModel(onnx.export_onnx(packed, tmp_path / "m.onnx", "trained"))
    torch.testing.assert_close(exported(**batch).logits, wanted, rtol=1e-3, atol=1e-3)


def test_schemes_read_back():
    scheme = Scheme.parse("int8-lsq")
    assert str(scheme) == "int8-lsq" and scheme.granularity == "tensor"
    told = Quantize("binary", None, "int4-pact").to_dict()
    assert technique(told) == Quantize("binary", None, "int4-pact")
    assert replace(scheme, learned=None) == Scheme.parse("int8-tensor")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Scheme.parse("binary-lsq"), "learned='lsq' was given for binary-tensor"),
        (lambda: Scheme.parse("int8-lsqq"), "unknown granularity 'lsqq': did you mean 'lsq'"),
        (lambda: Scheme("int", 8, "token", learned="lsq"), "given for int-token"),
        (lambda: Quantize("int8-lsq"), "weights of quantize takes a scheme such as 'int8'"),
        (
            lambda: Quantize(attention="int8-pact"),
            "attention of quantize takes .* received 'int8-pact'",
        ),
        (
            lambda: Scheme.parse({"scheme": "ternary", "rule": "release"}),
            "rule='release' was given for ternary-tensor: it divides the range of a scheme such",
        ),
        (
            lambda: Quantize({"scheme": "int8", "rule": "release"}),
            "only the inputs of layers learn ends or have a rule",
        ),
        (lambda: Storage(pooler="int8-lsq"), "pooler of storage takes a scheme"),
    ],
)
def test_bad_uses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_ends_that_saw_no_input_are_not_packed_and_a_task_sets_them(bert, tokenizer, data, batch):
    quantize = Quantize("binary", None, "int8-lsq")
    with pytest.raises(ValueError, match="were never seen, so they have no ends: train it, or run"):
        format.finalize(quantize.apply(bert), [quantize])
    ready = quantize.apply(bert, Calibration(data, tokenizer, 16))
    assert bool(logits(format.finalize(ready, [quantize]), batch).isfinite().all())
