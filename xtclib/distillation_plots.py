"""Figures of distillation: what each objective compares and where, and what temperature does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from torch import Tensor

from xtclib.matching import TERMS
from xtclib.objectives import Objective
from xtclib.plot_style import COLOURS, new_figure

_ALIKE = {  # terms that differ in how, not in what they compare, share a mark
    "labels": ("labels", "x"),
    "logits": ("logits", "star"),
    "hidden_states": ("hidden states", "circle"),
    "embeddings": ("hidden states", "circle"),
    "cosine": ("hidden states", "circle"),
    "patience": ("first token", "diamond"),
    "attention_scores": ("attention maps", "square"),
    "attention_probabilities": ("attention maps", "square"),
    "attention_divergence": ("attention maps", "square"),
    "query_relations": ("relations", "triangle-up"),
    "key_relations": ("relations", "triangle-up"),
    "value_relations": ("relations", "triangle-up"),
}
_ORDER = tuple(dict.fromkeys(kind for kind, _ in _ALIKE.values()))


def what_is_matched(
    objectives: Mapping[str, Objective | Sequence[Objective]],
    student: int,
    teacher: int,
    title: str | None = None,
) -> go.Figure:
    """What each system compares at which of a student's states, a row for each system.

    ``objectives``: a system's objective, or those of its stages. The number beside a mark is the
    teacher's state; depths are ``student`` and ``teacher``.
    """
    names = list(objectives)
    title = title or (
        f"What {len(names)} objectives compare, of a student of {student} layers with a teacher of "
        f"{teacher}: numbers are the teacher's layers"
    )
    figure = new_figure(title, 90 + 46 * len(names))
    marks = {name: _marks(objectives[name], student, teacher) for name in names}
    drawn = {kind for found in marks.values() for kind in found}
    symbols = dict(_ALIKE.values()) | dict.fromkeys(
        drawn - {*_ORDER}, "cross"
    )  # terms of one's own
    for place, (kind, symbol) in enumerate(symbols.items()):
        x, y, text = [], [], []
        for row, name in enumerate(names):
            for at, to in sorted(marks[name].get(kind, ())):
                x.append(at + 0.17 * (place - 3) * (0 <= at <= student))
                y.append(row)
                text.append(to)
        if not x:
            continue
        colour = COLOURS[place % len(COLOURS)]
        figure.add_scatter(
            x=x, y=y, text=text, name=kind, mode="markers+text", textposition="bottom center",
            textfont={"size": 10}, marker={"symbol": symbol, "size": 11, "color": colour},
            hovertemplate=f"{kind} of teacher's layer %{{text}}<extra></extra>",
        )  # fmt: skip
    ends = ["embeddings", *map(str, range(1, student + 1)), "answer"]
    figure.update_xaxes(
        title_text="the student's layer", tickvals=list(range(student + 2)), ticktext=ends,
        range=[-0.6, student + 1.6],
    )  # fmt: skip
    rows = list(range(len(names)))
    figure.update_yaxes(tickvals=rows, ticktext=names, range=[len(names) - 0.4, -0.6])
    return figure


def _marks(stages, student: int, teacher: int) -> dict[str, set[tuple[float, str]]]:
    """(student state, teacher's as text) of each kind of signal over the stages of a system."""
    found: dict[str, set] = {}
    for objective in [stages] if isinstance(stages, Objective) else stages:
        for name in ("labels", "logits"):
            if getattr(objective, name):
                side = -0.2 if name == "labels" else 0.2
                found.setdefault(name, set()).add((student + 1 + side, ""))
        for match in objective.matches:
            kind = _ALIKE.get(match.term, (match.term, ""))[0]
            pairs = match.pairs(student, teacher, objective.layer_map)
            found.setdefault(kind, set()).update((i, str(j) if j else "e") for i, j in pairs)
    return found


def terms_table() -> str:
    """Every term as text: what it reads, of which states, and its options.

    >>> print(terms_table().splitlines()[1][:60])
    hidden_states            hidden_states      all
    """
    lines = [f"{'term':<25}{'reads':<19}{'states':<12}options"]
    for name, term in TERMS.items():
        options = ", ".join(term.options)
        lines.append(f"{name:<25}{term.reads:<19}{term.states:<12}{options}".rstrip())
    return "\n".join(lines)


def temperature(logits: Tensor, temperatures: Sequence[float] = (1, 2, 5, 20)) -> go.Figure:
    """Softened probabilities of one row of logits (classes,), a group of bars for each class."""
    shares = [(logits / t).softmax(-1).tolist() for t in temperatures]
    entropy = [-sum(p * torch.tensor(p).log().item() for p in row if p > 0) for row in shares]
    figure = new_figure(
        f"From T = {temperatures[0]:g} to {temperatures[-1]:g} the entropy rises from "
        f"{entropy[0]:.2f} to {entropy[-1]:.2f}; the order of the classes stays",
        300,
    )
    patterns = ("", "/", "x", ".", "-", "+")
    for i, (t, row) in enumerate(zip(temperatures, shares, strict=True)):
        figure.add_bar(
            x=[f"class {c}" for c in range(len(row))], y=row, name=f"T = {t:g}",
            text=[f"{p:.2f}" for p in row], textposition="outside",
            marker={"color": COLOURS[i % len(COLOURS)], "pattern": {"shape": patterns[i % 6]}},
        )  # fmt: skip
    figure.update_yaxes(title_text="probability", range=[0, 1.12])
    return figure.update_layout(barmode="group")
