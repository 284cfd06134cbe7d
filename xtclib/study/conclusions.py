"""What the records of a study show, and what so few seeds cannot.

Runs differ by seed, so recipes are compared in pairs that share a task and a seed. What is said
holds for other seeds on the same rows, not for other rows (Bouthillier et al. 2021,
arXiv:2103.03098, measure what each adds). Differences are points of the score, in percent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xtclib.files import unknown
from xtclib.records import Group, Record, grouped
from xtclib.study.pairs import CHANCE, corrected, detectable, holm, interval, sign_test
from xtclib.tasks.glue import TASKS

_IDENTITY = ("task", "profile", "recipe", "budget", "seed")


@dataclass(frozen=True)
class Comparison:
    """How far ``first`` is ahead of ``second``, in points; made by :func:`compare`.

    ``differences`` has one value for each of ``pairs``, which end in their seed; pairs that differ
    in nothing else are of one setting, such as a task. ``mean`` is that of the settings' means,
    ``low`` to ``high`` its interval at the corrected level, NaN without spread. ``p`` is the sign
    test's, ``adjusted`` by Holm; ``detectable``: see `pairs.detectable`.
    """

    name: str
    first: Mapping[str, object]
    second: Mapping[str, object]
    differences: tuple[float, ...]
    pairs: tuple[tuple, ...]
    mean: float
    low: float
    high: float
    level: float
    p: float
    adjusted: float
    detectable: float

    @property
    def shown(self) -> str:
        """``"ahead"`` or ``"behind"`` where the interval leaves out 0, else empty."""
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else ""

    @property
    def verdict(self) -> str:
        """What may be said, in one short sentence."""
        pairs = f"{len(self.pairs)} pair{'s' * (len(self.pairs) > 1)}"
        if math.isnan(self.low):
            return f"not to be judged: {pairs} without spread, {self.mean:+.1f} points"
        if self.shown:
            low, high = sorted((abs(self.low), abs(self.high)))
            return f"{self.shown} by {abs(self.mean):.1f} points ({low:.1f} to {high:.1f})"
        told = f"{self.low:+.1f} to {self.high:+.1f} points; they would show {self.detectable:.1f}"
        return f"no difference that {pairs} could show ({told})"


def compare(
    records: Iterable[Record],
    wanted: Mapping[str, Sequence[Mapping[str, object]]],
    level: float = 0.95,
) -> list[Comparison]:
    """Every ``name: (first, second)``, selectors as :func:`paired` takes them, judged together.

    The verdict is by `pairs.interval`, at a level corrected for their number: all intervals hold at
    once. The sign test stands beside it: it assumes no distribution, but its p is at least
    2 / 2³ = 0.25 for 3 pairs, and below 0.05 from 6 on at best. ``ValueError`` as :func:`paired`
    raises it, after the name.

    >>> compare([], {})
    []
    """
    records, found = list(records), {}
    for name, selectors in wanted.items():
        if len(selectors) != 2:
            raise ValueError(f"{name}: received {len(selectors)} selectors, expected two")
        try:
            found[name] = paired(records, *selectors)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    together = corrected(level, len(found))
    ps = [sign_test([*pairs.values()]) for pairs in found.values()]
    made = []
    for (name, pairs), p, adjusted in zip(found.items(), ps, holm(ps), strict=True):
        (first, second), groups = wanted[name], _by_setting(pairs)
        mean = float(np.mean([group.mean() for group in groups]))
        low, high = map(float, interval(groups, together))
        least = float(detectable(groups, together))
        made.append(
            Comparison(
                name, first, second, tuple(pairs.values()), tuple(pairs), mean, low, high, level,
                p, adjusted, least,
            )
        )  # fmt: skip
    return made


def _by_setting(pairs: Mapping[tuple, float]) -> list[np.ndarray]:
    """The differences of pairs that are alike but for the seed, an array each."""
    found: dict[tuple, list[float]] = {}
    for key, difference in pairs.items():
        found.setdefault(key[:-1], []).append(difference)
    return [np.array(values) for values in found.values()]


def paired(
    records: Iterable[Record], first: Mapping[str, object], second: Mapping[str, object]
) -> dict[tuple, float]:
    """Points that the records ``first`` selects are ahead of ``second``'s, where both have a run.

    A selector maps fields of a record, or ``training_budget.<field>``, to values. A pair shares
    task, profile, recipe, budget and seed, but for those to which both selectors give a value, a
    different one each; what it shares is its key, in that order. ``ValueError`` for selectors that
    one record may meet both, for fields and values that no record has, for two records of one key,
    and where nothing pairs.
    """
    records = list(records)
    apart = {field for field in first if field in second and first[field] != second[field]}
    if not apart:
        received = f"received {_told(first)} against {_told(second)}"
        raise ValueError(f"{received}, expected a field to which they give different values")
    if "seed" in apart:
        raise ValueError("received selectors of two seeds, expected one: seeds make the pairs")
    names = [name for name in _IDENTITY if name not in apart]
    ours, theirs = (_selected(records, selector, names) for selector in (first, second))
    keys = sorted(ours.keys() & theirs.keys())
    if not keys:
        counts = f"{len(ours)} records of {_told(first)} and {len(theirs)} of {_told(second)}"
        raise ValueError(f"{counts} share no {', '.join(names)}: name in both what differs")
    for key in keys:
        splits = [sorted(of[key].metrics) for of in (ours, theirs)]
        if splits[0] != splits[1]:
            raise ValueError(f"the records of {key} were measured on {splits[0]} and {splits[1]}")
    return {key: ours[key].score - theirs[key].score for key in keys}


def _selected(records: list[Record], selector: Mapping, names: list[str]) -> dict[tuple, Record]:
    """The records that have all of a selector's values, by their values of ``names``."""
    if not records:
        raise ValueError("received no records, expected at least one: run `make results`")
    told = f"{_told(selector)} finds 0 of {len(records)} records"
    facts = [
        vars(r) | {f"training_budget.{name}": value for name, value in r.training_budget.items()}
        for r in records
    ]
    for field, value in selector.items():
        values = [each[field] for each in facts if field in each]
        if not values:
            raise unknown("field of records", field, {name: 0 for each in facts for name in each})
        if value not in values:
            raise ValueError(f"{told}: {unknown(field, value, sorted({str(v) for v in values}))}")
    found: dict[tuple, Record] = {}
    for record, each in zip(records, facts, strict=True):
        if all(field in each and each[field] == value for field, value in selector.items()):
            key = tuple(each[name] for name in names)
            if key in found:
                twice = f"{_told(selector)} finds two records of {key}: name what differs"
                raise ValueError(twice)
            found[key] = record
    if not found:
        raise ValueError(f"{told}: each value is there, all of them together are not")
    return found


