"""Techniques: small frozen configs that turn a model into a smaller one."""

from xtclib.techniques.base import TECHNIQUES, Technique, register

__all__ = ["TECHNIQUES", "Technique", "register"]
