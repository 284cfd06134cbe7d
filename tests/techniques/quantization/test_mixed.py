"""Mixed precision: curvature as differences have it, a choice that fits, a file that reopens."""

import json

import pytest
import torch

from xtclib.artefact import format, ledger
from xtclib.bert import encoder_linears
from xtclib.tasks.classification import CLASSES
from xtclib.tasks.rows import Calibration
from xtclib.techniques import Quantize
from xtclib.techniques.quantization import mixed as m
from xtclib.techniques.quantization.quantizers import Scheme

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def rows(data, tokenizer):
    return Calibration(data, tokenizer, 16, rows=16)


@pytest.fixture
def sharp(make_bert, rows):
    """A model, its rows, and the whole Hessian of the loss by a little of one matrix."""
    model = make_bert(layers=1).double()
    weight = encoder_linears(model)[QUERY].weight

    def slope():
        model.zero_grad()
        for batch in rows.batches():
            labels = batch.pop("labels")
            loss = CLASSES.loss(*CLASSES.answers(model(**batch), labels, batch["attention_mask"]))
            (loss * len(labels) / 16).backward()
        return weight.grad.clone()

    def column(index):
        step = torch.zeros_like(weight).flatten()
        step[index] = 1e-4
        step = step.reshape(weight.shape)
        found = []
        for sign in (1, -1):
            weight.data += sign * step
            found.append(slope())
            weight.data -= sign * step
        return (found[0] - found[1]) / 2e-4

    return model, column


def test_a_product_with_the_hessian_is_a_difference_of_slopes(sharp, rows):
    model, column = sharp
    slopes = m._Slopes(model, rows.batches(), CLASSES)
    vector = torch.zeros_like(slopes.weights[QUERY])
    vector[0, 3] = 1.0
    assert slopes.products({QUERY: vector})[QUERY] == pytest.approx(column(3), rel=1e-3, abs=1e-7)


def test_the_trace_is_what_a_vector_of_signs_meets(sharp, rows):
    model, column = sharp
    slopes = m._Slopes(model, rows.batches(), CLASSES)
    some = [column(i).flatten()[i] for i in range(0, 1024, 64)]
    signs = torch.zeros(1024, dtype=torch.float64)
    seen = []
    for seed in range(24):  # on every 64th weight alone
        draw = torch.randint(2, (16,), generator=torch.Generator().manual_seed(seed))
        signs[::64] = draw * 2.0 - 1
        vector = signs.reshape(32, 32)
        seen.append(float((vector * slopes.products({QUERY: vector})[QUERY]).sum()))
    seen = torch.tensor(seen)
    error = 4 * float(seen.std()) / 24**0.5
    assert float(seen.mean()) == pytest.approx(float(sum(some)), abs=error)
    found = m.traces(model, rows.batches(), CLASSES, probes=1)
    assert found.keys() == slopes.weights.keys() and min(found.values()) >= 0


@pytest.mark.slow
def test_the_eigenvalue_is_that_of_the_whole_hessian(make_bert, rows):
    torch.manual_seed(0)
    model = make_bert(layers=1).double()
    slopes = m._Slopes(model, rows.batches(), CLASSES)
    name = "bert.encoder.layer.0.attention.output.dense"
    slopes.weights = {name: slopes.weights[name]}
    whole = []
    for i in range(0, 1024):
        unit = torch.zeros(1024, dtype=torch.float64)
        unit[i] = 1.0
        whole.append(slopes.products({name: unit.reshape(32, 32)})[name].flatten())
    wanted = float(torch.linalg.eigvalsh(torch.stack(whole)).abs().max())
    vector = torch.randn(32, 32, dtype=torch.float64)
    for _ in range(30):
        vector = slopes.products({name: vector / vector.norm()})[name]
    assert float(vector.norm()) == pytest.approx(wanted, rel=0.02)
    found = m.eigenvalues(model, rows.batches(), CLASSES, steps=20)
    assert (
        len(set(found.values())) == 1 and found[name] >= 0.98 * wanted
    )  # a layer's block holds it


