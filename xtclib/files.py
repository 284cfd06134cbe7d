"""Files that are whole or absent, and error messages that name what was probably meant.

Everything here writes beside its target and renames at the end, so a run that is cut off leaves
either the old file or the new one, never half of it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` in one step: beside it first, then renamed over it.

    Missing parent folders are made. Raises `TypeError` where `data` is not bytes.

    >>> import tempfile
    >>> write_bytes(Path(tempfile.mkdtemp()) / "new" / "two.bin", b"ab").read_bytes()
    b'ab'
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"received {type(data).__name__} for '{path}', expected bytes")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` to `path` as UTF-8 in one step, line ends as they are.

    Raises `TypeError` where `text` is not a string.

    >>> import tempfile
    >>> write_text(Path(tempfile.mkdtemp()) / "note.txt", "1 bit\\n").read_text()
    '1 bit\\n'
    """
    if not isinstance(text, str):
        raise TypeError(f"received {type(text).__name__} for '{path}', expected str")
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` to `path` as indented JSON in one step; arrays and their scalars become lists.

    Raises `ValueError` for NaN and infinity, which JSON cannot hold, and `TypeError` for a value
    of a type it cannot hold.

    >>> import tempfile
    >>> write_json(Path(tempfile.mkdtemp()) / "a.json", {"bits": 1}).read_text()
    '{\\n  "bits": 1\\n}\\n'
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise type(error)(f"'{Path(path).name}' cannot be written as JSON: {error}") from None
    return write_text(path, text + "\n")


def check_new_folder(path: str | os.PathLike[str]) -> None:
    """Raises `FileExistsError` where `path` is a file or a folder that is not empty."""
    path = Path(path)
    if path.is_symlink() or path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "a folder that is not empty" if path.is_dir() and not path.is_symlink() else "there"
        raise FileExistsError(
            f"'{path}' is already {what}; expected a new or empty folder: "
            "remove it, or name another one"
        )


@contextmanager
def staged_folder(path: str | os.PathLike[str], replace: bool = False) -> Iterator[Path]:
    """Build a folder as `.<name>.partial-…` beside `path`; rename it into place on success.

    On an error the partial folder is removed and `path` stays as it was. Raises
    `FileExistsError` as `check_new_folder` does, unless `replace`: then an older folder is
    removed once the new one is in its place.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "artefact"
    >>> with staged_folder(target) as folder:
    ...     _ = write_text(folder / "config.json", "{}")
    >>> [file.name for file in target.iterdir()]
    ['config.json']
    """
    path = Path(path)
    if not (replace and path.is_dir() and not path.is_symlink()):
        check_new_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _flush_to_disk(file)
        if path.is_dir() and replace:
            _swap(partial, path)
        else:
            if path.is_dir():
                path.rmdir()  # empty, as checked above; raises if something arrived meanwhile
            os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _swap(new: Path, path: Path) -> None:
    """Puts `new` in the place of `path`, and the old folder back should that fail."""
    old = _beside(path)
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind where it has none.

    >>> first_line(ValueError("no such thing\\nand more")), first_line(KeyError())
    ('no such thing', 'KeyError')
    """
    return (str(error).splitlines() or [type(error).__name__])[0]


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits.

    >>> import tempfile
    >>> sha256(write_text(Path(tempfile.mkdtemp()) / "a.txt", "abc"))[:16]
    'ba7816bf8f01cfea'
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def folder_bytes(path: str | os.PathLike[str]) -> int:
    """The bytes of all files in a folder and its subfolders: Σ size(file).

    Raises `FileNotFoundError` where the folder is missing, `NotADirectoryError` for a file.

    >>> import tempfile
    >>> folder_bytes(write_bytes(Path(tempfile.mkdtemp()) / "a", b"abc").parent)
    3
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"received '{path}', which does not exist; expected a folder")
    if not path.is_dir():
        raise NotADirectoryError(f"received '{path}', which is a file; expected a folder")
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def nearest(name: object, names: Iterable[str], known: str = "Known") -> str:
    """A hint for an error message: the closest of `names`, then all of them.

    >>> nearest("sst3", ["cola", "sst2"])
    "did you mean 'sst2'? Known: cola, sst2"
    >>> nearest("xyz", ["cola", "sst2"])
    'Known: cola, sst2'
    """
    names = list(names)
    everything = f"{known}: {', '.join(names) or 'none'}"
    by_lower = {each.lower(): each for each in reversed(names)}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f"did you mean '{by_lower[close[0]]}'? {everything}" if close else everything


def unknown(kind: str, name: object, names: Iterable[str]) -> ValueError:
    """The `ValueError` to raise where `name` is none of the `names` of this kind of thing.

    >>> unknown("task", "sst3", ["cola", "sst2"])
    ValueError("unknown task 'sst3': did you mean 'sst2'? Known tasks: cola, sst2")
    """
    return ValueError(f"unknown {kind} {name!r}: {nearest(name, names, f'Known {_plural(kind)}')}")


def _beside(path: Path) -> Path:
    """A fresh hidden name in the same folder, hence on the same disk, as `path`."""
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """Arrays, tensors and their scalars as Python numbers and lists, for `json`."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"received a {type(value).__name__}, expected numbers, text, lists and dicts")


def _plural(noun: str) -> str:
    head, of, rest = noun.partition(" of ")
    if of:  # keys of sparsify
        return f"{_plural(head)} of {rest}"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")
