"""How predictions are scored: the metrics of the tasks, also as an `evaluate.Metric`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xtclib.tasks.base import Task, find_task

if TYPE_CHECKING:
    import evaluate


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
        cure = "pip install evaluate, or use the task's score()"
        raise ImportError(f"metric() needs the package evaluate: {cure}") from None

    number = datasets.Value("float64" if spec.label_type.is_floating_point else "int64")

    class Glue(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=f"{spec.title}: its metrics in percent.",
                citation="Wang et al. 2019, arXiv:1804.07461",
                inputs_description="predictions, references: class ids, or floats for STS-B.",
                features=datasets.Features({"predictions": number, "references": number}),
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            return spec.score(predictions, references)

    return Glue(config_name=spec.name, keep_in_memory=True)


def checked(values: Sequence[float], what: str, cure: str) -> np.ndarray:
    """The values as one flat array of finite numbers, or an error that says what is wrong."""
    array = np.asarray(values)
    if array.ndim != 1:
        shape = f"received {what} of shape {array.shape}"
        raise ValueError(f"{shape}, expected one value a row, (rows,): {cure}")
    if array.size == 0:
        raise ValueError(f"received no {what}, expected at least one")
    if array.dtype.kind not in "iuf":
        raise TypeError(f"received {what} of type {array.dtype}, expected numbers")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"received {array[row]} among the {what}, at row {row}: expected numbers")
    return array


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.mean(predictions == references))


def _f1(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, zero_division=0))


def _matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return _correlation(matthews_corrcoef, references, predictions)


def _micro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="micro", zero_division=0))


def _macro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="macro", zero_division=0))


def _exact(predictions: np.ndarray, references: np.ndarray) -> float:
    return float(np.mean((predictions == references).all(-1)))


def _pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _correlation(lambda a, b: pearsonr(a, b)[0], predictions, references)


def _spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return _correlation(lambda a, b: spearmanr(a, b)[0], predictions, references)


def _correlation(by: Callable, *arrays: np.ndarray) -> float:
    """A correlation; with a constant it is 0 / 0, and counts as 0."""
    return 0.0 if any(np.ptp(array) == 0 for array in arrays) else float(by(*arrays))


METRICS = {"matthews": _matthews, "accuracy": _accuracy, "f1": _f1, "pearson": _pearson,
           "spearman": _spearman, "micro_f1": _micro_f1, "macro_f1": _macro_f1,
           "exact_match": _exact}  # fmt: skip
