"""Figures of a study: what its comparisons show, and how many seeds would show more."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from xtclib.figures.style import COLOURS, GREY, label_ends, line_of, marker_of, new_figure, whiskers
from xtclib.study.conclusions import Comparison
from xtclib.study.pairs import CHANCE, power, seeds_needed

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

_SHOWN = {"ahead": "ahead", "behind": "behind", "": "no difference shown"}


def intervals(comparisons: Sequence[Comparison], title: str | None = None) -> go.Figure:
    """A forest plot: points that the first is ahead, a row a comparison, the first on top.

    Bars are the intervals that hold together, small marks the pairs. Hollow: not shown.
    """
    if not comparisons:
        raise ValueError("received no comparisons, expected at least one")
    figure = new_figure(title or _takeaway(comparisons), 120 + 42 * len(comparisons), above=16)
    rows = {c.name: len(comparisons) - 1 - i for i, c in enumerate(comparisons)}
    figure.add_vline(x=0, line={"color": GREY, "width": 1.5, "dash": "dot"})
    dots = [(d, rows[c.name] - 0.28) for c in comparisons for d in c.differences]
    figure.add_scatter(
        x=[d[0] for d in dots], y=[d[1] for d in dots], mode="markers", name="a pair",
        marker={"symbol": "line-ns-open", "size": 9, "color": GREY, "line": {"width": 1.5}},
        hovertemplate="one pair, %{x:+.1f} points<extra></extra>",
    )  # fmt: skip
    for i, (shown, words) in enumerate(_SHOWN.items()):
        own = [c for c in comparisons if c.shown == shown]
        if own:
            ends = zip(*((c.low, c.mean, c.high) for c in own), strict=True)
            colour = COLOURS[i] if shown else GREY
            marker = marker_of(i, hollow=not shown) | {"color": colour}
            figure.add_scatter(
                x=[c.mean for c in own], y=[rows[c.name] for c in own], name=words, mode="markers",
                marker=marker, error_x=whiskers(*ends, color=colour),
                customdata=[[c.name, c.verdict] for c in own],
                hovertemplate="%{customdata[0]}: %{customdata[1]}<extra></extra>",
            )  # fmt: skip
    for c in comparisons:
        at = {"x": 1, "xref": "paper", "xanchor": "right", "y": rows[c.name], "yanchor": "middle"}
        figure.add_annotation(text=f"{c.mean:+.1f}", showarrow=False, **at)
    every = [v for c in comparisons for v in (0, c.low, c.high, *c.differences) if np.isfinite(v)]
    room = (max(every) - min(every)) or 1.0
    level = f"{100 * comparisons[0].level:g} % intervals" + ", together" * (len(rows) > 1)
    figure.update_layout(margin_b=100)
    figure.update_xaxes(title_text=f"points ahead<br>({level})",
                        range=[min(every) - 0.06 * room, max(every) + 0.24 * room])  # fmt: skip
    names = ["<br>".join(textwrap.wrap(name, 26)) for name in rows]  # or a phone has no room
    return figure.update_yaxes(tickvals=list(rows.values()), ticktext=names, ticks="",
                               showgrid=False, range=[-0.7, len(comparisons) - 0.4])  # fmt: skip


def _takeaway(comparisons: Sequence[Comparison]) -> str:
    shown = [c for c in comparisons if c.shown]
    most = max(shown or comparisons, key=lambda c: abs(c.mean))
    if len(comparisons) == 1:
        return f"{most.name}: {most.verdict}"
    count = f"{len(shown) or 'None'} of {len(comparisons)} comparisons"
    if not shown:
        return f"{count} shows a difference"
    largest = f"the largest is {most.name}, {most.shown} by {abs(most.mean):.1f} points"
    return f"{count} show{'s' * (len(shown) == 1)} a difference; {largest}"


def seeds(
    spread: float, differences: Sequence[float], level: float = 0.95, most: int = 20,
    title: str | None = None,
) -> go.Figure:  # fmt: skip
    """The chance to show true differences (points), in %, over the number of seeds.

    ``spread``: the standard deviation over seeds of a pair's difference, in points.
    """
    if not differences:
        raise ValueError("received no differences, expected at least one, in points")
    names = [f"{d:g} point{'s' * (d != 1)}" for d in differences]
    needed = seeds_needed(differences[0], spread, level=level)
    takeaway = f"It takes {needed} seeds to show {names[0]} at a spread of {spread:g}"
    figure = new_figure(title or takeaway, 300)
    counts = list(range(2, most + 1))
    ends = []
    for i, (name, difference) in enumerate(zip(names, differences, strict=True)):
        chances = [100 * power(difference, spread, n, level) for n in counts]
        figure.add_scatter(
            x=counts, y=chances, name=name, mode="lines+markers", line=line_of(i),
            marker=marker_of(i, size=6), showlegend=False,
            hovertemplate=f"{name}, %{{x}} seeds: %{{y:.0f}} %<extra></extra>",
        )  # fmt: skip
        ends.append((counts[-1], chances[-1], name))
    label_ends(figure, ends, most * 1.02, 7)
    figure.add_hline(y=100 * CHANCE, line={"color": GREY, "width": 1.5, "dash": "dot"})
    ticks = [2, *range(5, most + 1, 5)]
    figure.update_xaxes(title_text="seeds, a pair each", range=[1.5, most * 1.25], tickvals=ticks)
    axis = {"range": [0, 104 + 5 * len(names)], "tickvals": [*range(0, 101, 20)]}
    return figure.update_yaxes(title_text="chance to show the difference, %", **axis)


def verdicts(comparisons: Sequence[Comparison]) -> Styler:
    """Comparisons as a table; bold where a difference is shown. ``.data`` is the `DataFrame`."""
    import pandas

    rows = {c.name: [len(c.pairs), c.mean, c.low, c.high, c.p, c.adjusted, c.detectable, c.verdict]
            for c in comparisons}  # fmt: skip
    columns = ["pairs", "points ahead", "from", "to", "p, sign test", "p, Holm",
               "detectable, points", "verdict"]  # fmt: skip
    frame = pandas.DataFrame.from_dict(rows, orient="index", columns=columns)
    digits = dict(zip(columns, (None, *["{:+.1f}"] * 3, *["{:.3f}"] * 2, "{:.1f}", None),
                      strict=True))  # fmt: skip
    styled = frame.style.format(digits, escape="html", na_rep="–").format_index(escape="html")
    bold = {c.name: "font-weight: bold" if c.shown else "" for c in comparisons}
    return styled.apply(lambda row: [bold[row.name]] * len(row), axis=1)
