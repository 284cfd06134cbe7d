"""Which layers have a set of weights in common, and where that set starts.

A weight is (outputs, inputs), as PyTorch holds it: ``y = W·x``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xtclib.techniques.measured import nearest


def sets_of(depth: int, count: int, order: str = "consecutive") -> list[list[int]]:
    """The 0-based layers of each of ``count`` sets, every one as large.

    Layer i has the set ``⌊i·count/depth⌋`` (``consecutive``) or ``i mod count`` (``cyclic``).
    Sources: Lan et al. 2020, arXiv:1909.11942, section 4.5; Takase and Kiyono 2021,
    arXiv:2104.06022, section 3. ``ValueError`` for a count that does not divide the depth.

    >>> sets_of(6, 3), sets_of(6, 3, "cyclic")
    ([[0, 1], [2, 3], [4, 5]], [[0, 3], [1, 4], [2, 5]])
    """
    if depth % count:
        divisors = ", ".join(str(n) for n in range(1, depth + 1) if depth % n == 0)
        asked = f"{count} sets of weights do not divide {depth} layers"
        raise ValueError(f"{asked}: choose groups among {divisors}")
    layers = list(range(depth))
    if order == "cyclic":
        return [layers[i::count] for i in range(count)]
    size = depth // count
    return [layers[i : i + size] for i in range(0, depth, size)]


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """``(1/n)·Σ_l W_l`` of tensors of one shape.

    >>> mean([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])])
    tensor([2., 4.])
    """
    return torch.stack(list(tensors)).mean(0)


def least_squares(
    weights: Sequence[Tensor], moments: Sequence[Tensor], damping: float = 1e-6
) -> Tensor:
    """The one matrix that is nearest to several on the outputs of each: on its own inputs.

    ``argmin_W Σ_l E‖W·x_l − W_l·x_l‖² = (Σ_l W_l·M_l)·(Σ_l M_l)⁻¹``, ``M_l = E[x_l·x_lᵀ]``. Weights
    (outputs, inputs), moments (inputs, inputs); an input that is always 1 makes its column the
    bias. Drawn to the mean of the weights by ``damping``: :func:`.nearest`.

    >>> apart = [torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])]
    >>> seen = [torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])]
    >>> least_squares(apart, seen)  # (3·1 + 1·3) / 4; the second input never comes
    tensor([[1.5000, 2.0000]])
    """
    apart = zip(weights, moments, strict=True)
    wanted = sum(weight.double() @ moment.double() for weight, moment in apart)
    return nearest(mean(weights), sum(each.double() for each in moments), wanted, damping)
