"""Figures of deployed models: bits against their limit, speed by runtime, answers side by side."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from xtclib.artefact.ledger import Entry
from xtclib.figures.quantization import level_count
from xtclib.figures.style import (
    COLOURS,
    GREY,
    label_points,
    line_of,
    log_axis,
    marker_of,
    new_figure,
    plain,
)
from xtclib.techniques.quantization.packing import TRIT, storage_bits
from xtclib.techniques.quantization.quantizers import Scheme

_CODECS = (("binary", 1), ("ternary", TRIT), ("ternary", 2), ("int4", 4), ("int8", 8))


def widths(title: str | None = None) -> go.Figure:
    """Bits that each codec stores a value in, against log₂ of how many values there are.

    >>> figure = widths()
    >>> list(figure.data[0].x), [round(x, 3) for x in figure.data[1].x]
    ([1, 1.6, 2, 4, 8], [1.0, 1.585, 1.585, 3.907, 7.994])
    """
    names = [f"{scheme}, {bits:g} bit{'s' * (bits > 1)}" for scheme, bits in _CODECS]
    limits = [math.log2(level_count(Scheme.parse(scheme))) for scheme, _ in _CODECS]
    stored = [bits if bits == TRIT else storage_bits(bits) for _, bits in _CODECS]
    figure = new_figure(
        title or "Two bits waste a fifth on three values; five trits in a byte waste 1 %", 240
    )
    figure.add_bar(x=stored, y=names, orientation="h", marker_color=COLOURS[0], opacity=0.75,
                   name="bits stored", hovertemplate="%{y}: %{x} bits<extra></extra>")  # fmt: skip
    figure.add_scatter(
        x=limits, y=names, mode="markers", name="limit, log₂(values)",
        marker={"symbol": "diamond", "size": 11, "color": COLOURS[1]},
        hovertemplate="%{y}: at least %{x:.3f} bits<extra></extra>",
    )  # fmt: skip
    for name, bits, limit in zip(names, stored, limits, strict=True):
        figure.add_annotation(x=max(bits, limit), y=name, showarrow=False, xanchor="left",
                              xshift=10, text=f"{100 * (bits / limit - 1):.1f} % over")  # fmt: skip
    figure.update_yaxes(autorange="reversed", ticks="")
    figure.update_xaxes(title_text="bits a value", range=[0, 11], tickvals=list(range(9)))
    return figure.update_layout(margin_b=85, bargap=0.45)


def speed(rows: Sequence[Mapping], title: str | None = None) -> go.Figure:
    """How many times as fast as the first runtime (the dotted line) each is, a panel a batch size.

    ``rows`` of :func:`xtclib.deployment.runtimes.latencies`.
    """
    base, *names = dict.fromkeys(row["runtime"] for row in rows)
    batches = sorted({row["batch"] for row in rows})
    lengths = sorted({row["length"] for row in rows})
    ours = [row for row in rows if row["runtime"] == "ONNX packed"]
    if title is None and ours:
        low, high = (f(1 / row["ratio"] for row in ours) for f in (min, max))
        title = f"A packed ONNX file runs {low:.1f} to {high:.1f} × as fast as {base}"
    panels = {"rows": len(batches), "cols": 1, "vertical_spacing": 0.13, "shared_xaxes": True,
              "subplot_titles": [f"batch {batch}" for batch in batches]}  # fmt: skip
    figure = new_figure(title or "How fast each runtime is", 250 * len(batches) + 150, panels, 14)
    for i, name in enumerate(names):
        for panel, batch in enumerate(batches, 1):
            here = [r for r in rows if r["runtime"] == name and r["batch"] == batch]
            figure.add_scatter(
                x=[r["length"] for r in here], y=[1 / r["ratio"] for r in here], name=name,
                mode="lines+markers", legendgroup=name, showlegend=panel == 1,
                marker=marker_of(i, size=9), line=line_of(i, width=2), row=panel, col=1,
                customdata=[r["median"] for r in here],
                hovertemplate=f"{name}, length %{{x}}<br>%{{y:.2f}} × as fast, "
                "%{customdata:.1f} ms<extra></extra>",
            )  # fmt: skip
    for panel in range(1, len(batches) + 1):
        figure.add_hline(y=1, line={"color": GREY, "dash": "dot"}, row=panel, col=1)
    figure.update_xaxes(type="log", tickvals=lengths, ticktext=[str(n) for n in lengths])
    figure.update_xaxes(title_text="tokens in each sequence", row=len(batches), col=1)
    ratios = [1 / row["ratio"] for row in rows]
    figure.update_yaxes(title_text=f"× as fast as {base}", **log_axis(ratios))
    return figure.update_layout(margin_b=60 + 24 * math.ceil(len(names) / 2))


def size_and_speed(
    rows: Sequence[Mapping], sizes: Mapping[str, int], title: str | None = None
) -> go.Figure:
    """Every runtime's file in MB (10⁶ bytes) and how fast it is, at the one shape of ``rows``."""
    base = rows[0]["runtime"]
    shape = {(row["batch"], row["length"]) for row in rows}
    if len(shape) != 1:
        raise ValueError(f"expected rows of one batch and length, received {sorted(shape)}")
    ((batch, length),) = shape
    best = next((r for r in rows if r["runtime"] == "ONNX packed"), rows[-1])
    smaller = sizes[base] / sizes[best["runtime"]]
    title = title or (
        f"{best['runtime']}: a file {smaller:.0f} × smaller, {1 / best['ratio']:.1f} × as fast as "
        f"{base}"
    )
    figure = new_figure(title, 380)
    points = []
    for i, row in enumerate(rows):
        x, y = sizes[row["runtime"]] / 1e6, 1 / row["ratio"]
        points.append((x, y, row["runtime"]))
        figure.add_scatter(
            x=[x], y=[y], mode="markers", marker=marker_of(i), name=row["runtime"],
            showlegend=False,
            hovertemplate=f"{row['runtime']}<br>%{{x:,.3r}} MB, %{{y:.2f}} ×<extra></extra>",
        )  # fmt: skip
    label_points(figure, points, 360)
    figure.update_xaxes(title_text="file, MB", **log_axis([p[0] for p in points], 1.5, 2.6))
    figure.update_yaxes(title_text=f"× as fast as {base}, batch {batch}, length {length}")
    return figure


