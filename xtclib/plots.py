"""Figures: one look, one takeaway each, for light and dark pages and for narrow columns.

Every function takes plain data and returns a plotly ``Figure`` whose title says in a sentence what
there is to see. Colours are Okabe and Ito's, told apart with colour-blind eyes; marker shapes or
dashes repeat what a colour says. ``themed`` fits a figure to a light or a dark page; without it
the greys are readable on both.
"""

from __future__ import annotations

import csv
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from xtclib.quantizers import Scheme, quantize, relative_error
from xtclib.study import ROOT, Record

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
GREY = "#808080"
MIB = 2**20
_INK = {None: "#767676", False: "#333333", True: "#dddddd"}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_HEIGHT = 320


# Look


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

    >>> themed(layer_map(1, 2, [0, 2]), dark=True).layout.template.layout.font.color
    '#dddddd'
    """
    return go.Figure(figure).update_layout(template=template(dark))


def alt(figure: go.Figure) -> str:
    """A figure in words: its takeaway, then what stands on its axes.

    >>> alt(layer_map(1, 2, [0, 2]))
    'Each student layer learns from one layer of its 2-layer teacher.'
    """
    names = []
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        if axis.title.text and axis.title.text not in names:
            names.append(axis.title.text)
    axes = f" Axes: {'; '.join(names)}." if names else ""
    return (
        (figure.layout.title.text.rstrip(".") + "." + axes)
        .replace("<br>", " ")
        .replace("\u00a0", " ")
    )


def _figure(
    title: str, height: int = _HEIGHT, panels: Mapping | None = None, above: int = 0
) -> go.Figure:
    """An empty figure under a wrapped title; ``above``: pixels the drawing needs on top of it."""
    figure = make_subplots(**panels) if panels else go.Figure()
    lines = textwrap.wrap(title.replace(" %", "\u00a0%"), 46)
    top = 34 + 20 * len(lines) + above
    return figure.update_layout(
        template=template(), title_text="<br>".join(lines), height=height + top, margin_t=top
    )


def _marker(index: int, hollow: bool = False, size: int = 10) -> dict:
    """The ``index``-th shape and colour; shapes and colours repeat at different periods."""
    return {
        "symbol": SYMBOLS[index % len(SYMBOLS)] + ("-open" if hollow else ""),
        "color": COLOURS[index % len(COLOURS)], "size": size,
        "line": {"width": 2, "color": COLOURS[index % len(COLOURS)]} if hollow else {"width": 0},
    }  # fmt: skip


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … inside a range; powers of ten alone if it is long."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]


# Records


@dataclass(frozen=True)
class Group:
    """Records that differ in seed only: scores in percent, sizes in bytes.

    ``scores`` has one value a seed, the mean over ``tasks``; ``low`` and ``high`` are its range.
    """

    recipe: str
    budget: str
    scores: tuple[float, ...]
    bytes: float
    teacher: float
    teacher_bytes: float
    majority: float
    tasks: tuple[str, ...]

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.scores)

    @property
    def mean(self) -> float:
        """The mean score over seeds."""
        return mean(self.scores)

    @property
    def low(self) -> float:
        """The worst seed's score."""
        return min(self.scores)

    @property
    def high(self) -> float:
        """The best seed's score."""
        return max(self.scores)


def grouped(records: Iterable[Record]) -> list[Group]:
    """Records by recipe and budget, in order of appearance; a seed's score is its mean over tasks.

    Raises ``ValueError`` where there are none, where they mix profiles, and where a run lacks a
    task that another has: its mean would be of something else.

    >>> grouped([])
    Traceback (most recent call last):
    ValueError: received no records, expected at least one: run `make results`
    """
    records = list(records)
    if not records:
        raise ValueError("received no records, expected at least one: run `make results`")
    profiles = sorted({r.profile for r in records})
    if len(profiles) > 1:
        raise ValueError(f"received records of {', '.join(profiles)}, expected one profile")
    tasks = {r.task for r in records}
    runs: dict[tuple[str, str], dict[int, list[Record]]] = {}
    for r in records:
        runs.setdefault((r.recipe, r.budget), {}).setdefault(r.seed, []).append(r)
    found = []
    for (recipe, budget), seeds in runs.items():
        for seed, group in seeds.items():
            if sorted(r.task for r in group) != sorted(tasks):
                absent = sorted(tasks - {r.task for r in group}) or "none, but doubles others"
                raise ValueError(
                    f"{recipe}, budget {budget}, seed {seed} lacks {absent}: "
                    "choose tasks all have, by common(records)"
                )
        every = [r for group in seeds.values() for r in group]
        floors = [mean(m["score"] for m in r.majority.values()) for r in every]
        found.append(
            Group(
                recipe, budget, tuple(mean(r.score for r in group) for group in seeds.values()),
                mean(r.bytes for r in every), mean(r.teacher_score for r in every),
                mean(r.teacher_bytes for r in every), mean(floors), tuple(sorted(tasks)),
            )
        )  # fmt: skip
    return found


