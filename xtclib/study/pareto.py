"""What no other recipe beats in everything at once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np

from xtclib.files import unknown
from xtclib.records import Group, Record, common, grouped

AXES = ("score", "bytes", "time")


@dataclass(frozen=True)
class Point:
    """A recipe at a budget: its scores, and its time as a share of its teacher's (NaN: unknown)."""

    group: Group
    time: float
    seconds: float

    def values(self, axes: Iterable[str] = AXES) -> list[float]:
        """What is to be small, in the order of ``axes``; no time is the longest."""
        time = math.inf if math.isnan(self.time) else self.time
        of = {"score": -self.group.mean, "bytes": self.group.bytes, "time": time}
        return [of[axis] for axis in axes]


def axes_of(text: str) -> tuple[str, ...]:
    """Axes by their names, such as ``score,bytes``; ``ValueError`` for others and for one alone.

    >>> axes_of("score,bytes")
    ('score', 'bytes')
    """
    axes = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in axes:
        if name not in AXES:
            raise unknown("measure", name, AXES)
    if len(axes) < 2:
        raise ValueError(f"a front has two axes or three, received {text!r}: {', '.join(AXES)}")
    return axes


def unbeaten(costs: np.ndarray) -> np.ndarray:
    """Which rows of (points, axes) no other beats: none is as small in all and smaller in one.

    Equal rows beat each other in nothing, and stay.

    >>> unbeaten(np.array([[1, 3], [2, 2], [2, 3], [1, 3]])).tolist()
    [True, True, False, True]
    """
    costs = np.asarray(costs, float)
    no_worse = (costs[:, None] <= costs[None]).all(-1)
    better = (costs[:, None] < costs[None]).any(-1)
    return np.asarray(~(no_worse & better).any(0))


def points(records: Iterable[Record]) -> list[Point]:
    """A point for each recipe and budget, over the tasks that all have, in order of size."""
    records = common(records)
    found = []
    for group in grouped(records):
        own = [r for r in records if (r.recipe, r.budget) == (group.recipe, group.budget)]
        times = [r.latency["milliseconds"] for r in own if r.latency]
        shares = [t["student"]["median"] / t["teacher"]["median"] for t in times]
        found.append(Point(group, median(shares) if shares else math.nan,
                           median(r.seconds for r in own)))  # fmt: skip
    return sorted(found, key=lambda p: (p.group.bytes, -p.group.mean))


def front(found: Iterable[Point], axes: Iterable[str] = AXES) -> list[Point]:
    """Those that no other beats on all of ``axes`` at once."""
    found = list(found)
    if not found:
        return []
    kept = unbeaten(np.array([point.values(axes) for point in found]))
    return [point for point, stays in zip(found, kept, strict=True) if stays]


def table(found: Iterable[Point], of: int) -> str:
    """Points as text, under how many of all they are."""
    found = list(found)
    lines = [f"{len(found)} of {of} are unbeaten",
             f"{'recipe':<24}{'score':>7}  {'range':<14}{'MB':>8}{'× smaller':>11}"
             f"{'time':>7}{'seeds':>7}"]  # fmt: skip
    for point in found:
        g, name = point.group, f"{point.group.recipe}, {point.group.budget}"
        spread = f"{g.low:.1f} to {g.high:.1f}" if g.n > 1 else ""
        lines.append(f"{name:<24}{g.mean:>7.1f}  {spread:<14}{g.bytes / 1e6:>8.2f}"
                     f"{g.teacher_bytes / g.bytes:>11.1f}{point.time:>7.2f}{g.n:>7}")  # fmt: skip
    return "\n".join([*lines, "time: share of the teacher's"])
