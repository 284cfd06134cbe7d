"""The look of every figure: its template, and names that find room beside points and lines.

Colours are Okabe and Ito's, told apart with colour-blind eyes; marker shapes or dashes repeat what
a colour says. ``themed`` fits a figure to a light or a dark page; without it the greys are readable
on both.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
GREY = "#808080"
_INK = {None: "#767676", False: "#333333", True: "#dddddd"}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_HEIGHT = 320
_OFFSETS = (14, -14, 0, 28, -28, 42, -42, 56, -56, 70, -70)  # of a name above its point, in pixels
_ANCHORS = (("center", 0, 0.5), ("left", 1, 0.0), ("right", -1, 1.0))  # side, share left of it


def template(dark: bool | None = None) -> go.layout.Template:
    """The look of every figure, on a transparent ground.

    ``dark``: whether the page is; ``None`` takes greys that are readable on both.

    >>> template(True).layout.font.color, template().layout.paper_bgcolor
    ('#dddddd', 'rgba(0,0,0,0)')
    """
    ink, clear = _INK[dark], "rgba(0,0,0,0)"
    axis = {
        "automargin": True, "color": ink, "gridcolor": "rgba(128,128,128,0.25)", "linecolor": GREY,
        "showline": True, "ticks": "outside", "tickcolor": GREY, "zeroline": False,
        "title": {"standoff": 8, "font": {"size": 13}}, "tickfont": {"size": 12},
        "minor": {"showgrid": False},
    }  # fmt: skip
    return go.layout.Template(
        layout={
            "font": {"family": _FONT, "size": 13, "color": ink},
            "title": {
                "x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container",
                "yanchor": "top", "font": {"size": 15}, "pad": {"l": 10, "t": 22},
            },
            "paper_bgcolor": clear, "plot_bgcolor": clear, "colorway": COLOURS,
            "margin": {"l": 10, "r": 14, "t": 10, "b": 10}, "height": _HEIGHT, "autosize": True,
            "xaxis": axis, "yaxis": axis, "hoverlabel": {"align": "left"},
            "legend": {
                "orientation": "h", "x": 0, "xref": "container", "xanchor": "left", "y": 0,
                "yref": "container", "yanchor": "bottom", "font": {"size": 12},
            },
            "annotationdefaults": {"font": {"size": 12, "color": ink}},
        }
    )  # fmt: skip


def themed(figure: go.Figure, dark: bool | None = None) -> go.Figure:
    """A copy of a figure for a light (``False``) or dark (``True``) page.

    >>> themed(new_figure("It falls"), dark=True).layout.template.layout.font.color
    '#dddddd'
    """
    return go.Figure(figure).update_layout(template=template(dark))


def alt(figure: go.Figure) -> str:
    """A figure in words: its takeaway, then what stands on its axes.

    >>> alt(new_figure("It falls").update_xaxes(title_text="steps"))
    'It falls. Axes: steps.'
    """
    names = []
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        if axis.title.text and axis.title.text not in names:
            names.append(axis.title.text)
    axes = f" Axes: {'; '.join(names)}." if names else ""
    words = figure.layout.title.text.rstrip(".") + "." + axes
    return words.replace("<br>", " ").replace("\u00a0", " ")


def new_figure(
    title: str, height: int = _HEIGHT, panels: Mapping | None = None, above: int = 0
) -> go.Figure:
    """An empty figure under a wrapped title; ``above``: pixels the drawing needs on top of it."""
    figure = make_subplots(**panels) if panels else go.Figure()
    lines = textwrap.wrap(title.replace(" %", "\u00a0%"), 46)
    top = 34 + 20 * len(lines) + above
    return figure.update_layout(
        template=template(), title_text="<br>".join(lines), height=height + top, margin_t=top
    )


def marker_of(index: int, hollow: bool = False, size: int = 10) -> dict:
    """The ``index``-th shape and colour; shapes and colours repeat at different periods."""
    return {
        "symbol": SYMBOLS[index % len(SYMBOLS)] + ("-open" if hollow else ""),
        "color": COLOURS[index % len(COLOURS)], "size": size,
        "line": {"width": 2, "color": COLOURS[index % len(COLOURS)]} if hollow else {"width": 0},
    }  # fmt: skip


def line_of(index: int, **look: object) -> dict:
    """The ``index``-th colour and dash, with what else ``look`` says of a line.

    Every round of colours takes the dashes one place on: no two of 36 lines are alike.
    """
    dash = (index + index // len(COLOURS)) % len(DASHES)
    return {"color": COLOURS[index % len(COLOURS)], "dash": DASHES[dash], **look}


def whiskers(
    low: Iterable[float], middle: Sequence[float], high: Iterable[float], **look: object
) -> dict:
    """Error bars from ``low`` to ``high`` around ``middle``, a value a point each."""
    return {
        "type": "data", "symmetric": False, "thickness": 1.5, "width": 4,
        "array": [h - m for h, m in zip(high, middle, strict=True)],
        "arrayminus": [m - v for v, m in zip(low, middle, strict=True)], **look,
    }  # fmt: skip


def plain(value: float) -> str:
    """A number as people write it: three digits or more, none of them an exponent.

    >>> [plain(v) for v in (1310, 39, 6.388, 0.0263, 0)]
    ['1,310', '39.0', '6.39', '0.0263', '0']
    """
    places = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, places)}f}"


def label_bars(figure: go.Figure, texts: Mapping[str, str]) -> None:
    """The value of each horizontal bar, named as on the y axis, at the figure's right edge."""
    for name, text in texts.items():
        figure.add_annotation(x=1, xref="paper", y=name, text=text, showarrow=False,
                              xanchor="right", yanchor="middle")  # fmt: skip


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … inside a range; powers of ten alone if it is long."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]


