"""Smoothing: what is hard to round in a matrix's inputs goes into its weights, without a loss."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib.bert import encoder_linears, linear_of, replace_module_
from xtclib.config import Ratio, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import Technique, check_plain, needs, refuse_packed, register
from xtclib.techniques.measured import in_order, largest_inputs


def migration(inputs: Tensor, weights: Tensor, alpha: float = 0.5) -> Tensor:
    """What each input is divided by and its weights are multiplied by: (inputs,).

    ``s = max|x|^α / max|w|^(1 − α)``, of every input's largest values, rounded to a power of two:
    so no digit of the model changes, and fp16 holds it. Source: Xiao et al. 2023 (SmoothQuant),
    arXiv:2211.10438, equation 4.

    >>> migration(torch.tensor([16.0, 1.0]), torch.tensor([0.25, 1.0]))
    tensor([8., 1.])
    """
    s = inputs.clamp(min=1e-5) ** alpha / weights.clamp(min=1e-5) ** (1 - alpha)
    return torch.exp2(s.log2().round().clamp(-10, 10))


class SmoothLinear(nn.Module):
    """``y = (x · factor)·Wᵀ + b``: inputs (…, in_features) times (in_features,), then a matrix."""

    refusal: ClassVar[str] = "comes before smooth: list it first"

    def __init__(self, linear: nn.Linear, factor: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.linear = linear
        self.factor = nn.Parameter(factor, requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear, by: Tensor) -> SmoothLinear:
        """Around a linear layer whose inputs are divided by ``by`` and weights multiplied."""
        inner = linear_of((linear.weight * by).detach(), linear.bias)
        return cls(inner.train(linear.training), 1 / by).train(linear.training)

    @classmethod
    def like(cls, linear: nn.Linear) -> SmoothLinear:
        """One around a linear layer, by numbers that are loaded."""
        return cls(linear, linear.weight.new_empty(linear.in_features))

    @property
    def reader(self) -> nn.Module:
        """What multiplies the input first."""
        return self.linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.factor)


@register
@config
class Smooth(Technique):
    """Moves outliers of the encoder's inputs into its weights. List it before ``quantize``.

    Where one scale serves all inputs, as in ONNX's ``DynamicQuantizeLinear``, a few large ones
    leave the others few steps. :func:`migration` by ``alpha``: 0 moves nothing of the inputs, 1
    all. After a norm the paper folds the division into the norm; BERT adds what its norms give to
    the next block as well, so the division stays, one product for each input. Matrices that read
    one tensor share their factors.
    """

    name: ClassVar[str] = "smooth"
    family: ClassVar[str] = "quantized"
    reshapes: ClassVar[bool] = True
    alpha: Ratio = 0.5
    stored = True
    looks_at = Calibration.rows

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        refuse_packed(model)
        check_plain(model, self.name)
        model, rows = copy.deepcopy(model), needs(data, self.name)
        largest = largest_inputs(model, rows.batches())
        for names in in_order(model, next(rows.batches())):
            linears = [model.get_submodule(name) for name in names]
            weights = torch.stack([linear.weight.detach().abs().amax(0) for linear in linears])
            by = migration(largest[names[0]], weights.amax(0), self.alpha)
            for name, linear in zip(names, linears, strict=True):
                replace_module_(model, name, SmoothLinear.of(linear, by))
        return model

    def rebuild(self, model: PreTrainedModel) -> None:
        for name, linear in encoder_linears(model).items():
            replace_module_(model, name, SmoothLinear.like(linear))
