"""Tables that people have: CSV, TSV, JSON lines and CoNLL, folders of them, datasets.

Everything is read as text or Arrow; nothing that a file holds is executed. What is wrong with a
file is a ``ValueError`` that names it and the line.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtclib.files import cut, first_line, unknown

PARTS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "test": "test"}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".conll")
# How Arrow's columns of text, numbers and class names are called; pictures and sounds stay closed.
_READ = {"Value", "ClassLabel", "List", "LargeList", "Sequence"}
_LONGEST = 10**8  # letters of a cell; the module csv stops at 131,072


@dataclass(frozen=True)
class Table:
    """Rows as columns of equal length; ``lines`` says where in the file ``name`` each begins."""

    name: str
    columns: dict[str, list]
    lines: list[int]
    unit: str = "line"

    def at(self, row: int) -> str:
        """Where a row is, for errors: ``tickets.csv, line 7``."""
        return f"{self.name}, {self.unit} {self.lines[row]}"

    def column(self, name: str) -> list:
        """A column's values; ``ValueError`` with the nearest name for an unknown one."""
        if name not in self.columns:
            raise unknown(f"column of {self.name}", name, self.columns)
        return self.columns[name]


def read_parts(source: str | Path) -> dict[str, Table]:
    """The tables ``train`` and, where there are such, ``dev`` and ``test``.

    ``source``: a file; a folder that holds ``train.csv`` (or ``.tsv``, ``.jsonl``), perhaps beside
    ``dev``, ``validation`` or ``test``; what ``datasets`` saved by ``save_to_disk``; or a Hub id,
    ``owner/name`` or ``owner/name:config``. Raises ``FileNotFoundError`` where nothing is there,
    ``ValueError`` for what cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return {"train": read_table(path)}
    if path.is_dir() and not is_saved(path):
        return _folder(path)
    return _of_datasets(path.name if path.is_dir() else str(source), dataset(source))


def is_saved(path: Path) -> bool:
    """Whether a folder is what ``datasets`` wrote by ``save_to_disk``."""
    return any((path / f"dataset_{kind}.json").is_file() for kind in ("dict", "info"))


def dataset(source: str | Path) -> Any:
    """A folder that ``datasets`` wrote, or a Hub id, as that library opens it; errors as above."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _saved(path)
    hub = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)(?::([\w.-]+))?", str(source))
    if not hub or path.suffix in SUFFIXES:
        raise FileNotFoundError(f"no file or folder at '{cut(str(source))}'")
    return _from_hub(str(source), hub[1], hub[2])


def read_table(path: Path) -> Table:
    """One file as a table; ``ValueError`` for one that is none or has no rows."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path.name} is no file of rows that is read here: expected {', '.join(SUFFIXES)}; "
            "plain texts are of --kind vectors"
        )
    readers = {".csv": _separated, ".tsv": _separated, ".conll": _conll}
    table = readers.get(path.suffix.lower(), _json_lines)(path, _text(path))
    if not table.lines:
        raise ValueError(f"{path.name} has no rows: expected names of columns, and rows below them")
    return table


def _text(path: Path) -> io.StringIO:
    """A file's lines, which end by ``\\n``, ``\\r\\n`` or ``\\r``; UTF-8, or UTF-16 by its mark.

    Spreadsheets write both; UTF-16 without a mark cannot be told from damage.
    """
    data = path.read_bytes()
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise ValueError(
            f"{path.name}, line {line}: received byte {byte:#04x}, which is no UTF-8: save the "
            "file as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path.name}, line {line}: holds zero bytes: save the file as UTF-8")
    return io.StringIO(text, newline="")


def _separated(path: Path, lines: io.StringIO) -> Table:
    """Cells between commas, semicolons or tabs, whichever the line of names has most of.

    Between tabs a quote is a letter, but around a whole cell.
    """
    head = lines.readline()
    lines.seek(0)
    mark = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    bare: Any = {"quoting": csv.QUOTE_NONE} if mark == "\t" else {}
    reader = csv.reader(lines, delimiter=mark, strict=True, **bare)
    rows, begins, start = list[list[str]](), list[int](), 1
    before = csv.field_size_limit(_LONGEST)
    try:
        for cells in reader:
            if cells:
                rows.append([_unquoted(cell) for cell in cells] if mark == "\t" else cells)
                begins.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        cure = 'put a cell that holds a quote in quotes, and write the quote twice ("")'
        raise ValueError(f"{path.name}, line {start}: ragged quotes ({error}): {cure}") from None
    finally:
        csv.field_size_limit(before)
    names = [name.strip() for name in rows[0]] if rows else []
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path.name}, line 1: two columns are called {cut(repr(twice[0]))}")
    table = Table(path.name, {}, begins[1:])
    for i, cells in enumerate(rows[1:]):
        if len(cells) != len(names):
            raise ValueError(
                f"{table.at(i)}: received {len(cells)} columns, expected {len(names)} "
                f"({cut(', '.join(names))}): put a text that holds {mark!r} in quotes"
            )
    table.columns.update((name, [row[i] for row in rows[1:]]) for i, name in enumerate(names))
    return table


def _unquoted(cell: str) -> str:
    """A cell without the quotes that a spreadsheet put around it; those inside are double."""
    inner = cell[1:-1]
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else cell


def _json_lines(path: Path, lines: io.StringIO) -> Table:
    rows, begins = list[dict](), list[int]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row, why = None, first_line(error)
        else:
            why = f"received {cut(line.strip(), 40)}"
        if not isinstance(row, dict):
            cure = 'expected one object a line, such as {"text": "…", "label": "…"}'
            raise ValueError(f"{path.name}, line {number}: {cut(why)}; {cure}")
        rows.append(row)
        begins.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(path.name, {name: [row.get(name) for row in rows] for name in names}, begins)


def _conll(path: Path, lines: io.StringIO) -> Table:
    """A word a line, its tag in the last column, a blank line between sentences, as CoNLL's."""
    words, tags, begins = list[list[str]](), list[list[str]](), list[int]()
    inside = False
    for number, line in enumerate(lines, 1):
        cells = line.strip().split("\t") if "\t" in line else line.split()
        if not line.strip() or cells[0] == "-DOCSTART-":
            inside = False
            continue
        if len(cells) < 2 or not cells[-1].strip():
            received = f"received {cut(repr(line.strip()), 40)}"
            raise ValueError(f"{path.name}, line {number}: {received}, expected a word and its tag")
        if not inside:
            words.append([])
            tags.append([])
            begins.append(number)
            inside = True
        words[-1].append(cells[0].strip())
        tags[-1].append(cells[-1].strip())
    return Table(path.name, {"words": words, "tags": tags}, begins)


