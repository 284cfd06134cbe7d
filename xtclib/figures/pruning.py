"""Figures of what a model can spare: sensitivity curves, head maps, masks, scores over sparsity."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

import plotly.graph_objects as go
from torch import Tensor

from xtclib.figures.style import COLOURS, GREY, label_ends, line_of, marker_of, new_figure, whiskers
from xtclib.recipes.recipe import load, names
from xtclib.records import Record, grouped
from xtclib.techniques.pruning.sensitivity import Point


def sensitivity(points: Sequence[Point], base: float, title: str | None = None) -> go.Figure:
    """Score over the share of weights removed, a line for each part; ``base`` is the whole model's.

    Parts are named at the ends of their lines.
    """
    parts = list(dict.fromkeys(point.part for point in points))
    lines = {p: sorted((q.share, q.score) for q in points if q.part == p) for p in parts}
    last = max(point.share for point in points)
    order = sorted(parts, key=lambda p: lines[p][-1][1])
    title = title or (
        f"With {100 * last:.0f} % of its weights gone, {order[0]} leaves "
        f"{lines[order[0]][-1][1]:.1f}, {order[-1]} {lines[order[-1]][-1][1]:.1f} of {base:.1f}"
    )
    figure = new_figure(title, 320)
    for i, part in enumerate(parts):
        shares, scores = zip(*((0.0, base), *lines[part]), strict=True)
        figure.add_scatter(
            x=[100 * s for s in shares], y=scores, name=part, mode="lines+markers",
            line=line_of(i), marker=marker_of(i, size=8), showlegend=False,
            hovertemplate=f"{part}, %{{x:.0f}} % gone: %{{y:.1f}} %<extra></extra>",
        )  # fmt: skip
    low = min(point.score for point in points)
    span = max(base - low, 1.0)
    label_ends(
        figure, [(0.0, lines[p][-1][1], f" {p}") for p in parts], 100 * last, span * 15 / 240
    )
    figure.update_layout(margin_r=120)
    figure.update_xaxes(title_text="weights set to zero, % of the part", range=[-2, 100 * last + 1])
    return figure.update_yaxes(
        title_text="score, %, not trained after", range=[low - 0.08 * span, base + 0.08 * span]
    )


def head_map(scores: Tensor, base: float, title: str | None = None) -> go.Figure:
    """What is lost without each head: (layers, heads) scores against the whole model's ``base``."""
    lost = base - scores.float()
    known = lost[lost.isfinite()]
    idle = int((known <= 0.5).sum())
    title = title or (
        f"Without any one of {idle} of {len(known)} heads the score falls by half a point at most; "
        f"the dearest costs {float(known.max()):.1f}"
    )
    layers, heads = lost.shape
    wide = max(float(known.abs().max()), 1.0)
    figure = new_figure(title, 60 + 26 * layers)
    figure.add_heatmap(
        z=lost.tolist(), x=list(range(1, heads + 1)), y=list(range(1, layers + 1)),
        zmin=-wide, zmax=wide, colorscale=[[0, COLOURS[0]], [0.5, "#f2f2f2"], [1, COLOURS[1]]],
        text=[[_signed(v) for v in row] for row in (-lost).tolist()],
        texttemplate="%{text}", textfont={"size": 11, "color": "#222222"}, xgap=2, ygap=2,
        showscale=False,
        hovertemplate="layer %{y}, head %{x}: %{text} points without it<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(
        title_text="head (numbers: points of score)", dtick=1, showgrid=False, ticks=""
    )
    return figure.update_yaxes(
        title_text="layer", dtick=1, autorange="reversed", showgrid=False, ticks="",
    )  # fmt: skip


def _signed(value: float) -> str:
    """A gain or loss with its sign, 0 without one, nothing where there is no number."""
    return "" if value != value else f"{value:+.1f}" if abs(value) >= 0.05 else "0"


