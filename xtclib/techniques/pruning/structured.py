"""Structured pruning: heads, neurons, hidden width and vocabulary, removed for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from xtclib.bert import encoder_layers
from xtclib.config import NotNegative, Positive, Share, Whole, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import Seen, Technique, copied, needs, register, word_table
from xtclib.techniques.pruning import importance, surgery
from xtclib.techniques.pruning.layers import HardConcrete, closed
from xtclib.techniques.pruning.surgery import HEADS, NEURONS


@config
class _Narrow(Technique):
    """Removes a part of every layer for good; matrices get smaller, uneven if ``scope`` says so.

    ``keep``: the share that stays, above 0 and at most 1. ``criterion``: ``magnitude``;
    ``gradient``, the loss's slope by a gate, on rows of the task; ``gates``, what an earlier stage
    learned; ``random`` by ``seed`` as a control. ``scope``: ``layer`` keeps the same share in every
    layer, ``model`` ranks all layers together and keeps at least one in each. List it before
    ``quantize`` and ``sparsify``.
    """

    keep: Share = 0.5
    criterion: Literal["magnitude", "gradient", "gates", "random"] = "magnitude"
    scope: Literal["layer", "model"] = "layer"
    seed: Whole = 0

    prunes: ClassVar[bool] = True
    part: ClassVar[str]
    cut_: ClassVar[Callable[..., None]]

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        model = copied(model, self.name, HardConcrete if self.criterion == "gates" else ())
        scores = [each.float().cpu() for each in self._scores(model, data)]
        kept = importance.best(scores, self.keep, self.scope)
        for layer, numbers in zip(encoder_layers(model), kept, strict=True):
            self.cut_(layer, numbers)
        return model

    def _scores(self, model: PreTrainedModel, data: Calibration | None) -> list[Tensor]:
        """How much each part of each layer matters."""
        if self.criterion == "gradient":
            rows = needs(data, "the criterion 'gradient'")
            return importance.gradients(model, rows.batches(), self.part, rows.data.task)
        if self.criterion == "gates":
            return importance.learned_gates(model, self.part)
        if self.criterion == "random":
            generator = torch.Generator().manual_seed(self.seed)
            sizes = [width[self.part] for width in surgery.widths(model)]
            return [torch.rand(size, generator=generator) for size in sizes]
        by_part = {HEADS: importance.head_magnitudes, NEURONS: importance.neuron_magnitudes}
        return by_part[self.part](model)

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        for layer, width in zip(encoder_layers(model), surgery.widths(model), strict=True):
            self.cut_(layer, range(max(round(self.keep * width[self.part]), 1)))
        return model


@register
@config
class PruneHeads(_Narrow):
    """Removes attention heads: their rows of query, key and value, their columns of the output.

    Michel et al. 2019, arXiv:1905.10650, remove heads after training and find many of them idle.
    Magnitude is the mean ``|w|`` of a head's four matrices.

    >>> PruneHeads(keep=0.25).to_dict()["prune_heads"]["keep"]
    0.25
    """

    name: ClassVar[str] = "prune_heads"
    part: ClassVar[str] = HEADS
    cut_ = staticmethod(surgery.keep_heads_)


@register
@config
class PruneNeurons(_Narrow):
    """Removes feed-forward neurons: a row of the first matrix and a column of the second.

    Magnitude is ``‖w_in‖ · ‖w_out‖``, which scaling one up and the other down leaves as it is.
    """

    name: ClassVar[str] = "prune_neurons"
    part: ClassVar[str] = NEURONS
    cut_ = staticmethod(surgery.keep_neurons_)


@register
@config
class LearnGates(Technique):
    """Gates on every head or neuron, pressed towards 0 while the stage trains.

    The loss gains ``penalty`` · the mean chance of a gate to be open (Louizos et al. 2018,
    arXiv:1712.01312; heads: Voita et al. 2019, arXiv:1905.09418; BERT: McCarley et al. 2019,
    arXiv:1910.06360). A later stage removes what they closed: ``prune_heads: {criterion: gates}``.
    """

    name: ClassVar[str] = "learn_gates"
    part: Literal["heads", "neurons"] = "heads"
    penalty_weight: NotNegative = 1.0
    learning_rate: Positive = 0.05
    settled = 1.0  # gates go on closing to the last step
    learns = True

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        model = copied(model, self.name, HardConcrete)  # gates on the other part may be there
        for put, dense, count in surgery.readers(model, self.part):
            put(HardConcrete.from_linear(dense, count, self.learning_rate))
        return model

    def penalty(self, model: PreTrainedModel, seen: Seen | None = None) -> Tensor | None:
        dense = [dense for _, dense, _ in surgery.readers(model, self.part)]
        open_ = [gate.open_probability() for gate in dense if isinstance(gate, HardConcrete)]
        return self.penalty_weight * torch.cat(open_).mean() if open_ else None

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        for put, dense, _ in surgery.readers(model, self.part):
            if isinstance(dense, HardConcrete):
                put(closed(dense))
        return model


@register
@config
class PruneWidth(Technique):
    """Removes hidden dimensions from the whole model, embeddings to classifier.

    ``keep`` is rounded to a width that the heads divide. ``criterion``: ``magnitude``, the norm of
    all that reads or writes a dimension, or ``random``. The residual stream runs through every
    layer, so this costs more than heads or neurons do; distil after it.
    """

    name: ClassVar[str] = "prune_width"
    prunes: ClassVar[bool] = True
    keep: Share = 0.5
    criterion: Literal["magnitude", "random"] = "magnitude"
    seed: Whole = 0

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        model = copied(model, self.name)
        word_table(model, self.name)
        width, count = model.config.hidden_size, self.width(model)
        if self.criterion == "random":
            scores = torch.rand(width, generator=torch.Generator().manual_seed(self.seed))
        else:
            scores = importance.hidden_magnitudes(model)
        surgery.keep_hidden_(model, importance.best([scores], count / width)[0])
        return model

    def width(self, model: PreTrainedModel) -> int:
        """The hidden dimensions that stay: the nearest width that the heads divide."""
        heads = model.config.num_attention_heads
        return max(round(self.keep * model.config.hidden_size / heads), 1) * heads

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        surgery.keep_hidden_(model, range(self.width(model)))
        return model
