"""What a table's columns hold: texts, and labels that are classes, several of them, or numbers.

What is wrong with a row is a ``ValueError`` that names the file and its line.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xtclib.config import short
from xtclib.files import cut
from xtclib.tasks.classification import MultiLabel, Regression
from xtclib.tasks.rows import Split
from xtclib.tasks.tables import Table

TEXTS, LABELS = ("text", "sentence", "sentence1"), ("label", "labels", "class", "target", "score")
FEW, MOST = 20, 1000  # distinct whole numbers that are classes; classes, at most
LARGEST = 20.0  # what a model's one output learns to say in the few hundred steps of a teacher
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Labelled:
    """Rows with a text, their labels as they stand; ``rows``: where they are in the table."""

    table: Table
    column: str  # of the labels
    rows: list[int]
    first: list[str]
    second: list[str] | None
    labels: list[Any]
    notes: tuple[str, ...] = ()

    def at(self, row: int) -> str:
        return self.table.at(self.rows[row])

    def without(self, blank: list[int], what: str) -> Labelled:
        """What is left without some rows, up to one in a hundred; ``ValueError`` for more."""
        if not blank:
            return self
        found = f"{len(blank)} of {len(self.rows)} rows have no {what}"
        if len(blank) > len(self.rows) / 100:
            raise ValueError(
                f"{self.at(blank[0])}: {found}, this is the first: fill or remove them"
            )
        gone = set(blank)

        def kept(column: list[Any]) -> list[Any]:
            return [value for i, value in enumerate(column) if i not in gone]

        second = None if self.second is None else kept(self.second)
        notes = (*self.notes, f"{found} ({self.at(blank[0])}, …), left out")
        return Labelled(self.table, self.column, kept(self.rows), kept(self.first), second,
                        kept(self.labels), notes)  # fmt: skip

    def without_blank_labels(self) -> Labelled:
        return self.without([i for i, v in enumerate(self.labels) if _blank(v)], "label")


def columns_of(
    table: Table, text: str | None, pair: str | None, label: str | None
) -> tuple[str, str | None, str]:
    """The columns of texts, second texts and labels: those told, those so called, the one left."""
    names = [name for name in table.columns if name]
    for told in (text, pair, label):
        if told is not None:
            table.column(told)
    label = label or next((name for name in LABELS if name in names and name != text), None)
    if label is None:
        raise ValueError(f"{table.name} has no column called {', '.join(LABELS)}: name one of its "
                         f"columns ({cut(', '.join(names))}) as the label")  # fmt: skip
    if text is None:
        left = [name for name in names if name not in (label, pair)]
        usual = [name for name in TEXTS if name in left]
        if not usual and len(left) != 1:
            raise ValueError(f"{table.name} has no column called {', '.join(TEXTS)}: name one of "
                             f"its columns ({cut(', '.join(names))}) as the text")  # fmt: skip
        text = (usual or left)[0]
        if pair is None and text == "sentence1" and "sentence2" in left:
            pair = "sentence2"
    if len({text, pair, label}) < 3:
        twice = label if label in (text, pair) else text
        raise ValueError(f"{table.name}: column '{twice}' cannot be two of text, second text and "
                         "label: name another one")  # fmt: skip
    return text, pair, label


def read(table: Table, text: str, pair: str | None, label: str) -> Labelled:
    """The rows of a table that have a text; ``ValueError`` for cells that are none."""
    texts = [table.column(name) for name in (text, pair) if name]
    for name, column in zip((text, pair), texts, strict=False):
        for row, value in enumerate(column):
            if not isinstance(value, str | None):
                received = f"received {short(value)} in column '{name}'"
                raise ValueError(f"{table.at(row)}: {received}, expected a text")
    for row, value in enumerate(table.column(label)):
        if any(
            isinstance(one, dict | list) for one in (value if isinstance(value, list) else [value])
        ):
            received = f"received {short(value)} in column '{label}'"
            raise ValueError(f"{table.at(row)}: {received}, expected a word, a number or a list")
    second = texts[1] if pair else None
    rows = list(range(len(table.lines)))
    found = Labelled(table, label, rows, texts[0], second, table.column(label))
    return found.without([i for i in rows if any(_blank(each[i]) for each in texts)], "text")


def _blank(value: Any) -> bool:
    return value is None or isinstance(value, str) and not value.strip()


def _number(value: Any) -> float | None:
    """A cell as a number; ``None`` for a word."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else math.inf  # an int may be past all floats


