"""What the machine does well."""

from __future__ import annotations

import contextlib
import ctypes

import torch


def bf16_is_fast(device: str | torch.device = "cpu") -> bool:
    """Whether the processor multiplies bf16 matrices natively (AVX512-BF16, AMX, recent GPUs)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def in_bf16(precision: str, device: str | torch.device = "cpu") -> bool:
    """Whether a ``precision`` of ``auto``, ``bf16`` or ``fp32`` computes in bf16 on a device."""
    return precision == "bf16" or (precision == "auto" and bf16_is_fast(device))


def keep_freed_memory(tokens: int) -> None:
    """Has glibc keep the memory that a step frees for the next step, of up to 8,192 ``tokens``.

    By default every gradient above 32 MB is a fresh mapping whose pages fault one by one: a
    fifth of a MiniLM training step on a CPU. Longer batches get theirs anew: scores in ever other
    sizes would leave holes larger than what is in use. Does nothing where the C library has no
    ``mallopt``.
    """
    mmap_max, trim_threshold, keep = -4, -1, tokens <= 2**13  # malloc.h, and its own defaults
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0 if keep else 2**16)
        mallopt(trim_threshold, 2**31 - 1 if keep else 2**17)


def default_device() -> str:
    """``cuda`` where there is one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
