"""Runtimes of one model: what is compared, what is stored, and what noise does to them."""

import copy

import numpy as np
import pytest
import torch

from xtclib.artefact import format
from xtclib.deployment import runtimes
from xtclib.techniques import apply_all
from xtclib.techniques.quantization.technique import Quantize

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime")
deployment = pytest.importorskip("xtclib.deployment.runtimes")
figures = pytest.importorskip("xtclib.figures.deployment", exc_type=ImportError)


@pytest.fixture(scope="module")
def models(make_bert):
    model = make_bert(1)
    chosen = [Quantize()]
    return model, format.finalize(apply_all(copy.deepcopy(model), chosen), chosen).eval()


@pytest.fixture(scope="module")
def ready(models):
    return deployment.runtimes(*models)


def test_every_runtime_answers_and_has_a_size(ready, models):
    assert [r.name for r in ready] == list(deployment.RUNTIMES)
    ids = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = {r.name: r.run(ids).logits.float() for r in ready}
    teacher, student = logits["PyTorch fp32"], logits["PyTorch packed"]
    assert (logits["ONNX fp32"] - teacher).abs().max() < 1e-4
    assert (logits["ONNX packed as trained"] - student).abs().max() < 1e-3
    for name in ("PyTorch bf16", "PyTorch dynamic int8", "ONNX int8"):
        assert 0 < (logits[name] - teacher).abs().max() < 0.5
    sizes = {r.name: r.bytes for r in ready}
    assert sizes["PyTorch packed"] < 0.25 * sizes["PyTorch fp32"]
    # Dynamic int8 leaves the embeddings in fp32; at this size they are most of the model.
    assert sizes["PyTorch bf16"] < sizes["PyTorch dynamic int8"] < sizes["PyTorch fp32"]
    assert sizes["PyTorch bf16"] < 0.6 * sizes["PyTorch fp32"]
    assert isinstance(ready[-1].run, runtimes.OnnxModel) and ready[-1].run.labels


def test_the_models_are_left_as_they_were(models, ready):
    model, packed = models
    assert next(model.parameters()).dtype == torch.float32
    assert model.config._attn_implementation == packed.config._attn_implementation == "sdpa"
    assert isinstance(model.classifier, torch.nn.Linear)


def test_an_unknown_runtime_names_the_nearest(models):
    with pytest.raises(ValueError, match="unknown runtime 'ONNX int4': did you mean 'ONNX int8'"):
        deployment.runtimes(*models, ["ONNX int4"])


def test_latencies_are_rows_with_ratios(ready):
    rows = deployment.latencies(ready[:2], [(1, 4), (2, 8)], 200, repeats=2, pause=0.0)
    assert [(r["runtime"], r["batch"], r["length"]) for r in rows] == [
        ("PyTorch fp32", 1, 4), ("PyTorch bf16", 1, 4),
        ("PyTorch fp32", 2, 8), ("PyTorch bf16", 2, 8),
    ]  # fmt: skip
    assert rows[0]["ratio"] == 1 and all(0 < r["low"] <= r["median"] <= r["high"] for r in rows)
    assert rows[1]["ratio"] == pytest.approx(rows[1]["median"] / rows[0]["median"], abs=1e-4)


def test_noise_grows_with_depth_where_activations_are_rounded(make_bert):
    model = make_bert(6)
    chosen = [Quantize(activations="int4-token")]
    packed = format.finalize(apply_all(copy.deepcopy(model), chosen), chosen).eval()
    ids = torch.randint(5, 200, (8, 30), generator=torch.Generator().manual_seed(0))
    plain, rounded = (deployment.noise_by_depth(m, ids, 1e-5) for m in (model, packed))
    assert len(plain) == len(rounded) == 7
    assert plain[0] == pytest.approx(1e-5, rel=0.2) == rounded[0]
    assert max(plain) < 1e-4 and rounded[-1] > 20 * plain[-1]
    assert deployment.noise_by_depth(packed, ids, 0.0) == [0.0] * 7


def test_measurements_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="deployment.py, .* in benchmarks/ write them"):
        deployment.read_measured(tmp_path / "none.json")


ROWS = [
    {"runtime": name, "batch": batch, "length": length, "low": 1.0, "median": 2.0, "high": 3.0,
     "ratio": ratio}
    for batch in (1, 8) for length in (16, 128)
    for name, ratio in (("PyTorch fp32", 1.0), ("ONNX packed", 0.25))
]  # fmt: skip
SIZES = {"PyTorch fp32": 400_000_000, "ONNX packed": 10_000_000}


def test_speed_shows_ratios_in_a_panel_a_batch():
    figure = figures.speed(ROWS)
    assert "4.0 to 4.0 × as fast as PyTorch fp32" in figure.layout.title.text.replace("<br>", " ")
    packed = [t for t in figure.data if t.name == "ONNX packed"]
    assert [list(t.y) for t in packed] == [[4, 4], [4, 4]] and [t.xaxis for t in packed] == [
        "x", "x2",
    ]  # fmt: skip
    assert sum(bool(t.showlegend) for t in figure.data) == 1 and len(figure.layout.shapes) == 2


def test_size_and_speed_is_of_one_shape():
    figure = figures.size_and_speed(ROWS[:2], SIZES)
    assert "40 × smaller, 4.0 × as fast" in figure.layout.title.text.replace("<br>", " ")
    assert [(t.x[0], t.y[0]) for t in figure.data] == [(400, 1), (10, 4)]
    with pytest.raises(ValueError, match=r"one batch and length, received \[\(1, 16\), \(1, 128\)"):
        figures.size_and_speed(ROWS[:4], SIZES)


def test_side_by_side_marks_labels_that_differ():
    wanted = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.1]])
    found = np.array([[0.0, 1.1], [1.0, 0.0], [0.1, 0.0]])
    figure = figures.side_by_side(wanted, found, ("a", "b"))
    assert figure.layout.title.text.startswith("66.7")
    assert [len(t.x) for t in figure.data] == [2, 2, 1] and figure.data[2].name == "another"


def test_noise_has_a_line_a_model():
    figure = figures.noise({"a": [1e-6, 1e-5], "b": [1e-6, 1e-2]})
    assert [list(t.y) for t in figure.data] == [[1e-6, 1e-5], [1e-6, 1e-2]]
    assert figure.layout.yaxis.type == "log"
