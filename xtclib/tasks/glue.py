"""The eight GLUE tasks: what they are, where their rows come from, and their common score.

`load` reads a task from GLUE's own folder layout or from the Hub; `glue_score` is the average over
the tasks.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtclib.config import short
from xtclib.files import unknown
from xtclib.tasks.base import Task, TaskData, find_task, register
from xtclib.tasks.classification import Classification, Regression
from xtclib.tasks.rows import Split

_HALVES = ("mnli-matched", "mnli-mismatched")
HUB = "nyu-mll/glue"
MRPC_TEST_ROWS = 1725  # the original corpus's labelled test set; GLUE's own dev split has 408
WHERE = "name GLUE's folder by --glue-dir or the environment variable XTC_GLUE_DIR"


@dataclass(frozen=True)
class Files:
    """Where a task's texts and label are: in the Hub's columns and in those of GLUE's files."""

    columns: tuple[str, ...]
    file_columns: tuple[str, ...]  # the same texts, then the label
    file_labels: tuple[str, ...] | None = None  # the labels as the files write them; None: numbers
    header: tuple[str, ...] | None = None  # the columns of a file without a header line
    evaluations: tuple[str, ...] = ("dev",)

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts."""
        return len(self.columns) == 2


class _Glue(Task):
    """What GLUE's tasks have in common: where their rows are."""

    def load(self, source: str | os.PathLike[str], limit: int | None = None) -> TaskData:
        """:func:`load` of this task."""
        return load(self, source, limit)


class GlueClassification(_Glue, Classification):
    """A GLUE task whose labels are classes."""


class GlueRegression(_Glue, Regression):
    """A GLUE task whose labels are numbers."""


_YES_NO = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_ACCEPTABLE = ("unacceptable", "acceptable")
_BITS = ("0", "1")
_PAIR = ("sentence1", "sentence2")
_BOTH = ("accuracy", "f1")
_DUPLICATE = ("not_duplicate", "duplicate")

# `primary` is the metric that TernaryBERT's code picks checkpoints by.
TASKS: dict[str, Task] = {
    task.name: register(task)
    for task in (
        GlueClassification("cola", "CoLA", _ACCEPTABLE, ("matthews",), "matthews"),
        GlueClassification("sst2", "SST-2", ("negative", "positive")),
        GlueClassification("mrpc", "MRPC", ("not_equivalent", "equivalent"), _BOTH),
        GlueRegression("stsb", "STS-B"),
        GlueClassification("qqp", "QQP", _DUPLICATE, _BOTH),
        GlueClassification("mnli", "MNLI", _NLI),
        GlueClassification("qnli", "QNLI", _YES_NO),
        GlueClassification("rte", "RTE", _YES_NO),
    )
}
FILES = {
    "cola": Files(("sentence",), ("sentence", "label"), _BITS,
                  header=("source", "label", "original_mark", "sentence")),
    "sst2": Files(("sentence",), ("sentence", "label"), _BITS),
    "mrpc": Files(_PAIR, ("#1 String", "#2 String", "Quality"), _BITS),
    "stsb": Files(_PAIR, (*_PAIR, "score")),
    "qqp": Files(("question1", "question2"), ("question1", "question2", "is_duplicate"), _BITS),
    "mnli": Files(("premise", "hypothesis"), (*_PAIR, "gold_label"), _NLI,
                  evaluations=("matched", "mismatched")),
    "qnli": Files(("question", "sentence"), ("question", "sentence", "label"), _YES_NO),
    "rte": Files(_PAIR, (*_PAIR, "label"), _YES_NO),
}  # fmt: skip


