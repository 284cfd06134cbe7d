"""The byte ledger: what every tensor of an artefact costs on disk, against the least it could."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification

from xtclib.artefact import WEIGHTS
from xtclib.layers import _Packed
from xtclib.techniques import technique


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, or the file's header.

    ``bytes`` on disk; ``values`` that they hold, at ``width`` bits each; ``minimum`` = values ·
    width / 8, the bytes of that width without padding; ``limit`` = values · log₂(levels) / 8, what
    no code can beat if all levels are equally likely (1 bit: 1, ternary: 1.585, int4: 3.91).
    """

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    values: int
    width: float
    limit: float

    @property
    def minimum(self) -> float:
        """Bytes at the chosen width, without padding."""
        return self.values * self.width / 8

    @property
    def bits(self) -> float:
        """Bits on disk for each value."""
        return 8 * self.bytes / self.values if self.values else 0.0


def byte_ledger(folder: str | Path) -> list[Entry]:
    """An :class:`Entry` for every tensor, the largest first, then ``header``: the sum is the file.

    Raises ``FileNotFoundError`` for a folder without an artefact.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"no {WEIGHTS} in {folder}: expected an artefact's folder")
    packed = _packed_layers(Path(folder))
    entries = []
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            tensor = file.get_slice(name)
            shape = tuple(tensor.get_shape())
            dtype = getattr(torch, _TYPES[tensor.get_dtype()])
            count, width = math.prod(shape), 8.0 * dtype.itemsize
            values, bits, limit = count, width, width
            layer = packed.get(name)
            if layer is not None:
                values, bits = layer.rows * layer.columns, layer.width
                limit = math.log2(_levels(layer.weights))
            entries.append(
                Entry(
                    tensor=name,
                    shape=shape,
                    dtype=str(dtype)[6:],
                    bytes=count * dtype.itemsize,
                    values=values,
                    width=bits,
                    limit=values * limit / 8,
                )
            )
    entries.sort(key=lambda entry: -entry.bytes)
    header = path.stat().st_size - sum(entry.bytes for entry in entries)
    return [*entries, Entry("header", (), "json", header, 0, 0, 0)]


_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8", "I64": "int64"}


def _levels(scheme) -> int:
    low, high = scheme.levels
    return 2 if scheme.family == "binary" else high - low + 1


def _packed_layers(folder: Path) -> dict[str, _Packed]:
    """Packed layers by the name of their bytes, from the config alone: no weight is read."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    held = getattr(config, "quantization_config", None) or {}
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    for item in held.get("techniques", ()) if isinstance(held, dict) else held.techniques:
        technique(item).rebuild(model)
    return {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, _Packed)}


def table(entries: Sequence[Entry], rows: int = 12) -> str:
    """The largest tensors as text, the rest in one line, and how close the file is to its minimum.

    MB are 10⁶ bytes.
    """
    head = (
        f"{'tensor':<52}{'MB':>9}{'values':>12}{'bits/value':>12}{'minimum MB':>12}{'limit MB':>10}"
    )

    def line(name: str, found: Sequence[Entry]) -> str:
        size, values = sum(e.bytes for e in found), sum(e.values for e in found)
        bits = f"{8 * size / values:.3f}" if values else ""
        least, limit = sum(e.minimum for e in found) / 1e6, sum(e.limit for e in found) / 1e6
        return f"{name:<52}{size / 1e6:>9.3f}{values:>12,}{bits:>12}{least:>12.3f}{limit:>10.3f}"

    tensors, header = entries[:-1], entries[-1:]
    lines = [head, *(line(e.tensor[-51:], [e]) for e in tensors[:rows])]
    if len(tensors) > rows:
        lines.append(line(f"… {len(tensors) - rows} smaller tensors", tensors[rows:]))
    lines += [line("header", header), line("file", entries)]
    size, least = sum(e.bytes for e in entries), sum(e.minimum for e in entries)
    lines.append(f"the file is {100 * (size / least - 1):.2f} % above the minimum of its widths")
    return "\n".join(lines)