@pytest.mark.parametrize("by", ["trace", "eigenvalue", "loss"])
def test_a_mixture_keeps_to_its_bits_and_reopens(by, make_bert, rows, tokenizer, tmp_path):
    teacher = make_bert(layers=1)
    technique = Quantize(embeddings=None, activations=None, mixed={"bits": 2.5, "by": by})
    model = format.finalize(technique.apply(teacher, rows), [technique])
    weights = encoder_linears(teacher)
    stored = {
        n: v
        for n, v in model.state_dict().items()
        if n.endswith(".weight") and v.dtype == torch.uint8
    }
    assert {name.removesuffix(".weight") for name in stored} == weights.keys()
    values = sum(linear.weight.numel() for linear in weights.values())
    taken = 8 * sum(each.numel() for each in stored.values()) / values
    assert 2.0 < taken <= 2.5
    assert len(set(model.config.schemes.values())) > 1
    folder = format.save(model, tokenizer, tmp_path / "mixed")
    format.check_reopens(model, folder)
    planned = ledger.plan(make_bert(layers=1).config, [technique])
    on_disk = ledger.byte_ledger(folder)
    size = [sum(e.bytes for e in entries[:-1]) for entries in (planned, on_disk)]
    assert size[0] == pytest.approx(size[1], rel=0.05)


def test_a_loud_matrix_gets_the_bits():
    shapes = {"loud": (8, 8), "quiet": (8, 8)}
    mixed = m.Mixed(bits=4.5, choices=("binary-row", "int8-row"))
    assert mixed.chosen(shapes, [[9.0, 0.0], [1.0, 0.0]]) == {
        "loud": Scheme.parse("int8-row"), "quiet": Scheme.parse("binary-row"),
    }  # fmt: skip


def test_what_no_mixture_can_be_is_refused(make_bert, rows, tokenizer, tmp_path):
    few = Quantize(embeddings=None, mixed={"bits": 1.9})
    with pytest.raises(ValueError, match="takes 1.9 bits a weight or less: the least is 2"):
        few.apply(make_bert(layers=1), rows)
    with pytest.raises(ValueError, match="quantize by sensitivity looks at the task's rows"):
        Quantize(mixed={}).apply(make_bert(layers=1))
    technique = Quantize(embeddings=None, mixed={})
    model = format.finalize(technique.apply(make_bert(layers=1), rows), [technique])
    folder = format.save(model, tokenizer, tmp_path / "mixed")
    (folder / "SHA256SUMS").unlink()
    said = json.loads((folder / "config.json").read_text())
    said["schemes"][QUERY] = "int8-row"
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="config.json says schemes="):
        format.load(folder)


def test_bits_by_layer_are_spread_over_the_layers_there_are(make_bert, rows, tokenizer, tmp_path):
    technique = Quantize(embeddings=None, by_layer=("int8-row", "binary-row"))
    model = technique.apply(make_bert(layers=3), rows)
    found = {n.split(".")[3]: str(m.weights) for n, m in model.named_modules() if QUERY[-5:] in n}
    assert found == {"0": "int8-row", "1": "int8-row", "2": "binary-row"}
    folder = format.save(format.finalize(model, [technique]), tokenizer, tmp_path / "by")
    format.check_reopens(format.finalize(model, [technique]), folder)
    planned = ledger.plan(make_bert(layers=3).config, [technique])
    size = [sum(e.bytes for e in each[:-1]) for each in (planned, ledger.byte_ledger(folder))]
    assert size[0] == pytest.approx(size[1], rel=0.05)
    assert "by_layer" not in Quantize().to_dict()["quantize"]


def test_what_bits_by_layer_cannot_be_is_refused(make_bert, rows):
    with pytest.raises(ValueError, match="by_layer lists 3 schemes, but the model has 2 layers"):
        Quantize(by_layer=("binary",) * 3).apply(make_bert(layers=2), rows)
    with pytest.raises(ValueError, match="quantize has by_layer and mixed: list schemes"):
        Quantize(by_layer=("binary",), mixed={})
    with pytest.raises(ValueError, match="quantize has by_layer and weights: null"):
        Quantize(by_layer=("binary",), weights=None, activations=None)
    with pytest.raises(ValueError, match="unknown quantization scheme 'binry'"):
        Quantize(by_layer=("binry",))
