"""Quantized linear and embedding layers: one form to train, one to store.

``QuantLinear`` and ``QuantEmbedding`` keep full-precision weights and quantize them at every step;
``PackedLinear`` and ``PackedEmbedding`` hold the bytes that are stored. Both compute

    y = linear(x_codes, w_codes) · (x_scale · w_scale) + bias

so the sum runs over small integers and is exact in fp32 below 2²⁴: a trained model and its packed
file give the same bits, and so does the integer kernel that packed layers run on. (``linear(x̂, ŵ)``
would not: its products round, and 8-bit activations downstream amplify a last digit into a whole
step.)
"""

from __future__ import annotations

import weakref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtclib.techniques.quantization.quantizers import (
    Scheme,
    asymmetric,
    fake_quantize,
    first_clip,
    quantize,
    round_between,
)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The autocast type where autocast is on, else the tensor's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


_last_input: tuple = (lambda: None, None, None)


def _input_codes(x: Tensor, scheme: Scheme, dtype: torch.dtype) -> tuple:
    """Codes in ``dtype``, scale, and what to add to the codes: asymmetric ones miss int8 by 255."""
    if scheme.family == "int" or dtype != torch.int8:
        return *quantize(x, scheme, dtype)[:2], None
    numbers, scale, zero = asymmetric(x, scheme)
    return numbers.sub_(128).to(dtype), scale, (128 - zero).int()


def _quantize_input(x: Tensor, scheme: Scheme | None, dtype: torch.dtype) -> tuple:
    """Codes in ``dtype``, fp32 scale and shift (or ``None``) of the input of a linear layer.

    Query, key and value read the same tensor one after the other, so the last answer is kept. An
    inference tensor counts no versions, so a change in place would go unseen: it is not kept.
    """
    global _last_input
    if scheme is None:
        return x.to(dtype), None, None
    if x.is_inference():
        return _input_codes(x, scheme, dtype)
    tensor, key, found = _last_input
    wanted = (x._version, scheme, dtype, torch.is_inference_mode_enabled())
    if tensor() is not x or key != wanted:
        found = _input_codes(x, scheme, dtype)
        _last_input = (weakref.ref(x), wanted, found)
    return found


def _rescale(y: Tensor, x_scale: Tensor | None, w_scale: Tensor, bias: Tensor | None) -> Tensor:
    """``y · (x_scale · w_scale) + bias`` in the dtype of ``y``, in one pass over ``y``."""
    scale = w_scale.reshape(-1) if x_scale is None else x_scale * w_scale.reshape(-1)
    scale = scale.to(y.dtype)
    return y * scale if bias is None else torch.addcmul(bias.to(y.dtype), y, scale)


class _QuantLinearFunction(torch.autograd.Function):
    """The integer-times-scale product, with straight-through gradients for input and weight.

    ``x_codes · x_scale`` stands for ``x``; ``x`` itself is there to receive the gradient.
    """

    @staticmethod
    def forward(ctx, x, x_codes, x_scale, weight, bias, weights: Scheme):
        # Integers up to 255 are exact in bf16, so codes in the compute type lose nothing.
        w_codes, w_scale, _ = quantize(weight, weights, x_codes.dtype)
        ctx.inside = None if weights.clip is None else weight.abs() <= weights.clip
        ctx.save_for_backward(x_codes, x_scale, w_codes, w_scale)
        ctx.has_bias, ctx.x_dtype = bias is not None, x.dtype
        return _rescale(F.linear(x_codes, w_codes), x_scale, w_scale, bias)

    @staticmethod
    def backward(ctx, gradient):
        x_codes, x_scale, w_codes, w_scale = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        d_x = d_w = d_b = None
        if ctx.needs_input_grad[0]:  # ∂L/∂x = g · ŵ
            if w_scale.numel() == 1:
                d_x = (gradient @ w_codes).mul_(w_scale.reshape(()))
            else:
                d_x = (gradient * w_scale.reshape(-1).to(gradient.dtype)) @ w_codes
            d_x = d_x.to(ctx.x_dtype)
        if ctx.needs_input_grad[3]:  # ∂L/∂w = gᵀ · x̂
            scaled = gradient if x_scale is None else gradient * x_scale.to(gradient.dtype)
            d_w = scaled.reshape_as(flat).T @ x_codes.reshape(-1, x_codes.shape[-1])
            d_w = d_w.to(w_scale.dtype)
            if ctx.inside is not None:
                d_w *= ctx.inside
        if ctx.has_bias and ctx.needs_input_grad[4]:
            d_b = flat.sum(0, dtype=torch.float32)
        return d_x, None, None, d_w, d_b, None


