"""Smaller word tables as techniques: narrow rows, numbered parts, tensor trains, hashed rows."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib.config import Count, Expect, Share, Size, Whole, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import (
    Technique,
    check_finite,
    count_of,
    needs,
    refuse_packed,
    register,
    word_table,
)
from xtclib.techniques.embeddings.hashing import addresses, fit
from xtclib.techniques.embeddings.layers import (
    HashEmbedding,
    ProductEmbedding,
    TensorTrainEmbedding,
)
from xtclib.techniques.embeddings.product_quantization import divisors_near, product_codes
from xtclib.techniques.embeddings.tensor_train import Digits, tt_svd
from xtclib.techniques.factorization.decompositions import check_rank, rank_for, svd
from xtclib.techniques.factorization.layers import LowRankEmbedding
from xtclib.techniques.quantization.quantizers import StoredScheme

Codes = Annotated[int, Field(ge=2, le=256), Expect("a whole number from 2 to 256")]


@config
class _Table(Technique):
    """Puts another form in the place of the word table, near the trained one, and trains on.

    Positions, segments and the number of words stay. One of these is enough; what cuts the
    vocabulary or the width comes before.
    """

    family: ClassVar[str] = "words"
    reshapes: ClassVar[bool] = True
    stored = True

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        refuse_packed(model)
        word_table(model, self.name)
        if model.get_output_embeddings() is not None:
            tied = f"the head of {type(model).__name__} may share the word table"
            raise ValueError(f"{self.name}: {tied}: give a classifier or an encoder")
        check_finite(model, f"{self.name} cannot start from this model")
        model = copy.deepcopy(model)
        table = model.get_input_embeddings()
        self._check(*table.weight.shape)
        new = self._start(table, table.weight.detach().float().cpu(), data)
        model.set_input_embeddings(new.to(table.weight.device).train(table.training))
        return model

    def rebuild(self, model: PreTrainedModel) -> None:
        table = word_table(model, self.name)
        self._check(*table.weight.shape)
        model.set_input_embeddings(self._like(table))

    def outline(self, model: PreTrainedModel) -> None:
        (self.unpacked or self).rebuild(model)

    def _check(self, rows: int, width: int) -> None:
        """Raises ``ValueError`` for what a table of this shape cannot become."""

    def _start(self, table: nn.Embedding, values: Tensor, data: Calibration | None) -> nn.Module:
        """The layer near the table's ``values``, on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} does not say where it starts")

    def _like(self, table: nn.Embedding) -> nn.Module:
        """The empty layer, as it is stored."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is stored")


@register
@config
class LowRankTable(_Table):
    """The word table as a narrow one and a matrix that widens its rows, by truncated SVD.

    ``rank``, or ``share``, the part of the table's values that both hold: a quarter unless told.
    ``quantize`` after it takes the narrow table. NeuML's bert-hash models are this at ranks 5 to
    16: their "hash" of a word is a narrow row that is learned, nothing is hashed. Source: Lan et
    al. 2020 (ALBERT), arXiv:1909.11942, section 3.1.
    """

    name: ClassVar[str] = "lowrank_embeddings"
    percent: ClassVar[str | None] = "share"
    rank: Count | None = None
    share: Share | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.share is not None:
            given = f"rank={self.rank} and share={self.share}"
            raise ValueError(f"{self.name} takes rank or share, one of them; received {given}")

    def _check(self, rows: int, width: int) -> None:
        check_rank(self.rank, rows, width, "table")

    def _rank(self, rows: int, width: int) -> int:
        return self.rank or rank_for(self.share or 0.25, rows, width)

    def _start(self, table: nn.Embedding, values: Tensor, data: Calibration | None) -> nn.Module:
        rows, up = svd(values).factors(self._rank(*values.shape))
        return LowRankEmbedding.of(rows, up.T, table.padding_idx)

    def _like(self, table: nn.Embedding) -> nn.Module:
        return LowRankEmbedding.like(table, self._rank(*table.weight.shape))


@register
@config
class ProductTable(_Table):
    """Cuts every row into ``parts`` and stores of each the number of its nearest, one byte.

    ``parts``: a count that divides the width, or a share of the width: of 0.0625 each has 16 of it.
    Each part has ``codes`` vectors to choose from (256 unless told, or one for each row of a
    smaller table), by k-means over all rows, alike or, with ``weigh: use``, by 1 + how often the
    task's training rows use them. The vectors train on, the numbers stay. ``codebook``: the scheme
    that the vectors are trained and stored in, fp16 where there is none; give a ``quantize`` after
    it ``embeddings: null``. Sources: :func:`.product_codes`; Shu and Nakayama 2018,
    arXiv:1711.01068, who learn the numbers too.
    """

    name: ClassVar[str] = "pq_embeddings"
    parts: Size = 8
    codes: Codes | None = None
    weigh: Literal["rows", "use"] = "rows"
    codebook: StoredScheme | None = None
    seed: Whole = 0

    @property
    def unpacked(self) -> ProductTable:
        return replace(self, codebook=None)

    def _check(self, rows: int, width: int) -> None:
        if width % (parts := self._parts(width)):
            near = " or ".join(map(str, divisors_near(width, parts)))
            raise ValueError(f"{parts} parts do not divide a width of {width}: give {near}")
        if self.codes is not None and self.codes > rows:
            given = f"{self.codes} codes are more than the {rows} rows of the table"
            raise ValueError(f"{given}: give codes up to {rows}")

    def _parts(self, width: int) -> int:
        return self.parts if isinstance(self.parts, int) else max(round(self.parts * width), 1)

    def _codes(self, rows: int) -> int:
        return self.codes or min(256, rows)

    def _start(self, table: nn.Embedding, values: Tensor, data: Calibration | None) -> nn.Module:
        weights = torch.ones(len(values))
        if self.weigh == "use":
            counts = torch.from_numpy(needs(data, f"{self.name} weighed by use").token_counts())
            counts = counts[: len(values)]
            weights += F.pad(counts.float(), (0, len(values) - len(counts)))
        count = self._codes(len(values))
        found = product_codes(values, self._parts(values.shape[1]), count, weights, self.seed)
        return ProductEmbedding.of(*found, self.codebook)

    def _like(self, table: nn.Embedding) -> nn.Module:
        rows, width = table.weight.shape
        count, parts = self._codes(rows), self._parts(width)
        return ProductEmbedding.like(table, parts, count, self.codebook)


@register
@config
class TensorTrainTable(_Table):
    """The word table as three cores of a tensor train, started by TT-SVD.

    ``rank`` is that of both joints, as a count or as a share of the highest that they can use. Rows
    and columns are numbered by three digits of bases as equal as they go (:class:`.Digits`).
    Sources: :func:`.tt_svd`.
    """

    name: ClassVar[str] = "tt_embeddings"
    rank: Size = 32

    def _check(self, rows: int, width: int) -> None:
        most = Digits.of(rows, width).most
        if self.rank > most:
            given = f"rank {self.rank} is more than a tensor train of {rows} × {width} can use"
            raise ValueError(f"{given}: give a rank up to {most}")

    def _rank(self, digits: Digits) -> int:
        return count_of(self.rank, digits.most, "ranks")

    def _start(self, table: nn.Embedding, values: Tensor, data: Calibration | None) -> nn.Module:
        rows, width = values.shape
        digits = Digits.of(rows, width)
        return TensorTrainEmbedding(rows, width, tt_svd(values, digits, self._rank(digits)))

    def _like(self, table: nn.Embedding) -> nn.Module:
        return TensorTrainEmbedding.like(table, self._rank(Digits.of(*table.weight.shape)))


@register
@config
class HashTable(_Table):
    """Every word as a weighed sum of ``hashes`` rows of one pool, which words share.

    ``rows`` of the pool, as a count or as a share of the words. Which rows a word reads is a fixed
    function of its id and stored nowhere; the pool and each word's weights train. They start by
    alternating least squares on the trained table. ``quantize`` after it takes the pool. Source:
    :func:`.fit`.
    """

    name: ClassVar[str] = "hash_embeddings"
    rows: Size = 0.0625
    hashes: Count = 2

    def _check(self, rows: int, width: int) -> None:
        count_of(self.rows, rows, "rows of the word table")

    def _start(self, table: nn.Embedding, values: Tensor, data: Calibration | None) -> nn.Module:
        count = count_of(self.rows, len(values), "rows")
        where = addresses(torch.arange(len(values)), count, self.hashes)
        return HashEmbedding(*fit(values, where, count))

    def _like(self, table: nn.Embedding) -> nn.Module:
        rows = count_of(self.rows, len(table.weight), "rows")
        return HashEmbedding.like(table, rows, self.hashes)
