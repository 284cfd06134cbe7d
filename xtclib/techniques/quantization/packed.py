"""Packed layers: the bytes that are stored, and the products they run on."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from xtclib.bert import linear_of
from xtclib.techniques.base import Held, Stored, table_of
from xtclib.techniques.quantization import products
from xtclib.techniques.quantization.packing import decode, encode, packed_length
from xtclib.techniques.quantization.products import InputQuantizer, Inputs, compute_dtype, rescale
from xtclib.techniques.quantization.quantizers import Quantized, Scheme, quantize


class Packed(Stored):
    """Packed bytes, an fp16 scale per tensor, row or group, and a zero point where there is one.

    ``weight`` is uint8 of shape (rows, ⌈columns·bits/8⌉, 1): the name of the original tensor with
    another shape and type, so that a reader who does not know the format fails instead of guessing.
    """

    trains_as: ClassVar[Any]  # set by the layers that train
    weight: Tensor
    weight_scale: Tensor

    def __init__(self, rows: int, columns: int, weights: Scheme, device=None) -> None:
        super().__init__()
        self.rows, self.columns, self.weights = rows, columns, weights
        self.width: float = weights.bits  # of a stored weight
        self._unpacked: Quantized | None = None
        self._row_sums: Tensor | None = None
        n, size = weights.groups_of(rows), (rows, packed_length(columns, self.width), 1)
        self.register_buffer("weight", torch.empty(size, dtype=torch.uint8, device=device))
        self.register_buffer("weight_scale", torch.empty(n, dtype=torch.float16, device=device))
        if weights.family == "uint":
            self.register_buffer("weight_zero", torch.empty(n, dtype=torch.uint8, device=device))

    def set_width_(self, width: float) -> None:
        """Stores the same codes at another width: ternary ones at 1.6 bits instead of 2."""
        if self.weight.is_meta:
            self.weight = self.weight.new_empty(self.rows, packed_length(self.columns, width), 1)
        else:
            codes = decode(self.weight.squeeze(-1), self.width, self.offset, self.columns)
            self.weight = encode(codes, width, self.offset).unsqueeze(-1)
        self.width = width

    def store_(self, weight: Tensor) -> None:
        """Quantizes a weight of shape (rows, columns) into this layer's buffers."""
        if not bool(weight.isfinite().all()):
            holds = f"a weight of shape {tuple(weight.shape)} holds NaN or infinite values"
            raise ValueError(f"{holds} and cannot be packed; look for a diverged training run")
        self.hold_(quantize(weight.detach().float(), self.weights))

    def hold_(self, q: Quantized) -> None:
        """Stores integers of shape (rows, columns) with their scales."""
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

    def entries(self) -> dict[str, Held]:
        low, high = self.weights.levels
        levels = 2 if self.weights.family == "binary" else high - low + 1
        return {"weight": Held(self.rows * self.columns, self.width, math.log2(levels))}

    def extra_repr(self) -> str:
        return f"{self.rows} × {self.columns}, weights={self.weights}"


