"""What a tagger and an encoder keep of what they could, model by model, as bits go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from xtclib.figures.style import line_of, marker_of, new_figure

_KINDS = {"PER": "persons", "LOC": "places", "ORG": "companies", "PROD": "products"}
_KEPT = {"cosine": "cosine to the teacher's vector", "spearman": "order of all pairs (Spearman)",
         "top-10": "ten nearest others", "top-1": "nearest other"}  # fmt: skip


def spans_found(rows: Sequence[Mapping], title: str | None = None) -> go.Figure:
    """The share of the names that a tagger finds, by kind and how many there are of it.

    Rows of ``benchmarks/heads.py``.
    """
    shown = {words: [row["found"][kind] for row in rows] for kind, words in _KINDS.items()}
    counted = rows[0]["counts"]
    names = {words: f"{words} ({counted[kind]})" for kind, words in _KINDS.items()}
    worst = min(shown, key=lambda words: sum(shown[words]))
    rare = (
        "What is rare goes first: "
        if worst == _KINDS[min(_KINDS, key=lambda kind: counted[kind])]
        else ""
    )
    title = title or f"{rare}{worst} are lost before the rest"
    axis = "names found, %"
    return _lines({names[w]: found for w, found in shown.items()}, rows, title, axis)


def vectors_kept(rows: Sequence[Mapping], title: str | None = None) -> go.Figure:
    """How much of its teacher an encoder keeps, by four measures: rows of the same benchmark."""
    shown = {words: [row[key] for row in rows] for key, words in _KEPT.items()}
    first = all(row["top-1"] <= row["cosine"] + 0.1 for row in rows)
    title = title or ("Neighbours change before cosines do" if first else "What an encoder keeps")
    return _lines(shown, rows, title, "kept of the teacher's, %")


def _lines(shown: Mapping[str, Sequence[float]], rows: Sequence[Mapping], title: str, axis: str
           ) -> go.Figure:  # fmt: skip
    figure, models = new_figure(title, 380), [row["model"] for row in rows]
    for i, (name, values) in enumerate(shown.items()):
        figure.add_scatter(
            x=models, y=list(values), name=name, mode="lines+markers", marker=marker_of(i),
            line=line_of(i, width=2), hovertemplate=f"{name}, %{{x}}: %{{y:.1f}} %<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="", showgrid=False, tickangle=-30)
    figure.update_yaxes(title_text=axis, range=[-4, 104])
    return figure.update_layout(legend={"orientation": "h", "y": -0.3}, margin_b=120)
