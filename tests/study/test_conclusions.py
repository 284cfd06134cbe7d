"""What records show: who is paired with whom, what is refused, and how verdicts are put."""

import math

import pytest
from made import made

from xtclib.study import conclusions, pairs
from xtclib.study.conclusions import compare, glue_score, paired

OURS, THEIRS = {"recipe": "xtc-1bit"}, {"recipe": "xtc-half"}


def runs(recipe, scores, **other):
    return [made(recipe, score, seed=seed, **other) for seed, score in enumerate(scores)]


TWO = [*runs("xtc-1bit", (90.0, 91.0, 92.5)), *runs("xtc-half", (88.0, 88.5, 89.5, 70.0))]


def test_pairs_share_task_and_seed():
    others = [*runs("xtc-1bit", (80.0,), task="cola"), *runs("xtc-half", (81.5,), task="cola")]
    found = paired([*TWO, *others, *runs("pkd-6l", (1.0,))], OURS, THEIRS)
    assert found == {
        ("cola", "mini", "A", 0): -1.5, ("sst2", "mini", "A", 0): 2.0,
        ("sst2", "mini", "A", 1): 2.5, ("sst2", "mini", "A", 2): 3.0,
    }  # fmt: skip
    swapped = paired([*TWO, *others], THEIRS, OURS)
    assert swapped == {key: -value for key, value in found.items()}
    of_cola = paired([*TWO, *others], OURS | {"task": "cola"}, THEIRS)  # which both share
    assert of_cola == {("cola", "mini", "A", 0): -1.5}


def test_a_budget_is_compared_over_recipes():
    long = [*runs("xtc-1bit", (93.0, 93.0), budget="C"), *runs("xtc-half", (93.0,), budget="C")]
    found = paired([*TWO, *long], {"budget": "C"}, {"budget": "A"})
    assert found == {
        ("sst2", "mini", "xtc-1bit", 0): 3.0, ("sst2", "mini", "xtc-1bit", 1): 2.0,
        ("sst2", "mini", "xtc-half", 0): 5.0,
    }  # fmt: skip


def test_a_learning_rate_is_compared_by_dots():
    rates = [
        run
        for rate, scores in ((1e-3, (90.0, 91.0)), (1e-4, (89.0, 91.5)))
        for run in runs("xtc-1bit", scores, training_budget={"learning_rate": rate})
    ]
    field = "training_budget.learning_rate"
    found = paired([*rates, *runs("xtc-half", (1.0,))], {field: 1e-3}, {field: 1e-4})
    assert [*found.values()] == [1.0, -0.5]
    with pytest.raises(ValueError, match=r"did you mean 'training_budget.learning_rate'\?"):
        paired(rates, {"training_budget.learning_rat": 1}, {"training_budget.learning_rat": 2})


@pytest.mark.parametrize(
    "first, second, message",
    [
        (OURS, OURS, "recipe xtc-1bit against recipe xtc-1bit, expected .* different values"),
        (OURS, {"budget": "A"}, "recipe xtc-1bit against budget A, expected a field"),
        ({}, {}, "no field against no field"),
        ({"recipe": "xtc-1bt"}, THEIRS, "recipe xtc-1bt finds 0 of 7 .* did you mean 'xtc-1bit'"),
        (OURS, {"recipe": "half-xtc"}, "recipe half-xtc finds 0 of 7 .*Known recipes: xtc-1bit"),
        ({"recipee": "x"}, {"recipee": "y"}, "unknown field of .*'recipee': did you mean 'recipe'"),
        ({**OURS, "seed": 3}, {**THEIRS, "seed": 3}, "seed 3 finds 0 of 7 records: each value is"),
        ({"seed": 0}, {"seed": 1}, "selectors of two seeds"),
    ],
)
def test_selectors_that_say_nothing_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        paired(TWO, first, second)


def test_records_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="no records, .* run `make results`"):
        paired([], OURS, THEIRS)
    with pytest.raises(
        ValueError, match="recipe xtc-1bit finds two records of .*'sst2', 'mini', 'A'"
    ):
        paired([*TWO, TWO[0]], OURS, THEIRS)
    apart = [*runs("xtc-1bit", (90.0,), budget="B"), *runs("xtc-half", (88.0,))]
    with pytest.raises(
        ValueError, match="1 records of .* and 1 of .* share no task, profile, budget"
    ):
        paired(apart, OURS, THEIRS)
    other = made("xtc-half", 88.0, metrics={"test": {"score": 88.0}})
    with pytest.raises(ValueError, match=r"measured on \['dev'\] and \['test'\]"):
        paired([TWO[0], other], OURS, THEIRS)


