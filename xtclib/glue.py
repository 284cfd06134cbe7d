"""The eight GLUE tasks: what they are, where their rows come from, how they are scored.

A `Task` says what a task is, a `Split` holds rows, `load` reads both from GLUE's own folder
layout or from the Hub, and `score` turns predictions into the numbers papers print, in percent.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xtclib.files import unknown

if TYPE_CHECKING:
    import evaluate

__all__ = [
    "TASKS",
    "Split",
    "Task",
    "TaskData",
    "find_task",
    "glue_score",
    "load",
    "majority",
    "metric",
    "score",
    "unlabelled",
]

HUB = "nyu-mll/glue"
MRPC_TEST_ROWS = 1725  # the original corpus's labelled test set; GLUE's own dev split has 408
_HALVES = ("mnli-matched", "mnli-mismatched")
WHERE = "name GLUE's folder by --glue-dir or the environment variable XTC_GLUE_DIR"


@dataclass(frozen=True)
class Task:
    """One task: its text columns, its labels in the Hub's order (None: a number) and metrics.

    `primary` is the one metric to quote where only one fits, the one TernaryBERT's and XTC's code
    pick checkpoints by. Splits to evaluate on are named by `evaluations`.

    >>> TASKS["mrpc"].num_labels, TASKS["mrpc"].is_pair, TASKS["stsb"].is_regression
    (2, True, True)
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    primary: str
    file_columns: tuple[str, ...]  # the same texts, then the label, as GLUE's files name them
    file_labels: tuple[str, ...] | None  # the labels, as GLUE's files write them
    header: tuple[str, ...] | None = None  # the columns of a file without a header line
    evaluations: tuple[str, ...] = ("dev",)

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number."""
        return self.labels is None

    @property
    def num_labels(self) -> int:
        """Width of the classifier: the number of labels, 1 for a regression."""
        return 1 if self.labels is None else len(self.labels)

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts."""
        return len(self.columns) == 2


_YES_NO = ("entailment", "not_entailment")
_BITS = ("0", "1")
_PAIR = ("sentence1", "sentence2")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"),
            ("matthews",), "matthews", ("sentence", "label"), _BITS,
            header=("source", "label", "original_mark", "sentence"),
        ),
        Task(
            "sst2", "SST-2", ("sentence",), ("negative", "positive"),
            ("accuracy",), "accuracy", ("sentence", "label"), _BITS,
        ),
        Task(
            "mrpc", "MRPC", _PAIR, ("not_equivalent", "equivalent"),
            ("accuracy", "f1"), "accuracy", ("#1 String", "#2 String", "Quality"), _BITS,
        ),
        Task(
            "stsb", "STS-B", _PAIR, None,
            ("pearson", "spearman"), "pearson", (*_PAIR, "score"), None,
        ),
        Task(
            "qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"),
            ("accuracy", "f1"), "accuracy", ("question1", "question2", "is_duplicate"), _BITS,
        ),
        Task(
            "mnli", "MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"),
            ("accuracy",), "accuracy", (*_PAIR, "gold_label"),
            ("entailment", "neutral", "contradiction"), evaluations=("matched", "mismatched"),
        ),
        Task(
            "qnli", "QNLI", ("question", "sentence"), _YES_NO,
            ("accuracy",), "accuracy", ("question", "sentence", "label"), _YES_NO,
        ),
        Task(
            "rte", "RTE", _PAIR, _YES_NO,
            ("accuracy",), "accuracy", (*_PAIR, "label"), _YES_NO,
        ),
    )
}  # fmt: skip


def find_task(name: str | Task) -> Task:
    """The task of that name, however it is spelled: "sst2", "SST-2", "sts_b".

    Raises `ValueError` with the nearest name for an unknown one.

    >>> find_task("STS-B").name
    'stsb'
    """
    if isinstance(name, Task):
        return name
    if not isinstance(name, str):
        raise TypeError(f"received {name!r} as a task, expected one of {', '.join(TASKS)}")
    key = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    if key not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[key]


