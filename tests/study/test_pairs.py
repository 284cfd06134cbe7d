"""Intervals, tests and power of pairs, against closed forms and many made-up studies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from xtclib.study import pairs

STUDIES = 20_000  # 0.95 of them is known to ± 0.005


def draws(kind, count, seed=0, studies=STUDIES):
    """Differences whose truth is 0, (studies, count)."""
    rng = np.random.default_rng(seed)
    made = {
        "normal": rng.normal,
        "wide": lambda size: rng.standard_t(3, size),
        "skewed": lambda size: rng.exponential(size=size) - 1,
        "two alike": lambda size: rng.exponential(size=size) - rng.exponential(size=size),
    }
    return made[kind](size=(studies, count))


def held(groups, level=0.95):
    """The share of studies whose interval holds 0."""
    low, high = pairs.interval(groups, level)
    return float(((low <= 0) & (high >= 0)).mean())


@pytest.mark.parametrize("count", [3, 5, 10])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_intervals_of_normal_differences_hold_the_truth_as_often_as_they_say(count, level):
    assert held([draws("normal", count)], level) == pytest.approx(level, abs=0.006)


@pytest.mark.parametrize(
    "kind, shares", [("wide", (96, 96, 96)), ("two alike", (97, 97, 96)), ("skewed", (88, 88, 90))]
)
def test_intervals_of_others_are_as_the_docstring_tells(kind, shares):
    for count, share in zip((3, 5, 10), shares, strict=True):
        assert 100 * held([draws(kind, count)]) == pytest.approx(share, abs=0.9), count


def test_a_percentile_bootstrap_of_three_would_be_too_narrow():
    found = stats.bootstrap((draws("normal", 3, studies=1000),), np.mean, axis=-1, n_resamples=499,
                            method="percentile", rng=0).confidence_interval  # fmt: skip
    assert ((found.low <= 0) & (found.high >= 0)).mean() == pytest.approx(0.74, abs=0.04)


@pytest.mark.parametrize("count, lowest, highest", [(2, 89.5, 98.5), (3, 93.5, 96.5), (5, 94, 96)])
def test_tasks_may_differ_in_mean_and_spread(count, lowest, highest):
    """Eight tasks, whose means are 0 together and far apart, and do not count as noise."""
    means = [8, -8, 4, -4, 2, -2, 1, -1]
    for scales in ([1] * 8, [3, 2, 1, 1, 0.5, 0.5, 0.3, 0.3], [5, *[0.2] * 7]):
        groups = [s * draws("normal", count, i) + m
                  for i, (s, m) in enumerate(zip(scales, means, strict=True))]  # fmt: skip
        assert lowest <= 100 * held(groups) <= highest


def test_of_five_comparisons_together_hardly_one_study_in_twenty_shows_what_is_not():
    level = pairs.corrected(0.95, 5)
    shown = np.zeros(STUDIES, bool)
    for seed in range(5):
        low, high = pairs.interval([draws("normal", 4, seed)], level)
        shown |= (low > 0) | (high < 0)
    assert shown.mean() == pytest.approx(0.05, abs=0.005)


def test_one_task_is_students_interval():
    values = np.array([2.1, 1.4, 3.3, 0.2])
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert pairs.interval([values], 0.9) == pytest.approx(tuple(theirs))


def test_two_tasks_are_welchs_interval():
    """The mean of a and −b is half of what a is ahead of b."""
    a, b = np.array([2.1, 1.4, 3.3]), np.array([9.0, 1.0, 5.0, 4.0])
    theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert pairs.interval([a, -b]) == pytest.approx((theirs.low / 2, theirs.high / 2))


def test_tasks_with_one_seed_are_the_sample():
    groups = [np.array([1.0]), np.array([2.0, 4.0]), np.array([5.0])]
    assert pairs.interval(groups) == pytest.approx(pairs.interval([np.array([1.0, 3.0, 5.0])]))


@pytest.mark.parametrize("groups", [[[2.0]], [[90.3 - 90.1, 80.3 - 80.1]], [[1, 1], [2, 2]]])
def test_without_spread_there_is_no_interval(groups):
    groups = [np.array(group) for group in groups]
    assert np.isnan([*pairs.interval(groups), pairs.detectable(groups)]).all()


values = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=3, max_size=9)


@given(values, st.floats(-50, 50), st.floats(0.1, 10))
def test_intervals_move_and_stretch_with_the_differences(found, shift, scale):
    found = np.array(found)
    low, high = pairs.interval([found])
    there = pairs.interval([scale * found + shift])
    assert there == pytest.approx(
        (scale * low + shift, scale * high + shift), nan_ok=True, abs=1e-6
    )
    assert pairs.interval([-found]) == pytest.approx((-high, -low), nan_ok=True, abs=1e-9)


@pytest.mark.parametrize(
    "signs, p",
    [("+++", 2 / 8), ("++++++", 2 / 64), ("+++++-", 2 * (6 + 1) / 64), ("+-", 1), ("00", 1),
     ("+++0", 2 / 8), ("-----", 2 / 32)],
)  # fmt: skip
def test_the_sign_test_by_hand(signs, p):
    assert pairs.sign_test([{"+": 1.5, "-": -0.1, "0": 1e-14}[s] for s in signs]) == p


def test_holm_by_hand():
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, none below the one before."""
    assert pairs.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert pairs.holm([0.5, 0.9]) == [1, 1] and pairs.holm([0.2]) == [0.2] and pairs.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferronis(ps):
    adjusted = pairs.holm(ps)
    for p, a in zip(ps, adjusted, strict=True):
        assert p <= a <= min(1, len(ps) * p) + 1e-12
    assert np.array_equal(np.array(adjusted)[np.argsort(ps)], np.sort(adjusted))


