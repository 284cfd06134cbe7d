"""Figures of dynamic inference: who leaves where, at which price, and which tokens are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor
from transformers import PreTrainedModel

from xtclib.bert import encoder_layers
from xtclib.figures.style import COLOURS, GREY, line_of, marker_of, new_figure
from xtclib.techniques.dynamic.calibration import Observed, Point


def by_exit(observed: Observed, title: str | None = None) -> go.Figure:
    """How sure the exits are and how often they are right, in %, by layer."""
    right = [100 * v for v in rightness(observed)]
    sure = (100 * observed.sure.mean(0)).tolist()
    first = f"The exit after layer {observed.depths[0]} is right on {right[0]:.0f} % of the rows"
    figure = new_figure(title or f"{first}, the last on {right[-1]:.0f} %", 280)
    for i, (name, values) in enumerate((("right", right), ("sure, in the mean", sure))):
        figure.add_scatter(
            x=observed.depths, y=values, name=name, mode="lines+markers", line=line_of(i),
            marker=marker_of(i), hovertemplate="layer %{x}: %{y:.1f} %<extra></extra>",
        )  # fmt: skip
    figure.update_layout(margin_b=90)
    figure.update_xaxes(title_text="after layer", dtick=1)
    return figure.update_yaxes(title_text="%", range=[0, 104])


def rightness(observed: Observed) -> list[float]:
    """The share of rows that each exit, and at last the model, answers as labelled."""
    labels = np.array(observed.labels)
    return [float((np.array(said) == labels).mean()) for said in observed.answers]


def leaving(observed: Observed, threshold: float | str, title: str | None = None) -> go.Figure:
    """After which layer rows leave, in % of all; right and wrong answers told apart."""
    chosen, labels = observed.exits(threshold), np.array(observed.labels)
    answers = np.array(observed.answers)[chosen, np.arange(len(chosen))]
    point = observed.at(threshold)
    title = title or f"{point.speed:.1f} times fewer operations, score {point.score:.1f}"
    figure = new_figure(title, 280)
    for i, (name, of) in enumerate((("right", answers == labels), ("wrong", answers != labels))):
        counts = [100 * float((of & (chosen == e)).mean()) for e in range(len(observed.depths))]
        figure.add_bar(
            x=observed.depths, y=counts, name=name, marker_color=COLOURS[i],
            marker_pattern_shape="/" if i else "",
            hovertemplate=f"{name}, after layer %{{x}}: %{{y:.1f}} %<extra></extra>",
        )  # fmt: skip
    figure.update_layout(barmode="stack", margin_b=90)
    figure.update_xaxes(title_text="leaves after layer", dtick=1)
    return figure.update_yaxes(title_text="rows, %", range=[0, 104])


def curve(
    points: Sequence[Point], others: Mapping[str, tuple[float, float]], title: str
) -> go.Figure:
    """Score against speed in operations, with ``others`` (speed, score) as single points."""
    figure = new_figure(title, 300)
    figure.add_scatter(
        x=[p.speed for p in points], y=[p.score for p in points], name="exits", mode="lines",
        line=line_of(0), customdata=[p.threshold for p in points],
        hovertemplate="%{x:.2f} ×: %{y:.1f} (threshold %{customdata})<extra></extra>",
    )  # fmt: skip
    for i, (name, (speed, score)) in enumerate(others.items(), 1):
        told = f"{name}, %{{x:.2f}} ×: %{{y:.1f}}<extra></extra>"
        figure.add_scatter(x=[speed], y=[score], name=name, mode="markers", marker=marker_of(i),
                           hovertemplate=told)  # fmt: skip
    figure.update_layout(margin_b=100)
    figure.update_xaxes(title_text="times fewer operations")
    return figure.update_yaxes(title_text="score")


def regrouped(rows: Sequence[Mapping], speed: str, title: str | None = None) -> go.Figure:
    """What a speed in operations is on the clock, by batch: rows of ``benchmarks/dynamic``."""
    batches = sorted({row["batch"] for row in rows})
    found = {(row["run"], row["batch"]): row for row in rows}
    kinds = {"rows that left taken out": speed, "the batch waits": f"{speed}, waiting"}
    best = found[speed, batches[-1]]["faster"] / found[speed, batches[-1]]["promised"]
    title = title or f"In batches of {batches[-1]} regrouping gives {best:.0%} of the promise"
    figure = new_figure(title.replace("%", " %"), 290)
    for i, (name, run) in enumerate(kinds.items()):
        figure.add_bar(
            x=[str(b) for b in batches], y=[found[run, b]["faster"] for b in batches], name=name,
            marker_color=COLOURS[i], marker_pattern_shape="/" if i else "",
            hovertemplate=f"{name}, batch %{{x}}: %{{y:.2f}} ×<extra></extra>",
        )  # fmt: skip
    promised = [found[speed, b]["promised"] for b in batches]
    figure.add_scatter(x=[str(b) for b in batches], y=promised, name="operations", mode="markers",
                       marker={"symbol": "line-ew-open", "size": 34, "color": GREY,
                               "line": {"width": 3, "color": GREY}})  # fmt: skip
    figure.update_layout(margin_b=90, barmode="group")
    figure.update_xaxes(title_text="rows in a batch", type="category")
    return figure.update_yaxes(title_text="times as fast", rangemode="tozero")


def dying(words: Sequence[str], kept: Sequence[Sequence[bool]], title: str | None = None
          ) -> go.Figure:  # fmt: skip
    """Which tokens are left after each layer: ``kept`` (layers, tokens), dark where it is."""
    share = sum(map(sum, kept)) / (len(kept) * len(words))
    title = title or f"{100 * share:.0f} % of the tokens are left in the mean of the layers"
    places = [f"{i} {word}" for i, word in enumerate(words)]  # a word may come twice
    figure = new_figure(title, 60 + 20 * len(words))
    figure.add_heatmap(
        z=[[int(row[i]) for row in kept] for i in range(len(words))], y=places,
        x=list(range(1, len(kept) + 1)), showscale=False, xgap=2, ygap=1, zmin=0, zmax=1,
        colorscale=[[0, "#f2f2f2"], [1, "#1b3a57"]],
        hovertemplate="%{y} after layer %{x}: %{z}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="after layer", dtick=1, showgrid=False)
    return figure.update_yaxes(autorange="reversed", tickvals=places, ticktext=list(words),
                               showgrid=False, ticks="")  # fmt: skip


@torch.inference_mode()
def left_after(model: PreTrainedModel, row: Mapping[str, Tensor], layer: int) -> list[bool]:
    """Which tokens of one row are left after a layer, from 0, of a model that drops some."""
    found: list[Tensor] = []
    drops = model.drops

    def note(*_: object) -> None:
        found.append(torch.arange(row["input_ids"].shape[1]) if drops.places is None
                     else drops.places[0])  # fmt: skip

    with encoder_layers(model)[layer].register_forward_hook(note):
        model(**row)
    left = set(found[0].tolist())
    return [place in left for place in range(row["input_ids"].shape[1])]
