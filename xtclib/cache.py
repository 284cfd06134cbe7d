"""Where things are kept, and by which name: folders, locks, keys, sums."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor


def cache_dir() -> Path:
    """Where teachers and unfinished runs are kept: ``XTC_CACHE``, else ``~/.cache/xtclib``."""
    return Path(os.environ.get("XTC_CACHE") or Path.home() / ".cache" / "xtclib")


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process at a time makes what ``name`` stands for; the others wait, then read it."""
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        yield


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
            f"{path.name} in {path.parent.name} cannot be read ({error}); the file is damaged, "
            "truncated or no safetensors file, copy it again"
        ) from None