def common(records: Iterable[Record]) -> list[Record]:
    """The records of those tasks that every recipe, budget and seed among them has.

    >>> common([])
    []
    """
    records = list(records)
    runs: dict[tuple, set[str]] = {}
    for r in records:
        runs.setdefault((r.recipe, r.budget, r.seed), set()).add(r.task)
    shared = set.intersection(*runs.values()) if runs else set()
    return [r for r in records if r.task in shared]


def published(path: str | Path | None = None) -> list[dict[str, str]]:
    """The rows of ``data/published/xtc.csv``; its README says what the columns mean.

    >>> published()[0]["system"], published()[0]["value"]
    ('BERT-base', '84.2')
    """
    path = Path(path or ROOT / "data" / "published" / "xtc.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _names(groups: Sequence[Group]) -> list[str]:
    one = len({g.budget for g in groups}) == 1
    return [g.recipe if one else f"{g.recipe}, {g.budget}" for g in groups]


def _score_axis(groups: Sequence[Group]) -> str:
    tasks = groups[0].tasks
    return f"score on {tasks[0]}, %" if len(tasks) == 1 else f"mean score of {len(tasks)} tasks, %"


def _seeds(groups: Sequence[Group]) -> str:
    """What a bar spans, for an axis or a legend."""
    most = max(g.n for g in groups)
    return f"bars: range of {most} seeds" if most > 1 else "one seed"


def size_accuracy(
    records: Iterable[Record], published: Sequence[Mapping] | None = None, title: str | None = None
) -> go.Figure:
    """Size on disk (MB, 10⁶ bytes) against score, with the range over seeds, and the teacher.

    ``published``: rows as of ``plots.published()``; those with a size go, hollow, to a panel of
    their own, since they are counted sizes on other data. MiB there become MB here.
    """
    groups = grouped(records)
    best = min(groups, key=lambda g: (g.bytes, -g.mean))
    title = title or (
        f"{best.recipe}, the smallest, is {best.teacher_bytes / best.bytes:.0f} × smaller than its "
        f"teacher and scores {best.mean:.1f} against {best.teacher:.1f}"
    )
    others = [row for row in published or () if row["size_mb"] and row["task"] == "GLUE"]
    panels = {"rows": 2, "cols": 1, "vertical_spacing": 0.14} if others else None
    figure = _figure(title, 680 if others else 380, panels)
    at = {"row": 1, "col": 1} if others else {}
    for i, (group, name) in enumerate(zip(groups, _names(groups), strict=True)):
        figure.add_scatter(
            x=[group.bytes / 1e6], y=[group.mean], name=name, mode="markers", marker=_marker(i),
            error_y=_spread(group, COLOURS[i % len(COLOURS)]), showlegend=False,
            hovertemplate=f"{name}<br>%{{x:.3g}} MB, %{{y:.1f}} % (n = {group.n})<extra></extra>",
            **at,
        )  # fmt: skip
    teacher = (mean(g.teacher_bytes for g in groups), mean(g.teacher for g in groups))
    figure.add_scatter(
        x=[teacher[0] / 1e6], y=[teacher[1]], name="teacher", mode="markers", showlegend=False,
        marker={"symbol": "star", "size": 14, "color": GREY},
        hovertemplate="teacher<br>%{x:.3g} MB, %{y:.1f} %<extra></extra>", **at,
    )  # fmt: skip
    points = [(g.bytes / 1e6, g.mean, name) for g, name in zip(groups, _names(groups), strict=True)]
    _label_points(
        figure, [*points, (teacher[0] / 1e6, teacher[1], "teacher")], 270 if others else 320, ""
    )
    spread = _seeds(groups)
    _size_axis(figure, [p[0] for p in points] + [teacher[0] / 1e6], f"file on disk, MB ({spread})",
               at)  # fmt: skip
    figure.update_yaxes(title_text=_score_axis(groups), **at)
    if others:
        _published_panel(figure, others)
    return figure


def _published_panel(figure: go.Figure, rows: Sequence[Mapping]) -> None:
    systems = list(dict.fromkeys(row["system"] for row in rows))
    points = []
    for i, system in enumerate(systems):
        own = [row for row in rows if row["system"] == system]
        x = [float(row["size_mb"]) * MIB / 1e6 for row in own]
        y = [float(row["value"]) for row in own]
        figure.add_scatter(
            x=x, y=y, name=system, mode="markers", marker=_marker(i, hollow=True), row=2, col=1,
            showlegend=False, hovertemplate="%{x:.3g} MB, %{y:.1f} %",
        )  # fmt: skip
        for a, b, row in zip(x, y, own, strict=True):
            bits = f", {row['weight_bits']}-bit" if row["weight_bits"] != "32" else ""
            which = f" L{row['layers']}{bits}" if len(own) > 1 else ""
            points.append((a, b, system + which))
    _label_points(figure, points, 270, "2")
    _size_axis(figure, [p[0] for p in points], "published: parameters × bits, MB",
               {"row": 2, "col": 1})  # fmt: skip
    figure.update_yaxes(title_text="GLUE, mean of 8 tasks, %", row=2, col=1)


def _spread(group: Group, colour: str) -> dict | None:
    if group.n < 2:
        return None
    return {
        "type": "data", "symmetric": False, "array": [group.high - group.mean],
        "arrayminus": [group.mean - group.low], "color": colour, "thickness": 1.5, "width": 4,
    }  # fmt: skip


def _size_axis(figure: go.Figure, sizes: Sequence[float], title: str, at: dict) -> None:
    low, high = min(sizes) / 1.8, max(sizes) * 1.8
    ticks = _log_ticks(low, high)
    figure.update_xaxes(
        type="log", title_text=title, range=[math.log10(low), math.log10(high)], tickvals=ticks,
        ticktext=[f"{t:g}" for t in ticks], **at,
    )  # fmt: skip


def _label_points(
    figure: go.Figure, points: Sequence[tuple[float, float, str]], height: int, axis: str
) -> None:
    """Names beside points, moved apart so that they overlap at 400 px neither points nor names."""
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
        wide = letter * len(name)
        best = None
        for up, anchor in ((u, a) for u in _OFFSETS for a in ("center", "left", "right")):
            if up == 0 and anchor == "center":
                continue
            shift = {"center": 0, "left": 9 if abs(up) < 10 else -4, "right": -9 if abs(up) < 10
                     else 4}[anchor]  # fmt: skip
            start = x + shift - {"center": wide / 2, "left": 0, "right": wide}[anchor]
            box = (start, y + up - line / 2, start + wide, y + up + line / 2)
            out = max(0, -box[0]) + max(0, box[2] - width) + max(0, -box[1]) + max(
                0, box[3] - height)  # fmt: skip
            cost = 20 * out + abs(up) + sum(_overlap(box, t) for t in taken)
            if best is None or cost < best[0]:
                best = (cost, up, anchor, shift, box)
        _, up, anchor, shift, box = best
        taken.append(box)
        far = abs(up) > 14
        figure.add_annotation(
            x=log, y=value, xref=f"x{axis}", yref=f"y{axis}", text=name, xanchor=anchor,
            yanchor="middle", showarrow=far, font_size=12, **_leader(shift, up, far),
        )  # fmt: skip


def _leader(shift: float, up: float, line: bool) -> dict:
    """How a name stands off its point by these pixels, with or without a line between them."""
    if not line:
        return {"xshift": shift, "yshift": up}
    return {"ax": shift, "ay": -up, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": GREY,
            "standoff": 6}  # fmt: skip


_OFFSETS = (14, -14, 0, 28, -28, 42, -42, 56, -56, 70, -70)


def _overlap(a: tuple, b: tuple) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def bars(records: Iterable[Record], title: str | None = None) -> go.Figure:
    """Recipes against score, best on top: the mean as a bar, every seed as a dot.

    Lines mark the teacher and the majority class, a result below which nothing was learned.
    """
    groups = sorted(grouped(records), key=lambda g: g.mean)
    names = _names(groups)
    teacher, floor = mean(g.teacher for g in groups), mean(g.majority for g in groups)
    best = groups[-1]
    title = title or (
        f"{names[-1]} scores highest, {best.mean:.1f}, its teacher {teacher:.1f}; "
        f"always answering the most common label gives {floor:.1f}"
    )
    figure = _figure(title, 70 + 28 * len(groups), above=20)
    figure.add_bar(
        x=[g.mean for g in groups], y=names, orientation="h", name="mean", width=0.62,
        marker={"color": COLOURS[0], "opacity": 0.55}, showlegend=False,
        hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
    )  # fmt: skip
    dots = [(s, name) for g, name in zip(groups, names, strict=True) for s in g.scores]
    figure.add_scatter(
        x=[d[0] for d in dots], y=[d[1] for d in dots], mode="markers", name="seeds",
        marker={"symbol": "circle-open", "size": 8, "color": COLOURS[1], "line": {"width": 2}},
        showlegend=False, hovertemplate="%{y}: one seed, %{x:.1f} %<extra></extra>",
    )  # fmt: skip
    for g, name in zip(groups, names, strict=True):
        figure.add_annotation(
            x=1, xref="paper", y=name, text=f"{g.mean:.1f}", showarrow=False, xanchor="right",
            yanchor="middle",
        )  # fmt: skip
    # Close together, their labels would lie on each other: let them lean apart.
    lean = ("left", "right") if abs(teacher - floor) < 16 else ("center", "center")
    lean = lean if teacher >= floor else lean[::-1]
    marks = ((teacher, "teacher", "solid"), (floor, "majority", "dot"))
    for (value, name, dash), anchor in zip(marks, lean, strict=True):
        figure.add_vline(
            x=value, line={"color": GREY, "width": 1.5, "dash": dash}, annotation_text=name,
            annotation_position="top", annotation_xanchor=anchor,
        )  # fmt: skip
    label = f"{_score_axis(groups)} (circles: seeds)"
    figure.update_xaxes(title_text=label, range=[0, 116], tickvals=[0, 20, 40, 60, 80, 100])
    return figure.update_yaxes(showgrid=False, ticks="")


def budgets(records: Iterable[Record], title: str | None = None) -> go.Figure:
    """Training budget (A, B, C) against score, a line a recipe, with the range over seeds."""
    records = list(records)
    groups = grouped(records)
    order = sorted({g.budget for g in groups})
    recipes = list(dict.fromkeys(g.recipe for g in groups))
    lengths = {r.budget: _length(r.training_budget) for r in records}
    figure = _figure(title or _budget_takeaway(groups, recipes), 380)
    ends = []
    for i, recipe in enumerate(recipes):
        own = sorted((g for g in groups if g.recipe == recipe), key=lambda g: g.budget)
        x = [order.index(g.budget) + 0.04 * (i - (len(recipes) - 1) / 2) for g in own]
        figure.add_scatter(
            x=x, y=[g.mean for g in own], name=recipe, mode="lines+markers", marker=_marker(i),
            line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % len(DASHES)], "width": 2},
            error_y={
                "type": "data", "symmetric": False, "array": [g.high - g.mean for g in own],
                "arrayminus": [g.mean - g.low for g in own], "thickness": 1.5, "width": 4,
            },
            showlegend=False, customdata=[g.n for g in own],
            hovertemplate=f"{recipe}: %{{y:.1f}} % (n = %{{customdata}})<extra></extra>",
        )  # fmt: skip
        ends.append((x[-1], own[-1].mean, recipe))
    teacher = mean(g.teacher for g in groups)
    figure.add_shape(
        x0=-0.2, x1=len(order) - 0.95, y0=teacher, y1=teacher, line={"color": GREY, "width": 1.5}
    )
    ends.append((len(order) - 1, teacher, "teacher"))
    room = 0.09 * max(len(name) for *_, name in ends) * max(len(order) - 1, 1) / 2 + 0.3
    low, high = min(g.low for g in groups), max(teacher, *(g.high for g in groups))
    _label_ends(figure, ends, len(order) - 1 + 0.12, (high - low or 1.0) / 17)
    texts = [f"{b}<br>{lengths[b]}" if lengths[b] else b for b in order]
    figure.update_xaxes(
        title_text=f"training budget ({_seeds(groups)})", tickvals=list(range(len(order))),
        ticktext=texts, range=[-0.2, len(order) - 1 + room], showgrid=False,
    )  # fmt: skip
    return figure.update_yaxes(title_text=_score_axis(groups))


