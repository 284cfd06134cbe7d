"""Figures of tensors and files: what a scheme leaves of weights, maps, and where the bytes go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from torch import Tensor

from xtclib.bert import PART_OF
from xtclib.figures.style import COLOURS, GREY, line_of, log_axis, marker_of, new_figure
from xtclib.techniques.quantization.quantizers import Scheme, quantize, relative_error


def quantization_curve(
    weights: Tensor, schemes: Scheme | str | Sequence[Scheme | str], title: str | None = None
) -> go.Figure:
    """A histogram of weights (any shape), and below it the values each scheme leaves of them.

    Where rows or groups have scales of their own, the levels of the one with the median scale are
    drawn. A scheme's name stands with its relative error ``‖w − ŵ‖ / ‖w‖`` in percent.

    >>> figure = quantization_curve(torch.tensor([[-1.0, -0.5, 0.5, 2.0]]), "binary")
    >>> list(figure.data[1].x), figure.data[1].y[0]
    ([-1.0, 1.0], 'binary<br>52 %')
    """
    given = [schemes] if isinstance(schemes, (str, Scheme)) else schemes
    kinds = [Scheme.parse(s) for s in given]
    weights = weights.detach().float().cpu()
    errors = [100 * relative_error(weights, s) for s in kinds]
    lowest = min(range(len(kinds)), key=errors.__getitem__)
    title = title or (
        f"{_short(kinds[lowest])} leaves {level_count(kinds[lowest])} values and loses "
        f"{errors[lowest]:.2g} % of the weights' norm"
    )
    panels = {
        "rows": 2, "cols": 1, "shared_xaxes": True, "vertical_spacing": 0.04,
        "row_heights": [0.62, 0.38] if len(kinds) > 1 else [0.72, 0.28],
    }  # fmt: skip
    figure = new_figure(title, 270 + 40 * len(kinds), panels)
    flat = weights.flatten()
    levels = [_levels(weights, s) for s in kinds]
    edge = 1.05 * max(_quantile(flat.abs(), 0.999), *(max(map(abs, v)) for v in levels))
    inside = flat[flat.abs() <= edge]
    counts = torch.histc(inside, 81, -edge, edge) / flat.numel() * 100
    step = 2 * edge / 81
    figure.add_bar(
        x=[-edge + (i + 0.5) * step for i in range(81)], y=counts.tolist(), width=step,
        marker={"color": GREY, "opacity": 0.6, "line": {"width": 0}}, name="weights",
        showlegend=False, hovertemplate="%{y:.2f} % around %{x:.3g}<extra></extra>", row=1, col=1,
    )  # fmt: skip
    for i, (scheme, values, error) in enumerate(zip(kinds, levels, errors, strict=True)):
        figure.add_scatter(
            x=values, y=[f"{_short(scheme)}<br>{error:.2g} %"] * len(values), mode="markers",
            marker=marker_of(i, size=10 if len(values) < 20 else 6), name=str(scheme),
            showlegend=False, hovertemplate=f"{scheme}: %{{x:.4g}}<extra></extra>", row=2, col=1,
        )  # fmt: skip
    figure.update_xaxes(range=[-edge, edge])
    figure.update_xaxes(title_text="weight, and the values kept", row=2, col=1)
    figure.update_yaxes(title_text="% of weights", row=1, col=1)
    figure.update_yaxes(autorange="reversed", showgrid=True, ticks="", row=2, col=1)
    return figure


def _short(scheme: Scheme) -> str:
    return str(scheme).removesuffix("-tensor")


def level_count(scheme: Scheme) -> int:
    """How many values a scheme has: 2, 3, or those from its lowest level to its highest."""
    low, high = scheme.levels
    return 2 if scheme.family == "binary" else high - low + 1


def _quantile(values: Tensor, q: float) -> float:
    """A quantile of a flat tensor of any length (``torch.quantile`` stops at 2²⁴ values)."""
    return float(values.kthvalue(max(1, math.ceil(q * values.numel()))).values)


def _levels(weights: Tensor, scheme: Scheme) -> list[float]:
    """The values a scheme can give, at the median of its scales."""
    found = quantize(weights, scheme)
    scales = found.scale.flatten()
    index = int(scales.argsort()[len(scales) // 2])
    low, high = scheme.levels
    codes = [-1, 1] if scheme.family == "binary" else range(low, high + 1)
    zero = 0.0 if found.zero_point is None else float(found.zero_point.flatten()[index])
    return [float(scales[index]) * (code - zero) for code in codes]


def error_by_bits(tensor: Tensor, title: str | None = None) -> go.Figure:
    """Relative error in percent against bits a weight, 1 to 8, with a scale a tensor and a row.

    One bit is binary, two ternary, more symmetric integers; ``tensor`` of shape (rows, columns).
    """
    tensor = tensor.detach().float().cpu()
    names = ["binary", "ternary", *(f"int{k}" for k in range(3, 9))]
    bits = list(range(1, 9))
    errors = {
        g: [100 * relative_error(tensor, f"{n}-{g}") for n in names] for g in ("tensor", "row")
    }
    first, last = errors["tensor"][0], errors["tensor"][-1]
    title = title or (
        f"One bit loses {first:.0f} % of the norm, eight bits {last:.2g} %; beyond three each bit "
        "about halves it"
    )
    figure = new_figure(title)
    for i, (granularity, values) in enumerate(errors.items()):
        figure.add_scatter(
            x=bits, y=values, mode="lines+markers", marker=marker_of(i), customdata=names,
            line=line_of(i, width=2), name=f"one scale a {granularity}",
            hovertemplate="%{customdata}: %{y:.3g} %<extra></extra>",
        )  # fmt: skip
    ends = [v for values in errors.values() for v in values]
    figure.update_xaxes(title_text="bits a weight (1 binary, 2 ternary, then int)", tickvals=bits)
    return figure.update_yaxes(title_text="relative error, % of ‖w‖", **log_axis(ends, 1.5))


def hessian(moment: Tensor, title: str | None = None, size: int = 48) -> go.Figure:
    """How the loudest inputs of a matrix go together: correlations of its first ``size``.

    ``moment``: ``E[x·xᵀ]`` (inputs, inputs), the Hessian that every row of the matrix shares.
    """
    loud = moment.diagonal().argsort(descending=True)[:size].sort().values
    block = moment[loud][:, loud].double()
    root = block.diagonal().clamp(min=1e-30).sqrt()
    shown = block / torch.outer(root, root)
    off = shown[~torch.eye(len(shown), dtype=torch.bool)].abs()
    told = f"Inputs go together: |r| is {float(off.mean()):.2f} in the mean, up to {off.max():.2f}"
    figure = new_figure(title or told, 360)
    figure.add_heatmap(
        z=shown.tolist(), zmin=-1, zmax=1, colorscale="RdBu", reversescale=True,
        colorbar={"title": "r", "thickness": 12},
        hovertemplate="inputs %{x} and %{y}: %{z:.2f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="input, of the loudest")
    return figure.update_yaxes(title_text="input", autorange="reversed")


def outliers(before: Tensor, after: Tensor, title: str | None = None) -> go.Figure:
    """The largest value of every input, loudest first, before and after smoothing: (inputs,)."""
    spread = [float(each.max() / each.median()) for each in (before, after)]
    told = f"The loudest input is {spread[0]:.0f} times the median, then {spread[1]:.0f} times"
    figure = new_figure(title or told, 280)
    for i, (name, values) in enumerate((("before", before), ("after", after))):
        ordered = values.sort(descending=True).values.tolist()
        figure.add_scatter(
            x=list(range(1, len(ordered) + 1)), y=ordered, name=name, mode="lines",
            line=line_of(i, width=2.5),
            hovertemplate=f"{name}, number %{{x}}: %{{y:.2f}}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(margin_b=90)
    figure.update_xaxes(title_text="inputs, loudest first", type="log")
    return figure.update_yaxes(title_text="max |x|", type="log")


def mixture(schemes: Mapping[str, str], title: str | None = None) -> go.Figure:
    """The bits of every matrix of an encoder, a row a layer: schemes by the matrices' names."""
    kinds = [Scheme.parse(text) for text in schemes.values()]
    rows: dict[str, dict[str, int]] = {}
    for name, kind in zip(schemes, kinds, strict=True):
        layer, _, inner = name.partition("layer.")[2].partition(".")
        what = PART_OF.get(inner.removesuffix(".linear"), inner)
        rows.setdefault(f"layer {int(layer) + 1}", {})[what] = kind.bits
    parts = list(next(iter(rows.values())))
    counts = {b: sum(k.bits == b for k in kinds) for b in sorted({k.bits for k in kinds})}
    told = ", ".join(f"{n} of {b} bits" for b, n in counts.items())
    figure = new_figure(title or f"Of {len(kinds)} matrices: {told}", 60 + 34 * len(rows))
    z = [[row[part] for part in parts] for row in rows.values()]
    figure.add_heatmap(
        z=z, x=parts, y=list(rows), text=z, texttemplate="%{text}", showscale=False,
        colorscale=[[0, "rgba(0,114,178,0.15)"], [1, COLOURS[0]]],
        hovertemplate="%{y}, %{x}: %{z} bits<extra></extra>", xgap=2, ygap=2,
    )  # fmt: skip
    return figure.update_yaxes(autorange="reversed")
