"""Figures of what needs no training: they show their numbers, and read without colour."""

import pytest
import torch
from made import made

from xtclib.figures import embeddings, explorers, pruning, quantization, training
from xtclib.techniques.quantization.mixed import Mixed

NAMES = [f"bert.encoder.layer.{i}.{m}" for i in range(2)
         for m in ("attention.self.query", "output.dense")]  # fmt: skip


def test_tables_lie_at_their_bytes():
    products = [("24 parts", 0.9e6, 0.7), ("8 parts", 0.3e6, 0.9)]
    figure = embeddings.tables({"one bit": [("a row", 1.5e6, 0.6)], "products": products})
    assert figure.layout.title.text.replace("<br>", " ").startswith("one bit is nearest: 60")
    assert list(figure.data[1].x) == [0.3, 0.9] and list(figure.data[1].y) == [90, 70]
    assert figure.data[0].marker.symbol != figure.data[1].marker.symbol


def test_a_hessian_is_of_the_loudest_inputs():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    x[:, 3] *= 3
    x[:, 1] = 9 * x[:, 3]
    figure = quantization.hessian(x.T @ x / 200, size=2)
    assert figure.data[0].z[0][1] == pytest.approx(1.0, abs=1e-6)
    assert "up to 1.00" in figure.layout.title.text.replace("<br>", " ")


def test_outliers_fall_behind_the_median():
    figure = quantization.outliers(torch.tensor([1.0, 2.0, 40.0]), torch.tensor([1.0, 2.0, 4.0]))
    assert list(figure.data[0].y) == [40, 2, 1]
    assert "20 times the median, then 2 times" in figure.layout.title.text.replace("<br>", " ")


def test_a_mixture_has_a_row_a_layer():
    schemes = dict(zip(NAMES, ["uint2-row", "int8-row", "uint2-row", "int4-row"], strict=True))
    figure = quantization.mixture(schemes)
    assert [list(row) for row in figure.data[0].z] == [[2, 8], [2, 4]]
    assert list(figure.data[0].x) == ["query", "feed-forward out"]
    explorer = explorers.mixture_explorer(Mixed(bits=3.0), {n: (8, 8) for n in NAMES},
                                          [[1.0, 0.5, 0.0]] * 4)  # fmt: skip
    slider = explorer.children[1].children[0]
    told = explorer.children[2].value
    slider.value = 8.0
    assert "3.0 bits" in told and "8.0 bits</b>: a loss of 0 " in explorer.children[2].value


def test_what_stays_is_of_the_whole():
    figure = pruning.what_stays([{"heads": 3, "neurons": 16}], {"heads": 12, "neurons": 64})
    assert list(figure.data[0].y) == [25] and figure.data[1].marker.pattern.shape == "/"


def test_effort_counts_what_read_rows_too():
    runs = [
        made("ptq-4bit", 70.0, seconds=0.0, measures={"applied": {"rows": 0, "seconds": 0.4}}),
        made("gptq-4bit", 90.0, seconds=0.0, measures={"applied": {"rows": 512, "seconds": 60.0}}),
        made("xtc-1bit", 85.0, seconds=300.0),
    ]
    figure = training.effort(runs)
    points = {t.name: (list(t.x), list(t.y)) for t in figure.data}
    assert points["weights alone"] == ([0.4], [70.0])
    assert points["reads some rows"] == ([60.0], [90.0])
    assert points["trained"] == ([300.0], [85.0])
    assert "In 60 s gptq-4bit reaches 90.0" in figure.layout.title.text.replace("<br>", " ")
