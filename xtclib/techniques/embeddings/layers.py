"""What looks words up in a smaller form than a table, (…) of ids → (…, width); nothing is packed.

Each trains in the form that is stored. A ``weight`` is the table that a layer stands for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from xtclib.techniques.base import table_of
from xtclib.techniques.embeddings.hashing import addresses
from xtclib.techniques.embeddings.tensor_train import Digits, look_up
from xtclib.techniques.quantization.layers import QuantEmbedding
from xtclib.techniques.quantization.packed import PackedEmbedding
from xtclib.techniques.quantization.quantizers import Scheme


class WordTable(nn.Module):
    """The rows and the width of the table that it stands for."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows, self.width = rows, width

    @property
    def weight(self) -> Tensor:
        """The table, (rows, width): to read, not to change."""
        own = next(iter(self.state_dict().values()))
        return self(torch.arange(self.rows, device=own.device))

    def extra_repr(self) -> str:
        return f"{self.rows} × {self.width}"


class ProductEmbedding(WordTable):
    """A byte for each part of a row, and the vectors that they number: ``[B₁[n₁], B₂[n₂], …]``.

    ``codes`` (rows, parts), uint8, stay; ``codebooks`` is one table of (parts · count, width /
    parts), which trains.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, codebooks: nn.Module, count: int, width: int) -> None:
        super().__init__(len(codes), width)
        self.count = count  # of vectors for each part
        self.register_buffer("codes", codes)
        self.codebooks = codebooks

    @classmethod
    def of(cls, codes: Tensor, books: Tensor, scheme: Scheme | None = None) -> Self:
        """Around numbers (rows, parts) and vectors (parts, count, width / parts)."""
        flat = table_of(books.flatten(0, 1))
        found = QuantEmbedding.from_embedding(flat, scheme) if scheme else flat
        return cls(codes, found, books.shape[1], len(books) * books.shape[2])

    @classmethod
    def like(cls, table: nn.Embedding, parts: int, count: int, scheme: Scheme | None) -> Self:
        """An empty one of a table's shape, as it is stored."""
        new, (rows, width) = table.weight.new_empty, table.weight.shape
        flat = table_of(new(parts * count, width // parts))
        books = PackedEmbedding.like(flat, scheme) if scheme else flat
        return cls(new((rows, parts), dtype=torch.uint8), books, count, width)

    def forward(self, ids: Tensor) -> Tensor:
        codes = F.embedding(ids, self.codes).long()
        first = self.count * torch.arange(codes.shape[-1], device=codes.device)
        return self.codebooks(codes + first).flatten(-2)


class TensorTrainEmbedding(WordTable):
    """Three cores, whose slices at the digits of an id are multiplied (:func:`.look_up`)."""

    def __init__(self, rows: int, width: int, cores: list[Tensor]) -> None:
        super().__init__(rows, width)
        self.digits = Digits.of(rows, width)
        self.first, self.second, self.third = (nn.Parameter(core) for core in cores)

    @classmethod
    def like(cls, table: nn.Embedding, rank: int) -> Self:
        """An empty one of a table's shape."""
        new, (rows, width) = table.weight.new_empty, table.weight.shape
        return cls(rows, width, [new(shape) for shape in Digits.of(rows, width).shapes(rank)])

    def macs(self, numbers: int) -> int:
        """Multiply–adds of the products that give as many numbers."""
        d1, d2, d3 = self.digits.columns
        rank = self.third.shape[1] // d3
        return numbers // self.width * (d1 * rank * d2 * rank + d1 * d2 * rank * d3)

    def forward(self, ids: Tensor) -> Tensor:
        if ids.device.type == "cpu" and not torch.compiler.is_compiling() and ids.numel():
            largest = int(ids.max())  # rounded up, the cores have rows for more
            if largest >= self.rows:
                raise IndexError(f"received the id {largest}, expected one below {self.rows}")
        return look_up(ids, [self.first, self.second, self.third], self.digits)


class HashEmbedding(WordTable):
    """A pool of rows that words share, and for each word how it weighs those that it reads.

    ``table`` (pool rows, width); ``importance`` (rows, hashes). Where a word reads is arithmetic
    (:func:`.addresses`).
    """

    def __init__(self, pool: Tensor, importance: Tensor) -> None:
        super().__init__(len(importance), pool.shape[1])
        self.pool = len(pool)
        self.table, self.importance = table_of(pool), table_of(importance)

    @classmethod
    def like(cls, table: nn.Embedding, rows: int, hashes: int) -> Self:
        """An empty one of a table's shape."""
        new, (ids, width) = table.weight.new_empty, table.weight.shape
        return cls(new(rows, width), new(ids, hashes))

    def forward(self, ids: Tensor) -> Tensor:
        weights = self.importance(ids)
        read = self.table(addresses(ids, self.pool, weights.shape[-1]))
        return (weights.unsqueeze(-1) * read).sum(-2)
