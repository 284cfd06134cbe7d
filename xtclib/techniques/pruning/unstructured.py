"""Unstructured pruning: single weights, n:m and blocks, by magnitude, movement or chance.

Masks lie on every linear layer of the encoder (query, key, value, both outputs, the intermediate
one). Embeddings, LayerNorm, biases, pooler and classifier are not pruned.
"""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from xtclib.bert import encoder_linears, linear_of, replace_module_
from xtclib.config import READ, Count, Expect, Flag, NotNegative, Positive, Share, Whole, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import (
    Technique,
    check_finite,
    check_plain,
    pack_,
    refuse_packed,
    register,
)
from xtclib.techniques.pruning.importance import CRITERIA, Criterion, Magnitude
from xtclib.techniques.pruning.layers import MaskedLinear, SparseLinear
from xtclib.techniques.pruning.masks import (
    check_pattern,
    cubic,
    masks,
    pattern_sparsity,
    reweighting,
    soft_threshold,
)

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
            raise ValueError(
                "pruning begins and ends within the run: expected 0 ≤ begin ≤ end < 1, received "
                f"begin={self.begin}, end={self.end}"
            )

    def at(self, step: int, total: int, final: float) -> float | None:
        """The sparsity at a step of ``total``, by :func:`.masks.cubic`; ``None``: masks stay."""
        last = min(round(self.end * total), total - 1)
        first = min(round(self.begin * total), last)
        due = step in (0, last) or (step >= first and step % self.every == 0)
        return cubic(step, first, last, final) if self.end and step <= last and due else None


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
        implied = pattern_sparsity(self.pattern)
        if implied is not None:
            if self.sparsity not in (None, implied):
                raise ValueError(
                    f"the pattern {self.pattern} is a sparsity of {implied:g}, received "
                    f"sparsity={self.sparsity}: leave it out"
                )
            if self.schedule.begin != self.schedule.end:
                raise ValueError(f"{self.pattern} prunes in one step: give begin and end one value")
            object.__setattr__(self, "sparsity", implied)
        if self.sparsity is None:
            raise ValueError("sparsify needs a sparsity, the share of weights that goes, or n:m")
        if self.learns and not self.settled:
            raise ValueError(
                f"{self.criterion.name} learns its scores while it prunes: give the schedule an "
                "end after 0, such as 0.7"
            )
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
        return not (self._idle or self.recover)

    @property
    def _idle(self) -> bool:
        """Sparsity 0: the model stays as it was."""
        return not self.sparsity

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        refuse_packed(model)
        for linear in encoder_linears(model).values():
            check_pattern(self.pattern, linear.weight.shape)
            if isinstance(linear, MaskedLinear):
                raise ValueError("the model is pruned already: one sparsify takes all that goes")
        check_plain(model, self.name)
        check_finite(model, "cannot prune this model")
        model = copy.deepcopy(model)
        if self._idle:
            return model
        for name, linear in encoder_linears(model).items():
            rate = self.criterion.score_learning_rate
            masked = MaskedLinear.from_linear(linear, self.learns, rate)
            replace_module_(model, name, masked)
        if self.criterion.score_noise and self.learns:
            generator = torch.Generator().manual_seed(self.seed)
            for masked in encoder_linears(model).values():
                noise = torch.rand(masked.weight.shape, generator=generator) * 2 - 1
                masked.scores.data.add_(self.criterion.score_noise * noise.to(masked.scores.device))
        # What is there before any training: movement has no scores yet, and takes magnitudes.
        self._draw_(model, self.sparsity or 0.0, Magnitude() if self.learns else self.criterion)
        return _deleted_(model) if self.recover else model

    def before_step(self, model: PreTrainedModel, step: int, total: int) -> None:
        share = self.schedule.at(step, total, self.sparsity or 0.0)
        if share is not None and not self._idle:
            self._draw_(model, share, self.criterion)

    @torch.no_grad()
    def after_step(self, model: PreTrainedModel, step: int, total: int, rate: float) -> None:
        if not self._idle and self.learns and self.criterion.score_learning_rate is None:
            for layer in encoder_linears(model, MaskedLinear).values():
                if layer.scores.grad is not None:
                    layer.scores -= layer.scores.grad

    def _draw_(self, model: PreTrainedModel, sparsity: float, criterion: Criterion) -> None:
        layers = list(encoder_linears(model).values())
        if criterion.learns and getattr(layers[0], "scores", None) is None:
            raise ValueError(
                f"{criterion.name}'s scores learn on full-precision weights: quantize in a later "
                "stage"
            )
        generator = torch.Generator().manual_seed(self.seed)
        scores = [criterion.scores(layer, generator) for layer in layers]
        found = masks(scores, sparsity, self.scope, self.pattern)
        for layer, mask in zip(layers, found, strict=True):
            layer.mask.copy_(mask)

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        return pack_(model) if self.stored else model

    def rebuild(self, model: PreTrainedModel) -> None:
        if self.recover:
            return
        device = next(model.parameters()).device
        for name, linear in encoder_linears(model).items():
            shape = linear.in_features, linear.out_features, linear.bias is not None
            replace_module_(model, name, SparseLinear(*shape, device=device))

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        if not self.stored:
            return model
        self.rebuild(model)
        for layer in encoder_linears(model, SparseLinear).values():
            whole = layer.rows * layer.columns
            layer.set_count_(whole - round(self.sparsity * whole))
        return model


