"""Figures of what models cost, and of the published scores that the costs bought."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from xtclib.costs.breakdown import break_down
from xtclib.costs.claims import backbone_parameters
from xtclib.costs.latency import ComponentLatency
from xtclib.costs.parts import EMBEDDINGS, Breakdown, Part
from xtclib.costs.published import table
from xtclib.figures.style import (
    COLOURS,
    GREY,
    SYMBOLS,
    label_ends,
    label_points,
    line_of,
    log_ticks,
    marker_of,
    new_figure,
    plain,
)

# Patterns repeat what the colours say.
_LOOK = {
    "embeddings": ("#E69F00", ""),
    "bottleneck": ("#999999", "x"),
    "convolution": ("#999999", "."),
    "recurrent": ("#999999", "-"),
    "query, key, value": ("#0072B2", ""),
    "attention": ("#CC79A7", "/"),
    "attention output": ("#56B4E9", "\\"),
    "feed-forward": ("#D55E00", ""),
    "norm and residual": ("#009E73", "."),
    "pooler and head": ("#F0E442", "x"),
    "other": ("#999999", ""),
}
_IN_ONE = dict.fromkeys(EMBEDDINGS, "embeddings") | dict.fromkeys(
    ("pooler", "head"), "pooler and head"
)


def merged(sums: Mapping[str, float]) -> dict[str, float]:
    """Components as the figures show them: embeddings in one, pooler and head in one.

    >>> merged({"word embeddings": 2, "type embeddings": 1, "head": 4})
    {'embeddings': 3, 'pooler and head': 4}
    """
    found: dict[str, float] = {}
    for name, value in sums.items():
        name = _IN_ONE.get(name, name)
        found[name] = found.get(name, 0) + value
    return found


def shares(
    costs: Breakdown, latency: ComponentLatency | None = None, title: str | None = None
) -> go.Figure:
    """A bar each for parameters, operations, activations and time, cut into components."""
    bars = {
        f"parameters<br>{plain(costs.parameters / 1e6)} M": costs.by("component"),
        f"operations<br>{plain(costs.flops() / 1e9)} GFLOPs": costs.by("component", Part.flops),
        f"activations<br>{plain(costs.total('activations') * 4 / 1e6)} MB": costs.by(
            "component", "activations"
        ),
    }
    if latency is not None:
        bars[f"time<br>{plain(latency.whole)} ms"] = latency.components
    cut = [merged(parts) for parts in bars.values()]
    part = [{c: v / sum(p.values()) for c, v in p.items()} for p in cut]
    most = max(part[0], key=lambda name: part[0][name])
    title = title or (
        f"{costs.model}: the {most} layers hold {100 * part[0][most]:.0f} % of the parameters and "
        f"do {100 * part[1].get(most, 0):.0f} % of the operations"
    )
    figure = new_figure(title, 80 + 62 * len(bars))
    for component, (colour, pattern) in _LOOK.items():
        values = [100 * p.get(component, 0) for p in part]
        if max(values) < 0.05:
            continue
        figure.add_bar(
            y=list(bars), x=values, name=component, orientation="h",
            marker={"color": colour, "line": {"width": 1, "color": "rgba(255,255,255,0.7)"},
                    "pattern": {"shape": pattern, "fillmode": "overlay", "size": 6, "solidity": 0.2,
                                "fgcolor": "#ffffff"}},
            text=[f"{v:.0f} %" if v >= 7 else "" for v in values], textposition="inside",
            insidetextanchor="middle", textangle=0, textfont={"color": "#111111", "size": 12},
            hovertemplate=f"{component}: %{{x:.1f}} %<extra></extra>",
        )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.3, legend={"traceorder": "normal"})
    figure.update_xaxes(title_text=f"share, % (batch {costs.batch}, length {costs.length})",
                        range=[0, 100])  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(margin_b=96, height=figure.layout.height + 60)


def over_lengths(found: Sequence[Breakdown], title: str | None = None) -> go.Figure:
    """Each component's share of the operations as sequences grow; the crossing is marked."""
    lengths = [b.length for b in found]
    each = [merged(b.by("component", Part.flops)) for b in found]
    wanted = ("feed-forward", "query, key, value", "attention output", "attention")
    lines = {
        name: [100 * e.get(name, 0) / sum(e.values()) for e in each]
        for name in wanted
        if any(e.get(name) for e in each)
    }
    pairs = zip(lengths, *(lines.get(n, ()) for n in ("attention", "feed-forward")), strict=False)
    crossing = next((length for length, a, f in pairs if a >= f), None)
    title = title or (
        f"Attention costs more than feed-forward from length {crossing} on"
        if crossing
        else f"Up to length {lengths[-1]} the feed-forward layers cost most"
    )
    figure = new_figure(title, 330)
    for i, (name, values) in enumerate(lines.items()):
        figure.add_scatter(
            x=lengths, y=values, name=name, mode="lines+markers", showlegend=False,
            line=line_of(i), marker={"symbol": SYMBOLS[i], "size": 7},
            hovertemplate=f"{name}<br>%{{x}} tokens: %{{y:.1f}} %<extra></extra>",
        )  # fmt: skip
    if crossing:
        figure.add_vline(x=crossing, line={"color": GREY, "dash": "dot"})
    ends = [(lengths[-1], values[-1], name) for name, values in lines.items()]
    label_ends(figure, ends, x=math.log10(lengths[-1] * 1.15), gap=5)
    figure.update_xaxes(
        type="log", title_text="tokens in a sequence", tickvals=[16 * 4**i for i in range(5)],
        range=[math.log10(lengths[0] * 0.9), math.log10(lengths[-1] * 14)],
    )  # fmt: skip
    figure.update_yaxes(title_text="share of the operations, %", rangemode="tozero")
    return figure


