"""Figures of distillation: what each objective compares and where, and what temperature does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from torch import Tensor

from xtclib.distillation.objective import Objective
from xtclib.distillation.terms import TERMS
from xtclib.figures.style import COLOURS, GREY, new_figure

_MARKS = {  # terms that differ in how, not in what they compare, share a mark
    "labels": ("x", ("labels",)),
    "logits": ("star", ("logits",)),
    "hidden states": ("circle", ("hidden_states", "embeddings", "cosine")),
    "first token": ("diamond", ("patience",)),
    "attention maps": ("square", ("attention_scores", "attention_probabilities",
                                  "attention_divergence")),
    "relations": ("triangle-up", ("query_relations", "key_relations", "value_relations")),
}  # fmt: skip
_KIND = {term: kind for kind, (_, terms) in _MARKS.items() for term in terms}


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
    symbols = {kind: symbol for kind, (symbol, _) in _MARKS.items()}
    symbols |= dict.fromkeys(drawn - symbols.keys(), "cross")  # terms of one's own
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
            kind = _KIND.get(match.term, match.term)
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
    title = (
        f"From T = {temperatures[0]:g} to {temperatures[-1]:g} the entropy rises from "
        f"{entropy[0]:.2f} to {entropy[-1]:.2f}; the order of the classes stays"
    )
    figure = new_figure(title, 300)
    patterns = ("", "/", "x", ".", "-", "+")
    for i, (t, row) in enumerate(zip(temperatures, shares, strict=True)):
        figure.add_bar(
            x=[f"class {c}" for c in range(len(row))], y=row, name=f"T = {t:g}",
            text=[f"{p:.2f}" for p in row], textposition="outside",
            marker={"color": COLOURS[i % len(COLOURS)], "pattern": {"shape": patterns[i % 6]}},
        )  # fmt: skip
    figure.update_yaxes(title_text="probability", range=[0, 1.12])
    return figure.update_layout(barmode="group")


def layer_map(
    student: int, teacher: int, mapping: Sequence[int], title: str | None = None
) -> go.Figure:
    """Which hidden state of the teacher each one of the student learns from.

    ``mapping`` as of ``distillation.layer_map``: ``student + 1`` teacher states, the embeddings'
    first; −1 is the last state. Raises ``ValueError`` for another length or a state the teacher
    does not have.

    >>> list(layer_map(2, 4, [0, 2, 4]).data[0].x)   # from student 0 to teacher 0, …
    [0.0, 0, None, 2.0, 2, None, 4.0, 4, None]
    """
    mapping = [teacher if m == -1 else m for m in mapping]
    if len(mapping) != student + 1 or not all(0 <= m <= teacher for m in mapping):
        raise ValueError(
            f"received the map {mapping}, expected {student + 1} states, each 0 to {teacher}: the "
            "embeddings and then one for each student layer"
        )
    unused = sorted(set(range(1, teacher + 1)) - set(mapping))
    tail = "" if teacher in mapping else "; its last layer teaches nobody"
    what = f"Each student layer learns from one layer of its {teacher}-layer teacher{tail}."
    figure = new_figure(title or what, 150)
    place = [i * teacher / student for i in range(student + 1)]
    figure.add_scatter(
        x=[v for i, m in enumerate(mapping) for v in (place[i], m, None)],
        y=[0, 1, None] * len(mapping), mode="lines", line={"color": COLOURS[1], "width": 2},
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    states = list(range(teacher + 1))
    colours = [GREY if state in unused else COLOURS[0] for state in states]
    for x, y, name, colour in (
        (states, 1, "teacher", colours), (place, 0, "student", [COLOURS[2]] * len(place)),
    ):  # fmt: skip
        figure.add_scatter(
            x=x, y=[y] * len(x), mode="markers+text", text=["E", *map(str, range(1, len(x)))],
            name=name, showlegend=False, textfont={"color": "white", "size": 12},
            marker={"symbol": "square", "size": 22, "color": colour},
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
    figure = new_figure(title, 340, panels | {"shared_yaxes": True}, above=20)
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
