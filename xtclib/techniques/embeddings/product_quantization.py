"""Product quantization: vectors cut into parts, each part the nearest of a few that are kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 2**14  # distances at a time: 16 MB for 256 centroids


def nearest(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Each point's nearest centroid and the squared distance to it, both (points,).

    ``‖x − c‖² = ‖x‖² + 2·(‖c‖²/2 − x·c)``, one matrix product. Points (n, w), centroids (k, w).

    >>> nearest(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [3.0], [9.0]]))
    (tensor([0, 1]), tensor([1., 1.]))
    """
    half = centroids.square().sum(1) / 2
    found = [torch.addmm(half, x, centroids.T, alpha=-1).min(1) for x in points.split(_CHUNK)]
    least, index = (torch.cat(each) for each in zip(*found, strict=True))
    return index, (points.square().sum(1) + 2 * least).clamp(min=0)


def kmeans(
    points: Tensor, count: int, weights: Tensor, seed: int = 0, rounds: int = 25
) -> tuple[Tensor, Tensor]:
    """Centroids (count, w) and each point's own (n,), near the least ``Σ weight·‖x − c‖²``.

    Lloyd's rounds from points drawn by ``weights`` (n,) above 0; a centroid that no point is
    nearest to goes where a point is worst off. Exact for up to ``count`` distinct points; centroids
    past those are 0. Source: Lloyd 1982, IEEE Transactions on Information Theory 28(2).

    >>> points = torch.tensor([[0.0], [0.0], [9.0], [3.0]])
    >>> centroids, own = kmeans(points, 3, torch.ones(4))
    >>> torch.equal(centroids[own], points)
    True
    """
    rows, same = torch.unique(points, dim=0, return_inverse=True)
    if len(rows) <= count:
        return F.pad(rows, (0, 0, 0, count - len(rows))), same
    mass = weights.new_zeros(len(rows)).index_add_(0, same, weights)
    chance = torch.Generator().manual_seed(seed)
    centroids = rows[torch.multinomial(mass, count, generator=chance)]
    own, apart = nearest(rows, centroids)
    for _ in range(rounds):
        held = mass.new_zeros(count).index_add_(0, own, mass)
        sums = torch.zeros_like(centroids).index_add_(0, own, rows * mass[:, None])
        empty, far = held == 0, (apart * mass).topk(count).indices
        worst = rows[far[empty.cumsum(0) - 1]]  # another for each that is empty
        centroids = torch.where(empty[:, None], worst, sums / held.clamp(min=1e-30)[:, None])
        before, (own, apart) = own, nearest(rows, centroids)
        if torch.equal(own, before):
            break
    return centroids, own[same]


def product_codes(
    table: Tensor, parts: int, codes: int, weights: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Numbers (rows, parts), uint8, and codebooks (parts, codes, width / parts) of a table.

    ``row ≈ [B₁[n₁], …, B_parts[n_parts]]``, each codebook the :func:`kmeans` of its part of all
    rows by ``weights`` (rows,). Source: Jégou et al. 2011, IEEE TPAMI 33(1), section 2.2; for
    word tables Chen et al. 2020, arXiv:1908.09756.

    >>> numbers, books = product_codes(torch.eye(4), 2, 3, torch.ones(4))
    >>> numbers.shape, books.shape
    (torch.Size([4, 2]), torch.Size([2, 3, 2]))
    """
    found = [kmeans(part, codes, weights, seed) for part in table.chunk(parts, 1)]
    books, numbers = zip(*found, strict=True)
    return torch.stack(numbers, 1).to(torch.uint8), torch.stack(books)


def divisors_near(width: int, parts: int) -> list[int]:
    """The divisors of a width next to a number that is none, one on each side.

    >>> divisors_near(384, 10), divisors_near(384, 1000)
    ([8, 12], [384])
    """
    found = [n for n in range(1, width + 1) if width % n == 0]
    return [*[n for n in found if n < parts][-1:], *[n for n in found if n > parts][:1]]
