"""What a model is fed: tokenized rows, batches padded to their longest, an order by length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from xtclib.cache import key

if TYPE_CHECKING:
    from xtclib.tasks.base import TaskData


@dataclass(frozen=True)
class Split:
    """Rows as columns: first texts, second texts (None where a row has one text), labels.

    A label is what the row's task makes of it: a class id, a number, a list of tags. Raises
    `ValueError` where the columns differ in length.

    >>> split = Split(["good", "bad"], None, [1, 0])
    >>> len(split), split.select([1]).first, split.fingerprint
    (2, ['bad'], '389eeb21a9f99274')
    """

    first: list[str] = field(repr=False)
    second: list[str] | None = field(repr=False)
    labels: list[Any] = field(repr=False)

    def __post_init__(self) -> None:
        first, labels = len(self.first), len(self.labels)
        second = first if self.second is None else len(self.second)
        if not first == second == labels:
            received = f"received {first} first texts, {second} second texts and {labels} labels"
            raise ValueError(f"{received}, expected as many of each")

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Iterable[int]) -> Split:
        """The rows at these positions, in this order; `IndexError` for one outside the split."""
        indices = [int(index) for index in indices]
        outside = [index for index in indices if not 0 <= index < len(self)]
        if outside:
            raise IndexError(f"received row {outside[0]}, expected one of 0 … {len(self) - 1}")
        return Split(
            [self.first[index] for index in indices],
            None if self.second is None else [self.second[index] for index in indices],
            [self.labels[index] for index in indices],
        )

    def parted(self, seed: int, part: int = 20) -> tuple[Split, Split]:
        """The split without one of ``part`` rows, up to 1000, in order, and those, by chance.

        >>> [len(part) for part in Split(["a"] * 60, None, [0] * 60).parted(seed=0)]
        [57, 3]
        """
        count = min(max(len(self) // part, 1), 1000)
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        return self.select(sorted(order[count:])), self.select(order[:count])

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over every text and label: same digits, same data."""
        return key(self.first, self.second, self.labels)


class Rows(Dataset):
    """A tokenized split: unpadded ids, labels, and lengths for grouping.

    >>> Rows([[1, 2], [3]], None, [0, 1])[1]["input_ids"]
    [3]
    """

    def __init__(self, ids: list, types: list[list[int]] | None, labels: list) -> None:
        self.ids, self.types, self.labels = ids, types, labels
        self.lengths = np.array([len(row) for row in ids])

    @classmethod
    def tokenize(cls, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rows:
        """Tokenizes a split, truncating to ``max_length`` tokens."""
        out = tokenizer(
            list(split.first), None if split.second is None else list(split.second),
            truncation=True, max_length=max_length, return_attention_mask=False,
            return_token_type_ids=split.second is not None and not _one_segment(tokenizer),
        )  # fmt: skip
        return cls(out["input_ids"], out.get("token_type_ids"), list(split.labels))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        row = {"input_ids": self.ids[index], "labels": self.labels[index]}
        return row if self.types is None else {**row, "token_type_ids": self.types[index]}


def plain_(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Has a tokenizer forget the padding and truncation it was last asked for, in place.

    They would be saved with it.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)  # others keep no such thing
    if fast is not None:
        fast.no_padding()
        fast.no_truncation()
    return tokenizer


def _one_segment(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer whose kind gives segments was told to give none."""
    kind, own = type(tokenizer).model_input_names, tokenizer.model_input_names
    return "token_type_ids" in kind and "token_type_ids" not in own


def collate(rows: list[dict], pad_id: int, dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
    """Pads rows to their longest: ids, mask and types of shape (batch, length); labels (batch).

    ``dtype``: of the labels.
    """
    lengths = np.array([len(row["input_ids"]) for row in rows])
    width = int(lengths.max())
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    types = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = row["input_ids"]
        if "token_type_ids" in row:
            types[i, : lengths[i]] = row["token_type_ids"]
    mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
    labels = torch.tensor([row["labels"] for row in rows], dtype=dtype)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {**{name: torch.from_numpy(each) for name, each in inputs.items()}, "labels": labels}


def widened(batch: dict[str, Tensor], width: int, pad_id: int) -> dict[str, Tensor]:
    """A batch with what has a value for each token padded to ``width`` tokens.

    Those are whole numbers; a table of floats is the rows' own, however wide it is.

    >>> widened({"input_ids": torch.ones(1, 2).long(), "labels": torch.ones(1)}, 3, 0)["input_ids"]
    tensor([[1, 1, 0]])
    """
    fill, shape = {"input_ids": pad_id, "labels": -100}, batch["input_ids"].shape
    more = width - shape[1]
    return {
        name: F.pad(x, (0, more), value=fill.get(name, 0))
        if x.shape == shape and not x.is_floating_point()
        else x
        for name, x in batch.items()
    }


class LengthGroupedSampler(Sampler[int]):
    """Shuffles, sorts by length within 50 batches' worth of rows, and shuffles those batches.

    The order depends on the seed and the epoch alone, so a resumed run sees the rows that an
    uninterrupted one would have.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        chunks = np.split(order, range(50 * self.batch_size, len(order), 50 * self.batch_size))
        order = np.concatenate([c[np.argsort(self.lengths[c], kind="stable")] for c in chunks])
        batches = np.split(order, range(self.batch_size, len(order), self.batch_size))
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []  # stays last
        random.shuffle(batches)
        yield from np.concatenate(batches + last).tolist()


@dataclass(frozen=True)
class Calibration:
    """The rows of a task that a technique may look at before training, and how they are read.

    ``rows`` of them are drawn by ``seed`` for what runs the model; all are counted for words.
    ``initial`` is the seed of weights that a technique draws anew: the run's.
    """

    data: TaskData
    tokenizer: PreTrainedTokenizerBase
    max_length: int = 128
    rows: int = 256
    batch_size: int = 8
    seed: int = 0
    initial: int = 0

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Collated batches with labels, the same at every call."""
        train, task = self.data.train, self.data.task
        order = np.random.default_rng(self.seed).permutation(len(train))[: self.rows].tolist()
        rows = task.tokenize(train.select(order), self.tokenizer, self.max_length)
        for start in range(0, len(rows), self.batch_size):
            part = [rows[i] for i in range(start, min(start + self.batch_size, len(rows)))]
            yield task.collate(part, self.tokenizer)

    def token_counts(self) -> np.ndarray:
        """How often each token id occurs in all training rows: (vocabulary,)."""
        rows = self.data.task.tokenize(self.data.train, self.tokenizer, self.max_length)
        ids = [rows[i]["input_ids"] for i in range(len(rows))]
        return np.bincount(np.concatenate(ids), minlength=len(self.tokenizer))