def linear_of(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A plain linear layer around these tensors, which it does not copy.

    >>> linear_of(torch.ones(2, 3)).out_features
    2
    """
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    if bias is not None:
        linear.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
    return linear


class QuantLinear(nn.Linear):
    """A linear layer that quantizes its weight, and its input if told to, at every forward pass.

    (…, in_features) → (…, out_features). Parameters have the names and shapes of ``nn.Linear``, so
    checkpoints interchange.

    >>> layer = QuantLinear.from_linear(nn.Linear(4, 2), Scheme.parse("binary"))
    >>> sorted(layer.state_dict())
    ['bias', 'weight']
    """

    weights: Scheme
    activations: Scheme | None
    mask: Tensor | None  # of a pruned layer: what it removed stays 0
    input_clip: nn.Parameter | None  # of learned activations, (1,)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, weights: Scheme, activations: Scheme | None = None
    ) -> QuantLinear:
        """Wraps a linear layer, sharing its parameters. ``ValueError`` for groups that don't fit"""
        if weights.granularity == "token":
            raise ValueError(
                "weights have no tokens: choose granularity 'tensor', 'row' or 'group'"
            )
        if activations is not None and activations.granularity not in ("tensor", "token"):
            raise ValueError(
                f"activations were given granularity {activations.granularity!r}: choose 'token' "
                "or 'tensor'"
            )
        weights.groups_of(linear.out_features)
        shape = linear.in_features, linear.out_features
        layer = cls(*shape, linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.weights, layer.activations = weights, activations
        mask = getattr(linear, "mask", None)
        if mask is not None and weights.family != "int":
            raise ValueError(
                f"pruned weights cannot be quantized to {weights}, which has no zero to spare: "
                "choose 'int8' or 'int4'"
            )
        layer.register_buffer("mask", mask)
        learned = activations is not None and activations.learned
        zero = torch.zeros(1, device=linear.weight.device)  # until the first input comes
        layer.input_clip = nn.Parameter(zero) if learned else None
        return layer.train(linear.training)

    def _learned(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input rounded between learned ends, its codes and their scale."""
        top, how = self.activations.levels[1], self.activations.learned
        if float(self.input_clip.detach()) == 0:
            self.input_clip.data.copy_(first_clip(x, top, how))
        clip = self.input_clip.abs()  # an end that crosses 0 is mirrored
        return *round_between(x.float(), clip, top, how), clip.detach() / top

    def forward(self, x: Tensor) -> Tensor:
        if self.input_clip is not None:
            x, x_codes, x_scale = self._learned(x)
            x_codes = x_codes.to(compute_dtype(x))
        else:
            with torch.no_grad():
                x_codes, x_scale, _ = _quantize_input(x, self.activations, compute_dtype(x))
        weight = self.weight if self.mask is None else self.weight * self.mask
        return _QuantLinearFunction.apply(x, x_codes, x_scale, weight, self.bias, self.weights)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.weights}, activations={self.activations}"


class QuantEmbedding(nn.Embedding):
    """An embedding that quantizes its table; by rows, only the rows that are looked up.

    (…) of ids → (…, embedding_dim).
    """

    weights: Scheme

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, weights: Scheme) -> QuantEmbedding:
        """Wraps an embedding, sharing its table."""
        if weights.granularity == "token":
            raise ValueError("an embedding has no tokens: choose granularity 'row' or 'tensor'")
        layer = cls(
            embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, device="meta"
        )
        layer.weight, layer.weights = embedding.weight, weights
        return layer.train(embedding.training)

    def forward(self, ids: Tensor) -> Tensor:
        if self.weights.granularity == "row":  # a row's scale needs no other row
            return fake_quantize(F.embedding(ids, self.weight, self.padding_idx), self.weights)
        return F.embedding(ids, fake_quantize(self.weight, self.weights), self.padding_idx)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.weights}"
