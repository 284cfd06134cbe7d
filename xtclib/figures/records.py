"""Figures of records: recipes by size, score and time, as pictures and as a table.

Every figure function takes plain data and returns a plotly ``Figure`` whose title says in a
sentence what there is to see.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from statistics import mean, median
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from xtclib.costs.published import Row, table
from xtclib.figures.style import (
    COLOURS,
    GREY,
    label_bars,
    label_points,
    log_axis,
    marker_of,
    new_figure,
    plain,
    whiskers,
)
from xtclib.recipes import recipe as recipes
from xtclib.records import Group, Record, grouped
from xtclib.study import pareto
from xtclib.study.pareto import Point

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

FAMILIES = {"quantized": "fewer bits", "pruned": "weights removed", "shaped": "another shape",
            "factorized": "thinner matrices", "apart": "texts read apart",
            "shared": "layers of one set of weights", "words": "smaller word tables",
            "dynamic": "less for easy rows"}  # fmt: skip


def published() -> list[Row]:
    """The published points of GLUE score against size, as ``size_accuracy`` takes them.

    >>> published()[0]["system"], published()[0]["value"]
    ('XTC-BERT*', 81.8)
    """
    return table("glue_against_size")


def _names(groups: Sequence[Group]) -> list[str]:
    one = len({g.budget for g in groups if g.trained}) <= 1
    return [g.recipe if one or not g.trained else f"{g.recipe}, {g.budget}" for g in groups]


def score_axis(groups: Sequence[Group]) -> str:
    """What the scores of groups are, for an axis."""
    tasks = groups[0].tasks
    return f"score on {tasks[0]}, %" if len(tasks) == 1 else f"mean score of {len(tasks)} tasks, %"


def seeds_told(groups: Sequence[Group]) -> str:
    """What a bar spans, for an axis or a legend."""
    most = max(g.n for g in groups)
    return f"bars: range of {most} seeds" if most > 1 else "one seed"


def size_accuracy(
    records: Iterable[Record], published: Sequence[Mapping] | None = None, title: str | None = None
) -> go.Figure:
    """Size on disk (MB, 10⁶ bytes) against score, with the range over seeds, and the teacher.

    ``published``: rows as of :func:`published`; those with a size go, hollow, to a panel of their
    own, since they are counted sizes on other data. MiB there become MB here.
    """
    groups = grouped(records)
    names = _names(groups)
    best = min(groups, key=lambda g: (g.bytes, -g.mean))
    title = title or (
        f"{best.recipe}, the smallest, is {best.teacher_bytes / best.bytes:.0f} × smaller than its "
        f"teacher and scores {best.mean:.1f} against {best.teacher:.1f}"
    )
    others = [row for row in published or () if row.get("size_mib") and row["task"] == "GLUE"]
    panels = {"rows": 2, "cols": 1, "vertical_spacing": 0.14} if others else None
    figure = new_figure(title, 680 if others else 380, panels)
    at = {"row": 1, "col": 1} if others else {}
    points = []
    for i, (g, name) in enumerate(zip(groups, names, strict=True)):
        bars = whiskers([g.low], [g.mean], [g.high], color=COLOURS[i % len(COLOURS)])
        figure.add_scatter(
            x=[g.bytes / 1e6], y=[g.mean], name=name, mode="markers", marker=marker_of(i),
            error_y=bars if g.n > 1 else None, showlegend=False,
            hovertemplate=f"{name}<br>%{{x:,.3r}} MB, %{{y:.1f}} % (n = {g.n})<extra></extra>",
            **at,
        )  # fmt: skip
        points.append((g.bytes / 1e6, g.mean, name))
    size, score = mean(g.teacher_bytes for g in groups) / 1e6, mean(g.teacher for g in groups)
    figure.add_scatter(
        x=[size], y=[score], name="teacher", mode="markers", showlegend=False,
        marker={"symbol": "star", "size": 14, "color": GREY},
        hovertemplate="teacher<br>%{x:,.3r} MB, %{y:.1f} %<extra></extra>", **at,
    )  # fmt: skip
    points.append((size, score, "teacher"))
    label = f"file on disk, MB ({seeds_told(groups)})"
    _finish_panel(figure, points, 270 if others else 320, at, label, score_axis(groups))
    if others:
        _published_panel(figure, others)
    return figure


def _published_panel(figure: go.Figure, rows: Sequence[Mapping]) -> None:
    points = []
    for i, system in enumerate(dict.fromkeys(row["system"] for row in rows)):
        own = [row for row in rows if row["system"] == system]
        x = [row["size_mib"] * 2**20 / 1e6 for row in own]
        y = [row["value"] for row in own]
        figure.add_scatter(
            x=x, y=y, name=system, mode="markers", marker=marker_of(i, hollow=True), row=2, col=1,
            showlegend=False, hovertemplate="%{x:,.3r} MB, %{y:.1f} %",
        )  # fmt: skip
        for a, b, row in zip(x, y, own, strict=True):
            bits = f", {row['weight_bits']}-bit" if row["weight_bits"] != 32 else ""
            which = f" L{row['layers']}{bits}" if len(own) > 1 else ""
            points.append((a, b, system + which))
    _finish_panel(figure, points, 270, {"row": 2, "col": 1}, "published: parameters × bits, MB",
                  "GLUE, mean of 8 tasks, %")  # fmt: skip


def _finish_panel(
    figure: go.Figure, points: Sequence[tuple], height: int, at: dict, x: str, y: str
) -> None:
    """Names beside the points of sizes against scores, and the panel's axes."""
    label_points(figure, points, height, "2" if at.get("row") == 2 else "")
    figure.update_xaxes(title_text=x, **log_axis([p[0] for p in points], 1.8, 1.8), **at)
    figure.update_yaxes(title_text=y, **at)


