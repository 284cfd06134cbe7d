"""What a model is fed: tokenized rows, batches padded to their longest, an order by length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from xtclib.tasks.glue import Split, TaskData


class Rows(Dataset):
    """A tokenized split: unpadded ids, labels, and lengths for grouping.

    >>> Rows([[1, 2], [3]], None, [0, 1])[1]["input_ids"]
    [3]
    """

    def __init__(self, ids: list[list[int]], types: list[list[int]] | None, labels: list) -> None:
        self.ids, self.types, self.labels = ids, types, labels
        self.lengths = np.array([len(row) for row in ids])

    @classmethod
    def tokenize(cls, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Rows:
        """Tokenizes a split, truncating to ``max_length`` tokens."""
        out = tokenizer(
            list(split.first),
            None if split.second is None else list(split.second),
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=split.second is not None,
        )
        return cls(out["input_ids"], out.get("token_type_ids"), list(split.labels))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        row = {"input_ids": self.ids[index], "labels": self.labels[index]}
        return row if self.types is None else {**row, "token_type_ids": self.types[index]}


def collate(rows: list[dict], pad_id: int, regression: bool) -> dict[str, Tensor]:
    """Pads rows to their longest: ids, mask and types of shape (batch, length); labels (batch)."""
    lengths = np.array([len(row["input_ids"]) for row in rows])
    width = int(lengths.max())
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    types = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = row["input_ids"]
        if "token_type_ids" in row:
            types[i, : lengths[i]] = row["token_type_ids"]
    labels = [row["labels"] for row in rows]
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64)),
        "token_type_ids": torch.from_numpy(types),
        "labels": torch.tensor(labels, dtype=torch.float32 if regression else torch.int64),
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
        train = self.data.train
        order = np.random.default_rng(self.seed).permutation(len(train))[: self.rows].tolist()
        rows = Rows.tokenize(train.select(order), self.tokenizer, self.max_length)
        regression = self.data.task.is_regression
        for start in range(0, len(rows), self.batch_size):
            part = [rows[i] for i in range(start, min(start + self.batch_size, len(rows)))]
            yield collate(part, self.tokenizer.pad_token_id, regression)

    def token_counts(self) -> np.ndarray:
        """How often each token id occurs in all training rows: (vocabulary,)."""
        ids = Rows.tokenize(self.data.train, self.tokenizer, self.max_length).ids
        return np.bincount(np.concatenate(ids), minlength=len(self.tokenizer))