def _deleted_(model: PreTrainedModel) -> PreTrainedModel:
    """Ordinary layers again, with zeros where the masks are."""
    for name, layer in encoder_linears(model).items():
        linear = linear_of(layer.weight.detach() * layer.mask, layer.bias)
        replace_module_(model, name, linear.train(layer.training))
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
            raise ValueError(
                "reweighted_proximal takes a sparsity to aim at or a strength, one of them; "
                f"received sparsity={self.sparsity}, strength={self.strength}"
            )

    @property
    def settled(self) -> float:
        return self.until

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        refuse_packed(model)
        model = copy.deepcopy(model)
        for linear in encoder_linears(model).values():
            weight = linear.weight.detach()
            linear.register_buffer("alpha", reweighting(weight, self.epsilon))
            if self.sparsity is not None:
                count = round(self.sparsity * weight.numel())
                aim = weight.abs().flatten().kthvalue(max(count, 1)).values
                linear.register_buffer("aim", aim if count else torch.zeros_like(aim))
        return model

    @torch.no_grad()
    def after_step(self, model: PreTrainedModel, step: int, total: int, rate: float) -> None:
        steps = max(round(self.until * total), 1)
        if step >= steps:
            return
        for linear in encoder_linears(model).values():
            if not hasattr(linear, "alpha"):
                raise ValueError("reweighted_proximal comes last: after sparsify and quantize")
            if step % self.reweight == 0:
                linear.alpha.copy_(reweighting(linear.weight, self.epsilon))
            pull = (
                self.strength * rate if self.strength is not None else linear.aim**2 / (2 * steps)
            )
            linear.weight.copy_(soft_threshold(linear.weight, pull * linear.alpha))

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        for module in model.modules():
            for name in ("alpha", "aim"):
                module._buffers.pop(name, None)
        return model


def sparsity_of(model: PreTrainedModel) -> dict[str, float]:
    """The share of zeros in every encoder weight by name, of a training or a finalized model."""
    found = {}
    for name, module in model.base_model.encoder.named_modules():
        if isinstance(module, SparseLinear):
            zeros = 1 - module.present().float().mean()
        elif isinstance(module, nn.Linear):
            weight = module.weight.detach()
            weight = weight * module.mask if getattr(module, "mask", None) is not None else weight
            zeros = (weight == 0).float().mean()
        else:
            continue
        found[name] = float(zeros)
    return found
