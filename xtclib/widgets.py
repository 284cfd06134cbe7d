"""Explorers for notebooks: a figure with controls under it, readable before one is touched."""

from __future__ import annotations

import importlib.util

import ipywidgets as ui
import plotly.graph_objects as go
from torch import Tensor

from xtclib import plots
from xtclib.quantizers import Scheme, relative_error

_FAMILIES = {1: "binary", 2: "ternary"}


def scheme(bits: int, granularity: str = "tensor", clip: float | None = None) -> Scheme:
    """Binary for 1 bit, ternary for 2, symmetric integers for 3 to 8.

    >>> str(scheme(1)), str(scheme(4, "row")), scheme(2, clip=2.5).clip
    ('binary-tensor', 'int4-row', 2.5)
    """
    return Scheme(_FAMILIES.get(bits, "int"), bits, granularity, clip=clip)


def quantization_explorer(tensor: Tensor, bits: int = 2) -> ui.VBox:
    """A weight (rows, columns) under sliders for bits, granularity and clip.

    Clip is a share of the largest magnitude: at 100 % nothing is cut, below it everything larger
    is, before the scale is chosen. The figure is a ``FigureWidget`` where ``anywidget`` is
    installed; elsewhere it is drawn anew. ``.children`` are figure, controls and a sentence.

    >>> import torch
    >>> explorer = quantization_explorer(torch.eye(4) - 0.5)
    >>> explorer.children[-1].value
    '<b>ternary-tensor</b>: relative error 0 %, 2 bits a weight'
    """
    tensor = tensor.detach().float().cpu()
    largest = float(tensor.abs().max())
    slider = ui.IntSlider(bits, min=1, max=8, description="bits", continuous_update=False)
    groups = ui.Dropdown(options=["tensor", "row"], description="one scale a")
    cut = ui.IntSlider(
        100, min=10, max=100, step=5, description="clip, % of max", continuous_update=False
    )
    for control in (slider, groups, cut):
        control.style.description_width = "7em"
    sentence = ui.HTML()

    def chosen() -> Scheme:
        clip = None if cut.value == 100 else largest * cut.value / 100
        return scheme(slider.value, groups.value, clip)

    def describe() -> None:
        error = 100 * relative_error(tensor, chosen())
        sentence.value = (
            f"<b>{chosen()}</b>: relative error {error:.3g} %, {slider.value} bit"
            f"{'s' * (slider.value > 1)} a weight"
        )

    figure = plots.quantization_curve(tensor, chosen())
    if importlib.util.find_spec("anywidget"):
        view = go.FigureWidget(figure)

        def draw(*_) -> None:
            new = plots.quantization_curve(tensor, chosen())
            with view.batch_update():
                for old, trace in zip(view.data, new.data, strict=True):
                    old.update(trace, overwrite=True)
                view.update_layout(title_text=new.layout.title.text, xaxis=new.layout.xaxis,
                                   xaxis2=new.layout.xaxis2)  # fmt: skip
            describe()

    else:
        view = ui.Output()

        def draw(*_) -> None:
            view.outputs = ()
            view.append_display_data(plots.quantization_curve(tensor, chosen()))
            describe()

        draw()
    for control in (slider, groups, cut):
        control.observe(draw, "value")
    describe()
    return ui.VBox([view, ui.VBox([slider, groups, cut]), sentence])
