"""Products of codes: what the layers that train and the packed ones compute with.

    y = linear(x_codes, w_codes) · (x_scale · w_scale) + bias

runs over small integers and is exact in fp32 below 2²⁴: a trained model and its packed file give
the same bits, and so does the integer kernel that packed layers run on. (``linear(x̂, ŵ)`` would
not: its products round, and 8-bit activations downstream amplify a last digit into a whole step.)
"""

from __future__ import annotations

import warnings
import weakref
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from xtclib.techniques.quantization.quantizers import Scheme, asymmetric, quantize


def compute_dtype(x: Tensor) -> torch.dtype:
    """The autocast type where autocast is on, else the tensor's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class InputQuantizer:
    """Rounds the input of linear layers; layers that read one tensor share one, and its answer.

    An inference tensor counts no versions, so a change in place would go unseen: of those no
    answer is kept.
    """

    def __init__(self, scheme: Scheme | None = None) -> None:
        self.scheme = scheme
        self._last: tuple = (lambda: None, None, None)

    @classmethod
    def of(cls, scheme: Scheme | InputQuantizer | None) -> InputQuantizer:
        """A shared one as it is, a scheme with a quantizer of its own."""
        return scheme if isinstance(scheme, InputQuantizer) else cls(scheme)

    def __reduce__(self):  # copies start without an answer, and share as the originals do
        return InputQuantizer, (self.scheme,)

    def __call__(self, x: Tensor, dtype: torch.dtype) -> tuple:
        """Codes in ``dtype``, fp32 scale, and what to add to the codes (or ``None``)."""
        if self.scheme is None:
            return x.to(dtype), None, None
        if x.is_inference():
            return _codes(x, self.scheme, dtype)
        tensor, key, found = self._last
        wanted = (x._version, self.scheme, dtype, torch.is_inference_mode_enabled())
        if tensor() is not x or key != wanted:
            found = _codes(x, self.scheme, dtype)
            self._last = (weakref.ref(x), wanted, found)
        return found


Inputs = Scheme | InputQuantizer | None  # how the input of a linear layer is rounded


def _codes(x: Tensor, scheme: Scheme, dtype: torch.dtype) -> tuple:
    if scheme.family == "int" or dtype != torch.int8:
        return *quantize(x, scheme, dtype)[:2], None
    numbers, scale, zero = asymmetric(x, scheme)  # up to 255, which int8 misses
    return numbers.sub_(128).to(dtype), scale, (128 - zero).int()


@cache
def integer_kernel(device: str = "cpu") -> bool:
    """Whether PyTorch multiplies int8 matrices on this kind of device; says so if it does not."""
    reason = "its result is wrong"
    try:
        ones = torch.ones(32, 32, dtype=torch.int8, device=device)
        if bool((torch._int_mm(ones, ones) == 32).all()):
            return True
    except (RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
    instead = "packed layers run in floating point, to the same numbers"
    warnings.warn(f"no int8 matrix product on {device} ({reason}): {instead}", stacklevel=2)
    return False


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


def rescale(y: Tensor, x_scale: Tensor | None, w_scale: Tensor, bias: Tensor | None) -> Tensor:
    """``y · (x_scale · w_scale) + bias`` in the dtype of ``y``, in one pass over ``y``.

    Into ``y`` itself, unless gradients are wanted: to allocate it anew, page by page, takes longer.
    """
    scale = w_scale.reshape(-1) if x_scale is None else x_scale * w_scale.reshape(-1)
    scale, out = scale.to(y.dtype), None if torch.is_grad_enabled() else y
    if bias is None:
        return torch.mul(y, scale, out=out)
    return torch.addcmul(bias.to(y.dtype), y, scale, out=out)


class QuantLinearFunction(torch.autograd.Function):
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
        return rescale(F.linear(x_codes, w_codes), x_scale, w_scale, bias)

    @staticmethod
    def backward(ctx, gradient):
        x_codes, x_scale, w_codes, w_scale = ctx.saved_tensors
        # Flat, for a matrix product: of a gradient whose rows lie apart, as attention hands back,
        # `@` would make one product a sentence, over as many copies of the weight.
        flat = gradient.reshape(-1, gradient.shape[-1])
        d_x = d_w = d_b = None
        if ctx.needs_input_grad[0]:  # ∂L/∂x = g · ŵ
            if w_scale.numel() == 1:
                d_x = (flat @ w_codes).mul_(w_scale.reshape(()))
            else:
                d_x = (flat * w_scale.reshape(-1).to(flat.dtype)) @ w_codes
            d_x = d_x.reshape_as(x_codes).to(ctx.x_dtype)
        if ctx.needs_input_grad[3]:  # ∂L/∂w = gᵀ · x̂
            scaled = flat if x_scale is None else flat * x_scale.reshape(-1, 1).to(flat.dtype)
            d_w = scaled.T @ x_codes.reshape(-1, x_codes.shape[-1])
            d_w = d_w.to(w_scale.dtype)
            if ctx.inside is not None:
                d_w *= ctx.inside
        if ctx.has_bias and ctx.needs_input_grad[4]:
            d_b = flat.sum(0, dtype=torch.float32)
        return d_x, None, None, d_w, d_b, None
