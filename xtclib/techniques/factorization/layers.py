"""Layers of two thin matrices. Each factor is a linear layer of its own.

So they are trained, pruned by weights, quantized, packed and exported as any other layer is.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from xtclib.bert import linear_of
from xtclib.techniques.base import Stored, table_of


class LowRankLinear(nn.Module):
    """``y = up(down(x))``: (…, in_features) → (…, rank) → (…, out_features), the bias in ``up``.

    >>> layer = LowRankLinear.like(nn.Linear(8, 6), 2)
    >>> [tuple(p.shape) for p in layer.parameters()]
    [(2, 8), (6, 2), (6,)]
    """

    refusal: ClassVar[str] = "comes before factorize: list it first"

    def __init__(self, down: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = down.in_features, up.out_features
        self.down, self.up = down, up

    @classmethod
    def of(cls, up: Tensor, down: Tensor, bias: Tensor | None) -> Self:
        """Around two factors, (out_features, rank) and (rank, in_features)."""
        return cls(linear_of(down.contiguous()), linear_of(up.contiguous(), bias))

    @classmethod
    def like(cls, linear: nn.Linear, rank: int) -> Self:
        """An empty one of a linear layer's shape."""
        new = linear.weight.new_empty
        up, down = new(linear.out_features, rank), new(rank, linear.in_features)
        return cls.of(up, down, linear.bias)

    @property
    def rank(self) -> int:
        return self.down.out_features

    @property
    def reader(self) -> nn.Module:
        """What multiplies the input first."""
        return self.down

    @property
    def weight(self) -> Tensor:
        """The matrix that it stands for, (out_features, in_features): to read, not to change."""
        return _values(self.up) @ _values(self.down)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class LowRankEmbedding(nn.Module):
    """A table of short rows and a matrix that widens them: (…) of ids → (…, rank) → (…, width)."""

    def __init__(self, table: nn.Embedding, up: nn.Linear) -> None:
        super().__init__()
        self.table, self.up = table, up

    @classmethod
    def of(cls, rows: Tensor, up: Tensor, padding: int | None = None) -> Self:
        """Around a table (ids, rank) and a matrix (width, rank)."""
        return cls(table_of(rows.contiguous(), padding), linear_of(up.contiguous()))

    @classmethod
    def like(cls, table: nn.Embedding, rank: int) -> Self:
        """An empty one of a table's shape."""
        new, (rows, width) = table.weight.new_empty, table.weight.shape
        return cls.of(new(rows, rank), new(width, rank), table.padding_idx)

    @property
    def rank(self) -> int:
        return self.table.weight.shape[1]

    @property
    def weight(self) -> Tensor:
        """The table that it stands for, (ids, width): to read, not to change."""
        return _values(self.table) @ _values(self.up).T

    def forward(self, ids: Tensor) -> Tensor:
        return self.up(self.table(ids))


def _values(factor: nn.Module) -> Tensor:
    """A factor's weights, of whatever bits."""
    dense = factor.dense() if isinstance(factor, Stored) else factor
    return dense.weight  # type: ignore[union-attr, return-value]