def _length(budget: Mapping) -> str:
    for unit in ("steps", "epochs"):
        if budget.get(unit):
            return f"{budget[unit]:g} {unit}"
    return ""


def _budget_takeaway(groups: Sequence[Group], recipes: Sequence[str]) -> str:
    gains = []
    for recipe in recipes:
        own = sorted((g for g in groups if g.recipe == recipe), key=lambda g: g.budget)
        if len(own) > 1:
            gains.append((own[-1].mean - own[0].mean, recipe, own[0].budget, own[-1].budget))
    if not gains:
        return "One budget: what a recipe reaches without a longer training"
    gain, recipe, first, last = max(gains)
    if gain <= 0:
        return "No recipe gains from a longer training here"
    return f"{recipe} gains most from training longer: {gain:+.1f} points from {first} to {last}"


def _label_ends(
    figure: go.Figure, ends: Sequence[tuple[float, float, str]], x: float, gap: float
) -> None:
    """Names right of lines' ends, spread so that none is nearer than ``gap`` to the next."""
    ends = sorted(ends, key=lambda e: e[1])
    heights = [e[1] for e in ends]
    for _ in range(60):
        for i in range(1, len(heights)):
            short = gap - (heights[i] - heights[i - 1])
            if short > 0:
                heights[i - 1] -= short / 2
                heights[i] += short / 2
    for (_, value, name), y in zip(ends, heights, strict=True):
        figure.add_annotation(
            x=x, y=y, text=name, showarrow=False, xanchor="left", yanchor="middle",
            hovertext=f"{value:.1f} %",
        )  # fmt: skip