def layers(costs: Breakdown, title: str | None = None) -> go.Figure:
    """Parameters and operations of every layer, and of what stands outside the layers."""
    panels = {"rows": 1, "cols": 2, "shared_yaxes": True, "horizontal_spacing": 0.06}
    figure = new_figure(title or _layer_takeaway(costs), 360, panels)
    prices: tuple = (("parameters", 1e6, "parameters, M"), (Part.flops, 1e9, "operations, GFLOPs"))
    for column, (price, scale, unit) in enumerate(prices, 1):
        sums = costs.by("layer", price)
        names = ["outside" if k is None else f"layer {k + 1}" for k in sums]
        figure.add_bar(
            y=names, x=[v / scale for v in sums.values()], orientation="h", row=1, col=column,
            marker={"color": [GREY if k is None else COLOURS[0] for k in sums]}, showlegend=False,
            hovertemplate="%{y}: %{x:,.3r}<extra></extra>",
        )  # fmt: skip
        figure.update_xaxes(title_text=unit, row=1, col=column)
    figure.update_yaxes(autorange="reversed", row=1, col=1)
    return figure


def _layer_takeaway(costs: Breakdown) -> str:
    outside = costs.by("layer").get(None, 0) / costs.parameters
    operations = [v for k, v in costs.by("layer", Part.flops).items() if k is not None]
    alike = "every layer does the same work" if len(set(operations)) == 1 else "layers differ"
    return f"{costs.model}: {alike}; {100 * outside:.0f} % of the weights are outside the layers"


