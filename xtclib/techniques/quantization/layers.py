"""Quantized linear and embedding layers as they train: full precision, quantized at every step.

What they are stored as is in :mod:`.packed`; both compute by :mod:`.products`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from xtclib.bert import around
from xtclib.techniques.quantization import products, quantizers
from xtclib.techniques.quantization.packed import PackedEmbedding, PackedLinear
from xtclib.techniques.quantization.products import InputQuantizer, Inputs
from xtclib.techniques.quantization.quantizers import Scheme, fake_quantize


class QuantLinear(nn.Linear):
    """A linear layer that quantizes its weight, and its input if told to, at every forward pass.

    (…, in_features) → (…, out_features). Parameters have the names and shapes of ``nn.Linear``, so
    checkpoints interchange.

    >>> layer = QuantLinear.from_linear(nn.Linear(4, 2), Scheme.parse("binary"))
    >>> sorted(layer.state_dict())
    ['bias', 'weight']
    """

    refusal: ClassVar[str] = "comes before quantize: list it first"
    weights: Scheme
    inputs: InputQuantizer
    input_clip: Any  # of learned activations, (1,), else None

    @classmethod
    def from_linear(cls, linear: nn.Linear, weights: Scheme, activations: Inputs = None) -> Self:
        """Wraps a linear layer, sharing its parameters. ``ValueError`` for groups that don't fit"""
        inputs = InputQuantizer.of(activations)
        activations = inputs.scheme
        if weights.granularity == "token":
            raise ValueError("weights have no tokens: choose granularity 'tensor', 'row', 'group'")
        if activations is not None and activations.granularity not in ("tensor", "token"):
            given = f"activations were given granularity {activations.granularity!r}"
            raise ValueError(f"{given}: choose 'token' or 'tensor'")
        weights.groups_of(linear.out_features)
        layer = around(cls, linear)
        layer.weights, layer.inputs = weights, inputs
        learned = activations is not None and activations.learned
        zero = torch.zeros(1, device=linear.weight.device)  # until the first input comes
        layer.input_clip = nn.Parameter(zero) if learned else None
        return layer

    activations = property(lambda self: self.inputs.scheme)  # how the input is rounded

    def quantizing(self, weights: Scheme, inputs: InputQuantizer) -> QuantLinear:
        """The same layer under other schemes."""
        return type(self).from_linear(self, weights, inputs)

    def stored(self) -> PackedLinear:
        """The layer that is saved."""
        return PackedLinear.from_quant(self)

    def effective_weight(self) -> Tensor:
        """The full-precision weight that is quantized."""
        return self.weight

    def _learned(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input rounded between learned ends, its codes and their scale."""
        top, how = self.activations.levels[1], self.activations.learned
        if float(self.input_clip.detach()) == 0:
            self.input_clip.data.copy_(quantizers.first_clip(x, top, how))
        clip = self.input_clip.abs()  # an end that crosses 0 is mirrored
        return *quantizers.round_between(x.float(), clip, top, how), clip.detach() / top

    def forward(self, x: Tensor) -> Tensor:
        if self.input_clip is not None:
            x, x_codes, x_scale = self._learned(x)
            x_codes = x_codes.to(products.compute_dtype(x))
        else:
            with torch.no_grad():
                x_codes, x_scale, _ = self.inputs(x, products.compute_dtype(x))
            if self.activations is not None and self.activations.clip is not None:
                x = x.clamp(-self.activations.clip, self.activations.clip)  # there gradients end
        weight, product = self.effective_weight(), products.QuantLinearFunction
        return product.apply(x, x_codes, x_scale, weight, self.bias, self.weights)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.weights}, activations={self.activations}"


class QuantEmbedding(nn.Embedding):
    """An embedding that quantizes its table; by rows, only the rows that are looked up.

    (…) of ids → (…, embedding_dim).
    """

    refusal: ClassVar[str] = "comes before quantize: list it first"
    weights: Scheme

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, weights: Scheme) -> QuantEmbedding:
        """Wraps an embedding, sharing its table."""
        if weights.granularity == "token":
            raise ValueError("an embedding has no tokens: choose granularity 'row' or 'tensor'")
        layer = cls(*embedding.weight.shape, embedding.padding_idx, device="meta")
        layer.weight, layer.weights = embedding.weight, weights
        return layer.train(embedding.training)

    def stored(self) -> PackedEmbedding:
        """The table that is saved."""
        return PackedEmbedding.from_quant(self)

    def forward(self, ids: Tensor) -> Tensor:
        if self.weights.granularity == "row":  # a row's scale needs no other row
            return fake_quantize(F.embedding(ids, self.weight, self.padding_idx), self.weights)
        return F.embedding(ids, fake_quantize(self.weight, self.weights), self.padding_idx)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.weights}"


def quantizing(linear: nn.Linear, weights: Scheme, inputs: InputQuantizer) -> nn.Module:
    """A linear layer of any kind with its weights quantized; ``ValueError`` if it cannot be."""
    if hasattr(linear, "quantizing"):
        return linear.quantizing(weights, inputs)
    if hasattr(linear, "refusal"):
        raise ValueError(f"quantize {linear.refusal}")
    return QuantLinear.from_linear(linear, weights, inputs)


# The other direction; the two files cannot import each other.
PackedLinear.trains_as, PackedEmbedding.trains_as = QuantLinear, QuantEmbedding