def log_axis(values: Sequence[float], ticks: float = 1.0, room: float | None = None) -> dict:
    """A logarithmic axis for values, with ticks to a factor beyond them.

    ``room``: the factor by which the axis goes on beyond them; by default plotly's choice.
    """
    places = log_ticks(min(values) / ticks, max(values) * ticks)
    axis = {"type": "log", "tickvals": places, "ticktext": [f"{place:g}" for place in places]}
    if room:
        axis["range"] = [math.log10(min(values) / room), math.log10(max(values) * room)]
    return axis


def label_points(
    figure: go.Figure, points: Sequence[tuple[float, float, str]], height: int, axis: str = ""
) -> None:
    """Names beside points, moved apart so that they overlap at 400 px neither points nor names.

    A point without a name is room that no name takes.
    """
    width, line, letter = 320, 15, 6.2
    logs = [math.log10(p[0]) for p in points]
    left, right = min(logs) - math.log10(1.8), max(logs) + math.log10(1.8)
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    span = (high - low) or 1.0
    low, high = low - 0.22 * span, high + 0.22 * span
    figure.update_layout({f"yaxis{axis}": {"range": [low, high]}})
    spots = [
        ((x - left) / (right - left) * width, (p[1] - low) / (high - low) * height)
        for x, p in zip(logs, points, strict=True)
    ]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in spots]
    for (x, y), (_, value, name), log in zip(spots, points, logs, strict=True):
        if not name:
            continue
        wide = letter * len(name)
        options = []
        for up, (anchor, side, before) in itertools.product(_OFFSETS, _ANCHORS):
            if up == 0 and not side:
                continue
            shift = side * (9 if abs(up) < 10 else -4)
            start = x + shift - before * wide
            box = (start, y + up - line / 2, start + wide, y + up + line / 2)
            out = sum(max(0, v) for v in (-box[0], box[2] - width, -box[1], box[3] - height))
            cost = 20 * out + abs(up) + sum(_overlap(box, t) for t in taken)
            options.append((cost, up, anchor, shift, box))
        _, up, anchor, shift, box = min(options, key=lambda option: option[0])
        taken.append(box)
        far = abs(up) > 14  # then a line leads from the name to its point
        how = {"ax": shift, "ay": -up, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": GREY,
               "standoff": 6} if far else {"xshift": shift, "yshift": up}  # fmt: skip
        figure.add_annotation(
            x=log, y=value, xref=f"x{axis}", yref=f"y{axis}", text=name, xanchor=anchor,
            yanchor="middle", showarrow=far, font_size=12, **how,
        )  # fmt: skip


def _overlap(a: tuple, b: tuple) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def label_ends(
    figure: go.Figure, ends: Sequence[tuple[float, float, str]], x: float, gap: float,
    joined: bool = False,
) -> None:  # fmt: skip
    """Names right of lines' ends, spread so that none is nearer than ``gap`` to the next.

    ``joined``: by a thin line to an end that its name does not stand beside.
    """
    ends = sorted(ends, key=lambda e: e[1])
    heights, last = [e[1] for e in ends], max((e[0] for e in ends), default=x)
    for _ in range(60):
        for i in range(1, len(heights)):
            short = gap - (heights[i] - heights[i - 1])
            if short > 0:
                heights[i - 1] -= short / 2
                heights[i] += short / 2
    for (end, value, name), y in zip(ends, heights, strict=True):
        apart = joined and (abs(y - value) > gap / 4 or last - end > x - last)
        place: dict = {"x": x, "y": y, "showarrow": False}
        if apart:
            place = {"x": end, "y": value, "ax": x, "ay": y, "axref": "x", "ayref": "y",
                     "showarrow": True, "arrowhead": 0, "arrowwidth": 0.7, "arrowcolor": GREY,
                     "standoff": 5}  # fmt: skip
        figure.add_annotation(
            **place, text=name, xanchor="left", yanchor="middle", hovertext=f"{value:.1f} %"
        )