def comparison(records: Iterable[Record]) -> Styler:
    """Recipes as a table under their teacher, best first; the best of each column is bold.

    The score's range over seeds; the file in MB, 10⁶ bytes; a forward pass's time and operations as
    shares of the teacher's, medians over seeds. ``.data`` is the `pandas.DataFrame`.
    """
    import pandas

    records = list(records)
    groups = sorted(grouped(records), key=lambda g: -g.mean)
    size, top = groups[0].teacher_bytes / 1e6, mean(g.teacher for g in groups)
    rows: dict[str, list] = {"teacher": [top, "", 0.0, size, 1.0, 1.0, 1.0, ""]}
    for g, name in zip(groups, _names(groups), strict=True):
        own = runs_of(records, g)
        work = median(r.flops / (r.teacher_flops or math.nan) for r in own)
        spread = f"{g.low:.1f} to {g.high:.1f}" if g.n > 1 else ""
        rows[name] = [g.mean, spread, g.mean - g.teacher, g.bytes / 1e6,
                      g.teacher_bytes / g.bytes, _share(own), work, str(g.n)]  # fmt: skip
    columns = ["score, %", "range", "to teacher", "file, MB", "× smaller", "time / teacher's",
               "FLOPs / teacher's", "seeds"]  # fmt: skip
    frame = pandas.DataFrame.from_dict(rows, orient="index", columns=columns)
    digits = dict(zip(columns, ("{:.1f}", None, "{:+.1f}", "{:.2f}", "{:.1f}", "{:.2f}", "{:.2f}",
                                None), strict=True))  # fmt: skip
    styled = frame.style.format(digits, escape="html", na_rep="–").format_index(escape="html")
    bold = {"axis": 0, "props": "font-weight: bold"}
    least = ["file, MB", "time / teacher's", "FLOPs / teacher's"]
    room = {"selector": "td", "props": "white-space: nowrap; padding-right: 1em"}
    styled = styled.set_table_styles([room])
    styled = styled.highlight_max(subset=(frame.index[1:], ["score, %", "× smaller"]), **bold)
    return styled.highlight_min(subset=(frame.index[1:], least), **bold)


def runs_of(records: Iterable[Record], group: Group) -> list[Record]:
    """The records that a group is the mean of."""
    return [r for r in records if (r.recipe, r.budget) == (group.recipe, group.budget)]


def _share(records: Iterable[Record]) -> float:
    """The students' time over their teachers', median over records; NaN where none was timed."""
    times = [r.latency["milliseconds"] for r in records if r.latency]
    return median([t["student"]["median"] / t["teacher"]["median"] for t in times] or [math.nan])


def benchmark(records: Iterable[Record], title: str | None = None) -> go.Figure:
    """Size (MB) against score against time: a point a recipe, its area the time of a forward pass.

    A colour and shape for each family; faint is what another recipe beats in all three. A line
    joins what none beats in size and score at once; these are named, the others under the pointer.
    """
    return tradeoffs(pareto.points(records), title)