class PackedLinear(Packed):
    """A linear layer on packed weights, for inference; (…, in_features) → (…, out_features).

    Runs on int8 where it can (``runs_on_integers``); ``integers = False`` keeps it from that.
    """

    integers = True

    def __init__(
        self, in_features: int, out_features: int, bias: bool, weights: Scheme,
        activations: Inputs = None, device=None,
    ) -> None:  # fmt: skip
        super().__init__(out_features, in_features, weights, device)
        self.in_features, self.out_features = in_features, out_features
        self.inputs = InputQuantizer.of(activations)
        self.bias = nn.Parameter(torch.empty(out_features, device=device)) if bias else None
        if self.activations is not None and self.activations.learned:
            clip = torch.empty(1, dtype=torch.float16, device=device)
            self.register_buffer("input_clip", clip)

    activations = property(lambda self: self.inputs.scheme)  # how the input is rounded

    @classmethod
    def like(cls, linear: Any, weights: Any = None, inputs: Inputs = None) -> Self:
        """An empty layer of a linear layer's shape."""
        shape = linear.in_features, linear.out_features, linear.bias is not None
        return cls(*shape, weights, inputs, linear.weight.device)

    @classmethod
    def from_quant(cls, layer: Any) -> Self:
        """Packs what a layer that trains has learned."""
        packed = cls.like(layer, layer.weights, layer.inputs)
        packed.store_(layer.effective_weight().detach())
        packed.store_bias_(layer.bias)
        packed.store_clip_(layer)
        return packed

    def quantizing(self, weights: Scheme, inputs: InputQuantizer) -> PackedLinear:
        """An empty layer of this shape under other schemes."""
        return PackedLinear.like(self, weights, inputs)

    def dense(self) -> nn.Linear:
        return linear_of(self.quantized().dequantize(), self.bias).train(self.training)

    def trainable(self) -> nn.Linear:
        layer = self.trains_as.from_linear(self.dense(), self.weights, self.inputs)
        if layer.input_clip is not None:
            layer.input_clip.data.copy_(self.input_clip)
        return layer

    def store_clip_(self, layer: nn.Module) -> None:
        """Rounds learned ends of inputs to fp16; ``ValueError`` for those that no input has set."""
        clip = getattr(layer, "input_clip", None)
        if clip is not None and float(clip.detach()) == 0:
            unseen = "the inputs of a layer with learned activations were never seen"
            raise ValueError(f"{unseen}, so they have no ends: train it, or run one batch, first")
        if clip is not None:
            self.input_clip = clip.detach().abs().half()

    def _input(self, x: Tensor, dtype: torch.dtype) -> tuple:
        """Codes, scale and shift of the input."""
        if self.activations is None or not self.activations.learned:
            return self.inputs(x, dtype)
        top = self.activations.levels[1]
        scale = self.input_clip.float() / top
        return (x.float() / scale).clamp_(-top, top).round_().to(dtype), scale, None

    def store_bias_(self, bias: Tensor | None) -> None:
        """Rounds a bias to fp16; ``ValueError`` if it does not fit."""
        if bias is None:
            return
        rounded = bias.detach().half().float()
        if not bool(rounded.isfinite().all()):
            raise ValueError(f"a bias of {float(bias.abs().max()):.3g} does not fit in fp16")
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
            return rescale(F.linear(x_codes, codes), x_scale, scale, self.bias)
        y = products.integer_linear(x_codes, codes)
        if shift is not None:  # Σ (x + shift)·w = Σ x·w + shift · Σ w
            y += shift * self._row_sums
        return rescale(y.to(x.dtype), x_scale, scale, self.bias)

    def runs_on_integers(self, x: Tensor) -> bool:
        """Whether this input meets the int8 kernel: both sides integers, fp32, no gradient.

        The answer is the floating-point path's to the last bit, as long as that is exact: sums
        below 2²⁴, which weights of up to 4 bits never reach at BERT's widths.
        """
        return (
            self.integers
            and self.activations is not None
            and self.weights.levels[1] < 128  # less a zero point still int8, but for uint8
            and compute_dtype(x) == torch.float32
            and not (torch.is_grad_enabled() and x.requires_grad)
            and not (x.is_cuda and (self.in_features % 8 or self.out_features % 8))
            and products.integer_kernel(x.device.type)
        )

    def _apply(self, fn, recurse=True):
        self._unpacked = None  # moved or cast: unpack again where the bytes are now
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._unpacked = None
        return super()._load_from_state_dict(*args, **kwargs)


class PackedEmbedding(Packed):
    """An embedding on packed rows: gathers bytes, expands only the rows that are looked up."""

    @classmethod
    def like(cls, table: nn.Embedding, weights: Scheme) -> Self:
        """An empty one of a table's shape."""
        rows, columns = table.weight.shape
        return cls(rows, columns, weights, table.weight.device)

    @classmethod
    def from_quant(cls, layer: nn.Embedding) -> Self:
        """Packs what a ``QuantEmbedding`` has learned."""
        packed = cls.like(layer, layer.weights)
        packed.store_(layer.weight)
        return packed

    def dense(self) -> nn.Embedding:
        return table_of(self.quantized().dequantize()).train(self.training)

    def trainable(self) -> nn.Embedding:
        return self.trains_as.from_embedding(self.dense(), self.weights)

    def forward(self, ids: Tensor) -> Tensor:
        return self.quantized(ids).dequantize()
