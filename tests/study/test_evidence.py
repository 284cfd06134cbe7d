"""What records let one expect: means, ranges, and how often a range holds what is left out."""

import json

import numpy as np
import pytest
from made import made

from xtclib import records
from xtclib.cache import ROOT
from xtclib.study.evidence import HOLDS, Evidence, drop_of, leave_one_out


def drops(recipe, *points, **other):
    """Records that lose so many points to their teacher of 94."""
    return [made(recipe, 94.0 - p, 1, seed=i, **other) for i, p in enumerate(points)]


KNOWN = [*drops("xtc-1bit", 4.0, 6.0), *drops("xtc-half", 1.0, 1.0, 4.0)]


def test_the_mean_of_records_of_the_task_and_how_many_they_are():
    found = Evidence.of(KNOWN).expected(KNOWN[0].profile, KNOWN[0].task, "xtc-1bit", "A")
    assert (found.drop, found.records, found.elsewhere) == (5.0, 2, ())
    assert found.high - 5 == pytest.approx(5 - found.low)


def test_a_range_is_what_the_others_leave_over():
    # xtc-1bit: 4 told by 6, 6 told by 4; xtc-half: 1 by 2.5, twice, 4 by 1
    left = [2 / (1 + 6 / 5), 2 / (1 + 4 / 5), *2 * [1.5 / 1.5], 3 / 1.2]
    q = np.quantile(left, HOLDS)
    evidence = Evidence.of(KNOWN)
    assert evidence.reach[0] == pytest.approx(q)
    found = evidence.expected(KNOWN[0].profile, KNOWN[0].task, "xtc-half", "A")
    assert found.high - found.drop == pytest.approx(q * (1 + 2 / 5))


def test_other_tasks_tell_where_this_one_has_none_each_as_much():
    other = [*drops("rpp-50", 2.0, 2.0, 2.0, task="cola"), *drops("rpp-50", 6.0, task="mrpc")]
    found = Evidence.of([*KNOWN, *other]).expected(KNOWN[0].profile, KNOWN[0].task, "rpp-50", "A")
    assert (found.drop, found.records, found.elsewhere) == (4.0, 4, ("cola", "mrpc"))
    assert "4 records of cola, mrpc" in str(found)


def test_nothing_is_expected_of_what_nobody_measured():
    assert Evidence.of(KNOWN).expected(KNOWN[0].profile, KNOWN[0].task, "rpp-50", "A") is None


def test_one_record_alone_is_told_by_none_and_says_little():
    assert leave_one_out(KNOWN[:1]) == []
    found = Evidence.of(KNOWN[:1]).expected(KNOWN[0].profile, KNOWN[0].task, "xtc-1bit", "A")
    assert (found.low, found.high) == (4.0 - 180, 4.0 + 180)


@pytest.mark.slow
def test_ranges_hold_four_in_five_of_the_committed_records():
    every = [*records.read("reviews"), *records.read("minilm")]
    found = leave_one_out(every)
    assert len(found) > 0.8 * len(every)
    for here in (True, False):
        held = [e.low <= drop_of(r) <= e.high for r, e in found if here == (not e.elsewhere)]
        assert len(held) > 100 and np.mean(held) >= 0.8


@pytest.mark.slow
def test_the_results_say_how_wide_ranges_are():
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    found = leave_one_out([*records.read("reviews"), *records.read("minilm")])
    assert 0.87 < np.mean([e.low <= drop_of(r) <= e.high for r, e in found]) < 0.94
    here, there = (np.median([e.high - e.drop for _, e in found if bool(e.elsewhere) == away])
                   for away in (False, True))  # fmt: skip
    assert f"typically reaches {here:.1f} points to each side" in text
    assert f"and {there:.1f} where only other tasks tell" in text


def test_the_results_say_how_far_times_from_layers_are_off():
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    found = json.loads((records.RESULTS / "deployment" / "effectiveness.json").read_text())
    off = [abs(apart) for each in found["off"].values() for apart in each.values()]
    assert f"in {sum(apart <= 15 for apart in off)} of {len(off)} cases" in text
    assert f"the median is off by {np.median(off):.0f} %, the worst by {max(off):.0f} %" in text