_TERMS = {
    "loss": "sum", "loss_logits": "logits", "loss_hidden_states": "hidden states",
    "loss_attention_scores": "attention scores",
}  # fmt: skip


def loss_curves(records: Record | Iterable[Record], title: str | None = None) -> go.Figure:
    """The terms of the loss over optimizer steps, log axis; stages follow each other.

    Several records, of other seeds or recipes, are drawn thinner over each other, a colour a term.
    Raises ``ValueError`` where nothing was trained.
    """
    records = [records] if isinstance(records, Record) else list(records)
    lines: dict[str, list[tuple[Record, list, list]]] = {}
    borders, steps = {}, 0
    for record in records:
        offset, found = 0, {}
        for stage in record.stages:
            for entry in stage["losses"]:
                for term, value in entry.items():
                    if term != "step" and value > 0:
                        xs, ys = found.setdefault(term, ([], []))
                        xs.append(offset + entry["step"])
                        ys.append(value)
            for xs, ys in found.values():  # a gap between stages
                xs.append(None)
                ys.append(None)
            if offset:
                borders[offset] = stage["name"]
            offset += stage.get("steps") or max((e["step"] for e in stage["losses"]), default=0)
        for term, (xs, ys) in found.items():
            lines.setdefault(term, []).append((record, xs[:-1], ys[:-1]))
        steps = max(steps, offset)
    if not lines:
        raise ValueError("received no record with losses, expected one of a recipe that trains")
    order = [t for t in _TERMS if t in lines] + sorted(set(lines) - set(_TERMS))
    figure = _figure(title or _loss_takeaway(lines, order))
    for i, term in enumerate(order):
        name = _TERMS.get(term, term.removeprefix("loss_").replace("_", " "))
        for j, (record, xs, ys) in enumerate(lines[term]):
            marker = _marker(i, size=7) | {"maxdisplayed": 7}
            figure.add_scatter(
                x=xs, y=ys, name=name, legendgroup=term, showlegend=j == 0, mode="lines+markers",
                line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % len(DASHES)],
                      "width": 2.2 if len(records) == 1 else 1.2},
                marker=marker, opacity=1 if len(records) == 1 else 0.75,
                hovertemplate=f"{record.recipe}, seed {record.seed}<br>{name}: %{{y:.3g}} after "
                "%{x} steps<extra></extra>",
            )  # fmt: skip
    for offset, name in borders.items():
        figure.add_vline(x=offset, line={"color": GREY, "dash": "dot"}, annotation_text=name)
    figure.update_xaxes(title_text="optimizer steps", range=[0, steps * 1.03])
    values = [y for term in lines.values() for *_, ys in term for y in ys if y]
    ticks = _log_ticks(min(values) / 1.3, max(values) * 1.3)
    return figure.update_yaxes(
        title_text="loss, interval mean", type="log", tickvals=ticks,
        ticktext=[f"{t:g}" for t in ticks],
    )  # fmt: skip


