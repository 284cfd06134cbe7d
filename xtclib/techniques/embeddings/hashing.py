"""Hash embeddings: words share the rows of a pool, found by arithmetic, weighed by word."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_PRIME, _ROOT = 2**31 - 1, 48271  # Park and Miller's generator, whose powers are the coefficients


def addresses(ids: Tensor, rows: int, hashes: int) -> Tensor:
    """The pool rows of each id, ``((a·i + b)·i + c) mod p mod rows`` with a, b, c by hash.

    (…) of whole numbers below 2³¹ → (…, hashes). ``p = 2³¹ − 1``; the n-th coefficient of all, from
    0, is ``48271^(1000·n + 1) mod p``. Source: Carter and Wegman 1979, polynomials over a field.

    >>> addresses(torch.arange(4), 10, 2).tolist()
    [[5, 5], [8, 7], [0, 0], [4, 8]]
    """
    found = []
    for n in range(0, 3 * hashes, 3):
        a, b, c = (pow(_ROOT, 1000 * each + 1, _PRIME) for each in (n, n + 1, n + 2))
        found.append((((ids * a + b) % _PRIME) * ids + c) % _PRIME % rows)
    return torch.stack(found, -1)


def fit(
    table: Tensor, where: Tensor, rows: int, rounds: int = 6, steps: int = 5
) -> tuple[Tensor, Tensor]:
    """A pool (rows, width) and importances (ids, hashes) near the least ``‖T − T'‖²``.

    ``T'ᵢ = Σ_k wᵢₖ·P[hₖ(i)]`` with ``where`` (ids, hashes) = h. In turns: the pool by ``steps`` of
    conjugate gradients on its normal equations, each id's importances by theirs, of hashes ×
    hashes. The form is that of Svenstrup et al. 2017, arXiv:1709.03933, section 3, which trains
    it from chance.

    >>> pool, weights = fit(torch.ones(6, 2), addresses(torch.arange(6), 3, 2), 3)
    >>> (weights[:, :, None] * pool[addresses(torch.arange(6), 3, 2)]).sum(1).round(decimals=3)[0]
    tensor([1., 1.])
    """
    weights, pool = torch.ones(where.shape), torch.zeros(rows, table.shape[1])
    ridge = 1e-6 * float(table.square().sum(1).mean()) + 1e-30
    for _ in range(rounds):
        pool = _pool(table, where, weights, pool, steps)
        read = pool[where]
        products = read @ read.mT + ridge * torch.eye(where.shape[1])
        weights = torch.linalg.solve(products, (read @ table[:, :, None]).squeeze(-1))
    return pool, weights


def _pool(table: Tensor, where: Tensor, weights: Tensor, pool: Tensor, steps: int) -> Tensor:
    """Conjugate gradients on ``SᵀS·P = SᵀT``, S (ids, rows) with an id's importances."""

    def down(values: Tensor) -> Tensor:
        each = weights.flatten()[:, None] * values.repeat_interleave(where.shape[1], 0)
        return torch.zeros_like(pool).index_add_(0, where.flatten(), each)

    def up(values: Tensor) -> Tensor:
        return F.embedding_bag(where, values, per_sample_weights=weights, mode="sum")

    residual = down(table - up(pool))
    way, size = residual, residual.square().sum()
    for _ in range(steps):
        seen = up(way)
        step = size / seen.square().sum().clamp(min=1e-30)
        pool, residual = pool + step * way, residual - step * down(seen)
        before, size = size, residual.square().sum()
        way = residual + size / before.clamp(min=1e-30) * way
    return pool
