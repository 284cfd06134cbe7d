"""Early exits as a technique: where they stand, how they learn, and when a row may leave."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib.bert import encoder_layers
from xtclib.config import Count, Listed, NotNegative, Positive, Ratio, config
from xtclib.tasks.base import TaskData
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import (
    Seen,
    Technique,
    check_finite,
    copied,
    refuse_second,
    register,
)
from xtclib.techniques.dynamic import calibration, exits
from xtclib.techniques.dynamic.criteria import NUMBERS, Criterion, right

Training = Literal["two-stage", "joint", "alternating", "self-distillation"]
FROZEN = "two-stage", "self-distillation"  # in which nothing but the exits learns


@register
@config
class EarlyExit(Technique):
    """A classifier after some layers, through which a row leaves once that is sure of it.

    ``after``: the numbers of the layers, from 1; all but the last unless told. ``head``: one
    ``linear`` layer, or a ``pooler`` before it, as BERT's own, on a row's ``first`` token or its
    tokens' ``mean``. ``criterion``: ``entropy``, ``probability``, ``patience`` (so many equal
    answers in a row; numbers within ``tolerance``) or ``learned``, a certainty that one more layer
    learns (:mod:`.criteria`). ``training``, beside the objective, over exits i of n layers:

    - ``two-stage``: ``Σ L_i``, with everything else frozen (DeeBERT, arXiv:2004.12993);
    - ``joint``: ``Σ (i/n)·L_i`` (PABEE, arXiv:2006.04152, equation 5, times n/Σj: with ``labels:
      1``, the last exit's, their sum is PABEE's, but for one factor);
    - ``alternating``: ``Σ L_i`` in every other step (BERxiT, EACL 2021, section 4.2);
    - ``self-distillation``: ``Σ KL(p_i ‖ p_n)``, frozen too (FastBERT, arXiv:2004.02178, eq. 9).

    The threshold, or patience, is the fastest that loses no more than ``loss`` points of the score
    on rows that were held out, or what comes nearest to a mean ``depth`` in layers or a ``speed``;
    or ``threshold`` as given. ``loss: 1`` unless told.

    >>> EarlyExit(criterion="patience", training="joint").layers(4)
    (1, 2, 3)
    """

    name: ClassVar[str] = "early_exit"
    family: ClassVar[str] = "dynamic"
    reshapes: ClassVar[bool] = True
    calibrates: ClassVar[bool] = True
    by_row: ClassVar[bool] = True
    says: ClassVar[str] = "exits"
    after: Listed[int] | None = None
    head: exits.HeadKind = "linear"
    pooling: exits.Pooling = "first"
    criterion: Criterion = "entropy"
    training: Training = "two-stage"
    tolerance: Positive = 0.5
    loss: NotNegative | None = None
    speed: Positive | None = None
    depth: Positive | None = None
    threshold: Ratio | Count | None = None
    stored = True
    learns = True

    def __post_init__(self) -> None:
        names = "loss", "speed", "depth", "threshold"
        given = {name: v for name in names if (v := getattr(self, name)) is not None}
        if len(given) > 1:
            raise ValueError(f"early_exit takes one of {', '.join(names)}; received {given}")
        if self.speed is not None and self.speed < 1:
            raise ValueError(f"a speed is 1 or more times the full model's, received {self.speed}")

    @property
    def wish(self) -> calibration.Wish:
        """What the threshold is to reach."""
        if self.speed is not None:
            return calibration.Wish("speed", self.speed)
        if self.depth is not None:
            return calibration.Wish("depth", self.depth)
        return calibration.Wish("loss", 1.0 if self.loss is None else self.loss)

    def layers(self, depth: int) -> tuple[int, ...]:
        """After which of ``depth`` layers the exits stand."""
        found = tuple(range(1, depth)) if self.after is None else self.after
        exits.check_after(found, depth)
        return found

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        exits.check(model)
        refuse_second(model, self.name)
        model = copied(model)
        check_finite(model, "cannot give exits to this model")
        self._say(model)
        exits.install_(model)
        generator = torch.Generator().manual_seed(data.initial if data else 0)
        for module in model.exits.modules():
            if isinstance(module, nn.Linear):
                std = getattr(model.config, "initializer_range", 0.02)
                nn.init.normal_(module.weight, 0.0, std, generator=generator)
                nn.init.zeros_(module.bias)
        pooled = getattr(getattr(model.base_model, "pooler", None), "dense", None)
        if isinstance(pooled, nn.Linear):  # as DeeBERT's release starts
            for head in model.exits.heads:
                if head.pooler is not None:
                    head.pooler.load_state_dict(pooled.state_dict())
        return model

    def _say(self, model: PreTrainedModel) -> None:
        """Writes into the config what :func:`.exits.install_` builds from."""
        depth = len(encoder_layers(model))
        after = self.layers(depth)
        if (self.speed or 1) > depth / after[0] or not after[0] <= (self.depth or depth) <= depth:
            reach = (
                f"these exits give 1 to {depth / after[0]:g} times, {after[0]} to {depth} layers"
            )
            raise ValueError(f"{self.wish.goal} {self.wish.amount:g} is out of reach: {reach}")
        kind = exits.kind_of(model.config)
        if kind == "regression" and self.criterion not in NUMBERS:
            known = f"{self.criterion} is of classes, and the model gives a number"
            raise ValueError(f"{known}: choose the criterion {' or '.join(NUMBERS)}")
        if self.training == "self-distillation" and kind != "single_label_classification":
            raise ValueError(f"self-distillation compares one class of several, not {kind}")
        threshold = "never" if self.threshold is None else self.threshold
        exits.check_threshold(self.criterion, threshold, len(after))
        model.config.exits = {
            "after": list(after), "head": self.head, "pooling": self.pooling,
            "criterion": self.criterion,
            "threshold": threshold, "tolerance": float(self.tolerance), "speeds": [],
        }  # fmt: skip

    def before_step(self, model: PreTrainedModel, step: int, total: int) -> None:
        model.exits.step = step
        if self.training in FROZEN:
            own = set(model.exits.parameters())
            for parameter in model.parameters():
                parameter.requires_grad_(parameter in own)

    def penalty(self, model: PreTrainedModel, seen: Seen | None = None) -> Tensor | None:
        if seen is None or "exit_logits" not in seen.output:
            return None
        found, last = seen.output["exit_logits"].float(), seen.output["logits"].float()
        after, depth = model.exits.after, model.exits.depth
        total = found.new_zeros(())
        if self.training == "self-distillation":
            both = found.log_softmax(-1), last.detach().log_softmax(-1).expand_as(found)
            total = F.kl_div(both[1], both[0], reduction="none", log_target=True).sum(-1)
            total = total.mean(-1).sum()
        elif self.training != "alternating" or model.exits.step % 2:
            joint = self.training == "joint"
            for layer, logits in zip(after, found, strict=True):
                loss = seen.task.loss(logits, seen.labels)
                total = total + (layer / depth if joint else 1) * loss
        if self.criterion == "learned":
            kind = exits.kind_of(model.config)
            answers = zip(seen.output["exit_certainty"].float(), found.detach(), strict=True)
            for certain, logits in answers:
                total = total + F.mse_loss(certain, right(logits, seen.labels, kind))
        return total

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        return model

    def calibrate(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TaskData,
                  length: int) -> None:  # fmt: skip
        calibration.calibrate(model, tokenizer, data, self.wish, length,
                              keep=self.threshold is not None)  # fmt: skip

    def measure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TaskData,
                length: int, timed: bool = True) -> dict:  # fmt: skip
        return {"exits": calibration.measured(model, tokenizer, data, length, 6 if timed else 0)}

    def rebuild(self, model: PreTrainedModel) -> None:
        exits.install_(model)

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        self._say(model)
        return super().plan(model)
