"""Figures of texts that are read apart: what a token sees, and what the clock says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from torch import Tensor

from xtclib.figures.style import COLOURS, GREY, label_bars, marker_of, new_figure
from xtclib.techniques.deformer.segments import apart


def seen(types: Tensor, words: Sequence[str], title: str | None = None) -> go.Figure:
    """Which tokens see which in the lower layers: dark where they do; ``types`` (length,)."""
    mask = apart(types[None], types[None] * 0 + 1)[0, 0] == 0
    share = float(mask.float().mean())
    title = title or f"Two texts read apart: {100 * share:.0f} % of the pairs are left"
    places = [f"{i} {word}" for i, word in enumerate(words)]  # a word may come twice
    figure = new_figure(title, 60 + 18 * len(words))
    figure.add_heatmap(
        z=mask.int().tolist(), x=places, y=places, showscale=False, xgap=1, ygap=1,
        colorscale=[[0, "#f2f2f2"], [1, "#1b3a57"]], zmin=0, zmax=1,
        hovertemplate="%{y} sees %{x}: %{z}<extra></extra>",
    )  # fmt: skip
    names = {"tickvals": places, "ticktext": list(words), "showgrid": False, "ticks": ""}
    figure.update_xaxes(title_text="is seen", tickangle=-60, **names)
    return figure.update_yaxes(title_text="sees", autorange="reversed", **names)


def faster(rows: Sequence[Mapping], published: float | None = None, title: str | None = None
           ) -> go.Figure:  # fmt: skip
    """How many times as fast as the whole model, by batch: rows of ``benchmarks/decomposition``."""
    shown = [row for row in rows if row["run"] != "whole"]
    names = {(r["run"], r["batch"]): f"{r['run']}, batch {r['batch']}" for r in shown}
    best = max((r for r in shown if r["run"] == "fp32, cached"), key=lambda r: r["faster"])
    title = title or f"With the passage read before: {best['faster']:.1f} times as fast"
    figure = new_figure(title, 60 + 30 * len(shown))
    for i, batch in enumerate(sorted({row["batch"] for row in shown})):
        own = [row for row in shown if row["batch"] == batch]
        figure.add_bar(
            x=[r["faster"] for r in own], y=[names[r["run"], batch] for r in own],
            orientation="h", marker_color=COLOURS[i], showlegend=False,
            marker_pattern_shape="/" if i else "",
            hovertemplate="%{y}: %{x:.2f} ×<extra></extra>",
        )  # fmt: skip
    label_bars(figure, {names[r["run"], r["batch"]]: f"{r['faster']:.2f} ×" for r in shown})
    if published:
        figure.add_vline(x=published, line={"color": GREY, "dash": "dot", "width": 1.5},
                         annotation_text=f"published {published:.2f}")  # fmt: skip
    widest = 1.2 * max(row["faster"] for row in shown)
    figure.update_xaxes(title_text="times as fast as the whole model", range=[0, widest])
    return figure.update_yaxes(autorange="reversed")


def operations(shares: Sequence[float], layers: int, title: str | None = None) -> go.Figure:
    """What is left of the operations, in %, by how many layers read the passage before.

    ``shares``: of 0, 1, 2, … layers; ``layers``: the split that stands out.
    """
    title = title or f"With {layers} layers apart {100 * shares[layers]:.0f} % of the work is left"
    figure, counts = new_figure(title, 300), list(range(len(shares)))
    for i, (name, chosen) in enumerate((("other splits", False), ("this one", True))):
        own = [n for n in counts if (n == layers) == chosen]
        figure.add_scatter(
            x=own, y=[100 * shares[n] for n in own], name=name, mode="markers",
            marker=marker_of(i, size=12 if chosen else 8),
            hovertemplate="%{x} layers apart: %{y:.0f} % of the operations<extra></extra>",
        )  # fmt: skip
    figure.update_layout(margin_b=90)
    figure.update_xaxes(title_text="layers that read the texts apart", dtick=1)
    return figure.update_yaxes(title_text="operations, % of the whole model's", range=[0, 104])
