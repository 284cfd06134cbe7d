"""One option for each of several parts, at the least loss under a budget: solved exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def choose(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]],
           budget: int) -> list[int]:  # fmt: skip
    """The option of each part that together cost at most ``budget`` and lose least.

    ``min Σᵢ loss[i][oᵢ]  so that  Σᵢ cost[i][oᵢ] ≤ budget``, a knapsack of one choice a part. Part
    by part, of all sums so far those stay which nothing undercuts in both cost and loss (dynamic
    programming over states that are not dominated: Pisinger 1995, EJOR 83(2)); costs are whole
    numbers, so there are at most ``budget + 1``. Raises ``ValueError`` with the least cost for a
    budget below it.

    >>> choose([[1, 2], [1, 2]], [[5.0, 0.0], [3.0, 0.0]], 3)
    [1, 0]
    """
    least = sum(min(each) for each in costs)
    if budget < least:
        raise ValueError(f"a budget of {budget} is below the least that can be reached, {least}")
    sums, lost = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for cost, loss in zip(costs, losses, strict=True):
        new = (sums[:, None] + np.asarray(cost)).ravel()
        worse = (lost[:, None] + np.asarray(loss, dtype=float)).ravel()
        order = np.lexsort((worse, new))
        order = order[new[order] <= budget]
        best = np.minimum.accumulate(worse[order])
        stays = order[np.r_[True, best[1:] < best[:-1]]]  # dearer ones that lose less
        steps.append((stays // len(cost), stays % len(cost)))
        sums, lost = new[stays], worse[stays]
    at, found = len(sums) - 1, []
    for before, option in reversed(steps):
        found.append(int(option[at]))
        at = before[at]
    return found[::-1]
