"""A class, several, or a number, for a text or a pair of texts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xtclib.tasks.base import Task
from xtclib.tasks.metrics import METRICS, checked
from xtclib.tasks.rows import Split


@dataclass(frozen=True)
class _OneLabel(Task):
    """One answer a row: what classes, sets of them and numbers have in common."""

    name: str
    title: str = ""
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    primary: str = "accuracy"

    def score(self, answers: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        """The task's metrics in percent, and their mean, GLUE's number for the task, as "score".

        Answers and references are class ids, or numbers. A metric that is undefined, as a
        correlation is for constant answers, is 0. Raises `ValueError` for empty, differently long
        or non-finite input and for ids outside the labels, `TypeError` for ids that are no
        integers.

        >>> from xtclib.tasks.base import find_task
        >>> find_task("mrpc").score([1, 1, 0, 1], [1, 1, 1, 0])
        {'accuracy': 50.0, 'f1': 66.66666666666666, 'score': 58.33333333333333}
        """
        predicted = self._checked(answers, "predictions")
        true = self._checked(references, "references")
        if len(predicted) != len(true):
            received = f"received {len(predicted)} predictions and {len(true)} references"
            raise ValueError(f"{received}, expected as many of each")
        values = {name: 100 * METRICS[name](predicted, true) for name in self.metrics}
        return {**values, "score": sum(values.values()) / len(values)}

    def majority(self, split: Split, train: Split | None = None) -> dict[str, float]:
        """The scores on `split` of always giving the most common label of `train`, or the mean.

        Without `train` it is that of `split` itself. The floor under every result: a model below
        it has learned nothing.

        >>> from xtclib.tasks.base import find_task
        >>> find_task("sst2").majority(Split(["a", "b", "c", "d"], None, [1, 1, 1, 0]))
        {'accuracy': 75.0, 'score': 75.0}
        """
        labels = (train or split).labels
        if not labels:
            raise ValueError("received a split without rows, expected at least one")
        return self.score([self._constant(labels)] * len(split), split.labels)

    @abstractmethod
    def _constant(self, labels: list) -> Any:
        """The best answer that is always the same."""

    @abstractmethod
    def _checked(self, values: Sequence[float], what: str) -> np.ndarray:
        """Answers or references, as an array."""


@dataclass(frozen=True)
class Classification(_OneLabel):
    """One of some classes; labels are class ids, in the order of ``labels``."""

    settings: ClassVar[dict] = {"problem_type": "single_label_classification"}

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    def decide(self, logits: np.ndarray, batch=None) -> np.ndarray:
        return logits.argmax(-1)

    def _constant(self, labels: list[int]) -> int:  # the lowest of those as common
        return int(np.bincount(labels).argmax())

    def _checked(self, values: Sequence[float], what: str) -> np.ndarray:
        array = checked(values, what, "take argmax over the last axis")
        if array.dtype.kind == "f":
            ids = f"the integer class ids of {self.title}: take argmax over the logits"
            raise TypeError(f"received {what} of type {array.dtype}, expected {ids}")
        wrong = array[(array < 0) | (array >= self.num_labels)]
        if wrong.size:
            known = f"0 … {self.num_labels - 1} ({', '.join(self.labels)})"
            raise ValueError(f"received class id {wrong[0]} among the {what}, expected {known}")
        return array


CLASSES = Classification("classes")  # whichever: for what only reads rows or compares logits


@dataclass(frozen=True)
class MultiLabel(_OneLabel):
    """Any number of some classes at once: a row's label is a list of 0 and 1, one a class.

    Each class is decided by itself: yes where its sigmoid is over a half. The score is micro-F1,
    ``2·TP / (2·TP + FP + FN)`` over all rows and classes; macro-F1 is the mean of the classes' own,
    and exact match the share of rows with every class right.
    """

    metrics: tuple[str, ...] = ("micro_f1", "macro_f1", "exact_match")
    primary: str = "micro_f1"
    settings: ClassVar[dict] = {"problem_type": "multi_label_classification"}
    label_type: ClassVar[torch.dtype] = torch.float32

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels.float())

    def compare(self, student: Tensor, teacher: Tensor, loss) -> Tensor:
        """The objective's loss with a sigmoid for each class in the place of the softmax."""
        return loss(student, teacher, independent=True)

    def decide(self, logits: np.ndarray, batch=None) -> np.ndarray:
        return (logits > 0).astype(np.int64)

    def score(self, answers: Sequence, references: Sequence) -> dict[str, float]:
        """The metrics in percent, from rows of 0 and 1, and micro-F1 as "score".

        >>> task = MultiLabel("tags", "Tags", ("a", "b"))
        >>> task.score([[1, 0], [1, 1]], [[1, 0], [0, 1]])["score"]
        80.0
        """
        found = super().score(answers, references)
        return {**found, "score": found[self.primary]}

    def _constant(self, labels: list[list[int]]) -> list[int]:
        """The set of classes with the best micro-F1: the k most common, for the best k."""
        counts = np.sum(labels, axis=0)
        order = np.argsort(-counts, kind="stable")
        best = 2 * np.cumsum(counts[order]) / (
            len(labels) * np.arange(1, len(order) + 1) + max(counts.sum(), 1)
        )  # fmt: skip
        chosen = set(order[: best.argmax() + 1].tolist())
        return [int(i in chosen) for i in range(self.num_labels)]

    def _checked(self, values: Sequence, what: str) -> np.ndarray:
        array = np.asarray(values)
        if array.ndim != 2 or array.shape[1] != self.num_labels or not array.size:
            expected = f"a 0 or 1 for each of {self.num_labels} classes, (rows, classes)"
            raise ValueError(f"received {what} of shape {array.shape}, expected {expected}")
        if not np.isin(array, (0, 1)).all():
            wrong = array[~np.isin(array, (0, 1))][0]
            raise ValueError(f"received {wrong} among the {what}, expected 0 or 1")
        return array.astype(np.int64)


@dataclass(frozen=True)
class Regression(_OneLabel):
    """A number: the model's one output, trained by the squared error."""

    labels: tuple[str, ...] = ("score",)
    metrics: tuple[str, ...] = ("pearson", "spearman")
    primary: str = "pearson"
    settings: ClassVar[dict] = {"problem_type": "regression"}
    label_type: ClassVar[torch.dtype] = torch.float32

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(logits.squeeze(-1), labels.float())

    def compare(self, student: Tensor, teacher: Tensor, loss) -> Tensor:
        """The squared error, whatever the objective takes for classes."""
        return F.mse_loss(student, teacher)

    def decide(self, logits: np.ndarray, batch=None) -> np.ndarray:
        return logits[:, 0]

    def check_labels(self, path, labels: Sequence[str]) -> None:
        """One output is enough: its name says nothing."""
        super().check_labels(path, self.labels if len(labels) == 1 else labels)

    def _constant(self, labels: list[float]) -> float:
        return sum(labels) / len(labels)

    def _checked(self, values: Sequence[float], what: str) -> np.ndarray:
        return checked(values, what, "squeeze the last axis").astype(np.float64)
