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

import warnings
import weakref
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xtclib.learned import first_clip, round_between, stored_clip
from xtclib.packing import TRIT, decode, encode, packed_length
from xtclib.quantizers import Quantized, Scheme, asymmetric, fake_quantize, quantize


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


@cache
def integer_kernel(device: str = "cpu") -> bool:
    """Whether PyTorch multiplies int8 matrices on this kind of device; says so if it does not."""
    try:
        ones = torch.ones(32, 32, dtype=torch.int8, device=device)
        right = bool((torch._int_mm(ones, ones) == 32).all())
    except (RuntimeError, AttributeError) as error:
        right, reason = False, str(error).splitlines()[0]
    else:
        reason = "its result is wrong"
    if not right:
        warnings.warn(
            f"no int8 matrix product on {device} ({reason}): packed layers run in floating point, "
            "to the same numbers",
            stacklevel=2,
        )
    return right


def integer_linear(x: Tensor, weight: Tensor) -> Tensor:
    """int8 x (…, inputs) times int8 weight (outputs, inputs) → exact int32 (…, outputs).

    >>> integer_linear(torch.tensor([[100, -3]], dtype=torch.int8), torch.tensor([[1, -1]]).char())
    tensor([[103]], dtype=torch.int32)
    """
    flat = x.reshape(-1, x.shape[-1])
    rows = len(flat)
    if x.is_cuda and rows <= 16:  # the kernel there wants more than 16 rows
        flat = F.pad(flat, (0, 0, 0, 17 - rows))
    return torch._int_mm(flat, weight.t())[:rows].view(*x.shape[:-1], len(weight))


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


