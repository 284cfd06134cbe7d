"""The eight GLUE tasks: what they are and where their rows come from.

A `Task` says what a task is, a `Split` holds rows, `load` reads both from GLUE's own folder
layout or from the Hub. How predictions are scored: `xtclib.metrics`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtclib.files import unknown

__all__ = [
    "TASKS",
    "Split",
    "Task",
    "TaskData",
    "find_task",
    "load",
    "unlabelled",
]

HUB = "nyu-mll/glue"
MRPC_TEST_ROWS = 1725  # the original corpus's labelled test set; GLUE's own dev split has 408
WHERE = "name GLUE's folder by --glue-dir or the environment variable XTC_GLUE_DIR"


@dataclass(frozen=True)
class Task:
    """One task: its text columns, its labels in the Hub's order (None: a number) and metrics.

    `primary` is the one metric to quote where only one fits, the one TernaryBERT's code picks
    checkpoints by. Splits to evaluate on are named by `evaluations`.

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
