"""What records let one expect of a recipe that is about to be run, and how sure they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from xtclib.records import Record

HOLDS = 0.9  # of the ranges, so often the new record lies within


@dataclass(frozen=True)
class Expected:
    """Points that a recipe will lose to its teacher, by how many records, and of which tasks."""

    drop: float
    low: float
    high: float
    records: int
    elsewhere: tuple[str, ...] = ()  # the tasks it was measured on, where it was not on this one

    def __str__(self) -> str:
        of = f" of {', '.join(self.elsewhere)}" if self.elsewhere else ""
        count = f"{self.records} record{'s' * (self.records > 1)}{of}"
        return f"{self.drop:.1f} ({self.low:.1f} to {self.high:.1f}; {count})"


def drop_of(record: Record) -> float:
    """``teacher − student``, in points of the task's score."""
    return record.teacher_score - record.score


class Evidence:
    """Drops by profile, task, recipe and budget, and how far a new one falls from their mean.

    A range is ``d ± q·(1 + |d| / 5)`` about the mean drop d of the records that compare: q is the
    quantile 0.9 of what is left over, in these units, when each record in turn is told by the
    others (the jackknife of conformal prediction, Barber et al. 2021, arXiv:1905.02928). Records of
    the same task tell more than those of others, and have a q of their own; the more is lost, the
    more runs scatter.
    """

    def __init__(self, points: Iterable[tuple[tuple, float]]) -> None:
        self.drops: dict[tuple, list[float]] = defaultdict(list)
        for at, drop in points:
            self.drops[at].append(drop)
        self.of_recipe: dict[str, list[tuple]] = defaultdict(list)
        for at in self.drops:
            self.of_recipe[at[2]].append(at)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Evidence:
        """That of records."""
        return cls(map(_point, records))

    def expected(self, profile: str, task: str, recipe: str, budget: str) -> Expected | None:
        """What a run will lose; by records of other tasks where this one has none; or ``None``."""
        if own := self.drops.get((profile, task, recipe, budget)):
            return _expected(fmean(own), self.reach[0], len(own))
        others = self._others(profile, task, recipe)
        if not others:
            return None
        count = sum(len(self.drops[at]) for at in others)
        tasks = tuple(dict.fromkeys(at[1] for at in others))
        return _expected(self._mean(others), self.reach[1], count, tasks)

    def _others(self, profile: str, task: str, recipe: str) -> list[tuple]:
        return [at for at in self.of_recipe[recipe] if at[:2] != (profile, task)]

    def _mean(self, places: list[tuple]) -> float:
        """Of the means, so that no task counts for more because it has more seeds."""
        return fmean(fmean(self.drops[at]) for at in places)

    @cached_property
    def reach(self) -> tuple[float, float]:
        """q of records of the same task, and of those of others; without any, one of the score."""
        here, elsewhere = [], []
        for at, own in self.drops.items():
            if len(own) > 1:
                rest = (np.sum(own) - own) / (len(own) - 1)
                here += [abs(d - m) / _unit(m) for d, m in zip(own, rest, strict=True)]
            if others := self._others(*at[:3]):
                told = self._mean(others)
                elsewhere += [abs(d - told) / _unit(told) for d in own]
        q = [float(np.quantile(left, HOLDS)) if left else 100.0 for left in (here, elsewhere)]
        return q[0], q[1]


def _point(record: Record) -> tuple[tuple, float]:
    return (record.profile, record.task, record.recipe, record.budget), drop_of(record)


def _unit(drop: float) -> float:
    return 1 + abs(drop) / 5


def _expected(drop: float, q: float, records: int, elsewhere: tuple[str, ...] = ()) -> Expected:
    reach = q * _unit(drop)
    return Expected(drop, drop - reach, drop + reach, records, elsewhere)


def leave_one_out(records: Iterable[Record]) -> list[tuple[Record, Expected]]:
    """Each record with what all others let one expect of it, where they let one expect anything."""
    records = list(records)
    points, found = [*map(_point, records)], []
    for i, left in enumerate(records):
        told = Evidence(points[:i] + points[i + 1 :]).expected(*points[i][0])
        if told is not None:
            found.append((left, told))
    return found
