"""Training: budgets, lessons, and one loop for everything that trains."""

from xtclib.training.budget import Budget
from xtclib.training.device import bf16_is_fast
from xtclib.training.trainer import DistillationTrainer, Lesson, Run, train

__all__ = ["Budget", "DistillationTrainer", "Lesson", "Run", "bf16_is_fast", "train"]