@pytest.mark.parametrize("difference, spread, count", [(2.0, 1.2, 3), (1.0, 1.2, 10), (0, 1, 5)])
def test_power_is_the_share_of_made_up_studies_that_show_the_difference(difference, spread, count):
    low, _ = pairs.interval([difference + spread * draws("normal", count)], 0.9)
    assert pairs.power(difference, spread, count, 0.9) == pytest.approx((low > 0).mean(), abs=0.01)


@pytest.mark.parametrize("level", [0.95, 0.999])
def test_what_is_detectable_has_power_of_four_fifths(level):
    found = np.array([0.3, 1.9, -0.4])
    least = float(pairs.detectable([found], level))
    assert pairs.power(least, found.std(ddof=1), 3, level) == pytest.approx(0.8, abs=1e-5)


def test_power_grows_with_pairs_and_difference():
    counts = [2, 3, 5, 10, 100, 10_000, 10**6]
    chances = [[pairs.power(d, 1.5, n) for n in counts] for d in (0.01, 1, 5)]
    assert (np.diff(chances, axis=0) >= 0).all() and (np.diff(chances, axis=1) >= -1e-9).all()
    assert pairs.power(-1, 1.5, 5) == pairs.power(1, 1.5, 5)


@pytest.mark.parametrize("difference", [0.05, 0.5, 1.0, 2.0, 20.0])
def test_seeds_needed_are_the_fewest(difference):
    fewest = pairs.seeds_needed(difference, 1.0, 0.9)
    assert pairs.power(difference, 1.0, fewest) >= 0.9
    assert fewest == 2 or pairs.power(difference, 1.0, fewest - 1) < 0.9


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="received a level of 95, .* such as 0.95"):
        pairs.interval([np.array([1.0, 2.0])], 95)
    with pytest.raises(ValueError, match="received 1 pairs of spread 2, expected at least 2"):
        pairs.power(1, 2, 1)
    with pytest.raises(ValueError, match="of spread 0, expected .* a spread above 0"):
        pairs.power(1, 0, 3)
    with pytest.raises(ValueError, match="difference of 0 at a spread of 1, .* 1,000,000 pairs"):
        pairs.seeds_needed(0, 1)
