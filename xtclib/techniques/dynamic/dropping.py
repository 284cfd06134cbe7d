"""Dropping tokens as a technique: by rank (PoWER-BERT) or by a threshold (LTP), soft, then hard."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib import attention
from xtclib.bert import encoder_layers
from xtclib.config import Expect, Listed, NotNegative, Positive, Ratio, config
from xtclib.tasks.base import TaskData, batched
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import (
    Seen,
    Technique,
    check_finite,
    copied,
    refuse_second,
    register,
)
from xtclib.techniques.dynamic import tokens
from xtclib.techniques.dynamic.calibration import milliseconds

Kept = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[float, Field(ge=0, le=1)],
    Expect("a whole number from 1, or a number from 0 to 1.0"),
]


@register
@config
class DropTokens(Technique):
    """After each layer's attention, tokens that received little of it are dropped.

    ``by``: ``rank``, so many of each row (PoWER-BERT), or ``threshold``, all below an amount (LTP);
    ``keep``: for each layer a count, a share of the row's tokens, or the threshold; learned unless
    told. What is learned is soft for a share ``search`` of the steps, and then fixed, while the
    model goes on: by rank ``r·state`` with ``λ·Σ_j j·mean(r_j) / Σ_j j`` added to the loss
    (arXiv:2001.08950, section 3.3; r over a row's shares, in 32 bins, where the paper has a padded
    row's places), by threshold ``σ((s − θ_l)/T)·state`` with ``λ·mean(gates)`` (arXiv:2107.00910,
    equations 8 to 11), from ``θ_l = initial·l/n``. ``regularizer`` is λ, ``rate`` the learning rate
    of r or θ.

    >>> DropTokens(by="rank", keep=[1.0, 0.5]).keep
    (1.0, 0.5)
    """

    name: ClassVar[str] = "drop_tokens"
    family: ClassVar[str] = "dynamic"
    reshapes: ClassVar[bool] = True
    by_row: ClassVar[bool] = True
    says: ClassVar[str] = "tokens"
    by: tokens.By = "rank"
    keep: Listed[Kept] | None = None
    regularizer: NotNegative = 1.0
    search: Ratio = 0.5
    rate: Positive = 1e-2
    temperature: Positive = 2e-3
    initial: Ratio = 0.01
    stored = True

    def __post_init__(self) -> None:
        if self.keep is not None:
            tokens.check_keep(self.by, self.keep)

    @property
    def learns(self) -> bool:
        return self.keep is None

    @property
    def settled(self) -> float:
        return self.search if self.learns else 0.0

    def check(self, stage) -> None:
        super().check(stage)
        if stage.objective and stage.objective.matches:
            compares = f"{stage.objective.matches[0].term} compares every token of a layer"
            raise ValueError(
                f"stage {stage.name!r}: {compares}, and some are dropped: leave it out"
            )

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        tokens.check(model)
        refuse_second(model, self.name)
        model = copied(model)
        check_finite(model, "cannot drop tokens of this model")
        self._say(model)
        tokens.install_(model)
        if not self.learns:
            return model
        drops, depth = model.drops, len(encoder_layers(model))
        start = torch.arange(1, depth + 1) * self.initial / depth
        start = torch.ones(depth, tokens.BINS) if self.by == "rank" else start
        drops.scores, drops.score_learning_rate = nn.Parameter(start), self.rate
        drops.temperature = self.temperature
        return model

    def _say(self, model: PreTrainedModel) -> None:
        depth = len(encoder_layers(model))
        full: list = [1.0] * depth if self.by == "rank" else [0.0] * depth
        keep = full if self.keep is None else list(self.keep)
        if len(keep) != depth:
            has = f"keep names {len(keep)} layers, and the model has {depth}"
            raise ValueError(f"{has}: give a number for each")
        model.config.tokens = {"by": self.by, "keep": keep}

    def before_step(self, model: PreTrainedModel, step: int, total: int) -> None:
        drops = model.drops
        if drops.scores is not None:
            drops.soft = step < round(self.search * total)
            drops.scores.requires_grad_(drops.soft)

    def after_step(self, model: PreTrainedModel, step: int, total: int, rate: float) -> None:
        if model.drops.scores is not None:
            with torch.no_grad():
                model.drops.scores.clamp_(0, 1)

    def penalty(self, model: PreTrainedModel, seen: Seen | None = None) -> Tensor | None:
        masses = None if seen is None else seen.output.get("masses")
        if masses is None:
            return None
        weights = torch.ones_like(masses)
        if self.by == "rank":
            weights = torch.arange(1.0, len(masses) + 1, device=masses.device)
        return self.regularizer * (weights * masses).sum() / weights.sum()

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        drops = model.drops
        if drops.scores is not None:
            model.config.tokens = {"by": self.by, "keep": drops.keep()}
            drops.scores = None
        drops.soft = False
        return model

    def measure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TaskData,
                length: int, timed: bool = True) -> dict:  # fmt: skip
        ways = {n: partial(_switch, model, n == "whole") for n in ("whole", "dropped")}
        found = milliseconds(model, ways, data, tokenizer, length) if timed else {}
        _switch(model, False)
        some = counted(model, batched(data, tokenizer, length, 8))
        return {"tokens": {"keep": model.config.tokens["keep"], **found, **some}}

    def rebuild(self, model: PreTrainedModel) -> None:
        tokens.install_(model)

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        self._say(model)
        return super().plan(model)


@torch.inference_mode()
def counted(model: PreTrainedModel, given: list[dict[str, Tensor]]) -> dict:
    """The share of tokens that each layer's feed-forward half sees, and the operations' ratio.

    ``speed``: the full model's operations in its layers over those that were run: ``Σ 4n·d² + 2n²·d
    + 2n'·d·f`` with n tokens before and n' after dropping.
    """
    config, whole, run, before = model.config, 0.0, 0.0, 0.0
    after = np.zeros(len(encoder_layers(model)))
    width, inner = config.hidden_size, config.intermediate_size
    for batch in given:
        left = model(**batch)["tokens"].double().cpu().numpy()  # (batch, layers)
        full = batch["attention_mask"].sum(1).double().numpy()[:, None]
        entering = np.concatenate([full, left[:, :-1]], 1)
        before, after = before + full.sum(), after + left.sum(0)
        whole += left.shape[1] * _operations(full, full, width, inner)
        run += _operations(entering, left, width, inner)
    return {"tokens": (after / before).round(4).tolist(), "speed": round(whole / run, 4)}


def _operations(tokens: np.ndarray, kept: np.ndarray, width: int, inner: int) -> float:
    return float((4 * tokens * width**2 + 2 * tokens**2 * width + 2 * kept * width * inner).sum())


def _switch(model: PreTrainedModel, off: bool) -> None:
    """Whole rows by PyTorch's own attention, or dropping, which has to see the probabilities."""
    model.drops.off = off
    model.set_attn_implementation("sdpa" if off else attention.NAME)
