"""What others printed: the tables and figures in ``data/published``, one number a row.

The data dictionary, with known slips and inconsistencies, is the README of that folder.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping

from xtclib.cache import ROOT
from xtclib.files import unknown

FOLDER = ROOT / "data" / "published"
Row = dict[str, int | float | str | None]


def names() -> list[str]:
    """The tables there are, sorted.

    Raises ``FileNotFoundError`` where the package was installed without the folder.

    >>> names()[:3]
    ['deformer_latency', 'deformer_squad', 'deformer_tasks']
    """
    found = sorted(path.stem for path in FOLDER.glob("*.csv"))
    if not found:
        raise FileNotFoundError(
            f"no table in '{FOLDER}': the published numbers come with a clone of the project, "
            "not with the package; run from a clone"
        )
    return found


def table(name: str) -> list[Row]:
    """The rows of a table, with numbers as ``int`` or ``float`` and empty cells as ``None``.

    Raises ``ValueError`` for a name that is none of ``names()``, and ``FileNotFoundError`` as
    that does.

    >>> row = table("mobilebert")[0]
    >>> row["task"], row["value"], row["unit"], row["split"]
    ('CoLA', 8.5, 'thousands', None)
    """
    known = names()
    if name not in known:
        raise unknown("published table", name, known)
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [{key: _cell(text) for key, text in row.items()} for row in csv.DictReader(file)]


def select(rows: Iterable[Mapping], **columns: object) -> list[Mapping]:
    """The rows in which every named column equals its value.

    Raises ``ValueError`` for a column that a row lacks.

    >>> [row["value"] for row in select(table("xtc"), layers=6, weight_bits=1, task="MNLI")]
    [80.7, 81.8]
    """
    rows = list(rows)
    for row in rows:
        for column in columns.keys() - row.keys():
            raise unknown("column", column, row)
    return [row for row in rows if all(row[key] == value for key, value in columns.items())]


def _cell(text: str) -> int | float | str | None:
    if re.fullmatch(r"-?\d+(\.\d+)?", text):
        return float(text) if "." in text else int(text)
    return text or None
