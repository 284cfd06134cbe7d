"""Linear layers with weights or whole inputs switched off: one form to train, one to store.

``MaskedLinear`` trains through a mask; ``SparseLinear`` holds the mask as bits and the values that
are left; ``GatedLinear`` scales groups of its inputs, such as the outputs of attention heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from xtclib.bert import around, linear_of
from xtclib.techniques.base import Held
from xtclib.techniques.quantization import packing
from xtclib.techniques.quantization.layers import QuantLinear
from xtclib.techniques.quantization.packed import PackedLinear
from xtclib.techniques.quantization.products import InputQuantizer, Inputs
from xtclib.techniques.quantization.quantizers import Quantized, Scheme, quantize


class _LearnedMask(torch.autograd.Function):
    """``W' = W ⊙ M``; the mask's gradient goes straight through to the scores it came from."""

    @staticmethod
    def forward(ctx, weight, scores, mask):
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx, gradient):
        weight, mask = ctx.saved_tensors
        return gradient * mask, gradient * weight, None


class MaskedLinear(nn.Linear):
    """A linear layer whose weight is multiplied by a bool mask, kept and saved as a buffer.

    (…, in_features) → (…, out_features). With ``scores`` (movement pruning, Sanh et al. 2020,
    arXiv:2005.07683, section 3) the mask's gradient ∂L/∂S = ∂L/∂W' ⊙ W is learned from as well.
    """

    refusal: ClassVar[str] = "comes before sparsify: list it first"
    mask: Tensor
    scores: nn.Parameter | None
    score_learning_rate: float | None = None
    weights: Scheme | None = None
    inputs: InputQuantizer | None = None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, learned: bool = False, score_learning_rate: float | None = None
    ) -> MaskedLinear:
        """Wraps a linear layer, sharing its parameters, with nothing masked yet.

        ``learned`` gives it scores. The optimizer moves them at ``score_learning_rate``; without
        one it leaves them to whoever reads their gradient.
        """
        layer = around(cls, linear)
        layer.register_buffer("mask", torch.ones_like(linear.weight, dtype=torch.bool))
        layer.scores = nn.Parameter(torch.zeros_like(linear.weight)) if learned else None
        layer.score_learning_rate = score_learning_rate
        return layer

    def stored(self) -> SparseLinear:
        """The layer that is saved."""
        return SparseLinear.from_quant(self)

    def quantizing(self, weights: Scheme, inputs: InputQuantizer) -> QuantMaskedLinear:
        """The same layer with what is left of its weights quantized."""
        return QuantMaskedLinear.from_linear(self, weights, inputs)

    def effective_weight(self) -> Tensor:
        """What is left of the weight."""
        if self.scores is None:
            return self.weight * self.mask
        return _LearnedMask.apply(self.weight, self.scores, self.mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight(), self.bias)


class QuantMaskedLinear(QuantLinear):
    """A masked layer that quantizes what is left: what was removed stays 0."""

    mask: Tensor

    @classmethod
    def from_linear(cls, linear: nn.Linear, weights: Scheme, activations: Inputs = None) -> Self:
        """Wraps a masked layer, sharing its parameters and mask."""
        if weights.family != "int":
            none = f"pruned weights cannot be quantized to {weights}, which has no zero to spare"
            raise ValueError(f"{none}: choose 'int8' or 'int4'")
        layer = super().from_linear(linear, weights, activations)
        layer.register_buffer("mask", linear.mask)
        return layer

    def effective_weight(self) -> Tensor:
        return self.weight * self.mask

    def stored(self) -> SparseLinear:
        return SparseLinear.from_quant(self)


class SparseLinear(PackedLinear):
    """A linear layer stored as one bit per weight and the values of those that are not zero.

    Values are fp16, or codes of a symmetric scheme (``int8``, ``int4``) with their scales. Runs as
    a dense layer: no kernel here gains from scattered zeros, the file does.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, weights: Scheme | None = None,
        activations: Inputs = None, device=None,
    ) -> None:  # fmt: skip
        if weights is not None and weights.family != "int":
            kinds = "sparse weights are stored in fp16 or as 'int8' or 'int4'"
            raise ValueError(f"{kinds}, not as {weights}, with no zero or one of its own")
        scheme = weights or Scheme("int", 8)
        super().__init__(in_features, out_features, bias, scheme, activations, device)
        self.quantizes = weights is not None
        bytes_ = packing.packed_length(in_features, 1)  # of a row's mask
        self.weight = self.weight.new_empty(out_features, bytes_, 1)
        self.register_buffer("weight_values", None)
        self.set_count_(0)
        if not self.quantizes:
            del self.weight_scale

    def set_count_(self, count: int) -> None:
        """Makes room for the stored values: ``count`` fp16 numbers, or bytes of packed codes."""
        kind = torch.uint8 if self.quantizes else torch.float16
        self.weight_values = torch.empty(count, dtype=kind, device=self.weight.device)

    def store_(self, weight: Tensor) -> None:
        """Keeps what is not zero in a weight of shape (rows, columns)."""
        if not self.quantizes:
            present = weight.half() != 0  # what fp16 rounds to 0 needs no place
            mask, self.weight_values = packing.pack_sparse(weight * present)
        else:
            super().store_(weight)
            codes = quantize(weight.float(), self.weights).codes
            mask = packing.pack((codes != 0).to(torch.uint8), 1)
            self.weight_values = packing.encode(codes[codes != 0], self.width, self.offset)
        self.weight = mask.unsqueeze(-1)
        self._unpacked = None

    def make_room_(self, shapes: Mapping[str, Sequence[int]]) -> None:
        count = shapes.get("weight_values", (0,))[0]
        self.set_count_(min(count, self.rows * self.columns))

    def entries(self) -> dict[str, Held]:
        held = {"weight": Held(self.rows * self.columns, 1, 1)}
        if self.quantizes:
            values = int(8 * len(self.weight_values) / self.width)
            held["weight_values"] = Held(values, self.width, self.width)
        return held

    def quantizing(self, weights: Scheme, inputs: InputQuantizer) -> SparseLinear:
        """An empty layer of as many values at another width."""
        new = SparseLinear.like(self, weights, inputs)
        new.set_count_(packing.packed_length(len(self.weight_values), new.width))
        return new

    def trainable(self) -> MaskedLinear | QuantMaskedLinear:
        masked = MaskedLinear.from_linear(self.dense())
        masked.mask.copy_(self.present())
        if not self.quantizes:
            return masked
        layer = masked.quantizing(self.weights, self.inputs)
        if layer.input_clip is not None:
            layer.input_clip.data.copy_(self.input_clip)
        return layer

    def unmasked(self) -> nn.Linear | PackedLinear:
        """A layer of the same numbers, zeros among them: for a runtime that knows no masks."""
        if not self.quantizes:
            return self.dense()
        packed, codes = PackedLinear.like(self, self.weights, self.inputs), self.quantized().codes
        packed.weight = packing.encode(codes, self.width, self.offset).unsqueeze(-1)
        packed.weight_scale, packed.bias = self.weight_scale, self.bias
        packed.store_clip_(self)
        return packed.train(self.training)

    def present(self) -> Tensor:
        """Which weights are stored: bool (out_features, in_features)."""
        return packing.unpack(self.weight.squeeze(-1), 1, self.columns).bool()

    def quantized(self, ids: Tensor | None = None, dtype=torch.float32) -> Quantized:
        """Codes and scales; without a scheme the values themselves and a scale of 1."""
        mask = self.weight.squeeze(-1)
        if not self.quantizes:
            found = packing.unpack_sparse(mask, self.weight_values, self.columns, dtype)
            return Quantized(found, torch.ones(1, 1, device=mask.device))
        count = int(self.present().sum())
        codes = packing.unpack(self.weight_values, self.width, count).to(torch.int16) - self.offset
        found = packing.unpack_sparse(mask, codes, self.columns, dtype)
        return Quantized(found, self._rows_of(self.weight_scale, None).float())

    def forward(self, x: Tensor) -> Tensor:
        if self.quantizes:
            return super().forward(x)
        if self._unpacked is None:
            with torch.inference_mode(False), torch.no_grad():
                self._unpacked = self.quantized()
        weight = self._unpacked.codes.to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