@dataclass(frozen=True)
class Split:
    """Rows as columns: first texts, second texts (None where a row has one text), labels.

    A label is a class id, or a float for a regression. Raises `ValueError` where the columns
    differ in length.

    >>> split = Split(["good", "bad"], None, [1, 0])
    >>> len(split), split.select([1]).first, split.fingerprint
    (2, ['bad'], '389eeb21a9f99274')
    """

    first: list[str] = field(repr=False)
    second: list[str] | None = field(repr=False)
    labels: list[Any] = field(repr=False)

    def __post_init__(self) -> None:
        second = len(self.first) if self.second is None else len(self.second)
        if not len(self.first) == second == len(self.labels):
            raise ValueError(
                f"received {len(self.first)} first texts, {second} second texts and "
                f"{len(self.labels)} labels, expected as many of each"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Iterable[int]) -> Split:
        """The rows at these positions, in this order; `IndexError` for one outside the split."""
        indices = [int(index) for index in indices]
        outside = [index for index in indices if not 0 <= index < len(self)]
        if outside:
            raise IndexError(
                f"received row {outside[0]}, expected one of 0 … {len(self) - 1}: "
                f"the split has {len(self)} rows"
            )
        return Split(
            [self.first[index] for index in indices],
            None if self.second is None else [self.second[index] for index in indices],
            [self.labels[index] for index in indices],
        )

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over every text and label: same digits, same data."""
        return _digest([self.first, self.second, self.labels])


@dataclass(frozen=True)
class TaskData:
    """A task with its rows: `train`, the splits to evaluate on, and a sentence on their source.

    `evaluation` is keyed "dev", "test" where the labelled rows are a test set, or for MNLI
    "matched" and "mismatched"; `evaluation_name` is what to write over a column: "SST-2 dev".
    """

    task: Task
    train: Split
    evaluation: dict[str, Split]
    source: str
    evaluation_name: str

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the fingerprints of all splits, with their names."""
        splits = [[name, split.fingerprint] for name, split in self.evaluation.items()]
        return _digest([["train", self.train.fingerprint], *splits])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


# Loading


def load(
    task: str | Task,
    source: str | os.PathLike[str],
    limit: int | None = None,
    *,
    skip_broken: bool = False,
) -> TaskData:
    """Read a task from a folder in GLUE's layout, or from the Hub where `source` is "hub".

    `limit` keeps the first rows of train and of each evaluation split. A row with too few or too
    many columns is an error; copies of QQP are known to hold a few, and `skip_broken=True` leaves
    them out and counts them in the `source` sentence. Raises `FileNotFoundError` for a missing
    folder or file and `ValueError`, with file and line, for content that is not as GLUE writes it.

    >>> load("rte", "nowhere")
    Traceback (most recent call last):
    FileNotFoundError: received 'nowhere' as GLUE's folder, which is not a folder: name GLUE's \
folder by --glue-dir or the environment variable XTC_GLUE_DIR, or use "hub"
    """
    task = find_task(task)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f'received {source!r} as source, expected GLUE\'s folder or "hub"')
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"received limit={limit!r}, expected a number of rows ≥ 1, or None")
    if source == "hub":
        where, broken = f"Hub {HUB}", 0
        splits = _from_hub(task)
    else:
        folder = Path(source)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"received '{source}' as GLUE's folder, which is not a folder: {WHERE}, "
                'or use "hub"'
            )
        where = f"GLUE folder {folder.resolve().name}"
        splits, broken = _from_folder(task, folder, skip_broken)
    kept, counts = {}, []
    for name, split in splits.items():
        rows = min(limit or len(split), len(split))
        kept[name] = split.select(range(rows))
        counts.append(f"{rows} {name}" if rows == len(split) else f"{rows} of {len(split)} {name}")
    sentence = f"{where}: {task.folder}, {', '.join(counts)} rows"
    if broken:
        sentence += f", {broken} broken rows skipped"
    train = kept.pop("train")
    return TaskData(task, train, kept, sentence, f"{task.folder} {' and '.join(kept)}")


def _from_folder(task: Task, folder: Path, skip_broken: bool) -> tuple[dict[str, Split], int]:
    splits, broken = {}, 0
    for name in ("train", *task.evaluations):
        file = f"{name if name in ('train', 'dev') else f'dev_{name}'}.tsv"
        path = folder / task.folder / file
        if not path.is_file():
            raise FileNotFoundError(
                f"'{task.folder}/{file}' is missing in '{folder}': put GLUE's file there, "
                f"or {WHERE}"
            )
        split, skipped = _read_tsv(task, path, skip_broken)
        if task.name == "mrpc" and name == "dev" and len(split) == MRPC_TEST_ROWS:
            name = "test"
        splits[name] = split
        broken += skipped
    return splits, broken


