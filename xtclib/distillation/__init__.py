"""Distillation: what a student is compared with its teacher by."""

from xtclib.distillation.losses import (
    attention_mse,
    hidden_mse,
    kl_divergence,
    layer_map,
    relation_divergence,
    soft_cross_entropy,
)
from xtclib.distillation.objective import Objective, distillation_loss, register_term
from xtclib.distillation.terms import TERMS, Match, Reader, Signals

__all__ = [
    "TERMS", "Match", "Objective", "Reader", "Signals", "attention_mse", "distillation_loss",
    "hidden_mse", "kl_divergence", "layer_map", "register_term", "relation_divergence",
    "soft_cross_entropy",
]  # fmt: skip
