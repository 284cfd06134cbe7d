"""Several processes of one run, as ``torchrun`` and ``accelerate launch`` start them.

All of them train. What is made once, files, scores and times, the leading one makes while the
others wait: outside of its locks, so that none waits for a lock that waits for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
_alone = False  # while the leading one makes what the others wait for


def join() -> None:
    """Joins the processes of this run; nothing where there is one."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def leads() -> bool:
    """Whether this process is the one that writes, prints and measures."""
    return count() == 1 or dist.get_rank() == 0


def agreed(make: Callable[[], T]) -> T:
    """What the leading process makes, in all of them.

    >>> agreed(lambda: 1)
    1
    """
    global _alone
    if count() == 1 or _alone:
        return make()
    held: list = [None]
    if leads():
        _alone = True
        try:
            held = [make()]
        finally:
            _alone = False
    dist.broadcast_object_list(held, 0)
    return held[0]


def wait() -> None:
    """Until all are here."""
    if count() > 1 and not _alone:
        dist.barrier()