def _loss_takeaway(lines: Mapping, order: Sequence[str]) -> str:
    falls = {}
    for term in order:
        if term == "loss" and len(order) > 1:
            continue
        ratio = median(ys[0] / ys[-1] for *_, ys in lines[term])
        falls[_TERMS.get(term, term.removeprefix("loss_").replace("_", " "))] = ratio
    name = max(falls, key=falls.get)
    if falls[name] <= 1:
        return "No term of the loss falls in this training"
    return f"The loss on {name} falls furthest, by a factor of {falls[name]:.1f}"


def latency(source: Iterable[Record] | Mapping, title: str | None = None) -> go.Figure:
    """Median forward time in ms with quartiles: of ``model_latency``'s dict, or of records.

    Records give a bar a recipe (the median over their runs) and one for the teacher; all must have
    been timed at the same batch, length, device and threads.
    """
    settings, times = _times(source)
    figure = _figure(title or _latency_takeaway(times), 90 + 34 * len(times))
    names = list(times)[::-1]
    rows = [times[name] for name in names]
    figure.add_bar(
        x=[t["median"] for t in rows], y=names, orientation="h", width=0.6, name="median",
        marker={"color": [GREY if n == "teacher" else COLOURS[0] for n in names], "opacity": 0.7},
        error_x={
            "type": "data", "symmetric": False, "array": [t["high"] - t["median"] for t in rows],
            "arrayminus": [t["median"] - t["low"] for t in rows], "color": COLOURS[1],
            "thickness": 2, "width": 5,
        },
        showlegend=False, hovertemplate="%{y}: %{x:.2f} ms<extra></extra>",
    )  # fmt: skip
    for name, t in zip(names, rows, strict=True):
        figure.add_annotation(
            x=1, xref="paper", y=name, text=f"{t['median']:.3g}", showarrow=False, xanchor="right",
            yanchor="middle",
        )  # fmt: skip
    batch, length, device, threads = settings
    figure.update_xaxes(
        title_text=f"ms a batch of {batch} × {length} tokens<br>{device}, {threads} "
        f"thread{'s' * (threads > 1)}; whiskers: quartiles",
        range=[0, 1.22 * max(t["high"] for t in rows)],
    )  # fmt: skip
    return figure.update_yaxes(showgrid=False, ticks="")