def _told(selector: Mapping[str, object]) -> str:
    return ", ".join(f"{field} {value}" for field, value in selector.items()) or "no field"


def glue_score(records: Iterable[Record]) -> Group:
    """The score over GLUE's tasks of one recipe and budget: ``scores``, one a seed, and ``tasks``.

    Σ scoreₜ / tasks: one number a task, MNLI's two splits averaged first (Wang et al. 2019,
    arXiv:1804.07461). ``ValueError`` for several recipes or budgets, for other tasks, and for a
    seed that has a task twice or lacks one that another has.
    """
    records = list(records)
    mixed = sorted({f"{r.recipe} (budget {r.budget})" for r in records})
    if len(mixed) > 1:
        raise ValueError(f"received records of {', '.join(mixed)}, expected one recipe and budget")
    (group,) = grouped(records)
    for task in group.tasks:
        if task not in TASKS:
            raise unknown("task of GLUE", task, TASKS)
    return group


def table(comparisons: Sequence[Comparison]) -> str:
    """Comparisons as text, a line each; ``ValueError`` where there are none."""
    if not comparisons:
        raise ValueError("received no comparisons, expected at least one")
    wide = max(len(c.name) for c in comparisons)
    head = f"{'':{wide}}  pairs  points    low   high      p   Holm  detectable  shown"
    lines = [
        f"{c.name:{wide}}{len(c.pairs):7}{c.mean:+8.1f}{_cell(c.low, '+')}{_cell(c.high, '+')}"
        f"{c.p:7.3f}{c.adjusted:7.3f}{_cell(c.detectable):>12}  {c.shown or 'nothing'}"
        for c in comparisons
    ]
    level = f"intervals hold together at {100 * comparisons[0].level:g} %"
    foot = f"{level}; p: sign test; detectable: with probability {CHANCE}"
    return "\n".join(line.rstrip() for line in [head, *lines, foot])


def _cell(value: float, sign: str = "") -> str:
    return f"{'–':>7}" if math.isnan(value) else f"{value:{sign}7.1f}"
