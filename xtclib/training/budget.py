"""Budgets: how long, in which batches and how fast to train."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from xtclib.config import Count, Expect, NotNegative, Positive, Ratio, config
from xtclib.files import unknown


@config
class Budget:
    """How long, in which batches and how fast a stage trains.

    ``epochs`` or ``steps``, one of them. ``keep`` says which checkpoint counts: ``last``; the best
    on ``held-out`` rows cut from the training set; or the best on the ``evaluation`` split itself,
    as the official releases do, which the record then says. ``at_most`` caps the steps of a budget
    in epochs; ``dropout`` replaces the model's own.
    """

    # Whole epochs stay whole numbers: teachers are kept under a key that holds them.
    epochs: Annotated[int | float, Field(gt=0), Expect("a number above 0")] | None = None
    steps: Count | None = None
    batch_size: Count = 32
    learning_rate: Positive = 5e-5
    warmup: Ratio = 0.1
    weight_decay: NotNegative = 0.01
    clip: NotNegative = 1.0
    max_length: Count = 128
    keep: Literal["last", "held-out", "evaluation"] = "last"
    evaluations: Count = 5
    dropout: Ratio | None = None
    at_most: Count | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            received = f"epochs={self.epochs}, steps={self.steps}"
            raise ValueError(f"a budget needs epochs or steps, one of them; received {received}")

    def total_steps(self, rows: int) -> int:
        """Optimizer steps for a training set of ``rows``.

        >>> Budget(epochs=3).total_steps(100), Budget(steps=7).total_steps(100)
        (12, 7)
        """
        if self.steps is not None:
            return self.steps
        steps = max(round((self.epochs or 0) * -(-rows // self.batch_size)), 1)
        return min(steps, self.at_most or steps)


def budget(name: str | Budget, known: dict[str, Budget]) -> Budget:
    """A profile's budget ``A``, ``B``, ``C``, or ``A`` at another length: ``500steps``.

    Behind an ``@`` stands another learning rate: ``B@1e-4``.

    >>> budget("500steps@1e-3", {"A": Budget(epochs=3)}).learning_rate
    0.001
    """
    if isinstance(name, Budget):
        return name
    if name in known:
        return known[name]
    length, at, rate = name.partition("@")
    if at:
        return replace(budget(length, known), learning_rate=_rate(name, rate))
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(steps?|epochs?)", name)
    if match is None:
        raise unknown("budget", name, (*known, "500steps", "2epochs"))
    count, unit = float(match[1]), match[2].rstrip("s")
    steps, epochs = (int(count), None) if unit == "step" else (None, count)
    return replace(known["A"], steps=steps, epochs=epochs)


def _rate(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        told = f"the budget {name!r} has {text!r} behind its @, expected a learning rate"
        raise ValueError(f"{told}: write it as in A@1e-4") from None
