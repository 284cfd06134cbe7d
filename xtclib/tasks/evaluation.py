"""What a model answers, and how well: predictions in the rows' order, a task's metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib.tasks.base import Task, TaskData, by_length
from xtclib.tasks.classification import CLASSES
from xtclib.tasks.rows import Rows, Split


def predict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split,
            max_length: int = 128, batch_size: int = 64) -> np.ndarray:  # fmt: skip
    """Logits of shape (rows, classes) in fp32, in the split's order; batches sorted by length.

    For tasks with one label a row.
    """
    rows = CLASSES.tokenize(split, tokenizer, max_length)
    return np.stack(_answers(model, rows, CLASSES, tokenizer, lambda logits, _: logits, batch_size))


@torch.inference_mode()
def _answers(model: PreTrainedModel, rows: Rows, task: Task, tokenizer, decide=None,
             batch_size: int = 64) -> list:  # fmt: skip
    """The model's answer to each row, in order: what ``decide``, else the task, makes of logits."""
    was_training, found = model.training, dict[int, Any]()
    model.eval()
    for chosen, batch in by_length(task, rows, tokenizer, batch_size):
        given = {k: v.to(model.device) for k, v in batch.items() if k != "labels"}
        with task.answering(model, batch["labels"].to(model.device)):
            output = model(**given)
        logits = task.logits(output, given["attention_mask"]).float().cpu().numpy()
        found |= zip(chosen, (decide or task.decide)(logits, batch), strict=True)
    model.train(was_training)
    return [found[i] for i in range(len(found))]


def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TaskData,
             max_length: int = 128, splits: dict[str, Split] | None = None):  # fmt: skip
    """The task's metrics, in percent, for every evaluation split: ``{split: {metric: value}}``."""
    found = dict[str, dict[str, float]]()
    for name, split in (splits or data.evaluation).items():
        given = answers(model, tokenizer, data.task, split, max_length)
        found[name] = data.task.score(given, split.labels)
    return found


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, split: Split,
            max_length: int = 128, decide: Callable[..., Any] | None = None) -> list:  # fmt: skip
    """What the model answers to each row of a split, in order, as the task, or ``decide``, does."""
    return _answers(model, task.tokenize(split, tokenizer, max_length), task, tokenizer, decide)


def scorer(
    tokenizer: PreTrainedTokenizerBase, data: TaskData, rows: int | None = None,
    max_length: int = 128, bf16: bool = False,
) -> Callable[[PreTrainedModel], float]:  # fmt: skip
    """A function from a model to its score on the first ``rows`` of the first evaluation split.

    Rows are tokenized once: for looking at many models, as sensitivity does. Products in ``bf16``
    are faster where :func:`xtclib.training.bf16_is_fast`, and a row near the border may be answered
    otherwise.
    """
    task, split = data.task, next(iter(data.evaluation.values()))
    split = split.select(range(len(split))[:rows])
    read = task.tokenize(split, tokenizer, max_length)

    def score(model: PreTrainedModel) -> float:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            return task.score(_answers(model, read, task, tokenizer), split.labels)["score"]

    return score