def tradeoffs(points: Sequence[Point], title: str | None = None) -> go.Figure:
    """The same of points, as :func:`xtclib.study.pareto.points` makes them."""
    groups = [point.group for point in points]
    names = _names(groups)
    figure = new_figure(title or takeaway(groups), 420, above=16)
    front = {id(point) for point in pareto.front(points)}
    line = {id(point) for point in pareto.front(points, ("score", "bytes"))}
    unbeaten = [(p.group.bytes / 1e6, p.group.mean, name) for p, name in
                zip(points, names, strict=True) if id(p) in line]  # fmt: skip
    figure.add_scatter(
        x=[p[0] for p in unbeaten], y=[p[1] for p in unbeaten], mode="lines", hoverinfo="skip",
        line={"color": GREY, "width": 1, "dash": "dot", "shape": "hv"}, showlegend=False,
    )  # fmt: skip
    for i, (family, words) in enumerate(FAMILIES.items()):
        own = [(p, n) for p, n in zip(points, names, strict=True)
               if family_of(p.group.recipe) == family]  # fmt: skip
        if not own:
            continue
        own.sort(key=lambda each: id(each[0]) not in front)  # a legend shows the first
        faint = [0.85 if id(p) in front else 0.3 for p, _ in own]
        marker = marker_of(i) | {"size": [diameter(p.time) for p, _ in own], "opacity": faint}
        figure.add_scatter(
            x=[p.group.bytes / 1e6 for p, _ in own], y=[p.group.mean for p, _ in own], name=words,
            mode="markers", marker=marker,
            customdata=about_points([p for p, _ in own]),
            hovertemplate="%{customdata[0]}<br>%{x:,.3r} MB, %{y:.1f} % (n = %{customdata[2]}), "
            "%{customdata[1]:.2f} of the teacher's time<extra></extra>",
        )  # fmt: skip
    size, top = groups[0].teacher_bytes / 1e6, mean(g.teacher for g in groups)
    star = {"symbol": "star", "size": diameter(1), "color": GREY}
    figure.add_scatter(x=[size], y=[top], mode="markers", marker=star, showlegend=False,
                       hovertemplate="teacher: %{x:.3r} MB, %{y:.1f} %<extra></extra>")  # fmt: skip
    shown = [*unbeaten, (size, top, "teacher"), *((g.bytes / 1e6, g.mean, "") for g in groups)]
    _finish_panel(figure, shown, 330, {}, "file on disk, MB; areas: time of a forward pass",
                  score_axis(groups))  # fmt: skip
    return figure.update_layout(legend={"itemsizing": "constant"})


def about_points(points: Iterable[Point]) -> list[list]:
    """What a pointer shows of each: name, time, seeds, recipe and budget."""
    return [[f"{p.group.recipe}, {p.group.budget}", p.time, p.group.n, p.group.recipe,
             p.group.budget] for p in points]  # fmt: skip


def diameter(share: float) -> float:
    """Of a circle whose area is a time, as a share of the teacher's; small where it is unknown."""
    return 16 * math.sqrt(share) if share > 0 else 6.0


@cache
def family_of(recipe: str) -> str:
    """A built-in recipe's family; one from somebody's own file counts with the quantized.

    >>> family_of("pkd-6l"), family_of("mine")
    ('shaped', 'quantized')
    """
    try:
        return recipes.load(recipe).family
    except ValueError:
        return "quantized"


def takeaway(groups: Sequence[Group]) -> str:
    """The smallest within five points of its teacher, in a sentence."""
    near = [g for g in groups if g.mean >= g.teacher - 5] or [max(groups, key=lambda g: g.mean)]
    best = min(near, key=lambda g: g.bytes)
    apart, where = best.mean - best.teacher, "ahead" if best.mean > best.teacher else "behind"
    smaller = f"{best.recipe} is {best.teacher_bytes / best.bytes:.0f} × smaller than its teacher"
    return f"{smaller} and {abs(apart):.1f} points {where}"


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
    figure = new_figure(title, 70 + 28 * len(groups), above=20)
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
    label_bars(figure, {name: f"{g.mean:.1f}" for g, name in zip(groups, names, strict=True)})
    # Close together, their labels would lie on each other: let them lean apart.
    lean = ("left", "right") if abs(teacher - floor) < 16 else ("center", "center")
    lean = lean if teacher >= floor else lean[::-1]
    marks = ((teacher, "teacher", "solid"), (floor, "majority", "dot"))
    for (value, name, dash), anchor in zip(marks, lean, strict=True):
        figure.add_vline(
            x=value, line={"color": GREY, "width": 1.5, "dash": dash}, annotation_text=name,
            annotation_position="top", annotation_xanchor=anchor,
        )  # fmt: skip
    label = f"{score_axis(groups)} (circles: seeds)"
    figure.update_xaxes(title_text=label, range=[0, 122], tickvals=[0, 20, 40, 60, 80, 100])
    return figure.update_yaxes(showgrid=False, ticks="")


