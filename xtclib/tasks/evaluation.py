"""What a model answers, and how well: predictions in the rows' order, a task's metrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib.tasks.glue import Split, Task, TaskData
from xtclib.tasks.metrics import score
from xtclib.tasks.rows import Rows, collate


@torch.inference_mode()
def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    max_length: int = 128,
    batch_size: int = 64,
) -> np.ndarray:
    """Logits of shape (rows, classes) in fp32, in the split's order; batches sorted by length."""
    rows = Rows.tokenize(split, tokenizer, max_length)
    return _logits(model, rows, tokenizer.pad_token_id, batch_size)


def _logits(model: PreTrainedModel, rows: Rows, pad_id: int, batch_size: int = 64) -> np.ndarray:
    was_training = model.training
    model.eval()
    order = np.argsort(rows.lengths, kind="stable")
    device, logits = model.device, []
    for start in range(0, len(order), batch_size):
        batch = collate([rows[i] for i in order[start : start + batch_size]], pad_id, False)
        batch.pop("labels")
        batch = {k: v.to(device) for k, v in batch.items()}
        logits.append(model(**batch).logits.float().cpu().numpy())
    model.train(was_training)
    out = np.concatenate(logits)
    result = np.empty_like(out)
    result[order] = out
    return result


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    max_length: int = 128,
    splits: dict[str, Split] | None = None,
) -> dict[str, dict[str, float]]:
    """The task's metrics, in percent, for every evaluation split."""
    return {
        name: score(
            data.task, decide(data.task, predict(model, tokenizer, split, max_length)), split.labels
        )
        for name, split in (splits or data.evaluation).items()
    }


def scorer(
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    rows: int | None = None,
    max_length: int = 128,
) -> Callable[[PreTrainedModel], float]:
    """A function from a model to its score on the first ``rows`` of the first evaluation split.

    Rows are tokenized once: for looking at many models, as sensitivity does.
    """
    split = next(iter(data.evaluation.values()))
    split = split.select(list(range(min(rows or len(split), len(split)))))
    read = Rows.tokenize(split, tokenizer, max_length)

    @torch.inference_mode()
    def score_of(model: PreTrainedModel) -> float:
        found = decide(data.task, _logits(model, read, tokenizer.pad_token_id))
        return score(data.task, found, split.labels)["score"]

    return score_of


def decide(task: Task, logits: np.ndarray) -> np.ndarray:
    """Class ids, or values for a regression task, from logits (rows, classes)."""
    return logits[:, 0] if task.is_regression else logits.argmax(-1)
