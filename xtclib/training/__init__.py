"""Training: budgets, lessons, and one loop for everything that trains.

What trains loads when first used: a budget is read by commands that train nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from xtclib.training.budget import Budget
from xtclib.training.device import bf16_is_fast

if TYPE_CHECKING:
    from xtclib.training.trainer import DistillationTrainer, Lesson, Run, train

__all__ = ["Budget", "DistillationTrainer", "Lesson", "Run", "bf16_is_fast", "train"]


def __getattr__(name: str):
    if name in __all__:
        return getattr(import_module("xtclib.training.trainer"), name)
    raise AttributeError(f"xtclib.training has no {name!r}; it has: {', '.join(__all__)}")
