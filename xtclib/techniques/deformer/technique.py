"""DeFormer as a technique: how many layers read the segments apart, and what a cache will hold."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from transformers import PreTrainedModel

from xtclib.bert import encoder_layers
from xtclib.config import Expect, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import Technique, copied, refuse_second, register
from xtclib.techniques.deformer.segments import States, check, install_

Layers = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)],
    Expect("a whole number from 0, or a share of the layers below 1"),
]


@register
@config
class DeFormer(Technique):
    """The lower layers read a row's two texts apart, the upper ones together.

    ``layers``: how many, as a count or a share (0.75: 9 of 12). What the lower layers make of a
    passage then does not depend on the question, and :class:`.passages.PassageCache` keeps it, as
    ``states`` says; the model rounds it so in training too, and answers alike with and without a
    cache. Each text has positions from 0, as in the release, and types as always. 0 layers leave
    the model as it is. Source: Cao et al. 2020, arXiv:2005.00697.

    >>> DeFormer(0.75).count(12), DeFormer(4).count(6)
    (9, 4)
    """

    name: ClassVar[str] = "deformer"
    family: ClassVar[str] = "apart"
    reshapes: ClassVar[bool] = True
    says: ClassVar[str] = "segments"
    layers: Layers = 0.75
    states: States = "fp16"
    stored = True

    def count(self, depth: int) -> int:
        """How many layers of ``depth``; ``ValueError`` where none is left to read both texts."""
        count = self.layers if isinstance(self.layers, int) else round(self.layers * depth)
        if count >= depth:
            alone = f"{count} of {depth} layers read the texts apart, and none is left for both"
            raise ValueError(f"{alone}: choose up to {depth - 1}")
        return count

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        check(model)
        if getattr(model.config, "segments", None):
            raise ValueError("the model reads its texts apart already: one deformer is enough")
        refuse_second(model, self.name)
        if data is not None and data.data.train.second is None:
            single = f"deformer reads two texts apart, and {data.data.task.name} has one a row"
            raise ValueError(f"{single}: take a task of pairs or questions")
        model = copied(model)
        model.config.segments = {"layers": self.count(len(encoder_layers(model))),
                                 "states": self.states}  # fmt: skip
        install_(model)
        return model

    def rebuild(self, model: PreTrainedModel) -> None:
        install_(model)

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        check(model)
        self.count(len(encoder_layers(model)))
        return model
