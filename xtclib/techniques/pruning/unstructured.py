"""Unstructured pruning: single weights, n:m and blocks, by magnitude, movement or chance.

Masks lie on every linear layer of the encoder (query, key, value, both outputs, the intermediate
one). Embeddings, LayerNorm, biases, pooler and classifier are not pruned.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel

from xtclib.bert import encoder_linears, linear_of, replace_module_
from xtclib.config import READ, Count, Expect, Flag, NotNegative, Positive, Share, Whole, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import Technique, copied, pack_, register
from xtclib.techniques.factorization.layers import LowRankLinear
from xtclib.techniques.pruning import masks
from xtclib.techniques.pruning.importance import CRITERIA, Criterion, Magnitude
from xtclib.techniques.pruning.layers import MaskedLinear, SparseLinear
from xtclib.techniques.sharing.layers import Again

Fraction = Annotated[float, Field(ge=0, lt=1), Expect("a number of at least 0 and below 1")]


@config
class Schedule:
    """When weights go: from ``begin`` to ``end``, shares of the run, anew every ``every`` steps.

    ``end=0`` prunes once, before training; after ``end`` masks stand still (movement's release goes
    on moving them).

    >>> [round(share, 3) for t in range(6) if (share := Schedule(end=0.5, every=1).at(t, 6, 0.8))]
    [0.563, 0.77, 0.8]
    """

    begin: Fraction = 0.0
    end: Fraction = 0.0
    every: Count = 10

    def __post_init__(self) -> None:
        if self.begin > self.end:
            found = f"received begin={self.begin}, end={self.end}"
            raise ValueError(f"a schedule lies in the run: expected 0 ≤ begin ≤ end < 1, {found}")

    def at(self, step: int, total: int, final: float) -> float | None:
        """The sparsity at a step of ``total``, by :func:`.masks.cubic`; ``None``: masks stay."""
        last = min(round(self.end * total), total - 1)
        first = min(round(self.begin * total), last)
        due = step in (0, last) or (step >= first and step % self.every == 0)
        return masks.cubic(step, first, last, final) if self.end and step <= last and due else None


@register
@config
class Sparsify(Technique):
    """Sets a share of the encoder's weights to zero and keeps them there.

    ``criterion``: ``magnitude``, ``random`` by ``seed``, ``movement``, or one of your own
    (:class:`.importance.Criterion`). By its ``schedule`` the sparsity rises while a stage trains.
    ``scope`` and ``pattern``: see :func:`.masks.masks`; ``n:m`` needs no ``sparsity``.
    ``recover=True`` lets the zeros train on: information is deleted, capacity is not (Gordon et al.
    2020, arXiv:2002.08307, section 3.2).

    >>> Sparsify(pattern="2:4").sparsity, Sparsify(0.9, schedule={"end": 0.7}).settled
    (0.5, 0.7)
    """

    name: ClassVar[str] = "sparsify"
    prunes: ClassVar[bool] = True
    percent: ClassVar[str | None] = "sparsity"
    sparsity: Fraction | None = None
    criterion: Annotated[Criterion, CRITERIA] = Magnitude()
    schedule: Annotated[Schedule, READ] = Schedule()
    scope: Literal["layer", "model"] = "layer"
    pattern: str | None = None
    seed: Whole = 0
    recover: Flag = False

    def __post_init__(self) -> None:
        implied = masks.pattern_sparsity(self.pattern)
        if implied is not None:
            if self.sparsity not in (None, implied):
                found = f"{implied:g}, received sparsity={self.sparsity}"
                raise ValueError(f"{self.pattern} is a sparsity of {found}: leave it out")
            if self.schedule.begin != self.schedule.end:
                raise ValueError(f"{self.pattern} prunes in one step: give begin and end one value")
            object.__setattr__(self, "sparsity", implied)
        if self.sparsity is None:
            raise ValueError("sparsify needs a sparsity, the share of weights that goes, or n:m")
        if self.learns and not self.settled:
            learns = f"{self.criterion.name} learns its scores while it prunes"
            raise ValueError(f"{learns}: give the schedule an end after 0, such as 0.7")
        if self.recover and self.settled:
            raise ValueError("recover deletes weights once, before training: give no schedule")

    @property
    def learns(self) -> bool:
        return self.criterion.learns

    @property
    def settled(self) -> float:
        return self.schedule.end

    @property
    def stored(self) -> bool:
        return bool(self.sparsity) and not self.recover

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        for linear in encoder_linears(model).values():
            masks.check_pattern(self.pattern, linear.weight.shape)
            if isinstance(linear, MaskedLinear):
                raise ValueError("the model is pruned already: one sparsify takes all that goes")
        # The factors of one are matrices as any other, and those of layers that share are one's.
        model = copied(model, self.name, (LowRankLinear, Again))
        if not self.sparsity:
            return model
        rate = self.criterion.score_learning_rate
        for name, linear in encoder_linears(model).items():
            replace_module_(model, name, MaskedLinear.from_linear(linear, self.learns, rate))
        if self.criterion.score_noise and self.learns:
            generator = torch.Generator().manual_seed(self.seed)
            for masked in encoder_linears(model).values():
                noise = torch.rand(masked.weight.shape, generator=generator) * 2 - 1
                masked.scores.data.add_(self.criterion.score_noise * noise.to(masked.scores.device))
        # What is there before any training: movement has no scores yet, and takes magnitudes.
        self._draw_(model, self.sparsity, Magnitude() if self.learns else self.criterion)
        for name, layer in encoder_linears(model).items() if self.recover else ():
            linear = linear_of(layer.effective_weight().detach(), layer.bias)
            replace_module_(model, name, linear.train(layer.training))
        return model

    def before_step(self, model: PreTrainedModel, step: int, total: int) -> None:
        share = self.schedule.at(step, total, self.sparsity) if self.sparsity else None
        if share is not None:
            self._draw_(model, share, self.criterion)

    @torch.no_grad()
    def after_step(self, model: PreTrainedModel, step: int, total: int, rate: float) -> None:
        if self.sparsity and self.learns and self.criterion.score_learning_rate is None:
            for layer in encoder_linears(model, MaskedLinear).values():
                if layer.scores.grad is not None:
                    layer.scores -= layer.scores.grad

    def _draw_(self, model: PreTrainedModel, sparsity: float, criterion: Criterion) -> None:
        layers = list(encoder_linears(model).values())
        if criterion.learns and getattr(layers[0], "scores", None) is None:
            learn = f"{criterion.name}'s scores learn on full-precision weights"
            raise ValueError(f"{learn}: quantize in a later stage")
        generator = torch.Generator().manual_seed(self.seed)
        scores = [criterion.scores(layer, generator) for layer in layers]
        found = masks.masks(scores, sparsity, self.scope, self.pattern)
        for layer, mask in zip(layers, found, strict=True):
            layer.mask.copy_(mask)

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        return pack_(model) if self.stored else model

    def rebuild(self, model: PreTrainedModel) -> None:
        if self.recover:
            return
        for name, linear in encoder_linears(model).items():
            replace_module_(model, name, SparseLinear.like(linear))

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        if not self.stored:
            return model
        self.rebuild(model)
        for layer in encoder_linears(model, SparseLinear).values():
            whole = layer.rows * layer.columns
            layer.set_count_(whole - round(self.sparsity * whole))
        return model


@register
@config
class ReweightedProximal(Technique):
    """RPP: after each optimizer step, every encoder weight is pulled towards zero by its own force.

        w ← prox(w) = sign(w) · max(|w| − γ·η·α, 0),   α = 1 / (|w| + ε)

    η is the learning rate, γ ``strength``; α is reweighted every ``reweight`` steps and kept in
    between. The pull is outside the gradient, so Adam does not rescale it. It ends at the share
    ``until`` of the run; ``sparsify`` with that ``begin`` and ``end`` then drops what is smallest.
    Source: Guo et al. 2019, arXiv:1909.12486, section 3.2 and algorithm 1.

    Without a ``strength``, γ·η = w₀² / 2n in each matrix, where w₀ is what the smallest
    ``sparsity`` of its weights stay below and n the steps: left alone, |w| falls by γη/|w| a step,
    so w² by 2γη, and a weight of w₀ just gets to zero. One γ fits one length and rate; this, all.
    """

    name: ClassVar[str] = "reweighted_proximal"
    percent: ClassVar[str | None] = "sparsity"
    sparsity: Fraction | None = None
    strength: NotNegative | None = None
    epsilon: Positive = 1e-3
    reweight: Count = 10
    until: Share = 0.5

    def __post_init__(self) -> None:
        if (self.sparsity is None) == (self.strength is None):
            found = f"received sparsity={self.sparsity}, strength={self.strength}"
            either = "takes a sparsity to aim at or a strength, one of them"
            raise ValueError(f"reweighted_proximal {either}; {found}")

    @property
    def settled(self) -> float:
        return self.until

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        model = copied(model)
        for linear in encoder_linears(model).values():
            weight = linear.weight.detach()
            linear.register_buffer("alpha", masks.reweighting(weight, self.epsilon))
            if self.sparsity is not None:
                count = round(self.sparsity * weight.numel())
                aim = weight.abs().flatten().kthvalue(max(count, 1)).values
                linear.register_buffer("aim", aim if count else torch.zeros_like(aim))
        return model

    @torch.no_grad()
    def after_step(self, model: PreTrainedModel, step: int, total: int, rate: float) -> None:
        steps, strength = max(round(self.until * total), 1), self.strength
        if step >= steps:
            return
        for linear in encoder_linears(model).values():
            if not hasattr(linear, "alpha"):
                raise ValueError("reweighted_proximal comes last: after sparsify and quantize")
            if step % self.reweight == 0:
                linear.alpha.copy_(masks.reweighting(linear.weight, self.epsilon))
            pull = linear.aim**2 / (2 * steps) if strength is None else strength * rate
            linear.weight.copy_(masks.soft_threshold(linear.weight, pull * linear.alpha))

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        for module in model.modules():
            for name in ("alpha", "aim"):
                module._buffers.pop(name, None)
        return model
