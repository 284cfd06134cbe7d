"""The explorer's figure and sentence follow its controls."""

import pytest
import torch

widgets = pytest.importorskip("xtclib.widgets", exc_type=ImportError)
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


def test_without_anywidget(monkeypatch):
    monkeypatch.setattr(widgets.importlib.util, "find_spec", lambda name: None)
    view, controls, sentence = widgets.quantization_explorer(WEIGHTS, bits=8).children
    assert len(view.outputs) == 1
    controls.children[0].value = 3
    assert len(view.outputs) == 1 and "int3" in sentence.value