def conditions(found: Mapping[str, Iterable[Record]], title: str | None = None) -> go.Figure:
    """The same recipes under several conditions, a row each: means, ranges over seeds, teachers.

    ``found``: records by the words for their condition, first on top.
    """
    groups = {words: grouped(records) for words, records in found.items()}
    recipes_ = list(dict.fromkeys(g.recipe for some in groups.values() for g in some))
    figure = new_figure(title or _conditions_takeaway(groups), 110 + 62 * len(groups), above=16)
    rows = {words: len(groups) - 1 - i for i, words in enumerate(groups)}
    for i, name in enumerate(recipes_):
        own = {words: g for words, some in groups.items() for g in some if g.recipe == name}
        lean = 0.16 * ((len(recipes_) - 1) / 2 - i)
        ends = zip(*((g.low, g.mean, g.high) for g in own.values()), strict=True)
        figure.add_scatter(
            x=[g.mean for g in own.values()], y=[rows[words] + lean for words in own], name=name,
            mode="markers", marker=marker_of(i), error_x=whiskers(*ends, color=COLOURS[i]),
            customdata=[g.n for g in own.values()],
            hovertemplate=f"{name}: %{{x:.1f}} % (n = %{{customdata}})<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=[mean(g.teacher for g in some) for some in groups.values()], y=list(rows.values()),
        mode="markers", marker={"symbol": "star", "size": 13, "color": GREY}, name="its teacher",
        hovertemplate="teacher: %{x:.1f} %<extra></extra>",
    )  # fmt: skip
    every = [g for some in groups.values() for g in some]
    figure.update_xaxes(title_text=f"score, % ({seeds_told(every)})")
    return figure.update_yaxes(tickvals=list(rows.values()), ticktext=list(rows), ticks="",
                               range=[-0.6, len(groups) - 0.4])  # fmt: skip


def _conditions_takeaway(groups: Mapping[str, Sequence[Group]]) -> str:
    apart = {words: max(g.mean for g in some) - min(g.mean for g in some)
             for words, some in groups.items()}  # fmt: skip
    words = max(apart, key=lambda name: apart[name])
    best = max(groups[words], key=lambda g: g.mean).recipe
    return f"{best} is furthest ahead with {words}: by {apart[words]:.1f} points"


def latency(source: Iterable[Record] | Mapping, title: str | None = None) -> go.Figure:
    """Median forward time in ms with quartiles: of ``model_latency``'s dict, or of records.

    Records give a bar a recipe (the median over their runs) and one for the teacher; all must have
    been timed at the same batch, length, device and threads.
    """
    settings, times = _times(source)
    figure = new_figure(title or _latency_takeaway(times), 90 + 34 * len(times))
    names = list(times)[::-1]
    rows = [times[name] for name in names]
    figure.add_bar(
        x=[t["median"] for t in rows], y=names, orientation="h", width=0.6, name="median",
        marker={"color": [GREY if n == "teacher" else COLOURS[0] for n in names], "opacity": 0.7},
        error_x=whiskers(*([t[k] for t in rows] for k in ("low", "median", "high")),
                         color=COLOURS[1], thickness=2, width=5),
        showlegend=False, hovertemplate="%{y}: %{x:.2f} ms<extra></extra>",
    )  # fmt: skip
    label_bars(figure, {name: plain(times[name]["median"]) for name in names})
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
        found.setdefault(r.recipe, []).append(r.latency["milliseconds"]["student"])
    times = {
        name: {k: median(t[k] for t in runs) for k in ("low", "median", "high")}
        for name, runs in found.items()
    }
    return settings.pop(), times


def _latency_takeaway(times: Mapping[str, Mapping[str, float]]) -> str:
    name = min(times, key=lambda n: times[n]["median"])
    if "teacher" not in times or name == "teacher":
        return f"{name} is the fastest: {plain(times[name]['median'])} ms"
    ratio = times["teacher"]["median"] / times[name]["median"]
    return f"{name} is the fastest, {ratio:.1f} times as fast as its teacher"
