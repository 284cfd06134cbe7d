"""Milliseconds of callables, measured in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch


def wait() -> None:
    """Until a GPU has done what it was told; nothing where there is none."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_of(run: Callable[[], object]) -> float:
    """The seconds that a call takes, a GPU's work included."""
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def quartiles(times: list[float]) -> dict[str, float]:
    """``low``, ``median`` and ``high`` of some times."""
    found = np.percentile(times, (25, 50, 75)).round(3).tolist()
    return dict(zip(("low", "median", "high"), found, strict=True))


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    repeats: int = 20,
    warm_up: int = 3,
    pause: float = 0.0,
) -> dict[str, dict[str, float]]:
    """Milliseconds of each callable, measured in turns so that all meet the same machine.

    Gives ``median``, ``low`` and ``high`` (the quartiles) of ``repeats`` after ``warm_up``.
    ``pause``: seconds to wait before each, followed by a run that is not counted, unless runs take
    half a second. Give some where several runtimes take turns: threads of one go on spinning for a
    while and slow the next down.

    >>> sorted(in_turns({"nothing": lambda: None}, repeats=2)["nothing"])
    ['high', 'low', 'median']
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + repeats):
        for name, run in runs.items():
            if pause:
                time.sleep(pause)
                if not times[name] or times[name][-1] < 500:
                    time_of(run)
            taken = time_of(run)
            if turn >= warm_up:
                times[name].append(1e3 * taken)
    return {name: quartiles(found) for name, found in times.items()}