class _Packed(nn.Module):
    """Packed bytes, an fp16 scale per tensor, row or group, and a zero point where there is one.

    ``weight`` is uint8 of shape (rows, ⌈columns·bits/8⌉, 1): the name of the original tensor with
    another shape and type, so that a reader who does not know the format fails instead of guessing.
    """

    def __init__(self, rows: int, columns: int, weights: Scheme, device=None) -> None:
        super().__init__()
        self.rows, self.columns, self.weights = rows, columns, weights
        self.width: float = weights.bits  # of a stored weight
        self._unpacked: Quantized | None = None
        self._row_sums: Tensor | None = None
        n = weights.groups_of(rows)
        length = packed_length(columns, self.width)
        empty = torch.empty
        self.register_buffer("weight", empty(rows, length, 1, dtype=torch.uint8, device=device))
        self.register_buffer("weight_scale", empty(n, dtype=torch.float16, device=device))
        if weights.family == "uint":
            self.register_buffer("weight_zero", empty(n, dtype=torch.uint8, device=device))

    def set_width_(self, width: float) -> None:
        """Stores the same codes at another width: ternary ones at 1.6 bits instead of 2."""
        if width != self.width and not (self.weights.family == "ternary" and width in (TRIT, 2)):
            raise ValueError(f"{self.weights} is stored at {self.width} bits, not at {width}")
        offset, columns = self.offset, self.columns
        if self.weight.is_meta:
            shape = (self.rows, packed_length(columns, width), 1)
            self.weight = torch.empty(shape, dtype=torch.uint8, device="meta")
        else:
            codes = decode(self.weight.squeeze(-1), self.width, offset, columns)
            self.weight = encode(codes, width, offset).unsqueeze(-1)
        self.width = width

    def store_(self, weight: Tensor) -> None:
        """Quantizes a weight of shape (rows, columns) into this layer's buffers."""
        if not bool(weight.isfinite().all()):
            raise ValueError(
                f"a weight of shape {tuple(weight.shape)} holds NaN or infinite values and cannot "
                "be packed; look for a diverged training run"
            )
        q = quantize(weight.detach().float(), self.weights)
        codes, step = q.codes, self.rows // len(self.weight_scale)
        # Every row of a group has the group's scale: keep the first.
        self.weight_scale = q.scale.reshape(-1)[:: step if q.scale.numel() > 1 else 1].half()
        if not bool(self.weight_scale.isfinite().all()):
            raise ValueError(f"a scale of {float(q.scale.max()):.3g} does not fit in fp16")
        if q.zero_point is not None:
            codes = codes + q.zero_point
            zero = q.zero_point.reshape(-1)[:: step if q.zero_point.numel() > 1 else 1]
            self.weight_zero = zero.to(torch.uint8)
        self.weight = encode(codes, self.width, self.offset).unsqueeze(-1)
        self._unpacked = None

    @property
    def offset(self) -> int:
        return 0 if self.weights.family == "uint" else self.weights.levels[1]

    def _rows_of(self, per_group: Tensor, ids: Tensor | None) -> Tensor:
        """A scale or zero point of shape (n,) as (rows, 1), (1, 1), or (…, 1) at ``ids``."""
        if len(per_group) == 1:
            return per_group.reshape(1, 1)
        per_row = per_group.repeat_interleave(self.rows // len(per_group))
        return (per_row if ids is None else per_row[ids]).unsqueeze(-1)

    def quantized(self, ids: Tensor | None = None, dtype=torch.float32) -> Quantized:
        """The codes and fp32 scales of all rows, or of the rows ``ids``."""
        packed = self.weight if ids is None else self.weight[ids]
        codes = decode(packed.squeeze(-1), self.width, self.offset, self.columns, dtype)
        if self.weights.family == "uint":
            codes = codes - self._rows_of(self.weight_zero, ids).to(dtype)
        return Quantized(codes, self._rows_of(self.weight_scale, ids).float())

    def extra_repr(self) -> str:
        return f"{self.rows} × {self.columns}, weights={self.weights}"


class PackedLinear(_Packed):
    """A linear layer on packed weights, for inference; (…, in_features) → (…, out_features).

    Runs on int8 where it can (``runs_on_integers``); ``integers = False`` keeps it from that.
    """

    integers = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        weights: Scheme,
        activations=None,
        device=None,
    ) -> None:
        super().__init__(out_features, in_features, weights, device)
        self.in_features, self.out_features, self.activations = (
            in_features,
            out_features,
            activations,
        )
        self.bias = nn.Parameter(torch.empty(out_features, device=device)) if bias else None
        if activations is not None and activations.learned:
            clip = torch.empty(1, dtype=torch.float16, device=device)
            self.register_buffer("input_clip", clip)

    @classmethod
    def from_quant(cls, layer: QuantLinear) -> PackedLinear:
        """Packs what a ``QuantLinear`` has learned."""
        packed = cls(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            layer.weights,
            layer.activations,
            device=layer.weight.device,
        )
        packed.store_(layer.weight)
        packed.store_bias_(layer.bias)
        packed.store_clip_(layer)
        return packed

    def store_clip_(self, layer: QuantLinear) -> None:
        """Rounds the learned ends of a layer's inputs to fp16, where it has them."""
        if getattr(layer, "input_clip", None) is not None:
            self.input_clip = stored_clip(layer.input_clip)

    def _input(self, x: Tensor, dtype: torch.dtype) -> tuple:
        """Codes, scale and shift of the input."""
        if self.activations is None or not self.activations.learned:
            return _quantize_input(x, self.activations, dtype)
        top = self.activations.levels[1]
        scale = self.input_clip.float() / top
        return (x.float() / scale).clamp_(-top, top).round_().to(dtype), scale, None

    def store_bias_(self, bias: Tensor | None) -> None:
        """Rounds a bias to fp16; ``ValueError`` if it does not fit."""
        if bias is None:
            return
        rounded = bias.detach().half().float()
        if not bool(rounded.isfinite().all()):
            largest = float(bias.detach().abs().max())
            raise ValueError(f"a bias of {largest:.3g} does not fit in fp16")
        self.bias = nn.Parameter(rounded)

    def forward(self, x: Tensor) -> Tensor:
        integers = self.runs_on_integers(x)
        dtype = torch.int8 if integers else compute_dtype(x)
        if self._unpacked is None or self._unpacked.codes.dtype != dtype:
            with torch.inference_mode(False), torch.no_grad():  # usable under autograd later too
                self._unpacked = self.quantized(dtype=dtype)  # once; the weights no longer change
                self._row_sums = self._unpacked.codes.sum(1, dtype=torch.int32)
        codes, scale = self._unpacked[:2]
        x_codes, x_scale, shift = self._input(x, dtype)
        if not integers:
            return _rescale(F.linear(x_codes, codes), x_scale, scale, self.bias)
        y = integer_linear(x_codes, codes)
        if shift is not None:  # Σ (x + shift)·w = Σ x·w + shift · Σ w
            y += shift * self._row_sums
        return _rescale(y.to(x.dtype), x_scale, scale, self.bias)

    def runs_on_integers(self, x: Tensor) -> bool:
        """Whether this input meets the int8 kernel: both sides integers, fp32, no gradient.

        The answer is the floating-point path's to the last bit, as long as that is exact: sums
        below 2²⁴, which weights of up to 4 bits never reach at BERT's widths.
        """
        return (
            self.integers
            and self.activations is not None
            and self.weights.family != "uint"
            and compute_dtype(x) == torch.float32
            and not (torch.is_grad_enabled() and x.requires_grad)
            and not (x.is_cuda and (self.in_features % 8 or self.out_features % 8))
            and integer_kernel(x.device.type)
        )

    def _apply(self, fn, recurse=True):
        self._unpacked = None  # moved or cast: unpack again where the bytes are now
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._unpacked = None
        return super()._load_from_state_dict(*args, **kwargs)


class PackedEmbedding(_Packed):
    """An embedding on packed rows: gathers bytes, expands only the rows that are looked up."""

    @classmethod
    def from_quant(cls, layer: QuantEmbedding) -> PackedEmbedding:
        """Packs what a ``QuantEmbedding`` has learned."""
        packed = cls(layer.num_embeddings, layer.embedding_dim, layer.weights, layer.weight.device)
        packed.store_(layer.weight)
        return packed

    def forward(self, ids: Tensor) -> Tensor:
        return self.quantized(ids).dequantize()
