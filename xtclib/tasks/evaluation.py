"""What a model answers, and how well: predictions in the rows' order, a task's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib.tasks.base import Task, TaskData
from xtclib.tasks.classification import CLASSES
from xtclib.tasks.rows import Split


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    max_length: int = 128,
    batch_size: int = 64,
) -> np.ndarray:
    """Logits of shape (rows, classes) in fp32, in the split's order; batches sorted by length.

    For tasks with one label a row.
    """
    rows, result = CLASSES.tokenize(split, tokenizer, max_length), {}
    for order, logits, _ in _batches(model, rows, CLASSES, tokenizer, batch_size):
        result |= zip(order, logits, strict=True)
    return np.stack([result[i] for i in range(len(rows))])


@torch.inference_mode()
def _batches(
    model: PreTrainedModel, rows: Dataset, task: Task, tokenizer, batch_size: int = 64
) -> Iterator[tuple[list[int], np.ndarray, dict[str, Tensor]]]:
    """(which rows, their logits, the batch), rows of like length together."""
    was_training = model.training
    model.eval()
    order = np.argsort(rows.lengths, kind="stable").tolist()
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = task.collate([rows[i] for i in chosen], tokenizer)
        given = {k: v.to(model.device) for k, v in batch.items() if k != "labels"}
        with task.answering(model, batch["labels"].to(model.device)):
            logits = task.logits(model(**given)).float().cpu().numpy()
        yield chosen, logits, batch
    model.train(was_training)


def _answers(model: PreTrainedModel, rows: Dataset, task: Task, tokenizer) -> list:
    """What the model decides for each row, in order."""
    found = {}
    for order, logits, batch in _batches(model, rows, task, tokenizer):
        found |= zip(order, task.decide(logits, batch), strict=True)
    return [found[i] for i in range(len(found))]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    max_length: int = 128,
    splits: dict[str, Split] | None = None,
) -> dict[str, dict[str, float]]:
    """The task's metrics, in percent, for every evaluation split."""
    task, found = data.task, {}
    for name, split in (splits or data.evaluation).items():
        rows = task.tokenize(split, tokenizer, max_length)
        found[name] = task.score(_answers(model, rows, task, tokenizer), split.labels)
    return found


def scorer(
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    rows: int | None = None,
    max_length: int = 128,
) -> Callable[[PreTrainedModel], float]:
    """A function from a model to its score on the first ``rows`` of the first evaluation split.

    Rows are tokenized once: for looking at many models, as sensitivity does.
    """
    task, split = data.task, next(iter(data.evaluation.values()))
    split = split.select(list(range(min(rows or len(split), len(split)))))
    read = task.tokenize(split, tokenizer, max_length)
    return lambda model: task.score(_answers(model, read, task, tokenizer), split.labels)["score"]
