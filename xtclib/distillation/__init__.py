"""Distillation: what a student is compared with its teacher by."""

from xtclib.distillation.objective import Objective, register_term
from xtclib.distillation.terms import Match

__all__ = ["Match", "Objective", "register_term"]
