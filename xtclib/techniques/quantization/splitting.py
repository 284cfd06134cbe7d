"""Ternary weight splitting: a trained ternary model as a binary one of twice the width."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib.bert import encoder_linears, linear_of, replace_module_
from xtclib.config import config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import Technique, register, table_of
from xtclib.techniques.quantization.layers import QuantEmbedding, QuantLinear
from xtclib.techniques.quantization.packed import Packed, PackedEmbedding, PackedLinear
from xtclib.techniques.quantization.quantizers import Scheme, _grouped


def split(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Two weights that sum to a ternary one, and whose binarizations sum to its ternarization.

    With α the ternary scale, S₀ the weights that are ternarized to 0 and the sums over the n
    weights that share a scale, in float64:

    - on S₀: ``w₁ = w + β, w₂ = −β`` where w > 0, else ``w₁ = β, w₂ = w − β``,
      ``β = (αn − Σ|w|) / (2|S₀|)``
    - elsewhere: ``w₁ = m·w, w₂ = (1 − m)·w``,
      ``m = (Σ|w| + Σ_S₀|w₂| − Σ_S₀|w₁|) / (2·Σ|w|)``, the first and last sum over the rest

    Then both binary scales are α/2. Weight of shape (rows, columns); the halves in its dtype.
    Source: BinaryBERT, arXiv:2012.15701, equations 5 to 8.

    >>> w = torch.tensor([[0.1, -1.0, 2.0, -0.2]])
    >>> a, b = split(w, Scheme.parse("ternary"))
    >>> torch.allclose(a + b, w), a.abs().mean(), b.abs().mean()
    (True, tensor(0.7500), tensor(0.7500))
    """
    weight = weight.detach()
    if scheme.clip is not None:  # as the ternary quantizer does first
        weight = weight.clamp(-scheme.clip, scheme.clip)
    w = _grouped(weight.double(), scheme)
    size, n = w.abs(), w.shape[1]
    large = size > 0.7 * size.mean(1, keepdim=True)
    count = large.sum(1, keepdim=True)
    kept = (size * large).sum(1, keepdim=True)  # Σ|w| outside S₀
    alpha = kept / count.clamp(min=1)
    beta = (alpha * n - size.sum(1, keepdim=True)) / (2 * (n - count).clamp(min=1))
    first = torch.where(w > 0, w + beta, beta)
    second = torch.where(w > 0, -beta, w - beta)
    apart = ((second.abs() - first.abs()) * ~large).sum(1, keepdim=True)
    m = torch.where(kept > 0, (kept + apart) / (2 * kept.clamp(min=1e-300)), 0.5)
    first, second = torch.where(large, m * w, first), torch.where(large, (1 - m) * w, second)
    return tuple(half.reshape(weight.shape).to(weight.dtype) for half in (first, second))


class _Sum(nn.Module):
    """Two layers of one shape that read the same input and are added up."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


class SplitLinear(_Sum):
    """The sum of two linear layers of one shape: (…, in_features) → (…, out_features)."""

    in_features = property(lambda self: self.first.in_features)
    out_features = property(lambda self: self.first.out_features)

    @classmethod
    def from_quant(cls, layer: QuantLinear) -> SplitLinear:
        """Splits what a ternary layer has learned; each half gets half of the bias."""
        halves = []
        for weight in split(layer.weight, layer.weights):
            bias = None if layer.bias is None else layer.bias.detach() / 2  # each learns its own
            linear = linear_of(weight, bias).train(layer.training)
            half = QuantLinear.from_linear(linear, _binary(layer.weights), layer.inputs)
            if layer.input_clip is not None:
                half.input_clip.data.copy_(layer.input_clip)
            halves.append(half)
        return cls(*halves)


class SplitEmbedding(_Sum):
    """The sum of two embeddings of one shape: (…) of ids → (…, embedding_dim)."""

    @classmethod
    def from_quant(cls, layer: QuantEmbedding) -> SplitEmbedding:
        """Splits what a ternary embedding has learned."""
        halves = []
        for weight in split(layer.weight, layer.weights):
            table = table_of(weight, layer.padding_idx)
            halves.append(QuantEmbedding.from_embedding(table, _binary(layer.weights)))
        return cls(*halves)


@register
@config
class SplitTernary(Technique):
    """Turns every ternary layer of a trained model into the sum of two binary ones.

    Ternary weights of half the heads and neurons become about as many binary ones as the whole
    encoder has; the word table doubles. The numbers stay (:func:`split`), and are what training the
    binary model begins from. List it after ``quantize`` in an earlier stage. Source: BinaryBERT,
    arXiv:2012.15701, section 3.
    """

    name: ClassVar[str] = "split_ternary"
    stored = True

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        model = copy.deepcopy(model)
        found = _ternary(model, (QuantLinear, QuantEmbedding))
        if not found:
            lacks = "split_ternary splits ternary weights in training, and this model has none"
            raise ValueError(f"{lacks}: list `quantize` of `weights: ternary` in an earlier stage")
        for name, module in found.items():
            kind = SplitLinear if isinstance(module, QuantLinear) else SplitEmbedding
            replace_module_(model, name, kind.from_quant(module))
        return model

    def rebuild(self, model: PreTrainedModel) -> None:
        for name, old in _ternary(model, Packed).items():
            scheme = _binary(old.weights)
            if isinstance(old, PackedLinear):
                new: _Sum = SplitLinear(*(old.quantizing(scheme, old.inputs) for _ in "ab"))
            else:
                table = old.rows, old.columns, scheme, old.weight.device
                new = SplitEmbedding(*(PackedEmbedding(*table) for _ in "ab"))
            replace_module_(model, name, new)

    def outline(self, model: PreTrainedModel) -> None:
        for name, linear in encoder_linears(model).items():
            replace_module_(model, name, SplitLinear(linear, copy.deepcopy(linear)))


def _ternary(model: nn.Module, kinds: Any) -> dict[str, Any]:
    found: list[tuple[str, Any]] = list(model.named_modules())
    return {n: m for n, m in found if isinstance(m, kinds) and m.weights.family == "ternary"}


def _binary(scheme: Scheme) -> Scheme:
    return Scheme("binary", 1, scheme.granularity, scheme.groups)
