"""How predictions are scored: the metrics of the GLUE tasks, in percent.

`score` gives the numbers papers print for one task, `majority` the floor under them, `glue_score`
the average over tasks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xtclib.files import unknown
from xtclib.tasks.glue import TASKS, Split, Task, find_task

if TYPE_CHECKING:
    import evaluate

__all__ = ["glue_score", "majority", "metric", "score"]

_HALVES = ("mnli-matched", "mnli-mismatched")


def score(
    task: str | Task, predictions: Sequence[float], references: Sequence[float]
) -> dict[str, float]:
    """The task's metrics in percent, and their mean, GLUE's number for the task, as "score".

    Predictions and references are class ids, floats for STS-B. A metric that is undefined, as a
    correlation is for constant predictions, is 0. Raises `ValueError` for empty, differently long
    or non-finite input and for ids outside the labels, `TypeError` for ids that are no integers.

    >>> score("mrpc", [1, 1, 0, 1], [1, 1, 1, 0])
    {'accuracy': 50.0, 'f1': 66.66666666666666, 'score': 58.33333333333333}
    """
    task = find_task(task)
    predicted = _checked(task, predictions, "predictions")
    true = _checked(task, references, "references")
    if len(predicted) != len(true):
        raise ValueError(
            f"received {len(predicted)} predictions and {len(true)} references, "
            "expected as many of each"
        )
    values = {name: 100 * _METRICS[name](predicted, true) for name in task.metrics}
    return {**values, "score": sum(values.values()) / len(values)}


def majority(task: str | Task, split: Split, train: Split | None = None) -> dict[str, float]:
    """The scores on `split` of always answering the most common label of `train`, or the mean.

    Without `train` the label is the most common of `split` itself. The floor under every result:
    a model below it has learned nothing.

    >>> majority("sst2", Split(["a", "b", "c", "d"], None, [1, 1, 1, 0]))
    {'accuracy': 75.0, 'score': 75.0}
    """
    task = find_task(task)
    labels = (train or split).labels
    if not labels:
        raise ValueError("received a split without rows, expected at least one")
    if task.is_regression:
        answer = sum(labels) / len(labels)
    else:
        counts = Counter(labels)
        answer = min(counts, key=lambda label: (-counts[label], label))
    return score(task, [answer] * len(split), split.labels)


def metric(task: str | Task) -> evaluate.Metric:
    """The same numbers as an `evaluate.Metric`, built here, so that it needs no network.

    Raises `ImportError` where the package evaluate is missing.

    >>> metric("sst2").compute(predictions=[1, 0], references=[1, 1])
    {'accuracy': 50.0, 'score': 50.0}
    """
    spec = find_task(task)
    try:
        import datasets
        import evaluate
    except ImportError:
        raise ImportError(
            "metric() needs the package evaluate: pip install evaluate, or use score()"
        ) from None

    number = datasets.Value("float64" if spec.is_regression else "int64")

    class Glue(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=f"{spec.folder}: {', '.join(spec.metrics)} in percent.",
                citation="Wang et al. 2019, arXiv:1804.07461",
                inputs_description="predictions, references: class ids, or floats for STS-B.",
                features=datasets.Features({"predictions": number, "references": number}),
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            return score(spec, predictions, references)

    return Glue(config_name=spec.name, keep_in_memory=True)


def glue_score(
    scores: Mapping[str, float | Mapping[str, float]],
    weights: str = "glue",
    *,
    partial: bool = False,
) -> float:
    """The average over the tasks, from each task's "score": Σ wₜ·scoreₜ / Σ wₜ.

    A value is a number or what `score` returned. MNLI comes as "mnli", or as both "mnli-matched"
    and "mnli-mismatched". With `weights="glue"` every task weighs 1, as on GLUE's leaderboard,
    the two MNLI columns being averaged first; WNLI is left out, as papers on BERT do. With
    `weights="columns"` MNLI weighs 2, one for each column of a table, as in TinyBERT's "Avg.".
    Raises `ValueError` for an unknown, doubled or non-finite score, and for a missing task unless
    `partial=True`.

    >>> glue_score({"sst2": 93.0, "mnli-matched": 84.0, "mnli-mismatched": 82.0}, partial=True)
    88.0
    """
    if weights not in ("glue", "columns"):
        raise unknown("weighting", weights, ("glue", "columns"))
    found: dict[str, float] = {}
    for key, value in scores.items():
        name = key if key in _HALVES else find_task(key).name
        value = value["score"] if isinstance(value, Mapping) else value
        if not math.isfinite(value):
            raise ValueError(f"received {value} for '{key}', expected a finite score in percent")
        if name in found or name == "mnli" and any(half in found for half in _HALVES):
            raise ValueError(f"received '{name}' twice, expected one score a task")
        found[name] = float(value)
    absent = [half for half in _HALVES if half not in found]
    halves = [found.pop(half) for half in _HALVES if half in found]
    if halves and "mnli" in found:
        raise ValueError("received 'mnli' twice, expected it whole or as its two halves")
    if halves:
        found["mnli"] = sum(halves) / len(halves)
    absent = [name for name in TASKS if name not in found] + (absent if halves else [])
    if not found or absent and not partial:
        raise ValueError(
            f"received no score for {', '.join(absent)}, expected all {len(TASKS)} tasks: "
            "add them, or pass partial=True for the mean over those given"
        )
    weight = {name: 2 if weights == "columns" and name == "mnli" else 1 for name in found}
    return sum(weight[name] * found[name] for name in found) / sum(weight.values())


def _checked(task: Task, values: Sequence[float], what: str) -> np.ndarray:
    """The values as one flat array of the task's kind, or an error that says what is wrong."""
    array = np.asarray(values)
    if array.ndim != 1:
        cure = "squeeze the last axis" if task.is_regression else "take argmax over the last axis"
        raise ValueError(
            f"received {what} of shape {array.shape}, expected one value a row, (rows,): {cure}"
        )
    if array.size == 0:
        raise ValueError(f"received no {what}, expected at least one")
    if array.dtype.kind not in "iuf":
        raise TypeError(f"received {what} of type {array.dtype}, expected numbers")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"received {array[row]} among the {what}, at row {row}: expected numbers")
    if task.is_regression:
        return array.astype(np.float64)
    if array.dtype.kind == "f":
        raise TypeError(
            f"received {what} of type {array.dtype}, expected the integer class ids of "
            f"{task.folder}: take argmax over the logits"
        )
    if array.min() < 0 or array.max() >= task.num_labels:
        wrong = array[(array < 0) | (array >= task.num_labels)][0]
        raise ValueError(
            f"received class id {wrong} among the {what}, expected 0 … {task.num_labels - 1} "
            f"({', '.join(task.labels or ())})"
        )
    return array


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.mean(predictions == references))


def _f1(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, zero_division=0))


def _matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions, references):
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def _pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    from scipy.stats import pearsonr

    if _constant(predictions, references):
        return 0.0
    return float(pearsonr(predictions, references)[0])


def _spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if _constant(predictions, references):
        return 0.0
    return float(spearmanr(predictions, references)[0])


def _constant(*arrays: np.ndarray) -> bool:
    """Whether an array is constant: a correlation with a constant is 0 / 0."""
    return any(np.ptp(array) == 0 for array in arrays)


_METRICS = {
    "matthews": _matthews,
    "accuracy": _accuracy,
    "f1": _f1,
    "pearson": _pearson,
    "spearman": _spearman,
}