def architectures(found: Iterable[Breakdown], title: str | None = None) -> go.Figure:
    """Parameters against operations, one point a model, on two logarithmic axes."""
    found = list(found)
    points = [(b.parameters / 1e6, math.log10(b.flops() / 1e9), b.model) for b in found]
    title = title or (
        "Fewer parameters need not mean fewer operations: sharing and small vocabularies"
    )
    figure = new_figure(title, 460)
    for i, (x, y, name) in enumerate(points):
        figure.add_scatter(
            x=[x], y=[y], mode="markers", marker=marker_of(i), showlegend=False, name=name,
            hovertemplate=f"{name}<br>%{{x:,.3r}} M, {plain(10**y)} GFLOPs<extra></extra>",
        )  # fmt: skip
    label_points(figure, points, 400)
    xs = [p[0] for p in points]
    figure.update_xaxes(
        type="log", title_text="parameters, M", tickvals=log_ticks(min(xs) / 2, 2 * max(xs)),
        range=[math.log10(min(xs) / 1.8), math.log10(max(xs) * 1.8)],
    )  # fmt: skip
    ticks = log_ticks(10 ** min(p[1] for p in points), 10 ** max(p[1] for p in points))
    figure.update_yaxes(
        title_text=f"GFLOPs at length {found[0].length}", tickvals=[math.log10(t) for t in ticks],
        ticktext=[f"{t:g}" for t in ticks],
    )  # fmt: skip
    return figure


def roofline(
    points: Mapping[str, tuple[float, float]], limits: Mapping[str, float], title: str | None = None
) -> go.Figure:
    """Reached GFLOP/s against operations a byte, under the two roofs of this machine.

    ``points``: name → (operations a byte, GFLOP/s); ``limits`` as ``latency.machine`` gives them.
    """
    ridge, xs = limits["ridge"], [x for x, _ in points.values()]
    title = title or (
        f"{sum(x < ridge for x in xs)} of {len(points)} stand left of the ridge at {ridge:.1f} "
        "operations a byte, where fewer bytes buy time"
    )
    figure = new_figure(title, 360)
    roof = [0.5 * min(ridge, *xs), ridge, 3 * max(ridge, *xs)]
    figure.add_scatter(
        x=roof, y=[min(limits["gbytes"] * x, limits["gflops"]) for x in roof], mode="lines",
        line={"color": GREY, "width": 3}, showlegend=False,
        hovertemplate="at most %{y:,.3r} GFLOP/s<extra></extra>",
    )  # fmt: skip
    for i, (name, (x, y)) in enumerate(points.items()):
        figure.add_scatter(
            x=[x], y=[y], mode="markers", marker=marker_of(i, size=11), name=name,
            hovertemplate=f"{name}<br>%{{x:,.3r}} operations a byte, %{{y:,.3r}} GFLOP/s"
            "<extra></extra>",
        )  # fmt: skip
    ys = [y for _, y in points.values()] + [limits["gflops"]]
    figure.update_xaxes(type="log", title_text="operations a byte moved", dtick=1)
    figure.update_yaxes(type="log", title_text="GFLOP/s", tickvals=log_ticks(min(ys) / 2, max(ys)))
    return figure.update_layout(margin_b=90, height=figure.layout.height + 30)


# What the figures' points are, as far as the catalogue has them.
_LAYERS = {12: "bert-base", 8: "bert-8-768", 6: "bert-6-768"}
_SAME = {"gpt-1": "openai-gpt", "theseus-6/768": "theseus-6l"}
_TWELVE = ("BinaryBERT", "TernaryBERT")


def glue_against_size(title: str | None = None) -> go.Figure:
    """The XTC paper's figure: GLUE score against size, and the sizes that the widths come to.

    Hollow: read off the figure. Filled, joined by a line: parameters × bits ÷ 8, for the layers and
    bits that the point has, scales not counted. MB, so the figure's 32 MiB stand at 33.6.
    """
    points: list[tuple] = []
    looks: dict[object, dict] = {}
    for row in cast(list[dict[str, Any]], table("glue_against_size")):
        layers = row["layers"] or (12 if str(row["system"]).startswith(_TWELVE) else 6)
        count = backbone_parameters(_LAYERS[layers])
        bits = row["weight_bits"] or 32
        shown = f"{row['system']}, {layers}L" + (f", {bits} bit" if bits < 32 else "")
        look = looks.setdefault(row["system"], marker_of(len(looks)))
        size = row["size_mib"] * 2**20 / 1e6
        points.append((shown, look, size, count * bits / 8e6, row["value"]))
    title = title or (
        "One or two bits a weight keep more score at a tenth of the size than fewer layers alone"
    )
    figure = new_figure(title, 430)
    _pairs(figure, points, "MB")
    figure.add_vline(x=100, line={"color": COLOURS[0], "width": 2})
    for x, anchor, text in ((92, "right", "← quantization"), (108, "left", "layer reduction →")):
        figure.add_annotation(
            x=math.log10(x), y=1, yref="y domain", xanchor=anchor, yanchor="top", text=text,
            showarrow=False, font={"color": COLOURS[0], "size": 12},
        )  # fmt: skip
    figure.update_xaxes(title_text="size, MB", tickvals=[5, 10, 20, 50, 100, 200, 500],
                        range=[math.log10(4), math.log10(700)])  # fmt: skip
    return _finish(figure, points, "GLUE score, mean of 8 tasks")


