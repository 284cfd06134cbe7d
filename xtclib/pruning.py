"""Structured pruning: heads, neurons, hidden width and vocabulary, removed for good."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from xtclib import structure
from xtclib.batches import Calibration
from xtclib.files import unknown
from xtclib.interface import Technique
from xtclib.models import check_finite, encoder_layers, encoder_linears, refuse_packed

SCOPES = ("layer", "model")
CRITERIA = ("magnitude", "random")


@dataclass(frozen=True)
class _Narrow(Technique):
    """Removes a part of every layer for good; matrices get smaller, uneven if ``scope`` says so.

    ``keep``: the share that stays, above 0 and at most 1. ``criterion``: ``magnitude``, or
    ``random`` by ``seed`` as a control. ``scope``: ``layer`` keeps the same share in every layer,
    ``model`` ranks all layers together and keeps at least one in each. List it before ``quantize``.
    """

    keep: float = 0.5
    criterion: str = "magnitude"
    scope: str = "layer"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, received {self.keep}")
        if self.criterion not in CRITERIA:
            raise unknown("criterion", self.criterion, CRITERIA)
        if self.scope not in SCOPES:
            raise unknown("scope", self.scope, SCOPES)

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        refuse_packed(model)
        if any(type(linear) is not nn.Linear for linear in encoder_linears(model).values()):
            raise ValueError(f"{self.name} comes before quantize and sparsify: list it first")
        check_finite(model, "cannot prune this model")
        model = copy.deepcopy(model)
        scores = self.scores(model)
        if self.criterion == "random":
            generator = torch.Generator().manual_seed(self.seed)
            scores = [torch.rand(len(s), generator=generator) for s in scores]
        kept = structure.best([s.float().cpu() for s in scores], self.keep, self.scope)
        for layer, numbers in zip(encoder_layers(model), kept, strict=True):
            self.cut_(layer, numbers)
        return model

    scores: ClassVar[Callable[[PreTrainedModel], list[torch.Tensor]]]
    cut_: ClassVar[Callable[[nn.Module, Sequence[int]], None]]


@dataclass(frozen=True)
class PruneHeads(_Narrow):
    """Removes attention heads: their rows of query, key and value, their columns of the output.

    Michel et al. 2019, arXiv:1905.10650, remove heads after training and find many of them idle.
    Magnitude is the mean ``|w|`` of a head's four matrices.

    >>> PruneHeads(keep=0.25).to_dict()["prune_heads"]["keep"]
    0.25
    """

    name: ClassVar[str] = "prune_heads"
    scores = staticmethod(structure.head_magnitudes)
    cut_ = staticmethod(structure.keep_heads_)


@dataclass(frozen=True)
class PruneNeurons(_Narrow):
    """Removes feed-forward neurons: a row of the first matrix and a column of the second.

    Magnitude is ``‖w_in‖ · ‖w_out‖``, which scaling one up and the other down leaves as it is.
    """

    name: ClassVar[str] = "prune_neurons"
    scores = staticmethod(structure.neuron_magnitudes)
    cut_ = staticmethod(structure.keep_neurons_)
