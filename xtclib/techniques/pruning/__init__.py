"""Pruning: what is removed from a model, single weights or whole parts."""

from xtclib.techniques.pruning.importance import Criterion, register_criterion

__all__ = ["Criterion", "register_criterion"]