def _times(source: Iterable[Record] | Mapping) -> tuple[tuple, dict[str, dict[str, float]]]:
    fields = ("batch", "length", "device", "threads")
    if isinstance(source, Mapping):
        return tuple(source[f] for f in fields), dict(source["milliseconds"])
    records = list(source)
    if not records:
        raise ValueError("received no records, expected at least one: run `make results`")
    settings = {tuple(r.latency[f] for f in fields) for r in records}
    if len(settings) > 1:
        raise ValueError(f"received times of {sorted(settings)}, expected one (batch, length, …)")
    found: dict[str, list[dict]] = {}
    for r in records:
        found.setdefault("teacher", []).append(r.latency["milliseconds"]["teacher"])
    for r in records:
        found.setdefault(r.recipe, []).append(r.latency["milliseconds"]["student"])
    times = {
        name: {k: median(t[k] for t in runs) for k in ("low", "median", "high")}
        for name, runs in found.items()
    }
    return settings.pop(), times


def _latency_takeaway(times: Mapping[str, Mapping[str, float]]) -> str:
    name = min(times, key=lambda n: times[n]["median"])
    if "teacher" not in times or name == "teacher":
        return f"{name} is the fastest: {times[name]['median']:.3g} ms"
    ratio = times["teacher"]["median"] / times[name]["median"]
    return f"{name} is the fastest, {ratio:.1f} times as fast as its teacher"


# Tensors


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
    schemes = [schemes] if isinstance(schemes, (str, Scheme)) else list(schemes)
    schemes = [Scheme.parse(s) for s in schemes]
    weights = weights.detach().float().cpu()
    errors = [100 * relative_error(weights, s) for s in schemes]
    lowest = min(range(len(schemes)), key=errors.__getitem__)
    title = title or (
        f"{_short(schemes[lowest])} leaves {_level_count(schemes[lowest])} values and loses "
        f"{errors[lowest]:.2g} % of the weights' norm"
    )
    panels = {
        "rows": 2, "cols": 1, "shared_xaxes": True, "vertical_spacing": 0.04,
        "row_heights": [0.62, 0.38] if len(schemes) > 1 else [0.72, 0.28],
    }  # fmt: skip
    figure = _figure(title, 270 + 40 * len(schemes), panels)
    flat = weights.flatten()
    levels = [_levels(weights, s) for s in schemes]
    edge = 1.05 * max(_quantile(flat.abs(), 0.999), *(max(map(abs, v)) for v in levels))
    inside = flat[flat.abs() <= edge]
    counts = torch.histc(inside, 81, -edge, edge) / flat.numel() * 100
    step = 2 * edge / 81
    figure.add_bar(
        x=[-edge + (i + 0.5) * step for i in range(81)], y=counts.tolist(), width=step,
        marker={"color": GREY, "opacity": 0.6, "line": {"width": 0}}, name="weights",
        showlegend=False, hovertemplate="%{y:.2f} % around %{x:.3g}<extra></extra>", row=1, col=1,
    )  # fmt: skip
    for i, (scheme, values, error) in enumerate(zip(schemes, levels, errors, strict=True)):
        figure.add_scatter(
            x=values, y=[f"{_short(scheme)}<br>{error:.2g} %"] * len(values), mode="markers",
            marker=_marker(i, size=10 if len(values) < 20 else 6), name=str(scheme),
            showlegend=False, hovertemplate=f"{scheme}: %{{x:.4g}}<extra></extra>", row=2, col=1,
        )  # fmt: skip
    figure.update_xaxes(range=[-edge, edge])
    figure.update_xaxes(title_text="weight, and the values kept", row=2, col=1)
    figure.update_yaxes(title_text="% of weights", row=1, col=1)
    figure.update_yaxes(autorange="reversed", showgrid=True, ticks="", row=2, col=1)
    return figure


def _short(scheme: Scheme) -> str:
    return str(scheme).removesuffix("-tensor")


