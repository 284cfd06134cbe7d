"""Figures of training: scores over budgets, losses over steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median

import plotly.graph_objects as go

from xtclib.figures.records import runs_of, score_axis, seeds_told
from xtclib.figures.style import (
    GREY,
    label_ends,
    line_of,
    log_axis,
    marker_of,
    new_figure,
    whiskers,
)
from xtclib.records import Group, Record, grouped


def budgets(records: Iterable[Record], title: str | None = None) -> go.Figure:
    """Training budget, shortest first, against score: a line a recipe, ranges over seeds."""
    records = list(records)
    lengths = {r.budget: _length(r.training_budget) for r in records}
    order = sorted(lengths, key=lambda budget: (lengths[budget], budget))
    groups = sorted(grouped(records), key=lambda g: order.index(g.budget))
    recipes = list(dict.fromkeys(r.recipe for r in records))
    figure = new_figure(title or _budget_takeaway(groups, recipes), 380)
    ends, step = [], min(0.04, 0.3 / len(recipes))  # beside each other, yet at their budget
    wide = step * (len(recipes) - 1) / 2
    for i, recipe in enumerate(recipes):
        own = [g for g in groups if g.recipe == recipe]
        x = [order.index(g.budget) + step * i - wide for g in own]
        figure.add_scatter(
            x=x, y=[g.mean for g in own], name=recipe, mode="lines+markers", marker=marker_of(i),
            line=line_of(i, width=2), showlegend=False, customdata=[g.n for g in own],
            error_y=whiskers(*zip(*((g.low, g.mean, g.high) for g in own), strict=True)),
            hovertemplate=f"{recipe}: %{{y:.1f}} % (n = %{{customdata}})<extra></extra>",
        )  # fmt: skip
        ends.append((x[-1], own[-1].mean, recipe))
    teacher = mean(g.teacher for g in groups)
    figure.add_shape(
        x0=-0.2, x1=len(order) - 0.95, y0=teacher, y1=teacher, line={"color": GREY, "width": 1.5}
    )
    ends.append((len(order) - 1, teacher, "teacher"))
    room = wide + 0.09 * max(len(name) for *_, name in ends) * max(len(order) - 1, 1) / 2 + 0.45
    low, high = min(g.low for g in groups), max(teacher, *(g.high for g in groups))
    right = len(order) - 1 + wide + 0.08 + 0.15 * (len(ends) > 8)  # lines to crowded names
    label_ends(figure, ends, right, (high - low or 1.0) / 17, joined=True)
    texts = ["<br>".join(dict.fromkeys(map(_spaced, (b, *lengths[b][1:])))) for b in order]
    figure.update_xaxes(
        title_text=f"training budget ({seeds_told(groups)})", tickvals=list(range(len(order))),
        ticktext=texts, range=[-0.2, len(order) - 1 + room], showgrid=False,
    )  # fmt: skip
    return figure.update_yaxes(title_text=score_axis(groups))


def _length(budget: Mapping) -> tuple:
    """How long a budget is, to sort by, and in words."""
    for unit in ("steps", "epochs"):
        if budget.get(unit):
            return (unit, budget[unit]), f"{budget[unit]:g} {unit}"
    return ((),)


def _spaced(budget: str) -> str:
    return re.sub(r"^([\d.]+)(steps|epochs)$", r"\1 \2", budget)  # as a length reads


def _budget_takeaway(groups: Sequence[Group], recipes: Sequence[str]) -> str:
    gains = []
    for recipe in recipes:
        own = [g for g in groups if g.recipe == recipe]
        if len(own) > 1:
            gains.append((own[-1].mean - own[0].mean, recipe, own[0].budget, own[-1].budget))
    if not gains:
        return "One budget: what a recipe reaches without a longer training"
    gain, recipe, first, last = max(gains)
    if gain <= 0:
        return "No recipe gains from a longer training here"
    return f"{recipe} gains most from training longer: {gain:+.1f} points from {first} to {last}"


_TERMS = {
    "loss": "sum", "loss_logits": "logits", "loss_hidden_states": "hidden states",
    "loss_attention_scores": "attention scores",
}  # fmt: skip


def _term(key: str) -> str:
    return _TERMS.get(key, key.removeprefix("loss_").replace("_", " "))


def loss_curves(records: Record | Iterable[Record], title: str | None = None) -> go.Figure:
    """The terms of the loss over optimizer steps, log axis; stages follow each other.

    Several records, of other seeds or recipes, are drawn thinner over each other, a colour a term.
    Raises ``ValueError`` where nothing was trained.
    """
    records = [records] if isinstance(records, Record) else list(records)
    lines: dict[str, list[tuple[Record, list, list]]] = {}
    borders, steps = {}, 0
    for record in records:
        offset, found = 0, dict[str, tuple[list, list]]()
        for stage in record.stages:
            for entry in stage["losses"]:
                for term, value in entry.items():
                    if term != "step" and value > 0:
                        xs, ys = found.setdefault(term, ([], []))
                        xs.append(offset + entry["step"])
                        ys.append(value)
            for xs, ys in found.values():
                if ys[-1] is not None:  # a gap after the stages that have the term
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
    if len(lines) == 2:
        lines.pop("loss", None)  # the sum of one term is that term
    order = [t for t in _TERMS if t in lines] + sorted(set(lines) - set(_TERMS))
    figure = new_figure(title or _loss_takeaway(lines, order))
    for i, term in enumerate(order):
        name = _term(term)
        for j, (record, xs, ys) in enumerate(lines[term]):
            figure.add_scatter(
                x=xs, y=ys, name=name, legendgroup=term, showlegend=j == 0, mode="lines+markers",
                line=line_of(i, width=2.2 if len(records) == 1 else 1.2),
                marker=marker_of(i, size=7) | {"maxdisplayed": 7},
                opacity=1 if len(records) == 1 else 0.75,
                hovertemplate=f"{record.recipe}, seed {record.seed}<br>{name}: %{{y:.3g}} after "
                "%{x} steps<extra></extra>",
            )  # fmt: skip
    for offset, name in borders.items():
        figure.add_vline(x=offset, line={"color": GREY, "dash": "dot"}, annotation_text=name)
    figure.update_xaxes(title_text="optimizer steps", range=[0, steps * 1.03])
    values = [y for term in lines.values() for *_, ys in term for y in ys if y]
    return figure.update_yaxes(title_text="loss, interval mean", **log_axis(values, 1.3))


def _loss_takeaway(lines: Mapping, order: Sequence[str]) -> str:
    terms = [term for term in order if term != "loss"] or order
    falls = {_term(t): median(ys[0] / ys[-1] for *_, ys in lines[t]) for t in terms}
    name = max(falls, key=lambda term: falls[term])
    if falls[name] <= 1:
        return "No term of the loss falls in this training"
    return f"The loss on {name} falls furthest, by a factor of {falls[name]:.1f}"


def effort(records: Iterable[Record], title: str | None = None) -> go.Figure:
    """Score against the seconds that compressing took, a point a recipe, its MB on hovering.

    Seconds of training, and of what looked at rows without training (``measures['applied']``);
    at least a tenth. Recipes of several seeds count by their means.
    """
    records = list(records)
    groups = grouped(records)
    spent = {g.recipe: max(_effort(runs_of(records, g)), 0.1) for g in groups}
    families = sorted({_trained(runs_of(records, g)) for g in groups})
    quick = [g for g in groups if spent[g.recipe] <= 120]
    best = max(quick or groups, key=lambda g: g.mean)
    seconds = spent[best.recipe]
    told = f"{seconds:.0f} s" if seconds >= 1 else "under a second"
    told = f"In {told} {best.recipe} reaches {best.mean:.1f}"
    figure = new_figure(title or told, 380)
    for i, family in enumerate(families):
        own = [g for g in groups if _trained(runs_of(records, g)) == family]
        figure.add_scatter(
            x=[spent[g.recipe] for g in own], y=[g.mean for g in own], mode="markers",
            name=family, marker=marker_of(i, size=11), text=[g.recipe for g in own],
            customdata=[g.bytes / 1e6 for g in own],
            hovertemplate="%{text}: %{y:.1f} in %{x:.1f} s, %{customdata:.2f} MB<extra></extra>",
        )  # fmt: skip
    figure.update_layout(margin_b=100)
    figure.update_xaxes(title_text="seconds spent compressing", type="log")
    return figure.update_yaxes(title_text=score_axis(groups))


def _effort(runs: Sequence[Record]) -> float:
    seconds = [r.seconds + r.measures.get("applied", {}).get("seconds", 0.0) for r in runs]
    return sum(seconds) / len(seconds)


def _trained(runs: Sequence[Record]) -> str:
    if any(r.seconds for r in runs):
        return "trained"
    return "reads some rows" if runs[0].measures.get("applied", {}).get("rows") else "weights alone"
