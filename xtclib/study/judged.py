"""What two models answer to the same rows: how well, how far alike, how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from xtclib.tasks.base import TaskData
from xtclib.tasks.classification import Classification
from xtclib.tasks.evaluation import answers


@dataclass(frozen=True)
class Judged:
    """A model's answers and metrics by split; not ``whole``: some logits were NaN."""

    answers: dict[str, list]
    scores: dict[str, dict[str, float]]
    whole: bool


def judge(model: Any, tokenizer: Any, data: TaskData, length: int) -> Judged:
    """What a model answers to the rows that a task is scored on, and how well."""
    task, nan = data.task, []

    def decide(logits: np.ndarray, batch: dict) -> Any:
        nan.append(bool(np.isnan(logits).any()))  # else NaN would count as the first class
        return task.decide(logits, batch)

    found, scores = dict[str, list](), dict[str, dict[str, float]]()
    for name, split in data.evaluation.items():
        given = answers(model, tokenizer, task, split, length, decide)
        scores[name] = {"score": np.nan} if any(nan) else task.score(given, split.labels)
        told = getattr(task, "told", None)  # questions: from windows to words
        found[name] = told(given, split.labels) if told else given
    return Judged(found, scores, not any(nan))


def agreement(theirs: Judged, ours: Judged) -> float:
    """Percent of all rows to which both give the same answer; NaN where one gave NaN.

    Of tags, questions and several labels the whole answer counts.
    """
    if not (theirs.whole and ours.whole):
        return np.nan
    pairs = [(theirs.answers[name], ours.answers[name]) for name in theirs.answers]
    return 100 * mean(float(np.array_equal(a, b)) for both in pairs
                      for a, b in zip(*both, strict=True))  # fmt: skip


def standard_error(data: TaskData, theirs: Judged, ours: Judged) -> float | None:
    """Of the score that is lost, in points, where the score is a share of right answers.

    ``100·√((b + c − (b − c)²/n) / n²)`` on n rows, of which b only the teacher has right and c only
    the artefact: McNemar's variance. Of several splits that of their mean. Else ``None``, and where
    both have the same rows right, of which it would say that nothing is left to chance.
    """
    if not isinstance(data.task, Classification) or not (ours.whole and theirs.whole):
        return None
    variances = []
    for name, split in data.evaluation.items():
        right = [np.equal(each.answers[name], split.labels) for each in (theirs, ours)]
        for each, rights in zip((theirs, ours), right, strict=True):
            if abs(each.scores[name]["score"] - 100 * rights.mean()) > 1e-6:
                return None  # of F1 or a correlation
        gap = right[0].astype(int) - right[1]
        variances.append(float(gap.var()) / len(gap))
    return 100 * sum(variances) ** 0.5 / len(variances) or None
