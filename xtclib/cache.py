"""Where things are kept, and by which name: folders, locks, keys, sums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xtclib import processes
from xtclib.files import fault, first_line, seal, staged_folder, sweep


def cache_dir() -> Path:
    """Where teachers and unfinished runs are kept: ``XTC_CACHE``, else ``~/.cache/xtclib``."""
    return Path(os.environ.get("XTC_CACHE") or "~/.cache/xtclib").expanduser()


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process at a time makes what ``name`` stands for; the others wait, then read it.

    No lock where the cache cannot be written to: nobody makes anything there.
    """
    folder = cache_dir() / "locks"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder / f"{name}.lock"))
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise _told(error, folder) from None
        yield


def keep(folder: Path, make: Callable[[Path], object], together: bool = False) -> bool:
    """Has the cache hold ``folder``, and says whether it did: else ``make`` fills an empty one.

    It is written whole, with sums of its files, or not at all. One that does not match them is set
    aside with a warning, and made again. Of several processes the leading one makes it; all do what
    they do ``together``, and what the others write is thrown away.
    """
    if processes.agreed(lambda: not fault(folder)):
        return True
    with contextlib.ExitStack() as stack:
        if processes.leads():
            stack.enter_context(locked(folder.name))
        found = processes.agreed(lambda: fault(folder))
        if found and processes.leads():
            if folder.exists():
                set_aside(folder, found)
            with writing(folder):
                sweep(folder)
                with staged_folder(folder) as partial:
                    make(partial)
                    seal(partial)
        elif found and together:
            with tempfile.TemporaryDirectory() as partial_:
                make(Path(partial_))
    processes.wait()
    return not found


def set_aside(folder: Path, why: str) -> None:
    """Moves what is damaged to the cache's folder ``damaged``, and warns of it."""
    name = f"{folder.parent.name}/{folder.name}"
    place = cache_dir() / "damaged" / name.replace("/", "-")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(folder, place)
    told = f"the cache's {name} is damaged ({why}): it was moved to {place.parent}"
    warnings.warn(f"{told} and is made again", stacklevel=3)


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Around what writes to the cache: a full or read-only disk is an ``OSError`` of one line."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if getattr(error, "errno", None) in _DISK or _WRITE.search(str(error)):
            raise _told(error, place) from None
        raise


_DISK = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO
# What safetensors and torch raise, who write by themselves.
_WRITE = re.compile(r"os error (28|122|27|30|13)|PytorchStreamWriter|unexpected pos|I/O error")


def _told(error: Exception, place: Path) -> OSError:
    why = getattr(error, "strerror", None) or first_line(error)
    cure = "make room, or name another folder by XTC_CACHE; the same command then goes on"
    return OSError(f"cannot write to the cache at {place} ({why}): {cure}")


def key(*parts: object) -> str:
    """Sixteen hex digits that change with any of the parts.

    >>> key("a", 1) == key("a", 2)
    False
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


ROOT = Path(__file__).resolve().parent.parent
BUILT_IN = ROOT / "data" / "mini"  # tasks, texts and backbone that the repository holds


def digest(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes, type and shape.

    >>> digest(torch.zeros(2)) == digest(torch.zeros(1, 2))
    False
    """
    content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.sha256(head + content).hexdigest()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file to read; ``ValueError`` for what is none."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path.name} in {path.parent.name} cannot be read ({first_line(error)[:160]}); the "
            "file is damaged, truncated or no safetensors file, copy it again"
        ) from None
