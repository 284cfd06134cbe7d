"""Tensor trains: a table whose rows and columns are numbered by three digits, as three cores."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Digits(NamedTuple):
    """The base of each of three digits, for rows and for columns: ``n = (n₁, n₂, n₃)`` and ``d``.

    Row ``(i₁·n₂ + i₂)·n₃ + i₃``, column ``(j₁·d₂ + j₂)·d₃ + j₃``.
    """

    rows: tuple[int, int, int]
    columns: tuple[int, int, int]

    @classmethod
    def of(cls, rows: int, columns: int) -> Digits:
        """Bases as equal as they go: rows are rounded up, columns must come out exactly.

        >>> Digits.of(30522, 384)
        Digits(rows=(30, 32, 32), columns=(8, 8, 6))
        """
        last = round(rows ** (1 / 3))
        last += last**3 < rows
        first = -(-rows // last**2)
        ways = [
            (a, b, columns // (a * b))
            for a in range(1, columns + 1) if columns % a == 0
            for b in range(1, a + 1) if columns // a % b == 0
        ]  # fmt: skip
        exact = min((way for way in ways if way[1] >= way[2]), key=sum)
        return cls((first, -(-rows // (first * last)), last), exact)

    @property
    def most(self) -> int:
        """The highest rank that both joints can use, ``min(n₁·d₁, n₃·d₃)``.

        >>> Digits.of(30522, 384).most
        192
        """
        return min(self.rows[0] * self.columns[0], self.rows[2] * self.columns[2])

    def shapes(self, rank: int) -> list[tuple[int, int]]:
        """Of the cores ``(n₁, d₁·r)``, ``(n₂, r·d₂·r)`` and ``(n₃, r·d₃)``, a slice a row."""
        (n1, n2, n3), (d1, d2, d3) = self
        return [(n1, d1 * rank), (n2, rank * d2 * rank), (n3, rank * d3)]


def tt_svd(table: Tensor, digits: Digits, rank: int) -> list[Tensor]:
    """The cores of a table (rows, columns), of :meth:`Digits.shapes`; rows past it count as 0.

    ``T[i, j] ≈ G₁[i₁, j₁]·G₂[i₂, j₂]·G₃[i₃, j₃]`` with matrices (1, r), (r, r), (r, 1). One joint
    after the other is cut by a truncated SVD, here by the eigenvectors of the smaller side's
    products. All cores get one root mean square. Sources: Oseledets 2011, SIAM J. Sci. Comput.
    33(5), algorithm 1; Hrinchuk et al. 2020, arXiv:1901.10787, section 3.

    >>> digits, table = Digits.of(64, 8), torch.arange(512.0).view(64, 8)
    >>> cores = tt_svd(table, digits, digits.most)
    >>> torch.allclose(look_up(torch.arange(64), cores, digits), table, atol=1e-2)
    True
    """
    (n1, n2, n3), (d1, d2, d3) = digits
    whole = F.pad(table.double(), (0, 0, 0, n1 * n2 * n3 - len(table)))
    whole = whole.view(n1, n2, n3, d1, d2, d3).permute(0, 3, 1, 4, 2, 5).reshape(n1 * d1, -1)
    first = _leading(whole @ whole.T, rank)
    rest = (first.T @ whole).view(rank * n2 * d2, n3 * d3)
    third = _leading(rest.T @ rest, rank)
    second = (rest @ third).view(rank, n2, d2 * rank).transpose(0, 1)
    third = third.view(n3, d3, rank).transpose(1, 2)
    flat = [core.reshape(len(core), -1) for core in (first.view(n1, d1, rank), second, third)]
    sizes = [core.square().mean().sqrt().clamp(min=1e-30) for core in flat]
    one = (sizes[0] * sizes[1] * sizes[2]) ** (1 / 3)
    return [(core * one / size).to(table.dtype) for core, size in zip(flat, sizes, strict=True)]


def _leading(products: Tensor, rank: int) -> Tensor:
    """The eigenvectors of the largest values: (n, rank)."""
    return torch.linalg.eigh(products).eigenvectors[:, -rank:].flip(1)


def look_up(ids: Tensor, cores: list[Tensor], digits: Digits) -> Tensor:
    """The rows (…, columns) of ids (…), by three slices each: no whole table is made."""
    (_, n2, n3), (d1, d2, d3) = digits
    rank = cores[2].shape[1] // d3
    first = F.embedding(ids // (n2 * n3), cores[0]).unflatten(-1, (d1, rank))
    second = F.embedding(ids // n3 % n2, cores[1]).unflatten(-1, (rank, d2 * rank))
    third = F.embedding(ids % n3, cores[2]).unflatten(-1, (rank, d3))
    both = (first @ second).unflatten(-1, (d2, rank)).flatten(-3, -2)
    return (both @ third).flatten(-2)
