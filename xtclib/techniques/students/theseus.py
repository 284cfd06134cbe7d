"""BERT-of-Theseus: modules of the teacher, replaced by smaller ones while they work together."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib.bert import encoder_layers, part_names, set_encoder_layers_
from xtclib.config import Ratio, Share, Size, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import Technique, check_layers, copied, count_of, register

_TAKEN = "attention.self.query", "attention.q_lin"  # layers from states to states, in a list


class Replaced(nn.Module):
    """Frozen layers of the teacher, the predecessors, and one layer that stands in for them.

    In training each forward pass takes the successor with probability ``rate``, in evaluation
    always. Parts of the layer are the successor's, for whoever looks at its structure.
    """

    def __init__(self, predecessors: list[nn.Module], successor: nn.Module) -> None:
        super().__init__()
        self.predecessors = nn.ModuleList(predecessors).requires_grad_(False)
        self.successor, self.rate = successor, 0.0

    def forward(self, hidden: Tensor, *args, **kwargs):
        if not self.training or float(torch.rand(())) < self.rate:
            return self.successor(hidden, *args, **kwargs)
        for layer in self.predecessors:
            hidden = layer(hidden, *args, **kwargs)
        # Where chance takes no successor at all, the loss still needs something to differentiate.
        return hidden + 0 * next(self.successor.parameters()).flatten()[0]

    attention = property(lambda self: self.successor.attention)
    intermediate = property(lambda self: self.successor.intermediate)
    output = property(lambda self: self.successor.output)


@register
@config
class ReplaceModules(Technique):
    """Divides the encoder into modules and trains one new layer to stand in for each.

    The replacement rate at step t of n is ``min(1, rate + (1 − rate)·t/(full·n))``: from ``rate``
    to 1, reached after the share ``full`` of the stage. Only the new layers learn. They start as
    the teacher's ``first`` layers, as the release has it, or as the first of their ``own`` module.
    Train by labels, then list ``keep_successors`` in the next stage. Source: Xu et al. 2020,
    arXiv:2002.02925, sections 3.1 to 3.3.

    >>> [ReplaceModules(rate=0.5).at(step, 4) for step in (0, 2, 4)]
    [0.5, 0.75, 1.0]
    """

    name: ClassVar[str] = "replace_modules"
    layers: Size = 0.5
    rate: Ratio = 0.3
    full: Share = 1.0
    initial: Literal["first", "own"] = "first"

    def at(self, step: int, total: int) -> float:
        """The replacement rate at a step, 0-based."""
        return min(1.0, self.rate + (1 - self.rate) * step / (self.full * max(total, 1)))

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        check_layers(model, self.name)
        model = copied(model).requires_grad_(False)
        layers = encoder_layers(model)
        if not {part_names(layer)["query"] for layer in layers} <= set(_TAKEN):
            takes = f"{self.name} takes the layers of a {type(model).__name__} for no modules"
            raise TypeError(f"{takes}: expected layers as BERT's or DistilBERT's")
        if being_replaced(model):
            raise ValueError("the modules of this model are being replaced already: once will do")
        count = count_of(self.layers, len(layers), "layers")
        if len(layers) % count:
            parts = f"{len(layers)} layers do not divide into {self.layers} modules"
            raise ValueError(f"{parts}: give a count that divides them, or such a share")
        size, modules = len(layers) // count, []
        for i in range(count):
            start = layers[i if self.initial == "first" else i * size]
            # The config stays the model's own, by which its attention is chosen.
            successor = copy.deepcopy(start, {id(model.config): model.config})
            successor.requires_grad_(True)
            modules.append(Replaced(list(layers[i * size : (i + 1) * size]), successor))
        set_encoder_layers_(model, modules)
        return model

    def check(self, stage) -> None:
        super().check(stage)
        if any(isinstance(technique, KeepSuccessors) for technique in stage.techniques):
            both = f"stage {stage.name!r} replaces modules and keeps their successors at once"
            raise ValueError(f"{both}: list keep_successors in the next stage")

    def check_student(self, stage, student: PreTrainedModel) -> None:
        if not (stage.trains and being_replaced(student)):
            return
        if self not in stage.techniques:
            trains = f"stage {stage.name!r} would train modules that are still being replaced"
            raise ValueError(f"{trains}: list keep_successors first among its techniques")
        if stage.objective and stage.objective.matches:
            compares = f"stage {stage.name!r} compares layers while modules are being replaced"
            chance = "chance decides which layers there are: leave labels and logits"
            raise ValueError(f"{compares}, where {chance}")

    def before_step(self, model: PreTrainedModel, step: int, total: int) -> None:
        for module in being_replaced(model):
            module.rate = self.at(step, total)

    @property
    def settled(self) -> float:
        return self.full

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        return keep_successors_(model)

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        return keep_successors_(self.apply(model))


@register
@config
class KeepSuccessors(Technique):
    """Leaves a model its new layers alone: the student that successor fine-tuning starts from."""

    name: ClassVar[str] = "keep_successors"

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        if not being_replaced(model):
            lacks = "keep_successors found no replaced modules"
            raise ValueError(f"{lacks}: list replace_modules in an earlier stage that trains")
        return keep_successors_(copy.deepcopy(model)).requires_grad_(True)


def keep_successors_(model: PreTrainedModel) -> PreTrainedModel:
    """Takes the predecessors out of a model, in place; one without any stays as it is."""
    if being_replaced(model):
        set_encoder_layers_(model, [layer.successor for layer in encoder_layers(model)])
    return model


def being_replaced(model: PreTrainedModel) -> list[Replaced]:
    """The modules of a model that share their place with a successor."""
    return [module for module in model.modules() if isinstance(module, Replaced)]