def _folder(path: Path) -> dict[str, Table]:
    found = {
        file: PARTS[file.stem]
        for file in sorted(path.iterdir())
        if file.stem in PARTS and file.suffix.lower() in SUFFIXES
    }
    _check_parts(str(path), found.values(), "train.csv, train.tsv or train.jsonl")
    return {part: read_table(file) for file, part in found.items()}


def _check_parts(where: str, parts: Iterable[str], expected: str) -> None:
    counts = Counter(parts)
    if "train" not in counts:
        raise ValueError(f"'{where}' holds no training rows: expected {expected}")
    if counts.most_common(1)[0][1] > 1:
        raise ValueError(f"'{where}' holds two parts called {counts.most_common(1)[0][0]}")


def _saved(path: Path) -> Any:
    try:
        return _datasets().load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"cannot be read ({first_line(error)}): save it again by save_to_disk"
        raise ValueError(f"the dataset in '{path}' {why}") from None


def _from_hub(source: str, name: str, config: str | None) -> Any:
    datasets = _datasets()
    try:
        return datasets.load_dataset(name, config)
    except (OSError, ValueError, RuntimeError) as error:  # offline, not there, needs a config
        raise FileNotFoundError(
            f"no file or folder at '{source}', and the Hub did not give it ({first_line(error)}): "
            "name a file, a folder, or a dataset's id while the Hub can be reached"
        ) from None


def _of_datasets(name: str, found: Any) -> dict[str, Table]:
    """The parts of a ``Dataset`` or ``DatasetDict``, classes by name."""
    parts = found if isinstance(found, dict) else {"train": found}
    known = {part: PARTS[part] for part in parts if part in PARTS}
    _check_parts(name, known.values(), f"a part called train, received {', '.join(parts)}")
    return {known[part]: _of_dataset(f"{name}, part {part}", parts[part]) for part in known}


def _of_dataset(name: str, rows: Any) -> Table:
    columns = {}
    for column, feature in rows.features.items():
        if type(feature).__name__ in _READ:
            inner = getattr(feature, "feature", feature)
            names = getattr(inner, "names", None)
            values = list(rows[column])
            columns[column] = [_named(value, names) for value in values] if names else values
    if not len(rows):
        raise ValueError(f"{name} has no rows")
    return Table(name, columns, list(range(1, len(rows) + 1)), "row")


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    return None if value is None or value < 0 else names[value]  # -1: the row is not labelled


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        cure = "pip install 'xtclib[hub]', or give a .csv, .tsv or .jsonl file"
        raise ImportError(f"this needs the package datasets: {cure}") from None
    return datasets