def mask(kept: Tensor, title: str | None = None) -> go.Figure:
    """A mask (outputs, inputs) as a picture: dark where a weight stays."""
    share = 1 - float(kept.float().mean())
    title = title or f"{100 * share:.0f} % of these weights are zero; the dark ones are left"
    figure = new_figure(title, 320)
    figure.add_heatmap(
        z=kept.int().tolist(), colorscale=[[0, "#f2f2f2"], [1, "#1b3a57"]], showscale=False,
        zmin=0, zmax=1, hovertemplate="output %{y}, input %{x}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="input", showgrid=False)
    return figure.update_yaxes(title_text="output", autorange="reversed", showgrid=False)


def unnumbered(recipe: str) -> str:
    """A recipe's name without the sparsity behind it.

    >>> unnumbered("nip-90"), unnumbered("nip-8bit-distilled")
    ('nip', 'nip-8bit-distilled')
    """
    return re.sub(r"-\d\d?$", "", recipe)


def _share(recipe: str) -> int:
    """The percentage of single weights that a recipe sets to zero; 0 if it prunes none.

    Of a recipe that is not built in: the number behind its name.
    """
    if unnumbered(recipe) not in names():
        return int(recipe.removeprefix(unnumbered(recipe)).strip("-") or 0)
    shares = [getattr(t, "sparsity", None) for t in load(recipe).techniques]
    return round(100 * max((share for share in shares if share), default=0))


def over_sparsity(
    records: Iterable[Record], recipes: Sequence[str], title: str | None = None
) -> go.Figure:
    """Score over sparsity, a line for each recipe, with the range over seeds and the teacher.

    Records are those of ``nip``, ``nip-50`` and so on, for what ``recipes`` names without the
    number; others are left out. Raises ``ValueError`` if none is left.
    """
    found: dict[str, list] = {name: [] for name in recipes}
    chosen = [r for r in records if unnumbered(r.recipe) in found and _share(r.recipe)]
    if len({record.budget for record in chosen}) > 1:
        raise ValueError(
            f"records of budgets {sorted({r.budget for r in chosen})} do not compare: choose one"
        )
    for group in grouped(chosen) if chosen else ():
        found[unnumbered(group.recipe)].append((_share(group.recipe), group))
    lines = {name: sorted(points, key=lambda p: p[0]) for name, points in found.items() if points}
    if not lines:
        raise ValueError(
            f"no records of {', '.join(recipes)} at a sparsity: measure `{recipes[0]}-50`, say"
        )
    ends = {name: line[-1] for name, line in lines.items()}
    best = max(ends, key=lambda name: (ends[name][0], ends[name][1].mean))
    groups = [g for line in lines.values() for _, g in line]
    teacher, floor = mean(g.teacher for g in groups), mean(g.majority for g in groups)
    title = title or (
        f"At {ends[best][0]} % zeros {best} is ahead with {ends[best][1].mean:.1f}; "
        f"the teacher has {teacher:.1f}"
    )
    figure = new_figure(title, 320)
    for i, (name, line) in enumerate(lines.items()):
        low, means, high = zip(*((g.low, g.mean, g.high) for _, g in line), strict=True)
        figure.add_scatter(
            x=[share + 0.6 * (i - len(lines) / 2) for share, _ in line], y=means, name=name,
            mode="lines+markers", marker=marker_of(i), line=line_of(i),
            error_y=whiskers(low, means, high) if any(g.n > 1 for _, g in line) else None,
            hovertemplate=f"{name}: %{{y:.1f}} %<extra></extra>",
        )  # fmt: skip
    for value, label, dash in ((teacher, "teacher", "solid"), (floor, "majority", "dot")):
        figure.add_hline(
            y=value, line={"color": GREY, "width": 1.5, "dash": dash}, annotation_text=label,
            annotation_position="top left",
        )  # fmt: skip
    figure.update_layout(margin_b=80)
    seeds = max(g.n for g in groups)
    spread = f"range of {seeds} seeds" if seeds > 1 else "one seed"
    shares = sorted({share for line in lines.values() for share, _ in line})
    figure.update_xaxes(
        title_text=f"zeros among the encoder's<br>weights, % ({spread})", tickvals=shares,
        range=[shares[0] - 4, shares[-1] + 4],
    )  # fmt: skip
    return figure.update_yaxes(title_text="score, %")


def what_stays(widths: Sequence[Mapping[str, int]], full: Mapping[str, int],
               title: str | None = None) -> go.Figure:  # fmt: skip
    """Heads and neurons of every layer that stay, in % of ``full``: rows of `surgery.widths`."""
    shares = {part: [100 * w[part] / full[part] for w in widths] for part in ("heads", "neurons")}
    means = [sum(each) / len(each) for each in shares.values()]
    told = f"{means[0]:.0f} % of the heads stay, {means[1]:.0f} % of the neurons"
    figure = new_figure(title or told, 260)
    layers = list(range(1, len(widths) + 1))
    for i, (part, each) in enumerate(shares.items()):
        figure.add_bar(
            x=layers, y=each, name=part, marker_color=COLOURS[i],
            marker_pattern_shape="/" if i else "",
            customdata=[w[part] for w in widths],
            hovertemplate=f"layer %{{x}}: %{{customdata}} {part}, %{{y:.0f}} %<extra></extra>",
        )  # fmt: skip
    figure.update_layout(barmode="group", margin_b=90)
    figure.update_xaxes(title_text="layer", dtick=1)
    return figure.update_yaxes(title_text="stays, %", range=[0, 104])