def glue_against_gflops(title: str | None = None) -> go.Figure:
    """GLUE score against operations, coloured and shaped by release, with our own count beside.

    Hollow: read off the figure. Filled, joined by a line: matrix products at length 128, a
    multiply-add as 2 (``CONVENTIONS["FLOPs"]``).
    """
    rows = table("glue_against_gflops")
    dates = sorted({str(row["release"]) for row in rows})
    colours = sample_colorscale(  # neither so dark nor so light that a page swallows it
        "Viridis", [0.15 + 0.75 * i / (len(dates) - 1) for i in range(len(dates))]
    )
    figure = new_figure(title or "Newer models reach the same score with fewer operations", 430)
    points = []
    for row in rows:
        at = dates.index(str(row["release"]))
        look = {"symbol": SYMBOLS[at], "color": colours[at], "size": 10, "line": {"width": 0}}
        name = str(row["system"]).lower().replace(" ", "-")
        computed = break_down(_SAME.get(name, name)).flops() / 1e9
        points.append((row["system"], look, row["gflops"], computed, row["value"]))
    _pairs(figure, points, "GFLOPs")
    for at, date in enumerate(dates):
        _entry(figure, date, {"symbol": SYMBOLS[at], "color": colours[at], "size": 10})
    figure.update_xaxes(title_text="GFLOPs", tickvals=[2, 5, 10, 20, 50, 100],
                        range=[math.log10(2), math.log10(130)])  # fmt: skip
    return _finish(figure, points, "GLUE score")


def _pairs(figure: go.Figure, points: Sequence[tuple], unit: str) -> None:
    """A hollow point where a figure has it, a filled one where it comes to, a line between."""
    for name, look, printed, computed, score in points:
        figure.add_scatter(
            x=[printed, computed], y=[score, score], mode="lines", hoverinfo="skip",
            line={"color": GREY, "width": 1}, showlegend=False,
        )  # fmt: skip
        hollow = {"symbol": f"{look['symbol']}-open", "line": {"width": 2, "color": look["color"]}}
        for x, marker, how in (
            (printed, look | hollow, "read off the figure"),
            (computed, look | {"size": 7}, "computed"),
        ):
            figure.add_scatter(
                x=[x], y=[score], mode="markers", marker=marker, name=name, showlegend=False,
                hovertemplate=f"{name}, {how}<br>%{{x:,.3r}} {unit}, %{{y}}<extra></extra>",
            )  # fmt: skip


def _entry(figure: go.Figure, name: str, marker: dict) -> None:
    """A line of the legend that stands for no single point."""
    figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=marker)


def _finish(figure: go.Figure, points: Sequence[tuple], score: str) -> go.Figure:
    """Names beside the hollow points, axes, and what hollow and filled mean."""
    named = [(x, y, name) for name, _, x, _, y in points]
    label_points(figure, [*named, *((x, y, "") for _, _, _, x, y in points)], 360)
    figure.update_xaxes(type="log")
    figure.update_yaxes(title_text=score)
    look = {"color": GREY, "size": 9, "line": {"width": 2}}
    for name, symbol in (("read off the figure", "circle-open"), ("computed here", "circle")):
        _entry(figure, name, {"symbol": symbol, **look})
    return figure.update_layout(margin_b=90, height=figure.layout.height + 40)
