"""Techniques: small frozen configs that turn a model into a smaller one.

A technique gives ``apply(model, data) → model`` and, where it needs them, what
:class:`.base.Technique` lists: schedules, a penalty, ``finalize`` (every tensor at the
width it is stored in) and ``rebuild`` (the same structure on an empty model, so that a saved
artefact can load). They compose in a list.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import TECHNIQUES, Technique

technique = TECHNIQUES.read  # from what a recipe or an artefact holds


def held(config: PretrainedConfig) -> list[dict]:
    """What an artefact's config lists as its techniques; nothing for an ordinary model's."""
    found = getattr(config, "quantization_config", None) or {}
    return found.get("techniques", []) if isinstance(found, dict) else found.techniques


def listed(config: PretrainedConfig) -> list[Technique]:
    """The techniques that an artefact's config lists."""
    return [technique(item) for item in held(config)]


def apply_all(
    model: PreTrainedModel, techniques: Sequence[Technique], data: Calibration | None = None
) -> nn.Module:
    """Applies a list of techniques in order."""
    for item in techniques:
        model = item.apply(model, data)
    return model


def finalize_all(model: PreTrainedModel, techniques: Sequence[Technique]) -> nn.Module:
    """Finalizes a list of techniques in order."""
    for item in techniques:
        model = item.finalize(model)
    return model
