"""Figures of searches: every trial that was measured, and those that none beats."""

from __future__ import annotations

from typing import Literal

import plotly.graph_objects as go

from xtclib.figures.style import GREY, label_points, log_axis, marker_of, new_figure, plain
from xtclib.records import Record
from xtclib.study.search import OBJECTIVES, Found, front

_UNITS = {"bytes": (1e-6, "file on disk, MB"), "milliseconds": (1.0, "ms a batch")}


def trials(found: Found, against: Literal["bytes", "milliseconds"] = "bytes",
           title: str | None = None) -> go.Figure:  # fmt: skip
    """A search's trials: score against size (MB) or time (ms), with the front and the teacher.

    The front is that of all objectives; the line joins what none beats in the two that are drawn.
    Crosses are no better than the majority class. Under the pointer: what a trial has where.
    """
    if not found.records:
        raise ValueError("received a search without a measured trial: run some")
    factor, words = _UNITS[against]
    kept = front(found)
    missed = {t.number for t in found.study.trials if any(v > 0 for v in t.constraints.values())}
    beaten, best, poor = list[Record](), list[Record](), list[Record]()
    kinds = {"beaten": beaten, "beaten by none": best, "as the majority class": poor}
    for number, record in found.records.items():
        (poor if number in missed else best if record in kept else beaten).append(record)
    some = next(iter(found.records.values()))
    figure = new_figure(title or _takeaway(found), 400)
    line = list[tuple[float, float]]()
    for record in sorted(beaten + best, key=lambda r: (OBJECTIVES[against](r), -r.score)):
        if not line or record.score > line[-1][1]:
            line.append((factor * OBJECTIVES[against](record), record.score))
    figure.add_scatter(
        x=[x for x, _ in line], y=[y for _, y in line], mode="lines", hoverinfo="skip",
        line={"color": GREY, "width": 1, "dash": "dot", "shape": "hv"}, showlegend=False,
    )  # fmt: skip
    for i, (name, records) in enumerate(kinds.items()):
        look = {"symbol": "x-thin", "line": {"width": 2, "color": GREY}} if records is poor else {}
        figure.add_scatter(
            x=[factor * OBJECTIVES[against](r) for r in records], y=[r.score for r in records],
            name=name, mode="markers", marker=marker_of(i, hollow=records is beaten) | look,
            text=[_chosen(r) for r in records], showlegend=bool(records),
            hovertemplate="%{text}<br>%{x:.3r}, %{y:.1f} %<extra></extra>",
        )  # fmt: skip
    teacher = some.teacher_bytes * 1e-6
    if against == "milliseconds":
        teacher = some.latency["milliseconds"]["teacher"]["median"]
    figure.add_scatter(
        x=[teacher], y=[some.teacher_score], mode="markers", showlegend=False,
        marker={"symbol": "star", "size": 14, "color": GREY},
        hovertemplate="teacher: %{x:.3r}, %{y:.1f} %<extra></extra>",
    )  # fmt: skip
    points = [(factor * OBJECTIVES[against](r), r.score, r.recipe.rpartition("-")[2] if r in kept
               else "") for r in found.records.values()]  # fmt: skip
    points.append((teacher, some.teacher_score, "teacher"))
    label_points(figure, points, 310)
    figure.update_xaxes(title_text=words, **log_axis([p[0] for p in points], 1.8, 1.8))
    return figure.update_yaxes(title_text=f"score on {some.task}, cut from training, %")


def _chosen(record: Record) -> str:
    places = record.measures["search"]["chosen"].items()
    return "<br>".join([record.recipe, *(f"{place}: {value}" for place, value in places)])


def _takeaway(found: Found) -> str:
    kept, many = front(found), len(found.records)
    if not kept:
        return f"None of {many} trials beats the majority class"
    best = max(kept, key=lambda r: r.score)
    told = f"{best.recipe.rpartition('-')[2]} scores highest, {best.score:.1f}"
    return (
        f"{len(kept)} of {many} trials are beaten by none; {told} in {plain(best.bytes / 1e6)} MB"
    )