def _called(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _several(value: Any) -> list[str]:
    """The classes of a cell: a JSON list, or what ``;`` or ``|`` stands between."""
    if not isinstance(value, list):
        value = [] if value is None else re.split(r"[;|]", _called(value))
    return [_called(one) for one in value if not _blank(one)]


def kind_of(rows: Labelled) -> str:
    """What a column of labels holds; ``ValueError`` where it holds several things."""
    there = [i for i, value in enumerate(rows.labels) if not _blank(value)]
    listed = [i for i in there if isinstance(rows.labels[i], list)]
    if listed and len(listed) == len(there):
        return "labels"
    lists = set(listed)
    numbers = {i: _number(rows.labels[i]) for i in there if i not in lists}
    words = [i for i, number in numbers.items() if number is None]
    for odd in (listed, words):
        if odd and len(odd) < len(there):
            other = min(set(there) - set(odd))
            kinds = "a list" if odd is listed else "a word", "a number" if odd is words else "not"
            raise ValueError(
                f"{rows.at(odd[0])}: the label {short(rows.labels[odd[0]])} is {kinds[0]}, but "
                f"{short(rows.labels[other])} ({rows.at(other)}) is {kinds[1]}: mend one, or say "
                "which kind it is (--kind classes, labels or number)"
            )
    if not words:
        distinct = set(numbers.values())
        whole = all(number.is_integer() for number in distinct if number is not None)
        return "classes" if whole and len(distinct) <= FEW else "number"
    known = {_called(rows.labels[i]) for i in words}
    for i in words:
        parts = _several(rows.labels[i])
        if len(parts) > 1 and known.intersection(parts):
            raise ValueError(f"{rows.at(i)}: the label {short(rows.labels[i])} looks like several: "
                             "say --kind labels, or --kind classes if it is one name")  # fmt: skip
    return "classes"


def _class_names(rows: Labelled, labels: Sequence[str] | None):
    for i, value in enumerate(rows.labels):
        if isinstance(value, list):
            raise ValueError(f"{rows.at(i)}: received the labels {short(value)}, expected one "
                             "class a row: say --kind labels")  # fmt: skip
    counts = Counter(_called(value) for value in rows.labels)
    names = tuple(labels or _checked_names(rows, counts))
    metrics = ["accuracy", *(["f1"] if len(names) == 2 else [])]
    most = max(counts.values(), default=0)
    return names, metrics + (["matthews"] if most > 0.8 * len(rows.labels) else [])


def _label_names(rows: Labelled, labels: Sequence[str] | None):
    counts = Counter(name for value in rows.labels for name in set(_several(value)))
    return tuple(labels or _checked_names(rows, counts, 1)), MultiLabel.metrics


def _number_name(rows: Labelled, labels: Sequence[str] | None):
    found = {_number(value) for value in rows.labels}
    if len(found) < 2 and None not in found and not labels:
        raise ValueError(f"{rows.table.name}: '{rows.column}' holds one number in all rows")
    return (rows.column,), Regression.metrics


def names_of(rows: Labelled, kind: str, labels: Sequence[str] | None
             ) -> tuple[tuple[str, ...], Sequence[str]]:  # fmt: skip
    """The names of the outputs, as told by ``labels`` or by the rows, and the metrics for them."""
    by = {"classes": _class_names, "labels": _label_names, "number": _number_name}
    return by[kind](rows, labels)


def _checked_names(rows: Labelled, counts: Counter[str], share: float = 0.5) -> list[str]:
    """The classes in order: numbers by size, else words by letters."""
    where, asked = f"{rows.table.name}: column '{rows.column}'", "is it the column of labels?"
    if len(counts) < 2:
        only = f"one class, {short(next(iter(counts)))}" if counts else "no class"
        raise ValueError(f"{where} holds {only}, expected two or more: {asked}")
    longest = max(counts, key=len)
    if len(counts) > min(MOST, share * len(rows.labels)) and (share < 1 or len(counts) > MOST):
        raise ValueError(f"{where} holds {len(counts):,} classes in {len(rows.labels):,} rows, "
                         f"such as {short(longest)}: {asked}")  # fmt: skip
    if len(longest) > 200:
        raise ValueError(
            f"{where} holds the class {short(longest)} of {len(longest):,} letters: {asked}"
        )
    numbers = {name: _number(name) for name in counts}
    if all(number is not None for number in numbers.values()):
        return sorted(counts, key=lambda name: (numbers[name], name))
    return sorted(counts)


def split(rows: Labelled, kind: str, names: Sequence[str], told: bool) -> Split:
    """Rows with ids, lists of 0 and 1 or numbers for labels."""
    ids, who = {name: i for i, name in enumerate(names)}, "the model" if told else "training"
    labels: list[Any] = []
    for i, value in enumerate(rows.labels):
        if kind == "number":
            number = _number(value)
            if number is None or not abs(number) <= LARGEST:
                raise ValueError(f"{rows.at(i)}: received the label {short(value)}, expected a "
                                 f"number from {-LARGEST:g} to {LARGEST:g}: divide larger ones, or "
                                 f"name another column than '{rows.column}'")  # fmt: skip
            labels.append(number)
            continue
        found = [_called(value)] if kind == "classes" else _several(value)
        for name in found:
            if name not in ids:
                raise ValueError(f"{rows.at(i)}: received the class {short(name)}, which {who} "
                                 f"lacks ({cut(', '.join(names), 80)}): remove the row, or give "
                                 "training rows of it")  # fmt: skip
        labels.append(ids[found[0]] if kind == "classes" else [int(n in found) for n in names])
    return Split(rows.first, rows.second, labels)
