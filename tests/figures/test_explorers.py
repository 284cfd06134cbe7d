"""The explorers' figures and sentences follow their controls."""

import pytest
import torch
from transformers import BertConfig

widgets = pytest.importorskip("xtclib.figures.explorers", exc_type=ImportError)
WEIGHTS = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))


def test_default_state_is_a_finished_figure():
    figure, controls, sentence = widgets.quantization_explorer(WEIGHTS).children
    assert len(figure.data[1].x) == 3 and figure.layout.title.text
    assert [c.description for c in controls.children] == ["bits", "one scale a", "clip, % of max"]
    assert sentence.value.startswith("<b>ternary-tensor</b>: relative error 4")


def test_controls_redraw():
    figure, controls, sentence = widgets.quantization_explorer(WEIGHTS).children
    bits, groups, clip = controls.children
    bits.value = 4
    assert len(figure.data[1].x) == 15 and figure.data[1].y[0].startswith("int4<br>")
    assert "15 values" in figure.layout.title.text.replace("<br>", " ")
    groups.value = "row"
    assert figure.data[1].y[0].startswith("int4-row<br>")
    groups.value, clip.value = "tensor", 50
    assert max(figure.data[1].x) == pytest.approx(float(WEIGHTS.abs().max()) / 2)
    bits.value = 1
    assert len(figure.data[1].x) == 2 and sentence.value.endswith("1 bit a weight")


def without_anywidget(monkeypatch):
    """Hides that package alone: plotly finds its own templates in the same way."""
    find = widgets.importlib.util.find_spec
    monkeypatch.setattr(
        widgets.importlib.util, "find_spec",
        lambda name, *more: None if name == "anywidget" else find(name, *more),
    )  # fmt: skip


def test_without_anywidget(monkeypatch):
    without_anywidget(monkeypatch)
    view, controls, sentence = widgets.quantization_explorer(WEIGHTS, bits=8).children
    assert len(view.outputs) == 1
    controls.children[0].value = 3
    assert len(view.outputs) == 1 and "int3" in sentence.value


def test_breakdown_explorer_follows_its_sliders():
    figure, controls, sentence = widgets.breakdown_explorer(128, layers=2, width=128).children
    by_name = {control.description: control for control in controls.children}
    assert list(by_name) == ["length", "batch", "layers", "width", "vocabulary"]
    assert sentence.value.startswith("<b>4.4 M parameters, 0.11")
    before = {trace.name: list(trace.x) for trace in figure.data}
    by_name["length"].value = 4096
    after = {trace.name: list(trace.x) for trace in figure.data}
    assert after["attention"][1] > 80 > before["attention"][1]
    assert after["embeddings"][0] > before["embeddings"][0]  # positions up to 4096
    by_name["layers"].value = 4
    assert "GFLOPs" in sentence.value and "4.8 M" not in sentence.value


def test_breakdown_explorer_without_anywidget(monkeypatch):
    without_anywidget(monkeypatch)
    view, controls, sentence = widgets.breakdown_explorer(16, layers=1, width=64).children
    assert len(view.outputs) == 1
    controls.children[1].value = 4
    assert len(view.outputs) == 1 and sentence.value.startswith("<b>2.0 M")


@pytest.mark.slow
def test_size_explorer_plans_the_file():
    figure, controls, sentence = widgets.size_explorer(BertConfig(), layers=6).children
    by_name = {control.description: control for control in controls.children}
    assert list(by_name) == ["layers", "weights", "pooler", "positions", "length"]
    assert sentence.value.startswith("<b>9.4") and "46 × smaller" in sentence.value
    by_name["pooler"].value, by_name["length"].value = "1 bit", 128
    assert sentence.value.startswith("<b>8.6") and "51 × smaller" in sentence.value
    by_name["weights"].value = "ternary, 1.6 bits"
    before = figure.data[0].values[0]
    by_name["weights"].value = "ternary, 2 bits"
    assert figure.data[0].values[0] > 1.15 * before
