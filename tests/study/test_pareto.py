"""Fronts against what the definition says of every pair."""

import math

import numpy as np
import pytest
from made import made

from xtclib.study import pareto


def beats(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(
        x < y for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("seed, axes", [(0, 2), (1, 3), (2, 3)])
def test_unbeaten_is_what_no_other_beats(seed, axes):
    costs = np.random.default_rng(seed).integers(0, 6, (60, axes))
    expected = [not any(beats(a, b) for a in costs) for b in costs]
    assert pareto.unbeaten(costs).tolist() == expected


def timed(recipe, score, size, share, **other):
    times = {"teacher": {"median": 10.0}, "student": {"median": 10.0 * share}}
    latency = {"batch": 8, "length": 32, "milliseconds": times}
    return made(recipe, score, size, latency=latency, **other)


def test_points_are_means_over_seeds_and_the_front_leaves_out_what_is_beaten():
    found = pareto.points([
        timed("a", 80.0, 5, 0.5), timed("a", 82.0, 5, 0.7, seed=1), timed("b", 79.0, 9, 0.6),
        timed("c", 90.0, 9, 0.9), timed("d", 70.0, 9, 0.1),
    ])  # fmt: skip
    assert [(p.group.recipe, p.group.mean, p.time) for p in found][0] == ("a", 81.0, 0.6)
    assert {p.group.recipe for p in pareto.front(found)} == {"a", "c", "d"}
    assert {p.group.recipe for p in pareto.front(found, ("score", "bytes"))} == {"a", "c"}
    assert pareto.front([]) == []


def test_what_was_not_timed_beats_nobody_on_the_clock():
    found = pareto.points([made("a", 80.0, 5, latency={}), timed("b", 80.0, 5, 0.5)])
    assert math.isnan(next(p.time for p in found if p.group.recipe == "a"))
    assert [p.group.recipe for p in pareto.front(found)] == ["b"]


@pytest.mark.parametrize("text", ["score", "score,size", "score,score", ""])
def test_a_front_of_other_or_too_few_axes_is_refused(text):
    with pytest.raises(ValueError, match="did you mean|unknown measure|two axes or three"):
        pareto.axes_of(text)
