"""Your own texts, or pairs of them, with one class, several, or a number for each.

:func:`own` makes a task of a file. Its classes are those of the file, by name, in order; what is
not told is chosen by what the columns hold, and said in the ``source`` of its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xtclib.config import short
from xtclib.files import cut, unknown
from xtclib.tasks.base import Task, TaskData, file_name, own_name
from xtclib.tasks.classification import Classification, MultiLabel, Regression
from xtclib.tasks.labels import columns_of, kind_of, names_of, read, split
from xtclib.tasks.metrics import METRICS
from xtclib.tasks.rows import Split
from xtclib.tasks.tables import read_parts

DEV, DEV_ROWS = 0.1, 2000  # what is cut off to score on


@dataclass(frozen=True)
class Own(Task):
    """What tasks made of a file have in common: their rows, read once, and what was chosen.

    ``about``: what :func:`own` takes to read another file in the same way.
    """

    source: str = ""
    parts: dict[str, Split] = field(default_factory=dict, repr=False, compare=False)
    about: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    said: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()

    @property
    def details(self) -> dict[str, Any]:
        return {"own": self.about}

    def load(self, source: str = "", limit: int | None = None) -> TaskData:
        """The rows, at most ``limit`` of each part; with no part to score on, a tenth is cut off.

        Of a ``dev`` and a ``test`` part the test is what is scored, and the other is held out.
        """
        parts = dict(self.parts)
        if len(parts) > 1:
            return self._data(parts, "the dev or test part is scored", limit)
        kept, note = self.cut_off(parts["train"])
        return self._data(kept, note, limit)

    def cut_off(self, rows: Split) -> tuple[dict[str, Split], str]:
        """Rows as ``train`` and ``dev``, and how they were parted."""
        stratified = isinstance(self, Classification)
        note = f"the dev rows are a tenth{' of each class' * stratified}, cut off by seed 0"
        return _cut_off(rows, stratified), note

    def whole(self, data: TaskData) -> TaskData:
        """All of a file to be scored, for a model that never saw it; or the part that is for it."""
        if len(self.parts) > 1:
            return data
        return self._data({"test": self.parts["train"]}, "all of them scored")

    def score(self, answers: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """The metrics in percent, and the primary one as "score"."""
        found = super().score(answers, references)  # type: ignore[safe-super]
        return {**found, "score": found[self.primary]}

    def _data(self, parts: dict[str, Split], note: str, limit: int | None = None) -> TaskData:
        kept = {name: _sample(rows, limit) for name, rows in parts.items()}
        counts = ", ".join(f"{len(rows)} {name}" for name, rows in kept.items())
        train = kept.pop("train", Split([], None, []))
        held_out = kept.pop("dev") if len(kept) > 1 else None
        where = [*self.said, f"{counts} rows, {note}", f"scored by {', '.join(self.metrics)}"]
        source = f"{file_name(self.source)}: {'; '.join(where)}"
        return TaskData(self, train, kept, source, f"{self.title} {next(iter(kept))}", held_out)


@dataclass(frozen=True)
class OwnClasses(Own, Classification):
    """One class a row."""


@dataclass(frozen=True)
class OwnLabels(Own, MultiLabel):
    """Any number of classes a row."""


@dataclass(frozen=True)
class OwnNumber(Own, Regression):
    """A number a row."""


KINDS: dict[str, Any] = {"classes": OwnClasses, "labels": OwnLabels, "number": OwnNumber}


def own(
    source: str | Path, text: str | None = None, text_pair: str | None = None,
    label: str | None = None, kind: str | None = None, labels: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
) -> Own:  # fmt: skip
    """A task of your own rows: a CSV, TSV or JSON lines file, a folder, or a Hub dataset.

    ``text``, ``text_pair`` and ``label`` are columns; the first and last are found if they bear a
    usual name (``TEXTS``, ``LABELS``) or if one column is left. ``kind``: ``classes``, one a row;
    ``labels``, any number, as a JSON list or between ``;`` or ``|``; ``number``; by default what
    the column holds: words or up to 20 whole numbers are classes. ``labels``: the classes in the
    order of a model's outputs, where one is there already. Metrics are accuracy, with F1 (of the
    second class) for two classes, and Matthews, then the primary one, where one class has over 80 %
    of the rows; micro-F1, macro-F1 and exact match for several; Pearson and Spearman for numbers.
    See :func:`.tables.read_parts` for what may be read.

    Raises ``FileNotFoundError`` for what is not there and ``ValueError``, with file and line, for
    what no task can be made of.
    """
    tables = read_parts(source)
    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    columns = columns_of(tables["train"], text, text_pair, label)
    rows = {part: read(table, *columns) for part, table in tables.items()}
    kind = kind or kind_of(rows["train"])
    if kind != "labels":
        rows = {part: found.without_blank_labels() for part, found in rows.items()}
    names, chosen = names_of(rows["train"], kind, labels)
    parts = {part: split(found, kind, names, bool(labels)) for part, found in rows.items()}
    metrics = tuple(metrics or chosen)
    if wrong := [name for name in metrics if name not in METRICS]:
        raise unknown("metric", wrong[0], METRICS)
    if len(parts["train"]) < 2 and not labels:
        raise ValueError(f"{file_name(source)} has one row, expected two at least")
    about = {"text": columns[0], "text_pair": columns[1], "label": columns[2], "kind": kind,
             "metrics": list(metrics)}  # fmt: skip
    said = ["texts in " + " and ".join(f"'{name}'" for name in columns[:2] if name)]
    if kind == "number":
        said.append(f"a number in '{columns[2]}'")
    else:
        several = "any number a row: " if kind == "labels" else ""
        listed = cut(", ".join(names), 80)
        said.append(f"{len(names)} classes in '{columns[2]}' ({several}{listed})")
    said += [note for found in rows.values() for note in found.notes]
    said += [f"f1 is that of {short(names[1])}"] if "f1" in metrics else []
    name = own_name(source)
    primary = "matthews" if "matthews" in metrics else metrics[0]
    return KINDS[kind](name=name, title=name, labels=names, metrics=metrics, primary=primary,
                       source=str(source), parts=parts, about=about, said=tuple(said))  # fmt: skip


def _cut_off(rows: Split, stratified: bool) -> dict[str, Split]:
    """A tenth of the rows, up to 2,000, as ``dev``: of each class with two rows at least one."""
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    total = min(round(DEV * len(rows)), DEV_ROWS)
    groups: dict[Any, list[int]] = {}
    for i in order:
        groups.setdefault(rows.labels[i] if stratified else 0, []).append(i)
    dev = set[int]()
    for group in groups.values():
        count = max(round(total * len(group) / len(rows)), 1 if stratified else 2)
        dev.update(group[: min(count, len(group) - 1)])
    every = range(len(rows))
    return {"train": rows.select(i for i in every if i not in dev),
            "dev": rows.select(i for i in every if i in dev)}  # fmt: skip


def _sample(rows: Split, limit: int | None) -> Split:
    """Some of the rows, in their order: files are often sorted by class."""
    if limit is None or len(rows) <= limit:
        return rows
    order: list[int] = np.random.default_rng(0).permutation(len(rows))[:limit].tolist()
    return rows.select(sorted(order))