class GatedLinear(nn.Linear):
    """A linear layer that multiplies each group of its inputs by a gate.

    With one group a head on the attention's output projection, a gate of 0 is a head without
    effect. ``gate`` (groups,), or (batch, 1, groups) for a gate of its own on each row, holds
    factors; a subclass may derive them from what it learns.
    """

    refusal: ClassVar[str] = (
        "meets the gates of learn_gates: first remove what they closed, by prune_heads or "
        "prune_neurons with the criterion 'gates'"
    )
    gate: nn.Parameter | None

    @classmethod
    def from_linear(cls, linear: nn.Linear, groups: int) -> GatedLinear:
        """Wraps a linear layer, sharing its parameters, with every gate at 1."""
        layer = around(cls, linear)
        layer.gate = nn.Parameter(linear.weight.new_ones(groups))
        return layer

    def factors(self) -> Tensor:
        """What each group is multiplied by, of shape (groups,)."""
        return self.gate

    def forward(self, x: Tensor) -> Tensor:
        factors = self.factors()
        each = factors.repeat_interleave(self.in_features // factors.shape[-1], -1).to(x.dtype)
        return F.linear(x * each, self.weight, self.bias)


class HardConcrete(GatedLinear):
    """Gates between 0 and 1 that can be learned to be exactly 0: the hard concrete distribution.

    In training ``s = σ((log u − log(1−u) + log α) / β)``, ``z = clamp(s·(ζ−γ) + γ, 0, 1)`` with
    u uniform, β = ⅔, γ = −0.1, ζ = 1.1; in evaluation without u and β. Source: Louizos et al. 2018,
    arXiv:1712.01312, equations 10 to 13; for heads Voita et al. 2019, arXiv:1905.09418.
    """

    BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
    scores: nn.Parameter  # log α
    score_learning_rate: float | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear, groups: int, rate: float = 1e-2) -> HardConcrete:
        """Every gate starts at log α = 2.5, which is open in evaluation, and learns at ``rate``."""
        layer = super().from_linear(linear, groups)
        layer.gate, layer.score_learning_rate = None, rate
        layer.scores = nn.Parameter(linear.weight.new_full((groups,), 2.5))
        return layer

    def factors(self) -> Tensor:
        if self.training:
            noise = torch.rand_like(self.scores).clamp_(1e-6, 1 - 1e-6)
            open_ = torch.sigmoid((noise.logit() + self.scores) / self.BETA)
        else:
            open_ = torch.sigmoid(self.scores)
        return (open_ * (self.ZETA - self.GAMMA) + self.GAMMA).clamp(0, 1)

    def open_probability(self) -> Tensor:
        """The chance of each gate to be more than 0, (groups,): what the L₀ penalty sums."""
        shift = self.BETA * math.log(-self.GAMMA / self.ZETA)
        return torch.sigmoid(self.scores - shift)


def closed(layer: GatedLinear) -> nn.Linear:
    """The plain linear layer that evaluation computes: the factors multiplied into the weight."""
    was_training = layer.training
    factors = layer.eval().factors().detach()
    each = factors.repeat_interleave(layer.in_features // len(factors))
    return linear_of(layer.weight.detach() * each, layer.bias).train(was_training)
