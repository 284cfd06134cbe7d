"""Budgets: how long, in which batches and how fast to train."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from xtclib.files import unknown

KEEP = ("last", "held-out", "evaluation")


@dataclass(frozen=True)
class Budget:
    """How long, in which batches and how fast a stage trains.

    ``epochs`` or ``steps``, one of them. ``keep`` says which checkpoint counts: ``last``; the best
    on ``held-out`` rows cut from the training set; or the best on the ``evaluation`` split itself,
    as the official releases do, which the record then says. ``at_most`` caps the steps of a budget
    in epochs; ``dropout`` replaces the model's own.
    """

    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 5e-5
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    max_length: int = 128
    keep: str = "last"
    evaluations: int = 5
    dropout: float | None = None
    at_most: int | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"a budget needs epochs or steps, one of them; received epochs={self.epochs}, "
                f"steps={self.steps}"
            )
        length = self.epochs if self.steps is None else self.steps
        if not length > 0:
            raise ValueError(f"a budget must be longer than nothing, received {length}")
        if self.keep not in KEEP:
            raise unknown("checkpoint rule", self.keep, KEEP)
        for name in ("batch_size", "learning_rate", "max_length", "evaluations"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, received {getattr(self, name)}")

    def total_steps(self, rows: int) -> int:
        """Optimizer steps for a training set of ``rows``.

        >>> Budget(epochs=3).total_steps(100), Budget(steps=7).total_steps(100)
        (12, 7)
        """
        if self.steps is not None:
            return self.steps
        steps = max(round(self.epochs * -(-rows // self.batch_size)), 1)
        return min(steps, self.at_most or steps)


def budget(name: str | Budget, known: dict[str, Budget]) -> Budget:
    """A profile's budget ``A``, ``B``, ``C``, or ``A`` at another length: ``500steps``.

    >>> budget("500steps", {"A": Budget(epochs=3)}).steps
    500
    """
    if isinstance(name, Budget):
        return name
    if name in known:
        return known[name]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(steps?|epochs?)", name)
    if match is None:
        raise unknown("budget", name, (*known, "500steps", "2epochs"))
    if match[2].startswith("step"):
        return replace(known["A"], epochs=None, steps=int(float(match[1])))
    return replace(known["A"], steps=None, epochs=float(match[1]))
