"""Which weights go: masks from scores, patterns, the schedule, and the proximal step of RPP.

A mask is 1 where a weight stays. Scores say how much a weight matters: the lowest go first. All
functions are pure and work on tensors of any floating type.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from xtclib.files import unknown

SCOPES = ("layer", "model")


def cubic(step: int, first: int, last: int, final: float) -> float:
    """The sparsity at a step: 0 until ``first``, ``final`` from ``last`` on.

    In between ``s = s_f − s_f · (1 − (t − t₀)/(t₁ − t₀))³``: fast while much can go, slow at the
    end. Equal steps prune at once. Source: Zhu and Gupta 2017, arXiv:1710.01878, equation 1, from
    an initial sparsity of 0.

    >>> [round(cubic(step, 0, 4, 0.8), 6) for step in (0, 2, 4, 8)]
    [0.0, 0.7, 0.8, 0.8]
    """
    if step >= last:
        return final
    if step <= first:
        return 0.0
    return final - final * (1 - (step - first) / (last - first)) ** 3


def masks(
    scores: Sequence[Tensor], sparsity: float, scope: str = "layer", pattern: str | None = None
) -> list[Tensor]:
    """Bool masks, one for each matrix of scores, without the lowest ``sparsity`` of them.

    ``scope``: ``layer`` takes the same share from every matrix, ``model`` ranks all together.
    ``pattern``: ``2:4`` keeps two of every four inputs, and ``sparsity`` must then be a half;
    ``4x8`` drops blocks of 4 outputs by 8 inputs by their mean score. Of equal scores the earlier
    stays. Raises ``ValueError`` for a pattern that does not divide a matrix.

    >>> masks([torch.tensor([[3.0, 1.0], [2.0, 0.0]])], 0.5)[0].int().tolist()
    [[1, 0], [1, 0]]
    >>> masks([torch.tensor([[1.0, 2, 3, 4], [8, 7, 6, 5]])], 0.5, pattern="2:4")[0].int().tolist()
    [[0, 0, 1, 1], [1, 1, 0, 0]]
    """
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    kind, high, wide = parse_pattern(pattern)
    for score in scores:
        check_pattern(pattern, score.shape)
    if not sparsity:
        return [torch.ones_like(score, dtype=torch.bool) for score in scores]
    if kind == "n:m":
        return [_n_of_m(score, high, wide) for score in scores]
    blocks = [s.unflatten(0, (-1, high)).unflatten(2, (-1, wide)).mean((1, 3)) for s in scores]
    if scope == "layer":
        kept = [_highest(block.flatten(), sparsity) for block in blocks]
    else:
        together = _highest(torch.cat([block.flatten() for block in blocks]), sparsity)
        kept = together.split([block.numel() for block in blocks])
    return [
        mask.view(block.shape).repeat_interleave(high, 0).repeat_interleave(wide, 1)
        for mask, block in zip(kept, blocks, strict=True)
    ]


def parse_pattern(pattern: str | None) -> tuple[str, int, int]:
    """``2:4`` → ``("n:m", 2, 4)``, ``4x8`` → ``("block", 4, 8)``, ``None`` → single weights."""
    if pattern is None:
        return "block", 1, 1
    match = re.fullmatch(r"(\d+)([:x])(\d+)", str(pattern))
    kind, first, second = (match[2], int(match[1]), int(match[3])) if match else ("", 0, 0)
    if not (first and second) or (kind == ":" and first >= second):
        raise ValueError(
            f"cannot read the pattern {pattern!r}: write '2:4', in quotes (YAML reads a time), "
            "to keep two of every four inputs, or '4x8' for blocks of 4 outputs by 8 inputs"
        )
    return ("n:m" if kind == ":" else "block"), first, second


def pattern_sparsity(pattern: str | None) -> float | None:
    """The share that ``n:m`` removes; ``None`` where the pattern leaves that open.

    >>> pattern_sparsity("1:4"), pattern_sparsity("4x8")
    (0.75, None)
    """
    kind, kept, of = parse_pattern(pattern)
    return 1 - kept / of if kind == "n:m" else None


def check_pattern(pattern: str | None, shape: Sequence[int]) -> None:
    """Raises ``ValueError`` unless the pattern divides a matrix of (outputs, inputs)."""
    kind, high, wide = parse_pattern(pattern)
    rows, columns = shape
    if columns % wide or (kind == "block" and rows % high):
        shaped = f"a weight of {rows} outputs by {columns} inputs"
        raise ValueError(f"the pattern {pattern} does not divide {shaped}: choose one that does")


def _n_of_m(scores: Tensor, kept: int, of: int) -> Tensor:
    groups = scores.unflatten(-1, (-1, of))
    places = groups.argsort(dim=-1, descending=True, stable=True)[..., :kept]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, places, True).flatten(-2)


def _highest(scores: Tensor, sparsity: float) -> Tensor:
    """True for all but the lowest ``sparsity`` of a vector; of equal ones the earlier stays."""
    drop = round(sparsity * len(scores))
    if not drop:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(drop).values
    kept = scores > threshold
    missing = len(scores) - drop - int(kept.sum())
    if missing:
        kept[(scores == threshold).nonzero().flatten()[:missing]] = True
    return kept


def soft_threshold(weight: Tensor, threshold: Tensor | float) -> Tensor:
    """``sign(w) · max(|w| − t, 0)``: the proximal operator of ``t · |w|``.

    It is the x that minimizes ``½(x − w)² + t·|x|``: Parikh and Boyd 2014, section 6.5.2.

    >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
    tensor([-2.,  0.,  1.])
    """
    return weight.sign() * (weight.abs() - threshold).clamp_(min=0)


def reweighting(weight: Tensor, epsilon: float) -> Tensor:
    """``α = 1 / (|w| + ε)``: small weights are pressed to zero, large ones hardly.

    Source: RPP, Guo et al. 2019, arXiv:1909.12486, section 3.2, after Candès et al. 2008.

    >>> reweighting(torch.tensor([0.0, 0.9]), 0.1)
    tensor([10.,  1.])
    """
    return 1 / (weight.abs() + epsilon)
