"""Figures of thin matrices: what a spectrum keeps, what is lost of outputs, operations and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch

from xtclib.figures.style import GREY, line_of, marker_of, new_figure
from xtclib.techniques.factorization.decompositions import Spectrum, break_even


def spectra(found: Mapping[str, Spectrum], at: float = 1.0, title: str | None = None) -> go.Figure:
    """What is lost of ``Σ σ²`` as the rank rises to break-even and on, a line for each matrix.

    ``at``: the share of break-even that the default title speaks of.
    """
    lost = {name: one.tail() / one.tail()[0] for name, one in found.items()}
    there = {n: 100 * float(x[int(at * _break_even(found[n]))]) for n, x in lost.items()}
    where = "At break-even" if at == 1 else f"At {100 * at:.0f} % of break-even"
    low, high = min(there.values()), max(there.values())
    span = f"{low:.0f}" if f"{low:.0f}" == f"{high:.0f}" else f"{low:.0f} to {high:.0f}"
    figure = new_figure(title or f"{where} {span} % of Σ σ² is lost", 340)
    for i, (name, curve) in enumerate(lost.items()):
        shares = 100 * torch.arange(len(curve)) / _break_even(found[name])
        shown = shares <= 160
        figure.add_scatter(
            x=shares[shown].tolist(), y=(100 * curve[shown]).tolist(), name=name, mode="lines",
            line=line_of(i), hovertemplate=f"{name}, %{{x:.0f}} %: %{{y:.1f}} %<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=100, line={"color": GREY, "width": 1.5, "dash": "dot"},
                     annotation_text="break-even", annotation_position="top left")  # fmt: skip
    figure.update_layout(margin_b=110)
    figure.update_xaxes(title_text="rank, % of break-even", range=[0, 162])
    return figure.update_yaxes(title_text="of Σ σ² lost, %", type="log", range=[-1, 2.1])


def _break_even(one: Spectrum) -> int:
    return break_even(one.left.shape[0], one.right.shape[1])


def lost(found: Mapping[str, Mapping[str, float]], title: str | None = None) -> go.Figure:
    """The part of each matrix's output that is lost, in %, a point for each way to cut.

    ``found``: by the matrix's name, then by the criterion's.
    """
    ways = list(next(iter(found.values())))
    best = [min(values, key=lambda way: values[way]) for values in found.values()]
    same = f"{best[0]} loses least on every matrix" if len(set(best)) == 1 else "No way is best"
    figure = new_figure(title or same, 60 + 34 * len(found))
    for i, way in enumerate(ways):
        figure.add_scatter(
            x=[values[way] for values in found.values()], y=list(found), name=way, mode="markers",
            marker=marker_of(i, size=11), hovertemplate=f"{way}: %{{x:.1f}} %<extra></extra>",
        )  # fmt: skip
    figure.update_layout(margin_b=90)
    figure.update_xaxes(title_text="of the output's energy lost, %", rangemode="tozero")
    return figure.update_yaxes(autorange="reversed")


def clock(rows: Sequence[Mapping], title: str | None = None) -> go.Figure:
    """Time over operations, of the whole model's: rows of ``benchmarks/decomposition.py``."""
    figure = new_figure(title or "Time falls by less than operations do", 320)
    figure.add_scatter(x=[0, 100], y=[0, 100], mode="lines", name="as operations", hoverinfo="skip",
                       line={"color": GREY, "dash": "dot", "width": 1.5})  # fmt: skip
    for i, batch in enumerate(sorted({row["batch"] for row in rows})):
        own = sorted((r for r in rows if r["batch"] == batch), key=lambda r: r["operations"])
        figure.add_scatter(
            x=[100 * r["operations"] for r in own], y=[100 / r["faster"] for r in own],
            name=f"batch {batch}", mode="lines+markers", line=line_of(i), marker=marker_of(i),
            text=[r["share"] for r in own],
            hovertemplate="share %{text}: operations %{x:.0f} %, time %{y:.0f} %<extra></extra>",
        )  # fmt: skip
    figure.update_layout(margin_b=90)
    figure.update_xaxes(title_text="operations, % of the whole model's", range=[0, 104])
    return figure.update_yaxes(title_text="time, % of the whole model's", range=[0, 112])


def values(one: Spectrum, rank: int, title: str | None = None) -> go.Figure:
    """Singular values of one matrix, those that a rank keeps apart from those that it drops."""
    kept = 100 * float(1 - one.tail()[rank] / one.tail()[0])
    title = title or f"Rank {rank} of {len(one.values)} keeps {kept:.1f} % of Σ σ²"
    figure, sigma = new_figure(title, 300), one.values.tolist()
    for i, (name, part) in enumerate((("kept", slice(rank)), ("dropped", slice(rank, None)))):
        figure.add_scatter(
            x=list(range(1, len(sigma) + 1))[part], y=sigma[part], name=name, mode="lines",
            line=line_of(i, width=3), fill="tozeroy",
            hovertemplate=f"σ of %{{x}}, {name}: %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(margin_b=90)
    figure.update_xaxes(title_text="number of the singular value")
    return figure.update_yaxes(title_text="singular value", rangemode="tozero")
