"""Unstructured pruning: single weights, n:m and blocks, by magnitude, movement or chance.

Masks lie on every linear layer of the encoder (query, key, value, both outputs, the intermediate
one). Embeddings, LayerNorm, biases, pooler and classifier are not pruned.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from xtclib.bert import encoder_linears, linear_of, replace_module_
from xtclib.files import unknown
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import (
    Technique,
    check_finite,
    check_flags,
    check_numbers,
    check_plain,
    check_whole,
    pack_,
    refuse_packed,
)
from xtclib.techniques.pruning.importance import CRITERIA, MOVES
from xtclib.techniques.pruning.layers import MaskedLinear, SparseLinear
from xtclib.techniques.pruning.masks import (
    SCOPES,
    check_pattern,
    cubic,
    masks,
    parse_pattern,
    pattern_sparsity,
    reweighting,
    soft_threshold,
)


@dataclass(frozen=True)
class Sparsify(Technique):
    """Sets a share of the encoder's weights to zero and keeps them there.

    ``criterion``: ``magnitude``; ``random`` by ``seed``; or ``movement`` (Sanh et al. 2020,
    arXiv:2005.07683), whose scores are ``S = −Σ ∂L/∂W' ⊙ W`` over the steps so far (its equation
    3; of a clipped step, the clipped gradient), or what Adam makes of that gradient at
    ``score_learning_rate``, as the release has it.
    ``score_noise`` starts scores at uniform numbers up to it (the release's ``mask_init``): what
    goes first is then chance, not what one batch's gradient points at.

    The sparsity rises from 0 at ``begin`` to ``sparsity`` at ``end``, shares of the run, by
    :func:`.masks.cubic`, masks being drawn anew every ``every`` steps; then they stand still
    (movement's release goes on moving them). ``end=0`` prunes once, before training. ``scope`` and
    ``pattern``: see :func:`.masks.masks`; ``n:m`` needs no ``sparsity``. ``recover=True`` lets
    the zeros train on: information is deleted, capacity is not (Gordon et al. 2020,
    arXiv:2002.08307, section 3.2).

    >>> Sparsify(pattern="2:4").sparsity, Sparsify(0.9, end=0.7).settled
    (0.5, 0.7)
    """

    name: ClassVar[str] = "sparsify"
    prunes: ClassVar[bool] = True
    sparsity: float | None = None
    criterion: str = "magnitude"
    scope: str = "layer"
    pattern: str | None = None
    begin: float = 0.0
    end: float = 0.0
    every: int = 10
    seed: int = 0
    score_learning_rate: float | None = None
    score_noise: float = 0.0
    recover: bool = False

    def __post_init__(self) -> None:
        numbers = "sparsity begin end every score_learning_rate score_noise"
        check_numbers(self, *numbers.split())
        check_flags(self, "recover")
        check_whole(self, "seed")
        kind, *_ = parse_pattern(self.pattern)
        if kind == "n:m":
            implied = pattern_sparsity(self.pattern)
            if self.sparsity not in (None, implied):
                raise ValueError(
                    f"the pattern {self.pattern} is a sparsity of {implied:g}, received "
                    f"sparsity={self.sparsity}: leave it out"
                )
            if self.begin != self.end:
                raise ValueError(f"{self.pattern} prunes in one step: give begin and end one value")
            object.__setattr__(self, "sparsity", implied)
        if not isinstance(self.sparsity, (int, float)) or not 0 <= self.sparsity < 1:
            raise ValueError(
                f"sparsity must be at least 0 and below 1, received {self.sparsity}: it is the "
                "share of the weights that goes"
            )
        if self.criterion not in CRITERIA:
            raise unknown("criterion", self.criterion, CRITERIA)
        if self.scope not in SCOPES:
            raise unknown("scope", self.scope, SCOPES)
        if not 0 <= self.begin <= self.end < 1:
            raise ValueError(
                "pruning begins and ends within the run: expected 0 ≤ begin ≤ end < 1, received "
                f"begin={self.begin}, end={self.end}"
            )
        if self.every < 1 or self.every != int(self.every):
            raise ValueError(f"every counts whole steps from 1, received {self.every}")
        if not self.learns and (self.score_learning_rate is not None or self.score_noise):
            raise ValueError(
                f"{self.criterion} learns no scores: leave out score_…, or use movement"
            )
        rate = 1.0 if self.score_learning_rate is None else self.score_learning_rate
        if not (rate > 0 and self.score_noise >= 0):
            raise ValueError(
                "expected score_learning_rate > 0 and score_noise ≥ 0, received "
                f"{self.score_learning_rate} and {self.score_noise}"
            )
        if self.learns and not self.end:
            raise ValueError(
                "movement learns its scores while it prunes: give an end after 0, such as 0.7"
            )
        if self.recover and self.end:
            raise ValueError("recover deletes weights once, before training: leave begin and end 0")

    @property
    def learns(self) -> bool:
        return self.criterion in MOVES

    @property
    def settled(self) -> float:
        return self.end

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
            masked = MaskedLinear.from_linear(linear, self.learns, self.score_learning_rate)
            replace_module_(model, name, masked)
        if self.score_noise and self.learns:
            generator = torch.Generator().manual_seed(self.seed)
            for masked in encoder_linears(model).values():
                noise = torch.rand(masked.weight.shape, generator=generator) * 2 - 1
                masked.scores.data.add_(self.score_noise * noise.to(masked.scores.device))
        # What is there before any training: movement has no scores yet, and takes magnitudes.
        self._draw_(model, self.sparsity, "magnitude" if self.learns else self.criterion)
        return _deleted_(model) if self.recover else model

    def before_step(self, model: PreTrainedModel, step: int, total: int) -> None:
        if self._idle or self.recover or not self.end:
            return
        last = min(round(self.end * total), total - 1)
        first = min(round(self.begin * total), last)
        if step <= last and (step in (0, last) or (step >= first and step % self.every == 0)):
            share = cubic(step, first, last, self.sparsity)
            self._draw_(model, share, self.criterion)

    @torch.no_grad()
    def after_step(self, model: PreTrainedModel, step: int, total: int, rate: float) -> None:
        if not self._idle and self.learns and self.score_learning_rate is None:
            for layer in encoder_linears(model, MaskedLinear).values():
                if layer.scores.grad is not None:
                    layer.scores -= layer.scores.grad

    def _draw_(self, model: PreTrainedModel, sparsity: float, criterion: str) -> None:
        layers = list(encoder_linears(model).values())
        if criterion == "movement" and getattr(layers[0], "scores", None) is None:
            raise ValueError(
                "movement's scores learn on full-precision weights: quantize in a later stage"
            )
        generator = torch.Generator().manual_seed(self.seed)
        scores = [CRITERIA[criterion](layer, generator) for layer in layers]
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


@dataclass(frozen=True)
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
    sparsity: float | None = None
    strength: float | None = None
    epsilon: float = 1e-3
    reweight: int = 10
    until: float = 0.5

    def __post_init__(self) -> None:
        check_numbers(self, "sparsity", "strength", "epsilon", "reweight", "until")
        if (self.sparsity is None) == (self.strength is None):
            raise ValueError(
                "reweighted_proximal takes a sparsity to aim at or a strength, one of them; "
                f"received sparsity={self.sparsity}, strength={self.strength}"
            )
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be at least 0 and below 1, received {self.sparsity}")
        if not ((self.strength or 0) >= 0 and self.epsilon > 0 and self.reweight >= 1):
            raise ValueError(
                "expected strength ≥ 0, epsilon > 0 and reweight ≥ 1, received "
                f"strength={self.strength}, epsilon={self.epsilon}, reweight={self.reweight}"
            )
        if not 0 < self.until <= 1:
            raise ValueError(f"until is a share of the run, above 0 to 1, received {self.until}")

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
            pull = self.strength * rate if self.sparsity is None else linear.aim**2 / (2 * steps)
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