def side_by_side(
    wanted: np.ndarray, found: np.ndarray, names: tuple[str, str], title: str | None = None
) -> go.Figure:
    """Two runtimes' margins for the same rows; logits of shape (rows, classes).

    A margin is the logit of class 1 less that of class 0; of several classes, the logit of the
    first runtime's label less the largest other one; of one, the value itself. Crosses mark rows
    whose label differs.
    """
    what, (x, y) = _margins(wanted, found)
    same = wanted.argmax(-1) == found.argmax(-1)
    apart = np.abs(x - y)
    agree = f"{100 * same.mean():.1f} % of {len(x)} labels agree; " if what == "margin" else ""
    figure = new_figure(
        title or f"{agree}{what}s differ by {np.median(apart):.1g} in the median, "
        f"{apart.max():.1g} at most", 340,
    )  # fmt: skip
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dot"},
                       name="equal", hoverinfo="skip", showlegend=False)  # fmt: skip
    for chosen, symbol, name in ((same, "circle-open", "same label"), (~same, "x", "another")):
        if chosen.any():
            figure.add_scatter(
                x=x[chosen], y=y[chosen], mode="markers", name=name,
                marker={"symbol": symbol, "size": 8, "color": COLOURS[int(symbol == "x")]},
                hovertemplate="%{x:.3f} and %{y:.3f}<extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(title_text=f"{what} in {names[0]}")
    figure.update_yaxes(title_text=f"{what} in {names[1]}")
    return figure.update_layout(margin_b=85)


def _margins(wanted: np.ndarray, found: np.ndarray) -> tuple[str, tuple[np.ndarray, np.ndarray]]:
    if wanted.shape[1] == 1:
        return "value", (wanted[:, 0], found[:, 0])
    if wanted.shape[1] == 2:
        return "margin", (wanted[:, 1] - wanted[:, 0], found[:, 1] - found[:, 0])
    label = wanted.argmax(-1)[:, None] == np.arange(wanted.shape[1])
    x, y = (np.where(label, m, -np.inf).max(-1) - np.where(label, -np.inf, m).max(-1)
            for m in (wanted, found))  # fmt: skip
    return "margin", (x, y)


def noise(lines: Mapping[str, Sequence[float]], title: str | None = None) -> go.Figure:
    """Relative difference after the embeddings and each layer, of :func:`noise_by_depth`."""
    figure = new_figure(title or "Rounding to 8 bits turns a last digit into whole steps", 320)
    for i, (name, values) in enumerate(lines.items()):
        figure.add_scatter(
            x=list(range(len(values))), y=list(values), name=name, mode="lines+markers",
            marker=marker_of(i, size=8), line=line_of(i),
            hovertemplate=f"{name}, after layer %{{x}}: %{{y:.1e}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="layer (0: embeddings)", dtick=1 if len(values) < 14 else 2)
    figure.update_yaxes(type="log", title_text="relative difference", exponentformat="power",
                        dtick=1)  # fmt: skip
    return figure.update_layout(margin_b=90)


def ledger(entries: Sequence[Entry], title: str | None = None) -> go.Figure:
    """What the bytes of an artefact go to, as nested areas; of ``ledger.byte_ledger``.

    >>> figure = ledger([Entry("bert.embeddings.word_embeddings.weight", (4, 2), "uint8", 8, 64,
    ...                        width=1, limit=8)])
    >>> figure.data[0].ids, figure.data[0].values
    (('file', 'embeddings', 'embeddings/word_embeddings.weight'), (8, 8, 8))
    """
    sizes: dict[str, int] = {}
    notes: dict[str, str] = {}
    for entry in entries:
        path = _place(entry.tensor)
        for key in ("file", *itertools.accumulate(path.split("/"), "{}/{}".format)):
            sizes[key] = sizes.get(key, 0) + entry.bytes
        bits = f", {entry.bits:.3g} bits a value" if entry.values else ""
        notes[path] = f"{entry.dtype} {' × '.join(map(str, entry.shape))}{bits}"
    tops = [k for k in sizes if k != "file" and "/" not in k]
    largest = max(tops, key=sizes.__getitem__)
    share = 100 * sizes[largest] / sizes["file"]
    figure = new_figure(title or f"{share:.0f} % of the file's bytes are its {largest}", 360)
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
            return f"{plain(size / scale)} {unit}"
    return f"{size:.0f} B"
