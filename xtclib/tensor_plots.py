"""Figures of tensors and files: what a scheme leaves of weights, maps, and where the bytes go."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import plotly.graph_objects as go
import torch
from torch import Tensor

from xtclib.ledger import Entry
from xtclib.plot_style import COLOURS, DASHES, GREY, log_ticks, marker_of, new_figure
from xtclib.quantizers import Scheme, quantize, relative_error


def quantization_curve(
    weights: Tensor, schemes: Scheme | str | Sequence[Scheme | str], title: str | None = None
) -> go.Figure:
    """A histogram of weights (any shape), and below it the values each scheme leaves of them.

    Where rows or groups have scales of their own, the levels of the one with the median scale are
    drawn. A scheme's name stands with its relative error ``‖w − ŵ‖ / ‖w‖`` in percent.

    >>> figure = quantization_curve(torch.tensor([[-1.0, -0.5, 0.5, 2.0]]), "binary")
    >>> list(figure.data[1].x), figure.data[1].y[0]
    ([-1.0, 1.0], 'binary<br>52 %')
    """
    schemes = [schemes] if isinstance(schemes, (str, Scheme)) else list(schemes)
    schemes = [Scheme.parse(s) for s in schemes]
    weights = weights.detach().float().cpu()
    errors = [100 * relative_error(weights, s) for s in schemes]
    lowest = min(range(len(schemes)), key=errors.__getitem__)
    title = title or (
        f"{_short(schemes[lowest])} leaves {_level_count(schemes[lowest])} values and loses "
        f"{errors[lowest]:.2g} % of the weights' norm"
    )
    panels = {
        "rows": 2, "cols": 1, "shared_xaxes": True, "vertical_spacing": 0.04,
        "row_heights": [0.62, 0.38] if len(schemes) > 1 else [0.72, 0.28],
    }  # fmt: skip
    figure = new_figure(title, 270 + 40 * len(schemes), panels)
    flat = weights.flatten()
    levels = [_levels(weights, s) for s in schemes]
    edge = 1.05 * max(_quantile(flat.abs(), 0.999), *(max(map(abs, v)) for v in levels))
    inside = flat[flat.abs() <= edge]
    counts = torch.histc(inside, 81, -edge, edge) / flat.numel() * 100
    step = 2 * edge / 81
    figure.add_bar(
        x=[-edge + (i + 0.5) * step for i in range(81)], y=counts.tolist(), width=step,
        marker={"color": GREY, "opacity": 0.6, "line": {"width": 0}}, name="weights",
        showlegend=False, hovertemplate="%{y:.2f} % around %{x:.3g}<extra></extra>", row=1, col=1,
    )  # fmt: skip
    for i, (scheme, values, error) in enumerate(zip(schemes, levels, errors, strict=True)):
        figure.add_scatter(
            x=values, y=[f"{_short(scheme)}<br>{error:.2g} %"] * len(values), mode="markers",
            marker=marker_of(i, size=10 if len(values) < 20 else 6), name=str(scheme),
            showlegend=False, hovertemplate=f"{scheme}: %{{x:.4g}}<extra></extra>", row=2, col=1,
        )  # fmt: skip
    figure.update_xaxes(range=[-edge, edge])
    figure.update_xaxes(title_text="weight, and the values kept", row=2, col=1)
    figure.update_yaxes(title_text="% of weights", row=1, col=1)
    figure.update_yaxes(autorange="reversed", showgrid=True, ticks="", row=2, col=1)
    return figure


def _short(scheme: Scheme) -> str:
    return str(scheme).removesuffix("-tensor")


def _level_count(scheme: Scheme) -> int:
    low, high = scheme.levels
    return 2 if scheme.family == "binary" else high - low + 1


def _quantile(values: Tensor, q: float) -> float:
    """A quantile of a flat tensor of any length (``torch.quantile`` stops at 2²⁴ values)."""
    return float(values.kthvalue(max(1, math.ceil(q * values.numel()))).values)


def _levels(weights: Tensor, scheme: Scheme) -> list[float]:
    """The values a scheme can give, at the median of its scales."""
    found = quantize(weights, scheme)
    scales = found.scale.flatten()
    index = int(scales.argsort()[len(scales) // 2])
    low, high = scheme.levels
    codes = [-1, 1] if scheme.family == "binary" else range(low, high + 1)
    zero = 0.0 if found.zero_point is None else float(found.zero_point.flatten()[index])
    return [float(scales[index]) * (code - zero) for code in codes]


def error_by_bits(tensor: Tensor, title: str | None = None) -> go.Figure:
    """Relative error in percent against bits a weight, 1 to 8, with a scale a tensor and a row.

    One bit is binary, two ternary, more symmetric integers; ``tensor`` of shape (rows, columns).
    """
    tensor = tensor.detach().float().cpu()
    names = ["binary", "ternary", *(f"int{k}" for k in range(3, 9))]
    bits = list(range(1, 9))
    errors = {
        g: [100 * relative_error(tensor, f"{name}-{g}") for name in names]
        for g in ("tensor", "row")
    }
    first, last = errors["tensor"][0], errors["tensor"][-1]
    figure = new_figure(
        title
        or f"One bit loses {first:.0f} % of the norm, eight bits {last:.2g} %; beyond three "
        "each bit about halves it"
    )
    for i, (granularity, values) in enumerate(errors.items()):
        figure.add_scatter(
            x=bits, y=values, mode="lines+markers", marker=marker_of(i), customdata=names,
            line={"color": COLOURS[i], "dash": DASHES[i], "width": 2},
            name=f"one scale a {granularity}",
            hovertemplate="%{customdata}: %{y:.3g} %<extra></extra>",
        )  # fmt: skip
    ends = [v for values in errors.values() for v in values]
    ticks = log_ticks(min(ends) / 1.5, max(ends) * 1.5)
    figure.update_xaxes(title_text="bits a weight (1 binary, 2 ternary, then int)", tickvals=bits)
    return figure.update_yaxes(
        title_text="relative error, % of ‖w‖", type="log", tickvals=ticks,
        ticktext=[f"{t:g}" for t in ticks],
    )  # fmt: skip


def layer_map(
    student: int, teacher: int, mapping: Sequence[int], title: str | None = None
) -> go.Figure:
    """Which hidden state of the teacher each one of the student learns from.

    ``mapping`` as of ``distillation.layer_map``: ``student + 1`` teacher states, the embeddings'
    first. Raises ``ValueError`` for another length or a state the teacher does not have.

    >>> list(layer_map(2, 4, [0, 2, 4]).data[0].x)   # from student 0 to teacher 0, …
    [0.0, 0, None, 2.0, 2, None, 4.0, 4, None]
    """
    mapping = list(mapping)
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
    for x, y, name, i in (
        (list(range(teacher + 1)), 1, "teacher", 0), (place, 0, "student", 2),
    ):  # fmt: skip
        labels = ["E", *map(str, range(1, len(x)))]
        quiet = [y == 1 and s in unused for s in range(len(x))]
        figure.add_scatter(
            x=x, y=[y] * len(x), mode="markers+text", text=labels, name=name, showlegend=False,
            textfont={"color": "white", "size": 12},
            marker={"symbol": "square", "size": 22, "color": [GREY if q else COLOURS[i]
                                                              for q in quiet]},
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


def ledger(entries: Sequence[Entry], title: str | None = None) -> go.Figure:
    """What the bytes of an artefact go to, as nested areas; of ``ledger.byte_ledger``.

    >>> figure = ledger([Entry("bert.embeddings.word_embeddings.weight", (4, 2), "uint8", 8, 64,
    ...                        width=1, limit=8)])
    >>> figure.data[0].ids, figure.data[0].values
    (('file', 'embeddings', 'embeddings/word_embeddings.weight'), (8, 8, 8))
    """
    paths = {entry.tensor: _place(entry.tensor) for entry in entries}
    sizes: dict[str, int] = {}
    notes: dict[str, str] = {}
    for entry in entries:
        path = paths[entry.tensor]
        parts = path.split("/")
        for key in ("file", *("/".join(parts[: i + 1]) for i in range(len(parts)))):
            sizes[key] = sizes.get(key, 0) + entry.bytes
        bits = f", {entry.bits:.3g} bits a value" if entry.values else ""
        notes[path] = f"{entry.dtype} {' × '.join(map(str, entry.shape))}{bits}"
    tops = [k for k in sizes if k != "file" and "/" not in k]
    largest = max(tops, key=sizes.__getitem__)
    title = (
        title
        or f"{100 * sizes[largest] / sizes['file']:.0f} % of the file's bytes are its {largest}"
    )
    figure = new_figure(title, 360)
    colours = {top: COLOURS[i % len(COLOURS)] for i, top in enumerate(tops)}
    ids = ["file", *(k for k in sizes if k != "file")]
    figure.add_treemap(
        ids=ids, labels=["the file", *(k.split("/")[-1] for k in ids[1:])],
        parents=["", *(k.rpartition("/")[0] or "file" for k in ids[1:])],
        values=[sizes[k] for k in ids], branchvalues="total", tiling={"pad": 1},
        marker={"colors": ["rgba(128,128,128,0.25)", *(colours[k.split("/")[0]] for k in ids[1:])]},
        text=[_bytes(sizes[k]) for k in ids], textinfo="label+text",
        customdata=[notes.get(k, "") for k in ids], sort=True, root_color="rgba(0,0,0,0)",
        hovertemplate="%{id}<br>%{text} %{customdata}<extra></extra>", maxdepth=3,
        textfont={"size": 13}, pathbar={"thickness": 22},
    )  # fmt: skip
    return figure.update_layout(uniformtext={"minsize": 9, "mode": "hide"})


def _place(tensor: str) -> str:
    """Where a tensor belongs: ``layers/layer 3/attention.self.query.weight``."""
    match = re.search(r"\blayers?\.(\d+)\.(.+)", tensor)
    if match:
        return f"layers/layer {int(match[1]) + 1}/{match[2]}"
    for part in ("embeddings", "pooler", "classifier"):
        head, found, tail = tensor.partition(part + ".")
        if found:
            return f"{part}/{tail}"
    return tensor


def _bytes(size: float) -> str:
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"
