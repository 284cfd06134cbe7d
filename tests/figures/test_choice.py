"""The explorer: what its filters leave, what a click tells, and the page without a kernel."""

import pytest
from made import made

choice = pytest.importorskip("xtclib.figures.choice", exc_type=ImportError)
from xtclib.figures.records import FAMILIES  # noqa: E402
from xtclib.study.effectiveness import Line  # noqa: E402


def timed(recipe, score, size, share, **other):
    times = {"teacher": {"median": 10.0}, "student": {"median": 10.0 * share}}
    latency = {"batch": 8, "length": 32, "milliseconds": times}
    return made(recipe, score, size, latency=latency, **other)


RECORDS = [
    timed("xtc-1bit", 88.0, 500_000, 0.4), timed("xtc-1bit", 90.0, 500_000, 0.4, seed=1),
    timed("xtc-2bit", 91.0, 900_000, 0.4), timed("xtc-2bit", 92.0, 900_000, 0.4, budget="B"),
    timed("xtc-half", 85.0, 5_000_000, 0.5), timed("rpp-50", 93.0, 4_000_000, 1.0),
    timed("xtc-1bit", 70.0, 500_000, 0.4, task="cola"),
]  # fmt: skip


@pytest.fixture
def explorer():
    return choice.explorer(RECORDS)


def shown(explorer):
    """Each point in the picture with its opacity, by name."""
    found = {}
    for trace in explorer.children[0].data:
        for about, opacity in zip(trace.customdata or (), trace.marker.opacity or (), strict=False):
            found[about[0]] = opacity
    return found


def test_all_are_shown_and_the_beaten_faint(explorer):
    found = shown(explorer)
    assert set(found) == {"xtc-1bit, A", "xtc-2bit, A", "xtc-2bit, B", "xtc-half, A", "rpp-50, A"}
    faint = {name for name, opacity in found.items() if opacity < 0.5}
    assert faint == {"xtc-2bit, A", "xtc-half, A"}
    assert "5 recipes" in explorer.children[2].value


def test_filters_leave_what_they_say(explorer):
    task, budget, family = explorer.children[1].children
    budget.value = "B"
    assert set(shown(explorer)) == {"xtc-2bit, B"}
    budget.value, family.value = "all", ("pruned",)
    assert set(shown(explorer)) == {"rpp-50, A"}
    family.value = ()
    assert shown(explorer) == {} and "0 recipes" in explorer.children[2].value
    family.value, task.value = tuple(FAMILIES), task.options[1]
    assert set(shown(explorer)) == {"xtc-1bit, A"}
    assert budget.options == ("all", "A")


def test_the_line_joins_what_none_beats_in_size_and_score(explorer):
    line = next(t for t in explorer.children[0].data if t.mode == "lines")
    assert list(line.x) == [0.5, 0.9, 4.0] and list(line.y) == [89.0, 92.0, 93.0]


def test_a_click_tells_the_record_and_the_command(explorer):
    trace = next(t for t in explorer.children[0].data if t.name == FAMILIES["quantized"])
    at = [about[0] for about in trace.customdata].index("xtc-1bit, A")
    clicked = type("Clicked", (), {"point_inds": [at]})()
    for callback in trace._click_callbacks:
        callback(trace, clicked, None)
    told = explorer.children[2].value
    assert "seed 0: 88.0, seed 1: 90.0" in told
    assert "xtc compress xtc-1bit --task" in told and "--budget A --seed 0" in told


def test_what_a_record_says_is_no_markup():
    record = made("<b>mine</b>", 88.0, 500_000, left_out="<script>")
    told = choice.describe([record], "<b>mine</b>", "A")
    assert "<script>" not in told and "&lt;b&gt;mine" in told


def test_a_page_has_every_task_behind_a_menu():
    figure = choice.page(RECORDS)
    (menu,) = figure.layout.updatemenus
    assert len(menu.buttons) == 2
    for button in menu.buttons:
        assert len(button.args[0]["visible"]) == len(figure.data)
    first, second = (button.args[0]["visible"] for button in menu.buttons)
    assert not any(a and b for a, b in zip(first, second, strict=True))
    assert [bool(t.visible) for t in figure.data] == list(first)


def test_a_family_stands_above_its_recipes():
    def line(family, recipe, own, published, here):
        scores = {"sst2": ("A", 1, 90 + here, 90 + here, 90 + here, 90.0)}
        published = {"difference": published, "CPU": None}
        return Line(1, family, "", recipe, own, published, 1, 1, {}, scores, 1, {})

    lines = [line("Bits", "xtc-1bit", True, -1.0, -4.0), line("Bits", "xtc-2bit", False, -0.5, 0.5),
             line("Zeros", "rpp-50", True, 0.0, -2.0)]  # fmt: skip
    figure = choice.effectiveness(lines)
    axis = figure.layout.yaxis
    told = ("<b>Bits</b>", "xtc-1bit", "xtc-2bit ~", "<b>Zeros</b>", "rpp-50")
    assert axis.ticktext == told and axis.tickvals == axis.categoryarray
    published, here = figure.data[-2:]
    assert list(published.x) == [-1.0, -0.5, 0.0] and list(here.x) == [-4.0, 0.5, -2.0]
    assert [axis.tickvals.index(y) for y in here.y] == [1, 2, 4]
    assert axis.range[0] > 4 and axis.range[1] < 0  # first on top, none cut
