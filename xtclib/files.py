"""Files that are whole or absent, and error messages that name what was probably meant.

All is written beside its target, then renamed: what is cut off leaves the old file, or none.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

LONGEST = 2**20  # bytes of a YAML file
SUMS = "SHA256SUMS"  # what `sha256sum` writes and `sha256sum -c` checks
_PARTIAL = ".partial-"


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
    """Raises where no new folder can be made at `path`, which is tried; nothing is left there.

    `FileExistsError` for a file or a folder that is not empty, `OSError` for what the disk refuses.
    """
    _refuse_what_is_there(Path(path))
    _try(Path(path))


def check_new_file(path: str | os.PathLike[str]) -> None:
    """Raises `OSError` where no file can be written at `path`, which is tried and undone."""
    _try(Path(path).parent)


def _refuse_what_is_there(path: Path) -> None:
    if path.is_symlink() or path.exists() and (not path.is_dir() or _held(path)):
        what = "a folder that is not empty" if path.is_dir() and not path.is_symlink() else "there"
        raise FileExistsError(
            f"'{path}' is already {what}; expected a new or empty folder: "
            "remove it, or name another one"
        )


def _try(folder: Path) -> None:
    """Makes a folder and writes to it; removes what it made."""
    made = list[Path]()
    try:
        made = [p for p in (folder, *folder.parents) if not p.exists()]
        for left in range(99, -1, -1):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(b" ")
                break
            except (FileNotFoundError, FileExistsError):  # another's try removed its own
                if not left:
                    raise
    except OSError as error:
        why = f"{error.strerror or first_line(error)}; name another place"
        raise type(error)(f"cannot write to '{folder}': {why}") from None
    finally:
        for place in made:
            with suppress(OSError):  # not there, or someone else's by now
                place.rmdir()


def _held(folder: Path) -> list[Path]:
    """What a folder holds, but for what a cut-off run of ours left in it."""
    return [file for file in folder.iterdir() if not file.name.startswith(_PARTIAL)]


def sweep(path: str | os.PathLike[str]) -> None:
    """Removes what killed writers of `path` left beside and in it; for who has its lock."""
    path = Path(path)
    for place in (*path.parent.glob(f".{glob.escape(_short(path.name))}{_PARTIAL}*"),
                  *path.glob(f"{_PARTIAL}*")):  # fmt: skip
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


@contextmanager
def staged_folder(path: str | os.PathLike[str], replace: bool = False, again: bool = False
                  ) -> Iterator[Path]:  # fmt: skip
    """Build a folder as `.<name>.partial-…` beside `path`; rename it into place on success.

    On an error the partial folder is removed and `path` stays as it was. Raises as
    `check_new_folder` does, unless `replace`: then an older folder is removed once the new one is
    in its place; or `again`: the same files may be there, from a call that was cut off. An empty
    folder is filled and keeps its mode: it may be a mount, or where a shell stands.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "artefact"
    >>> with staged_folder(target) as folder:
    ...     _ = write_text(folder / "config.json", "{}")
    >>> [file.name for file in target.iterdir()]
    ['config.json']
    """
    path = Path(path)
    there = path.is_dir() and not path.is_symlink()
    if not (there and (replace or again)):
        _refuse_what_is_there(path)
    swap = replace and there and not _is_fixed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path / f"{_PARTIAL}{secrets.token_hex(4)}" if there and not swap else _beside(path)
    partial.mkdir()
    try:
        yield partial
        mode = partial.stat().st_mode & 0o666  # as the umask has it: some libraries write 0600
        for file in partial.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)
                _flush_to_disk(file)
        if swap:
            _swap(partial, path)
        elif there:
            _fill(path, partial, replace)
        else:
            os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _is_fixed(path: Path) -> bool:
    """Whether a folder cannot be renamed, or someone stands in it."""
    return path.samefile(".") or path.is_mount() or not os.access(path.absolute().parent, os.W_OK)


def _fill(path: Path, new: Path, replace: bool) -> None:
    """Moves what `new` holds into `path`, the sums first: a half-filled folder shows itself.

    The same files may be there; others are an error, or removed in the end if they are replaced.
    """
    names = sorted((file.name for file in new.iterdir()), key=lambda name: (name != SUMS, name))
    old = [file for file in _held(path) if file.name not in names]
    for name in () if replace else names:
        if (path / name).exists() and (path / name).read_bytes() != (new / name).read_bytes():
            raise FileExistsError(f"'{path}' holds another {name}: remove it, or name another one")
    for name in names:
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        os.replace(new / name, path / name)
    for file in old if replace else ():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    new.rmdir()


def _swap(new: Path, path: Path) -> None:
    """Puts `new` in the place of `path`, and the old folder back should that fail."""
    shutil.copymode(path, new)
    old = _beside(path)
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """What a YAML file holds, read safely; `ValueError` with its name for what is none.

    Of at most a mebibyte: no recipe or study is longer.
    """
    path = Path(path)
    if (size := path.stat().st_size) > LONGEST:
        raise ValueError(f"{path} has {size} bytes, expected at most {LONGEST}")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{path} is no valid YAML: it is nested too deeply") from None


def seal(folder: str | os.PathLike[str]) -> Path:
    """Writes a folder's `SHA256SUMS`, as `sha256sum` does, once every file of it is on the disk.

    >>> import tempfile
    >>> folder = write_text(Path(tempfile.mkdtemp()) / "a.txt", "abc").parent
    >>> fault(seal(folder).parent), write_text(folder / "a.txt", "abd").name, fault(folder)
    ('', 'a.txt', 'a.txt does not match its sha256')
    """
    folder = Path(folder)
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != SUMS)
    for file in (*files, folder):
        _flush_to_disk(file)
    lines = [f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    return write_text(folder / SUMS, "".join(lines))


def fault(folder: str | os.PathLike[str], but: str = "") -> str:
    """How a folder differs from its `SHA256SUMS`; empty if in nothing. Other files may be there.

    `but`: a file whose content is checked elsewhere.
    """
    folder, listed = Path(folder), 0
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return f"no {SUMS}" if folder.is_dir() else "no folder"
    except (OSError, UnicodeDecodeError):
        return f"{SUMS} cannot be read"
    for listed, line in enumerate(text.splitlines(), 1):
        found = re.fullmatch(r"([0-9a-f]{64})  (\w[^\\:\0]*)", line)
        if not found or ".." in found[2]:
            return f"line {listed} of {SUMS} cannot be read"
        if found[2] == SUMS:  # `sha256sum *` takes its own file along
            continue
        file = folder / found[2]
        if not file.is_file():
            return f"{found[2]} is missing"
        if found[2] != but and sha256(file) != found[1]:
            return f"{found[2]} does not match its sha256"
    return "" if listed else f"{SUMS} is empty"


def slug(text: str) -> str:
    """A name as part of a file's: letters, digits, dots and dashes, at most 100.

    >>> slug("xtc-1bit"), slug("../a b")
    ('xtc-1bit', '.._a_b')
    """
    return re.sub(r"[^\w.-]", "_", text)[:100]


def first_line(error: Exception) -> str:
    """The first line of an error's message, up to 200 letters, or its kind where it has none.

    >>> first_line(ValueError("no such thing\\nand more")), first_line(KeyError())
    ('no such thing', 'KeyError')
    """
    return cut((str(error).splitlines() or [type(error).__name__])[0], 200)


def cut(text: str, most: int = 120) -> str:
    """A text in at most so many letters.

    >>> cut("one bit", 4)
    'one…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


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
    close = difflib.get_close_matches(str(name)[:100].lower(), by_lower, n=1)
    return f"did you mean '{by_lower[close[0]]}'? {everything}" if close else everything


def unknown(kind: str, name: object, names: Iterable[str]) -> ValueError:
    """The `ValueError` to raise where `name` is none of the `names` of this kind of thing.

    >>> unknown("task", "sst3", ["cola", "sst2"])
    ValueError("unknown task 'sst3': did you mean 'sst2'? Known tasks: cola, sst2")
    """
    hint = nearest(name, names, f"Known {_plural(kind)}")
    return ValueError(f"unknown {kind} {cut(repr(name))}: {hint}")


def _beside(path: Path) -> Path:
    """A fresh hidden name in the same folder, hence on the same disk, as `path`."""
    return path.with_name(f".{_short(path.name)}{_PARTIAL}{secrets.token_hex(4)}")


def _short(name: str) -> str:
    """A name that leaves room for more: disks take 255 bytes."""
    long = len(os.fsencode(name)) > 200
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16] if long else name


def _flush_to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens none
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
