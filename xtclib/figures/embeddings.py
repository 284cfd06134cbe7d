"""Figures of word tables: what a method makes of one, in bytes and in error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from xtclib.figures.style import line_of, marker_of, new_figure

Made = tuple[str, float, float]  # a setting, bytes, ‖T − T'‖ / ‖T‖


def tables(found: Mapping[str, Sequence[Made]], title: str | None = None) -> go.Figure:
    """Relative error (%) against MB on disk of word tables, a line for each method's settings."""
    least = min((point for each in found.values() for point in each), key=lambda p: p[2])
    name = next(name for name, each in found.items() if least in each)
    told = f"{name} is nearest: {100 * least[2]:.0f} % off in {least[1] / 1e6:.2f} MB"
    figure = new_figure(title or told, 320)
    for i, (method, points) in enumerate(found.items()):
        points = sorted(points, key=lambda point: point[1])
        figure.add_scatter(
            x=[size / 1e6 for _, size, _ in points], y=[100 * error for *_, error in points],
            name=method, mode="lines+markers", line=line_of(i), marker=marker_of(i),
            text=[setting for setting, *_ in points],
            hovertemplate=f"{method}, %{{text}}: %{{x:.2f}} MB, %{{y:.0f}} % off<extra></extra>",
        )  # fmt: skip
    figure.update_layout(margin_b=110)
    figure.update_xaxes(title_text="word table, MB")
    return figure.update_yaxes(title_text="‖T − T'‖, % of ‖T‖", rangemode="tozero")
