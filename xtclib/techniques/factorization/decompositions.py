"""A matrix as a product of two thin ones, and how thin: truncated SVD in three metrics.

A weight is (outputs, inputs), as PyTorch holds it: ``y = W·x``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def break_even(rows: int, columns: int) -> int:
    """The highest rank whose factors hold no more values than the matrix, ``⌊mn/(m + n)⌋``.

    >>> break_even(768, 768), break_even(3072, 768)
    (384, 614)
    """
    return rows * columns // (rows + columns)


def check_rank(rank: int | None, rows: int, columns: int, what: str = "matrix") -> None:
    """Raises ``ValueError`` for a rank whose factors are larger than the matrix."""
    most = break_even(rows, columns)
    if rank is not None and rank > most:
        larger = f"at rank {rank} the factors of a {rows} × {columns} {what} hold more"
        raise ValueError(f"{larger} than it does: give a rank up to {most}, mn/(m + n)")


def rank_for(share: float, rows: int, columns: int) -> int:
    """The rank whose factors hold at most this share of the matrix's values; at least 1.

    >>> rank_for(0.5, 768, 768), rank_for(0.5, 3072, 768)
    (192, 307)
    """
    return max(int(share * rows * columns / (rows + columns)), 1)


class Spectrum(NamedTuple):
    """An SVD in some metric on the inputs: ``W·metric = left·diag(values)·right``.

    ``left`` (outputs, k), ``values`` (k,) falling, ``right`` (k, inputs), already taken back to the
    plain inputs, so that ``W = left·diag(values)·right``.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Up (outputs, rank) and down (rank, inputs), each with the root of the singular values.

        ``up @ down`` is the nearest matrix of that rank in the metric (Eckart and Young 1936).
        """
        root = self.values[:rank].sqrt()
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]

    def tail(self) -> Tensor:
        """The squared error of every rank, ``Σ_{i > r} σᵢ²``: (k + 1,), from rank 0 to full."""
        squares = self.values.double().square().flip(0).cumsum(0).flip(0)
        return torch.cat([squares, squares.new_zeros(1)])

    def rank_of(self, energy: float) -> int:
        """The lowest rank that keeps this share of ``Σ σ²``; at least 1."""
        kept = 1 - self.tail() / self.tail()[0].clamp(min=1e-300)
        return max(int((kept < energy - 1e-12).sum()), 1)


def svd(weight: Tensor) -> Spectrum:
    """Plain SVD: nearest in ``‖W − W'‖²``.

    >>> up, down = svd(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).factors(1)
    >>> (up @ down).abs().round(decimals=4)
    tensor([[3., 0.],
            [0., 0.]])
    """
    return Spectrum(*torch.linalg.svd(weight, full_matrices=False))


def weighted_svd(weight: Tensor, importance: Tensor) -> Spectrum:
    """Fisher-weighted SVD: nearest in ``‖(W − W')·diag(√importance)‖²``; importance (inputs,).

    Source: Hsu et al. 2022, arXiv:2207.00112, equations 5 to 7. They write ``Z = X·W``, so that
    their rows, which share one importance, are columns here. What nothing weighs gets a thousandth
    of the mean, so that it can be taken back.
    """
    root = importance.clamp(min=1e-3 * float(importance.mean())).sqrt()
    left, values, right = svd(weight * root)
    return Spectrum(left, values, right / root)


def whitened_svd(weight: Tensor, moment: Tensor) -> Spectrum:
    """Data-aware SVD: nearest in ``E‖(W − W')·x‖²`` for inputs of second moment ``E[x·xᵀ]``.

    ``‖(W − W')·M^½‖²`` is that error, so the SVD of ``W·M^½`` and ``M^-½`` behind it give the best
    matrix of each rank. ``moment`` (inputs, inputs); directions that the inputs hardly take (below
    1e-6 of the largest) count as if they took that much. Source: Chen et al. 2021 (DRONE, NeurIPS),
    theorem 1; Wang et al. 2024 (SVD-LLM), arXiv:2403.07378, section 3.1, whose Cholesky factor in
    place of the root gives the same product.
    """
    found, axes = torch.linalg.eigh(moment.double())
    root = found.clamp(min=1e-6 * float(found.max())).sqrt()
    left, values, right = svd(weight.double() @ (axes * root))
    back = (right / root) @ axes.T
    return Spectrum(*(each.to(weight.dtype) for each in (left, values, back)))


def allocate(spectra: Sequence[Spectrum], shapes: Sequence[tuple[int, int]], share: float,
             weights: Sequence[float]) -> list[int]:  # fmt: skip
    """Ranks of all matrices together, that hold at most ``share`` of all values.

    What a rank more saves, ``weight·σ²``, costs m + n values: the dearest go first until the budget
    is spent. As a matrix's savings fall, nothing else that holds as little saves more. No rank is
    below 1, and none above its break-even.

    >>> one = Spectrum(torch.eye(4), torch.tensor([4.0, 2.0, 1.0, 0.5]), torch.eye(4))
    >>> allocate([one, one], [(4, 4), (4, 4)], 0.75, [1.0, 0.1])
    [2, 1]
    """
    budget = share * sum(m * n for m, n in shapes)
    ranks, spent = [1] * len(shapes), sum(m + n for m, n in shapes)
    gains = [
        (weight * float(value) ** 2 / (m + n), index)
        for index, (one, (m, n), weight) in enumerate(zip(spectra, shapes, weights, strict=True))
        for value in one.values[1 : break_even(m, n)]
    ]
    for _, index in sorted(gains, key=lambda gain: -gain[0]):
        cost = sum(shapes[index])
        if spent + cost > budget:
            break
        ranks[index], spent = ranks[index] + 1, spent + cost
    return ranks
