"""Figures of a study: intervals and pairs where they are, and seeds that are enough."""

import pytest
from made import made

from xtclib.figures import study
from xtclib.figures.style import alt
from xtclib.study import pairs
from xtclib.study.conclusions import compare

RECORDS = [made(recipe, score, seed=seed)
           for recipe, scores in {"a": (90.0, 91.0, 92.5), "b": (88.0, 88.5, 89.5),
                                  "c": (89.0, 91.0, 88.0)}.items()
           for seed, score in enumerate(scores)]  # fmt: skip
WANTED = {f"{x} against {y}": ({"recipe": x}, {"recipe": y}) for x, y in ("ab", "ba", "cb")}


@pytest.fixture
def found():
    return compare(RECORDS, WANTED)


def test_a_forest_has_a_row_a_comparison(found):
    figure = study.intervals(found)
    pairs_, ahead, behind, nothing = figure.data
    assert list(pairs_.x) == [d for c in found for d in c.differences]
    assert [(t.name, list(t.x), list(t.y)) for t in (ahead, behind, nothing)] == [
        ("ahead", [2.5], [2]), ("behind", [-2.5], [1]),
        ("no difference shown", [pytest.approx(2 / 3)], [0]),
    ]  # fmt: skip
    assert ahead.x[0] - ahead.error_x.arrayminus[0] == pytest.approx(found[0].low)
    assert ahead.x[0] + ahead.error_x.array[0] == pytest.approx(found[0].high)
    assert len({t.marker.symbol for t in figure.data}) == 4
    assert list(figure.layout.yaxis.ticktext) == list(WANTED)
    assert [a.text for a in figure.layout.annotations] == ["+2.5", "-2.5", "+0.7"]
    left, right = figure.layout.xaxis.range
    assert left < min(c.low for c in found) and right > max(c.high for c in found)
    assert alt(figure) == (
        "2 of 3 comparisons show a difference; the largest is a against b, ahead by 2.5 points. "
        "Axes: points ahead (95 % intervals, together)."
    )


def test_a_forest_says_so_when_nothing_is_shown(found):
    assert alt(study.intervals(found[2:])).startswith("c against b: no difference that 3 pairs")
    none = compare(RECORDS[:1] + RECORDS[3:4], dict([*WANTED.items()][:2]))
    figure = study.intervals(none)  # one pair: a point without an interval
    assert alt(figure).startswith("None of 2 comparisons shows a difference.")
    assert figure.layout.xaxis.range[0] < -2 and figure.to_json()
    with pytest.raises(ValueError, match="no comparisons"):
        study.intervals([])


def test_seeds_are_drawn_by_their_power():
    figure = study.seeds(1.2, [1, 2], most=15)
    one, two = figure.data
    assert list(one.x) == list(range(2, 16)) and one.y[1] == 100 * pairs.power(1, 1.2, 3)
    assert all(a < b for a, b in zip(one.y, two.y, strict=True))
    assert [a.text for a in figure.layout.annotations] == ["1 point", "2 points"]
    assert one.y[12] > 80 > one.y[11] and one.x[12] == 14
    assert alt(figure) == (
        "It takes 14 seeds to show 1 point at a spread of 1.2. Axes: seeds, a pair each; "
        "chance to show the difference, %."
    )
    with pytest.raises(ValueError, match="no differences"):
        study.seeds(1.2, [])


def test_verdicts_are_a_table(found):
    table = study.verdicts(found)
    assert table.data.loc["a against b", "points ahead"] == 2.5
    assert list(table.data["verdict"]) == [c.verdict for c in found]
    assert table.to_html().count("font-weight: bold") == 1


def test_long_names_are_wrapped():
    name = "the first of all recipes against the second, 150 steps"
    figure = study.intervals(compare(RECORDS, {name: WANTED["a against b"]}))
    assert figure.layout.yaxis.ticktext == (
        "the first of all recipes<br>against the second, 150<br>steps",
    )
