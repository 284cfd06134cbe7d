"""What to choose: every record in one picture, with controls, and without for a page."""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Iterable, Sequence

import ipywidgets as ui
import plotly.graph_objects as go

from xtclib.figures import records as plots
from xtclib.figures.records import FAMILIES, family_of
from xtclib.figures.style import GREY, log_axis, marker_of, new_figure
from xtclib.records import Record
from xtclib.study import pareto
from xtclib.study.effectiveness import Line
from xtclib.study.pareto import Point

ALL = "all"


def by_task(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by profile and task, as both are named: ``reviews · reviews``; most records first."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(f"{record.profile} · {record.task}", []).append(record)
    return dict(sorted(found.items(), key=lambda each: -len(each[1])))


def explorer(records: Iterable[Record]) -> ui.VBox:
    """Size × score × time of every recipe, filtered by task, budget and family.

    A colour and shape for each family, an area for the time; faint is what others beat in all
    three. A click shows a record and the command that makes it again. ``.children`` are the figure,
    the controls and what is told. In place where ``anywidget`` is installed.
    """
    every = by_task(records)
    task = ui.Dropdown(options=list(every), description="task")
    budget = ui.Dropdown(options=[ALL], description="budget")
    family = ui.SelectMultiple(options=[(w, n) for n, w in FAMILIES.items()], value=[*FAMILIES],
                               description="families", rows=len(FAMILIES))  # fmt: skip
    told = ui.HTML()
    points = {name: pareto.points(some) for name, some in every.items()}

    def chosen() -> list[Point]:
        wanted = {*family.value}
        return [p for p in points[task.value] if family_of(p.group.recipe) in wanted
                and budget.value in (ALL, p.group.budget)]  # fmt: skip

    alive = importlib.util.find_spec("anywidget") is not None
    figure = plots.tradeoffs(points[task.value])
    view = go.FigureWidget(figure) if alive else ui.Output()

    def draw(*_: object) -> None:
        found = chosen()
        unbeaten = pareto.front(found)
        if alive:  # the figure before the words: messages are drawn in the order they are sent
            _redraw(view, found, unbeaten)
        else:
            view.outputs = ()
            view.append_display_data(plots.tradeoffs(found) if found else go.Figure())
        told.value = f"<b>{len(found)} recipes</b>, {len(unbeaten)} of them unbeaten; click one"

    def show(trace, clicked, _state) -> None:
        for at in clicked.point_inds:
            recipe, name = trace.customdata[at][3:5]
            told.value = describe(every[task.value], recipe, name)

    def budgets(*_: object) -> None:
        names = dict.fromkeys(p.group.budget for p in points[task.value])
        budget.options = [ALL, *names]
        draw()

    if alive:
        for trace in view.data:
            trace.on_click(show)
    task.observe(budgets, "value")
    for control in (budget, family):
        control.observe(draw, "value")
    budgets()
    return ui.VBox([view, ui.VBox([task, budget, family]), told])


def _redraw(view: go.FigureWidget, found: Sequence[Point], unbeaten: Sequence[Point]) -> None:
    """Other points in the traces that are there: no figure is made anew."""
    front = {id(point) for point in unbeaten}
    line = pareto.front(found, ("score", "bytes"))
    groups = [point.group for point in found]
    families: dict[str, list[Point]] = {name: [] for name in FAMILIES.values()}
    for point in found:
        families[FAMILIES[family_of(point.group.recipe)]].append(point)
    with view.batch_update():
        view.layout.annotations = ()
        view.layout.title.text = plots.takeaway(groups) if groups else "nothing is chosen"
        for trace in view.data:
            if trace.mode == "lines":
                trace.x, trace.y = [p.group.bytes / 1e6 for p in line], [p.group.mean for p in line]
            elif (own := families.get(trace.name)) is not None:
                trace.x = [p.group.bytes / 1e6 for p in own]
                trace.y = [p.group.mean for p in own]
                trace.marker.size = [plots.diameter(p.time) for p in own]
                trace.marker.opacity = [0.85 if id(p) in front else 0.3 for p in own]
                trace.customdata = plots.about_points(own)
            elif groups:
                trace.x, trace.y = [groups[0].teacher_bytes / 1e6], [groups[0].teacher]
        if groups:
            view.update_xaxes(**log_axis([g.bytes / 1e6 for g in groups], 1.8, 1.8))
            view.update_yaxes(autorange=True)


def describe(records: Iterable[Record], recipe: str, budget: str) -> str:
    """A recipe's records as HTML: scores by seed, what it cost, and the command for it."""
    own = [r for r in records if (r.recipe, r.budget) == (recipe, budget)]
    first = own[0]
    scores = ", ".join(f"seed {r.seed}: {r.score:.1f}" for r in own)
    command = (f"xtc compress {recipe} --task {first.task} --profile {first.profile} "
               f"--budget {budget} --seed {first.seed}")  # fmt: skip
    left = f"<br>left out: {html.escape(first.left_out)}" if first.left_out else ""
    return (f"<b>{html.escape(recipe)}, {html.escape(budget)}</b>: {scores} "
            f"(teacher {first.teacher_score:.1f}); {first.bytes / 1e6:.2f} MB, "
            f"{first.ratio:.1f} × smaller; {first.seconds:.0f} s of training{left}"
            f"<br><code>{html.escape(command)}</code>")  # fmt: skip


def page(records: Iterable[Record]) -> go.Figure:
    """The same as one figure that needs no kernel: a menu of tasks; the legend filters families."""
    figures = {
        name: plots.tradeoffs(pareto.points(some)) for name, some in by_task(records).items()
    }
    whole, buttons, begin = next(iter(figures.values())), [], 0
    every = [trace for figure in figures.values() for trace in figure.data]
    for name, figure in figures.items():
        end = begin + len(figure.data)
        seen = [begin <= i < end for i in range(len(every))]
        layout = {"title.text": figure.layout.title.text, "annotations": figure.layout.annotations,
                  "xaxis": figure.layout.xaxis, "yaxis": figure.layout.yaxis}  # fmt: skip
        buttons.append({"label": name, "method": "update", "args": [{"visible": seen}, layout]})
        begin = end
    found = go.Figure(every, whole.layout)
    for i, trace in enumerate(found.data):
        trace.visible = i < len(whole.data)
    menu = {"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.0, "yanchor": "bottom"}
    return found.update_layout(updatemenus=[menu])


def effectiveness(lines: Sequence[Line], title: str | None = None) -> go.Figure:
    """Points lost as published, hollow, and as measured here, filled: a row for each line."""
    more = sum("loses more" in line.verdict for line in lines)
    names = [f"{line.family}: {line.recipe}{'' if line.own else ' ~'}" for line in lines]
    rows: dict[str, str] = {}  # a family's name above its recipes: a phone has no room beside them
    for line, name in zip(lines, names, strict=True):
        rows |= {line.family: f"<b>{line.family}</b>", name: name.partition(": ")[2]}
    figure = new_figure(
        title or f"{more} of {len(lines)} lines lose more here than published, on a smaller model",
        120 + 19 * len(rows), above=16,
    )  # fmt: skip
    printed = [line.published["difference"] for line in lines]
    here = [line.difference for line in lines]
    for name, a, b in zip(names, printed, here, strict=True):
        figure.add_scatter(x=[a, b], y=[name, name], mode="lines", showlegend=False,
                           line={"color": GREY, "width": 1}, hoverinfo="skip")  # fmt: skip
    for i, (name, x) in enumerate({"published": printed, "here": here}.items()):
        figure.add_scatter(
            x=x,
            y=names,
            mode="markers",
            name=name,
            marker=marker_of(i, hollow=not i),
            hovertemplate=f"%{{y}}<br>{name}: %{{x:+.1f}} points<extra></extra>",
        )
    figure.update_xaxes(title_text="difference, points", tickangle=0)
    return figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=[*rows], tickvals=[*rows],
        ticktext=[*rows.values()], range=[len(rows) - 0.4, -0.6], showgrid=False, ticks="",
        automargin=True,
    )  # fmt: skip
