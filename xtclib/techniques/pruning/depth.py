"""Layer reduction: a student of some of its teacher's layers."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from transformers import PreTrainedModel

from xtclib.bert import encoder_layers, keep_layers, spread
from xtclib.config import Listed, Size, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import Technique, check_layers, count_of, needs, refuse_packed, register
from xtclib.techniques.pruning.importance import best, layer_influence


@register
@config
class LayerReduction(Technique):
    """Keeps some of the teacher's layers (XTC, arXiv:2206.01859, section 4).

    ``keep``: a list of 0-based teacher layers, or ``every-other`` (spread evenly), ``top`` (the
    last ones), ``bottom`` (the first), or ``importance`` (those that change their input most, on
    rows of the task: :func:`.importance.layer_influence`). ``layers``: how many, as a count or as a
    fraction of the teacher's; half by default. Embeddings, pooler and classifier are copied.

    >>> LayerReduction().indices(12), LayerReduction(layers=5).indices(12)
    ([1, 3, 5, 7, 9, 11], [2, 4, 6, 8, 10])
    >>> LayerReduction("top", 3).indices(12), LayerReduction("bottom", 0.25).indices(12)
    ([9, 10, 11], [0, 1, 2])
    """

    name: ClassVar[str] = "layer_reduction"
    keep: Literal["every-other", "top", "bottom", "importance"] | Listed[int] = "every-other"
    layers: Size | None = None

    def __post_init__(self) -> None:
        if not self.keep:
            raise ValueError("the list of layers to keep is empty: keep at least one layer")
        if not isinstance(self.keep, str) and self.layers is not None:
            both = f"an explicit list of layers was given together with layers={self.layers}"
            raise ValueError(f"{both}; leave one of them out")

    def indices(self, depth: int) -> list[int]:
        """The 0-based teacher layers that a student of a ``depth``-layer teacher keeps."""
        if not isinstance(self.keep, str):
            return list(self.keep)
        count = self.count(depth)
        if self.keep == "importance":
            raise ValueError("which layers matter depends on the model and the task: apply it")
        if self.keep == "top":
            return list(range(depth - count, depth))
        if self.keep == "bottom":
            return list(range(count))
        stride, spare = divmod(depth, count)
        if spare and stride > 1:  # the release's choice for 5 of 12: 2, 4, 6, 8, 10
            return [stride * (i + 1) for i in range(count)]
        return spread(count, depth)

    def count(self, depth: int) -> int:
        """How many layers remain; ``ValueError`` unless between 1 and ``depth``."""
        return count_of(self.layers or max(depth // 2, 1), depth, "layers")

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        refuse_packed(model)
        check_layers(model, self.name)
        depth = len(encoder_layers(model))
        if self.keep != "importance":
            return keep_layers(model, self.indices(depth))
        rows = needs(data, "layer_reduction by importance")
        influence = torch.tensor(layer_influence(model, rows.batches()))
        return keep_layers(model, best([influence], self.count(depth) / depth)[0])

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        depth = len(encoder_layers(model))  # of those by importance any will do: they are alike
        any_ = self.keep == "importance"
        return keep_layers(model, range(self.count(depth)) if any_ else self.indices(depth))