def test_a_difference_is_shown_by_its_interval():
    """Differences 2, 2.5, 3: 2.5 ± 4.303 · 0.5 / √3."""
    (found,) = compare(TWO, {"bits": (OURS, THEIRS)})
    assert found.differences == (2.0, 2.5, 3.0) and found.mean == 2.5
    assert (found.low, found.high) == pytest.approx((2.5 - 1.2421, 2.5 + 1.2421), abs=1e-4)
    assert (found.p, found.adjusted, found.shown) == (0.25, 0.25, "ahead")
    assert found.verdict == "ahead by 2.5 points (1.3 to 3.7)"
    assert pairs.power(found.detectable, 0.5, 3) == pytest.approx(0.8, abs=1e-5)
    (turned,) = compare(TWO, {"bits": (THEIRS, OURS)})
    assert turned.verdict == "behind by 2.5 points (1.3 to 3.7)"
    assert (turned.low, turned.high) == (-found.high, -found.low)


def test_comparisons_made_together_are_corrected_for_their_number():
    """At 1 − 0.05 / 5 three pairs have t = 9.925; p of 0.25, five times, is 1."""
    wanted = {str(i): (OURS, THEIRS) for i in range(5)}
    found = compare(TWO, wanted)[3]
    assert (found.low, found.high) == pytest.approx((2.5 - 2.8650, 2.5 + 2.8650), abs=1e-4)
    assert (found.p, found.adjusted, found.shown, found.level) == (0.25, 1.0, "", 0.95)
    told = "no difference that 3 pairs could show (-0.4 to +5.4 points; they would show 3.7)"
    assert found.verdict == told
    assert pairs.power(found.detectable, 0.5, 3, 0.99) == pytest.approx(0.8, abs=1e-5)


def test_what_tasks_differ_by_is_no_noise():
    """sst2 is 2 to 3 ahead, cola 12 to 13: their mean is known as well as either's."""
    cola = [*runs("xtc-1bit", (52.0, 53.0, 52.5), task="cola"),
            *runs("xtc-half", (40.0, 40.0, 40.0), task="cola")]  # fmt: skip
    (found,) = compare([*TWO, *cola], {"bits": (OURS, THEIRS)})
    assert (found.mean, len(found.pairs)) == (7.5, 6)
    assert found.high - found.low == pytest.approx(2 * 2.7764 * 0.5 / math.sqrt(6), abs=1e-4)


def test_pairs_without_spread_are_not_judged():
    (one,) = compare([TWO[0], TWO[3]], {"bits": (OURS, THEIRS)})
    assert one.verdict == "not to be judged: 1 pair without spread, +2.0 points"
    alike = [*runs("xtc-1bit", (80.3, 90.3)), *runs("xtc-half", (80.1, 90.1))]
    (two,) = compare(alike, {"bits": (OURS, THEIRS)})
    assert two.verdict == "not to be judged: 2 pairs without spread, +0.2 points"
    assert math.isnan(two.low) and two.shown == "" and two.p == 0.5


def test_what_is_wrong_with_a_comparison_comes_after_its_name():
    with pytest.raises(ValueError, match="bits: received 1 selectors, expected two"):
        compare(TWO, {"bits": (OURS,)})
    with pytest.raises(ValueError, match="bits: recipe x finds 0 of 7"):
        compare(TWO, {"bits": ({"recipe": "x"}, OURS)})
    with pytest.raises(ValueError, match="received a level of 95"):
        compare(TWO, {"bits": (OURS, THEIRS)}, level=95)


def test_the_glue_score_is_one_number_a_seed():
    halves = {"matched": {"score": 84.0}, "mismatched": {"score": 82.0}}
    mnli = [made(task="mnli", metrics=halves, seed=seed) for seed in (0, 1)]
    cola = runs("xtc-1bit", (60.0, 61.0), task="cola")
    found = glue_score([*runs("xtc-1bit", (90.0, 91.0)), *cola, *mnli])
    assert found.scores == pytest.approx(((90 + 60 + 83) / 3, (91 + 61 + 83) / 3))
    assert (found.tasks, found.n) == (("cola", "mnli", "sst2"), 2)


@pytest.mark.parametrize(
    "records, message",
    [
        ([], "received no records"),
        (TWO, r"records of xtc-1bit \(budget A\), xtc-half \(budget A\), expected one recipe"),
        ([TWO[0], made(budget="C", task="cola")], r"budget A\), xtc-1bit \(budget C\)"),
        ([TWO[0], TWO[0]], "doubles others"),
        ([*TWO[:2], made(task="cola")], r"seed 1 lacks \['cola'\]"),
        ([made(task="reviews")], "unknown task of GLUE 'reviews'"),
    ],
)
def test_a_glue_score_of_other_records_is_refused(records, message):
    with pytest.raises(ValueError, match=message):
        glue_score(records)


def test_a_table_has_a_line_a_comparison():
    one = {"one seed": ({**OURS, "seed": 0}, {**THEIRS, "seed": 0})}
    text = conclusions.table(compare(TWO, {"bits": (OURS, THEIRS), **one}))
    assert text.splitlines() == [
        "          pairs  points    low   high      p   Holm  detectable  shown",
        "bits          3    +2.5   +0.7   +4.3  0.250  0.500         2.3  ahead",
        "one seed      1    +2.0      –      –  1.000  1.000           –  nothing",
        "intervals hold together at 95 %; p: sign test; detectable: with probability 0.8",
    ]
    with pytest.raises(ValueError, match="received no comparisons"):
        conclusions.table([])