def _level_count(scheme: Scheme) -> int:
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
        g: [100 * relative_error(tensor, f"{name}-{g}") for name in names]
        for g in ("tensor", "row")
    }
    first, last = errors["tensor"][0], errors["tensor"][-1]
    figure = _figure(
        title
        or f"One bit loses {first:.0f} % of the norm, eight bits {last:.2g} %; beyond three "
        "each bit about halves it"
    )
    for i, (granularity, values) in enumerate(errors.items()):
        figure.add_scatter(
            x=bits, y=values, mode="lines+markers", marker=_marker(i), customdata=names,
            line={"color": COLOURS[i], "dash": DASHES[i], "width": 2},
            name=f"one scale a {granularity}",
            hovertemplate="%{customdata}: %{y:.3g} %<extra></extra>",
        )  # fmt: skip
    ends = [v for values in errors.values() for v in values]
    ticks = _log_ticks(min(ends) / 1.5, max(ends) * 1.5)
    figure.update_xaxes(title_text="bits a weight (1 binary, 2 ternary, then int)", tickvals=bits)
    return figure.update_yaxes(
        title_text="relative error, % of ‖w‖", type="log", tickvals=ticks,
        ticktext=[f"{t:g}" for t in ticks],
    )  # fmt: skip


def layer_map(
    student: int, teacher: int, mapping: Sequence[int], title: str | None = None
) -> go.Figure:
    """Which hidden state of the teacher each one of the student learns from.

    ``mapping`` as of ``distillation.layer_map``: ``student + 1`` teacher states, the embeddings'
    first. Raises ``ValueError`` for another length or a state the teacher does not have.

    >>> list(layer_map(2, 4, [0, 2, 4]).data[0].x)   # from student 0 to teacher 0, …
    [0.0, 0, None, 2.0, 2, None, 4.0, 4, None]
    """
    mapping = list(mapping)
    if len(mapping) != student + 1 or not all(0 <= m <= teacher for m in mapping):
        raise ValueError(
            f"received the map {mapping}, expected {student + 1} states, each 0 to {teacher}: the "
            "embeddings and then one for each student layer"
        )
    unused = sorted(set(range(1, teacher + 1)) - set(mapping))
    tail = "" if teacher in mapping else "; its last layer teaches nobody"
    what = f"Each student layer learns from one layer of its {teacher}-layer teacher{tail}."
    figure = _figure(title or what, 150)
    place = [i * teacher / student for i in range(student + 1)]
    figure.add_scatter(
        x=[v for i, m in enumerate(mapping) for v in (place[i], m, None)],
        y=[0, 1, None] * len(mapping), mode="lines", line={"color": COLOURS[1], "width": 2},
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    for x, y, name, i in (
        (list(range(teacher + 1)), 1, "teacher", 0), (place, 0, "student", 2),
    ):  # fmt: skip
        labels = ["E", *map(str, range(1, len(x)))]
        quiet = [y == 1 and s in unused for s in range(len(x))]
        figure.add_scatter(
            x=x, y=[y] * len(x), mode="markers+text", text=labels, name=name, showlegend=False,
            textfont={"color": "white", "size": 12},
            marker={"symbol": "square", "size": 22, "color": [GREY if q else COLOURS[i]
                                                              for q in quiet]},
            hovertemplate=f"{name}, state %{{text}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(visible=False, range=[-0.7, teacher + 0.7])
    return figure.update_yaxes(
        tickvals=[0, 1], ticktext=["student", "teacher"], range=[-0.45, 1.45], showgrid=False,
        showline=False, ticks="",
    )  # fmt: skip


def scores_heatmap(
    student_scores: Tensor, teacher_scores: Tensor, tokens: Sequence[str], title: str | None = None
) -> go.Figure:
    """Attention scores of teacher and student and their difference, as maps over tokens.

    Both of shape (tokens, tokens), queries down, keys across, on one colour scale; masked entries
    (below −10000 or infinite) stay empty.
    """
    student, teacher = (s.detach().float().cpu() for s in (student_scores, teacher_scores))
    n = len(tokens)
    if student.shape != (n, n) or teacher.shape != (n, n):
        raise ValueError(
            f"received scores {tuple(student.shape)} and {tuple(teacher.shape)} for {n} tokens, "
            f"expected ({n}, {n}): take one sentence and one head, and cut the padding"
        )
    seen = (student.abs() < 1e4) & (teacher.abs() < 1e4)
    gap = student - teacher
    off = float(gap[seen].square().mean().sqrt()) if seen.any() else math.nan
    title = title or f"Student and teacher scores differ by {off:.2g} (root mean square)"
    names = ["teacher", "student", "difference"]
    panels = {"rows": 1, "cols": 3, "horizontal_spacing": 0.03, "subplot_titles": names}
    figure = _figure(title, 340, panels | {"shared_yaxes": True}, above=20)
    both = torch.cat([student[seen], teacher[seen]])
    ends = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    widest = float(gap[seen].abs().max()) if len(both) else 1.0
    tick = float(f"{0.7 * widest:.1g}")
    for column, values in enumerate((teacher, student, gap), 1):
        shown = [[v if ok else None for v, ok in zip(*row, strict=True)]
                 for row in zip(values.tolist(), seen.tolist(), strict=True)]  # fmt: skip
        figure.add_heatmap(
            z=shown, coloraxis="coloraxis2" if column == 3 else "coloraxis", row=1, col=column,
            name=names[column - 1], customdata=[[f"{q} → {k}" for k in tokens] for q in tokens],
            hovertemplate="%{customdata}: %{z:.3g}<extra></extra>",
        )  # fmt: skip
    bar = {"orientation": "h", "y": -0.36, "yanchor": "top", "thickness": 10, "nticks": 4,
           "outlinewidth": 0, "title": {"side": "bottom"}}  # fmt: skip
    figure.update_layout(
        coloraxis={"colorscale": "Cividis", "cmin": ends[0], "cmax": ends[1],
                   "colorbar": bar | {"x": 0.32, "len": 0.6, "title_text": "score before softmax"}},
        coloraxis2={"colorscale": [[0, COLOURS[0]], [0.5, "#f2f2f2"], [1, COLOURS[1]]],
                    "cmin": -widest, "cmax": widest,
                    "colorbar": bar | {"x": 0.84, "len": 0.3, "tickvals": [-tick, 0, tick],
                                   "tickangle": 0,
                                   "title_text": "difference"}},
        margin_b=120,
    )  # fmt: skip
    places = {"tickvals": list(range(n)), "ticktext": list(tokens), "ticks": "", "showgrid": False,
              "showline": False}  # fmt: skip
    figure.update_xaxes(**places, tickangle=-90, tickfont_size=11)
    figure.update_yaxes(**places, autorange="reversed", tickfont_size=11)
    return figure


def ledger(rows: Sequence[Mapping], title: str | None = None) -> go.Figure:
    """What the bytes of an artefact go to, as nested areas; ``rows`` of ``artefact.ledger``.

    >>> figure = ledger([{"tensor": "bert.embeddings.word_embeddings.weight", "shape": (4, 2),
    ...                   "dtype": "uint8", "bytes": 8}])
    >>> figure.data[0].ids, figure.data[0].values
    (('file', 'embeddings', 'embeddings/word_embeddings.weight'), (8, 8, 8))
    """
    paths = {row["tensor"]: _place(row["tensor"]) for row in rows}
    sizes: dict[str, int] = {}
    notes: dict[str, str] = {}
    for row in rows:
        path = paths[row["tensor"]]
        parts = path.split("/")
        for key in ("file", *("/".join(parts[: i + 1]) for i in range(len(parts)))):
            sizes[key] = sizes.get(key, 0) + row["bytes"]
        notes[path] = f"{row['dtype']} {' × '.join(map(str, row['shape']))}"
    tops = [k for k in sizes if k != "file" and "/" not in k]
    largest = max(tops, key=sizes.__getitem__)
    title = (
        title
        or f"{100 * sizes[largest] / sizes['file']:.0f} % of the file's bytes are its {largest}"
    )
    figure = _figure(title, 360)
    colours = {top: COLOURS[i % len(COLOURS)] for i, top in enumerate(tops)}
    ids = ["file", *(k for k in sizes if k != "file")]
    figure.add_treemap(
        ids=ids, labels=["the file", *(k.split("/")[-1] for k in ids[1:])],
        parents=["", *(k.rpartition("/")[0] or "file" for k in ids[1:])],
        values=[sizes[k] for k in ids], branchvalues="total", tiling={"pad": 1},
        marker={"colors": ["rgba(128,128,128,0.25)", *(colours[k.split("/")[0]] for k in ids[1:])]},
        text=[_bytes(sizes[k]) for k in ids], textinfo="label+text",
        customdata=[notes.get(k, "") for k in ids], sort=True, root_color="rgba(0,0,0,0)",
        hovertemplate="%{id}<br>%{text} %{customdata}<extra></extra>", maxdepth=3,
        textfont={"size": 13}, pathbar={"thickness": 22},
    )  # fmt: skip
    return figure.update_layout(uniformtext={"minsize": 9, "mode": "hide"})


def _place(tensor: str) -> str:
    """Where a tensor belongs: ``layers/layer 3/attention.self.query.weight``."""
    match = re.search(r"\blayers?\.(\d+)\.(.+)", tensor)
    if match:
        return f"layers/layer {int(match[1]) + 1}/{match[2]}"
    for part in ("embeddings", "pooler", "classifier"):
        head, found, tail = tensor.partition(part + ".")
        if found:
            return f"{part}/{tail}"
    return tensor


def _bytes(size: float) -> str:
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"
