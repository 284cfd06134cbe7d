"""Activations rounded between learned ends: LSQ and PACT, symmetric, one clip for each layer."""

from __future__ import annotations

import torch
from torch import Tensor

LEARNED = ("lsq", "pact")


class _LearnedClip(torch.autograd.Function):
    """``x̂ = clip/n · round(clamp(x·n/clip, −n, n))`` and its codes, which have no gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, clip: Tensor, top: int, how: str):
        ratio = x / (clip / top)
        codes = ratio.clamp(-top, top).round_()
        ctx.save_for_backward(ratio, codes)
        ctx.top, ctx.how = top, how
        ctx.mark_non_differentiable(codes)
        return codes * (clip / top), codes

    @staticmethod
    def backward(ctx, gradient: Tensor, _):
        ratio, codes = ctx.saved_tensors
        inside = ratio.abs() <= ctx.top
        if ctx.how == "lsq":  # ∂x̂/∂step = round(r) − r inside, ±n at the ends; step = clip/n
            slope = torch.where(inside, codes - ratio, codes) / ctx.top
        else:  # PACT: ±1 at the ends, 0 inside
            slope = ~inside * codes.sign()
        return gradient * inside, (gradient * slope).sum().reshape(1), None, None


def round_between(x: Tensor, clip: Tensor, top: int, how: str) -> tuple[Tensor, Tensor]:
    """``x`` rounded to ``top`` steps on each side of 0 up to ``clip`` (1,), and its codes.

    The gradient for ``x`` passes inside ±clip and stops outside. For ``clip``, with r = x·n/clip:
    ``lsq``: ``(round(r) − r)/n`` inside and ±1 outside (Esser et al. 2020, arXiv:1902.08153,
    equation 3, for the step clip/n, without its factor of the gradient's size, which Adam undoes);
    ``pact``: 0 inside and ±1 outside (Choi et al. 2018, arXiv:1805.06085, section 3, on both
    sides).

    >>> round_between(torch.tensor([0.3, -9.0]), torch.tensor([1.0]), 7, "lsq")[1].tolist()
    [2.0, -7.0]
    """
    return _LearnedClip.apply(x, clip, top, how)


def first_clip(x: Tensor, top: int, how: str) -> Tensor:
    """Where a clip starts, from the first input: LSQ's ``2√n·mean|x|``, PACT's ``max|x|``, (1,)."""
    size = x.detach().float().abs()
    found = 2 * top**0.5 * size.mean() if how == "lsq" else size.max()
    return found.clamp(min=1e-6).reshape(1)


def stored_clip(clip: Tensor) -> Tensor:
    """A clip in fp16, as files hold it; ``ValueError`` for one that no input has set yet."""
    if float(clip) == 0:
        raise ValueError(
            "the inputs of a layer with learned activations were never seen, so they have no ends: "
            "train it, or run one batch, before it is packed"
        )
    return clip.detach().abs().half()