def load(task: str | Task, source: str | os.PathLike[str], limit: int | None = None) -> TaskData:
    """Read a task from a folder in GLUE's layout, or from the Hub where `source` is "hub".

    `limit` keeps the first rows of train and of each evaluation split. A row with too few or too
    many columns is an error; where there are up to one in a thousand, as in copies of QQP, they are
    left out, which the `source` sentence says. Raises `FileNotFoundError` for a missing folder or
    file and `ValueError`, with file and line, for content that is not as GLUE writes it.

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
    notes = list[str]()
    if source == "hub":
        where, splits = f"Hub {HUB}", _from_hub(task)
    elif not (source := Path(source).expanduser()).is_dir():
        raise FileNotFoundError(
            f"received '{source}' as GLUE's folder, which is not a folder: {WHERE}, or use \"hub\""
        )
    else:
        where = f"GLUE folder {Path(source).resolve().name}"
        splits = _from_folder(task, Path(source), notes)
    kept = {name: split.select(range(len(split))[:limit]) for name, split in splits.items()}
    counts = [
        f"{len(kept[name])}{'' if len(kept[name]) == len(split) else f' of {len(split)}'} {name}"
        for name, split in splits.items()
    ]
    sentence = ", ".join([f"{where}: {task.title}", f"{', '.join(counts)} rows", *notes])
    train = kept.pop("train")
    return TaskData(task, train, kept, sentence, f"{task.title} {' and '.join(kept)}")


def _from_folder(task: Task, folder: Path, notes: list[str]) -> dict[str, Split]:
    """The splits; what a reader has to know of their files is added to ``notes``."""
    splits, broken = {}, 0
    for name in ("train", *FILES[task.name].evaluations):
        file = f"{name if name in ('train', 'dev') else f'dev_{name}'}.tsv"
        path = folder / task.title / file
        if not path.is_file():
            raise FileNotFoundError(
                f"'{task.title}/{file}' is missing in '{folder}': put GLUE's file there, or {WHERE}"
            )
        split, skipped, whole = _read_tsv(task, path)
        quoted = sum(len(text) > 1 and text[0] == text[-1] == '"' for text in split.first)
        if quoted > 0.9 * len(split):
            notes.append(f"{file} has its texts in quotes, which are read as they stand")
        if not whole:
            notes.append(f"the last line of {file} has no end: it may be cut")
        if task.name == "mrpc" and name == "dev" and len(split) == MRPC_TEST_ROWS:
            name = "test"
        splits[name] = split
        broken += skipped
    notes[:0] = [f"{broken} broken rows skipped"] if broken else []
    return splits


def _read_tsv(task: Task, path: Path) -> tuple[Split, int, bool]:
    """Rows of a tab-separated file without quoting, how many broken ones were left out, its end."""
    file, files = f"{task.title}/{path.name}", FILES[task.name]
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: received byte {error.object[error.start]:#04x} at offset {error.start}, "
            "expected UTF-8: save the file as UTF-8"
        ) from None
    if "\r" in text.partition("\n")[0].removesuffix("\r"):
        raise ValueError(f"{file}: ends its lines by carriage returns alone: save it with \\n")
    # Only \n ends a row: str.splitlines would also cut at the \x85 or \u2028 inside a sentence.
    lines = [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")]
    header, first_line = files.header, 1
    if header is None:
        header, first_line = tuple(lines.pop(0).split("\t")), 2
    cure = ": keep GLUE's header line, with tabs between the columns"
    _check_columns(f"{file}, line 1", header, files.file_columns, cure)
    *texts, label = (header.index(column) for column in files.file_columns)
    rows, broken = [], []
    for number, line in enumerate(lines if lines != [""] else [], first_line):
        cells = line.split("\t")
        if len(cells) == len(header):
            value = _file_label(task, cells[label], f"{file}, line {number}")
            rows.append((*(cells[column] for column in texts), value))
        else:
            broken.append((number, len(cells)))
    if len(broken) > len(rows) / 1000:
        number, count = broken[0]
        raise ValueError(
            f"{file}, line {number}: received {count} columns, expected {len(header)} "
            f"({', '.join(header)}), in {len(broken)} of {len(rows) + len(broken)} rows: mend or "
            "remove them, or fetch the file again"
        )
    if not rows:
        raise ValueError(f"{file}: received no rows, expected at least one: fetch it again")
    columns = [list(column) for column in zip(*rows, strict=True)]
    split = Split(columns[0], columns[1] if files.is_pair else None, columns[-1])
    return split, len(broken), text.endswith("\n")


def _check_columns(where: str, found: Sequence[str], wanted: Sequence[str], cure: str = "") -> None:
    absent = ", ".join(column for column in wanted if column not in found)
    if absent:
        received = f"received the columns {', '.join(column[:40] for column in found[:8])}"
        raise ValueError(f"{where}: {received}; expected {absent} too{cure}")


def _file_label(task: Task, cell: str, where: str) -> int | float:
    known = FILES[task.name].file_labels
    if known is None:
        return _sts_score(cell, where)
    if cell not in known:
        raise ValueError(
            f"{where}: received the label {short(cell)}, expected {' or '.join(known)}"
        )
    return known.index(cell)


def _sts_score(given: float | str, where: str) -> float:
    # As files write it: `float` takes 0_3, infinity and other alphabets' digits too.
    written = not isinstance(given, str) or re.fullmatch(r"[0-9]+(\.[0-9]*)?", given)
    if written and 0 <= (value := float(given)) <= 5:  # NaN fails too
        return value
    raise ValueError(f"{where}: received the score {short(given)}, expected a number from 0 to 5")


def _from_hub(task: Task) -> dict[str, Split]:
    try:
        import datasets
    except ImportError:
        raise ImportError(f'"hub" needs datasets: pip install datasets, or {WHERE}') from None
    try:
        loaded = datasets.load_dataset(HUB, task.name)
    except (OSError, ValueError) as error:  # offline, not found, nothing cached
        raise ConnectionError(
            f"{HUB} '{task.name}' did not load from the Hub ({type(error).__name__}: {error}): "
            f"check the connection, or {WHERE}"
        ) from error
    splits, files = {}, FILES[task.name]
    for name in ("train", *files.evaluations):
        key = {"train": "train", "dev": "validation"}.get(name, f"validation_{name}")
        where = f"Hub {HUB} '{task.name}', split {key}"
        if key not in loaded:
            raise ValueError(f"{where} is missing, received {', '.join(loaded)}: update the cache")
        rows = loaded[key]
        _check_columns(where, rows.column_names, (*files.columns, "label"))
        named = getattr(rows.features["label"], "names", None)
        if named is not None and tuple(named) != task.labels:
            raise ValueError(f"{where}: received the labels {named}, expected {task.labels}")
        if len(rows) == 0:
            raise ValueError(f"{where}: received no rows, expected at least one")
        texts = [list(rows[column]) for column in files.columns]
        labels = [_hub_label(task, label, f"{where}, row {row}")
                  for row, label in enumerate(rows["label"])]  # fmt: skip
        splits[name] = Split(texts[0], texts[1] if files.is_pair else None, labels)
    return splits


def _hub_label(task: Task, label: Any, where: str) -> int | float:
    # A score is stored as float32: 3.799999952 is the 3.8 of GLUE's file.
    if FILES[task.name].file_labels is None:
        return _sts_score(round(float(label), 6), where)
    if label not in range(task.num_labels):
        raise ValueError(f"{where}: received the label {label}, expected 0 … {task.num_labels - 1}")
    return int(label)


def glue_score(scores: Mapping[str, float | Mapping[str, float]], weights: str = "glue", *,
               partial: bool = False) -> float:  # fmt: skip
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
    found: dict[str, dict[str, float]] = {}  # a task's columns: two where MNLI comes in halves
    for key, value in scores.items():
        name = key if key in _HALVES else find_task(key).name
        value = value["score"] if isinstance(value, Mapping) else value
        if not math.isfinite(value):
            raise ValueError(f"received {value} for '{key}', expected a finite score in percent")
        task = "mnli" if key in _HALVES else name
        columns = found.setdefault(task, {})
        if columns.keys() & {name, task} or columns and name == task:
            raise ValueError(f"received '{task}' twice, expected one score a task or a column")
        columns[name] = float(value)
    absent = [name for name in TASKS if name not in found]
    if "mnli" in found and "mnli" not in found["mnli"]:
        absent += [half for half in _HALVES if half not in found["mnli"]]
    if not found or absent and not partial:
        raise ValueError(
            f"received no score for {', '.join(absent)}, expected all {len(TASKS)} tasks: "
            "add them, or pass partial=True for the mean over those given"
        )
    weight = {name: 2 if weights == "columns" and name == "mnli" else 1 for name in found}
    means = {name: sum(columns.values()) / len(columns) for name, columns in found.items()}
    return sum(weight[name] * means[name] for name in found) / sum(weight.values())