def _read_tsv(task: Task, path: Path, skip_broken: bool) -> tuple[Split, int]:
    """Rows of a tab-separated file without quoting, and the number of broken rows left out."""
    file = f"{task.folder}/{path.name}"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: received byte {error.object[error.start]:#04x} at offset {error.start}, "
            "expected UTF-8: save the file as UTF-8"
        ) from None
    # Only \n ends a row: str.splitlines would also cut at the \x85 or \u2028 inside a sentence.
    lines = [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")]
    header, first_line = task.header, 1
    if header is None:
        header, first_line = tuple(lines.pop(0).split("\t")), 2
    absent = [column for column in task.file_columns if column not in header]
    if absent:
        raise ValueError(
            f"{file}, line 1: received the columns {', '.join(header)}; expected "
            f"{', '.join(absent)} too: keep GLUE's header line, with tabs between the columns"
        )
    if not lines or lines == [""]:
        raise ValueError(f"{file}: received no rows, expected at least one: fetch it again")
    *texts, label = (header.index(column) for column in task.file_columns)
    rows, broken = [], 0
    for number, line in enumerate(lines, first_line):
        cells = line.split("\t")
        if len(cells) == len(header):
            value = _file_label(task, cells[label], f"{file}, line {number}")
            rows.append((*(cells[column] for column in texts), value))
        elif skip_broken:
            broken += 1
        else:
            raise ValueError(
                f"{file}, line {number}: received {len(cells)} columns, expected {len(header)} "
                f"({', '.join(header)}): mend the row, or pass skip_broken=True to leave it out"
            )
    if not rows:
        raise ValueError(f"{file}: received {broken} broken rows and no other, expected some")
    columns = [list(column) for column in zip(*rows, strict=True)]
    return Split(columns[0], columns[1] if task.is_pair else None, columns[-1]), broken


def _file_label(task: Task, cell: str, where: str) -> int | float:
    if task.file_labels is None:
        try:
            return _sts_score(float(cell), where)
        except ValueError:
            raise ValueError(
                f"{where}: received the score {cell!r}, expected a number from 0 to 5"
            ) from None
    if cell not in task.file_labels:
        raise ValueError(
            f"{where}: received the label {cell!r}, expected {' or '.join(task.file_labels)}"
        )
    return task.file_labels.index(cell)


def _sts_score(value: float, where: str) -> float:
    if not 0 <= value <= 5:  # NaN fails too
        raise ValueError(f"{where}: received the score {value}, expected a number from 0 to 5")
    return value


def _from_hub(task: Task) -> dict[str, Split]:
    try:
        import datasets
    except ImportError:
        raise ImportError(
            f'"hub" needs the package datasets: pip install datasets, or {WHERE}'
        ) from None
    try:
        loaded = datasets.load_dataset(HUB, task.name)
    except (OSError, ValueError) as error:  # offline, not found, nothing cached
        raise ConnectionError(
            f"{HUB} '{task.name}' did not load from the Hub ({type(error).__name__}: {error}): "
            f"check the connection, or {WHERE}"
        ) from error
    splits = {}
    for name in ("train", *task.evaluations):
        key = {"train": "train", "dev": "validation"}.get(name, f"validation_{name}")
        where = f"Hub {HUB} '{task.name}', split {key}"
        if key not in loaded:
            raise ValueError(f"{where} is missing, received {', '.join(loaded)}: update the cache")
        rows = loaded[key]
        absent = [column for column in (*task.columns, "label") if column not in rows.column_names]
        if absent:
            raise ValueError(
                f"{where}: received the columns {', '.join(rows.column_names)}; expected "
                f"{', '.join(absent)} too"
            )
        named = getattr(rows.features["label"], "names", None)
        if task.labels is not None and named is not None and tuple(named) != task.labels:
            raise ValueError(f"{where}: received the labels {named}, expected {task.labels}")
        if len(rows) == 0:
            raise ValueError(f"{where}: received no rows, expected at least one")
        texts = [list(rows[column]) for column in task.columns]
        labels = [_hub_label(task, label, f"{where}, row {row}")
                  for row, label in enumerate(rows["label"])]  # fmt: skip
        splits[name] = Split(texts[0], texts[1] if task.is_pair else None, labels)
    return splits


def _hub_label(task: Task, label: Any, where: str) -> int | float:
    if task.labels is None:  # stored as float32: 3.799999952 is the 3.8 of GLUE's file
        return _sts_score(round(float(label), 6), where)
    if label not in range(task.num_labels):
        raise ValueError(f"{where}: received the label {label}, expected 0 … {task.num_labels - 1}")
    return int(label)


def unlabelled(source: str | os.PathLike[str]) -> list[str]:
    """The texts of a .txt file, or of all .txt files below a folder: one a line, blanks left out.

    Raises `FileNotFoundError` where there is no such file, `ValueError` where there is no text.

    >>> import tempfile
    >>> from xtclib.files import write_text
    >>> unlabelled(write_text(tempfile.mkdtemp() + "/a.txt", "One line.\\n\\nAnother.\\n"))
    ['One line.', 'Another.']
    """
    source = Path(source)
    if source.is_dir():
        files = sorted(file for file in source.rglob("*.txt") if file.is_file())
        if not files:
            raise FileNotFoundError(
                f"received the folder '{source}', expected .txt files in it: "
                "put plain text there, one passage a line"
            )
    elif not source.is_file():
        raise FileNotFoundError(
            f"received '{source}', which does not exist; expected a .txt file or a folder of them"
        )
    elif source.suffix != ".txt":
        raise ValueError(f"received '{source.name}', expected a .txt file: save it as plain text")
    else:
        files = [source]
    texts = []
    for file in files:
        try:
            lines = file.read_bytes().decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"'{file.name}' is not UTF-8 at offset {error.start}: save it as UTF-8"
            ) from None
        texts += [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ValueError(f"received '{source}', which holds only blank lines; expected text")
    return texts


# Scoring


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
