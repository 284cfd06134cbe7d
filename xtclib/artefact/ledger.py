"""The byte ledger: what every tensor of an artefact costs on disk, against the least it could."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from xtclib.artefact.checks import WEIGHTS, check_files, make_room_
from xtclib.artefact.format import read_config, sealed
from xtclib.cache import opened
from xtclib.costs.architectures import build
from xtclib.techniques.base import Held, Stored, Technique, held, technique
from xtclib.techniques.pruning import surgery


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

    Raises ``FileNotFoundError`` for a folder without an artefact, ``ValueError`` for a damaged or
    foreign one.
    """
    path = Path(folder).expanduser() / WEIGHTS
    for file in (path, path.with_name("config.json")):
        if not file.is_file():
            raise FileNotFoundError(f"no {file.name} in {folder}: expected an artefact's folder")
    config = read_config(path.parent)
    said = getattr(config, "quantization_config", None) or {}
    if (kind := said.get("quant_method", "xtc")) != "xtc":
        raise ValueError(f"{folder} was quantized by {kind!r}, not by xtclib")
    if said:
        check_files([path])
    model = build(config)
    for item in held(config):
        technique(item).rebuild(model)
    found = {}
    with opened(path) as tensors:
        for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
            tensor = tensors.get_slice(name)
            dtype = tensor.get_dtype()
            if dtype not in _TYPES:
                raise ValueError(f"{path.name}: tensor {name!r} has type {dtype}: not xtclib's")
            found[name] = torch.empty(tensor.get_shape(), dtype=_TYPES[dtype], device="meta")
    make_room_(model, found)
    packed = _held(model)
    entries = [_entry(name, tensor, packed.get(name)) for name, tensor in found.items()]
    return _with_header(entries, path.stat().st_size - sum(entry.bytes for entry in entries))


def plan(config: PretrainedConfig, techniques: Sequence[Technique]) -> list[Entry]:
    """The ledger that a model of this config will have, before anything is trained or packed.

    What is not quantized counts as fp16, as in every packed file; where techniques leave a model
    ordinary (fewer layers alone), all of it as fp32, as that is saved.
    Exact but for the header, whose JSON is counted at 230 bytes a tensor, and for what training
    decides: how a share over the whole model falls on layers, which sparse codes round to 0.

    >>> from transformers import BertConfig
    >>> from xtclib.techniques import Quantize, Storage
    >>> entries = plan(BertConfig(), [Quantize(), Storage("int8-row", "int8-row")])
    >>> round(sum(entry.bytes for entry in entries) / 1e6, 1)
    14.9
    """
    model = planned(config, techniques)
    stored = any(item.stored for item in techniques) or bool(surgery.uneven(model))
    packed, column = _held(model), sealed(model) if stored else None
    entries = []
    for name, tensor in model.state_dict().items():
        tensor = tensor.unsqueeze(-1) if name == column else tensor
        tensor = tensor.half() if stored and tensor.is_floating_point() else tensor
        entries.append(_entry(name, tensor, packed.get(name)))
    return _with_header(entries, 230 * len(entries))


def planned(config: PretrainedConfig, techniques: Sequence[Technique]) -> PreTrainedModel:
    """An empty model of the structure that techniques will leave one of this config."""
    model = build(copy.deepcopy(config))
    for item in techniques:
        model = item.plan(model)
    return model


def _with_header(entries: list[Entry], header: int) -> list[Entry]:
    entries.sort(key=lambda entry: -entry.bytes)
    return [*entries, Entry("header", (), "json", header, 0, 0, 0)]


_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8,
          "I64": torch.int64}  # fmt: skip


def _entry(name: str, tensor: Tensor, own: Held | None) -> Entry:
    dtype = str(tensor.dtype).removeprefix("torch.")
    values, width, limit = own or (tensor.numel(), *2 * [8.0 * tensor.itemsize])
    return Entry(name, (*tensor.shape,), dtype, tensor.nbytes, values, width, values * limit / 8)


def _held(model: PreTrainedModel) -> dict[str, Held]:
    """What the packed tensors of a model hold, by their full names."""
    return {
        f"{name}.{tensor}": own
        for name, module in model.named_modules()
        if isinstance(module, Stored)
        for tensor, own in module.entries().items()
    }


def table(entries: Sequence[Entry], rows: int = 12) -> str:
    """The largest tensors as text, the rest in one line, and how close the file is to its minimum.

    MB are 10⁶ bytes.
    """
    columns = f"{'MB':>9}{'values':>12}{'bits/value':>12}{'minimum MB':>12}{'limit MB':>10}"

    def line(name: str, found: Sequence[Entry]) -> str:
        size, values = sum(e.bytes for e in found), sum(e.values for e in found)
        bits = f"{8 * size / values:.3f}" if values else ""
        least, limit = sum(e.minimum for e in found) / 1e6, sum(e.limit for e in found) / 1e6
        return f"{name:<52}{size / 1e6:>9.3f}{values:>12,}{bits:>12}{least:>12.3f}{limit:>10.3f}"

    tensors, header = entries[:-1], entries[-1:]
    lines = [f"{'tensor':<52}{columns}", *(line(e.tensor[-51:], [e]) for e in tensors[:rows])]
    if len(tensors) > rows:
        lines.append(line(f"… {len(tensors) - rows} smaller tensors", tensors[rows:]))
    lines += [line("header", header), line("file", entries)]
    size, least = sum(e.bytes for e in entries), sum(e.minimum for e in entries)
    lines.append(f"the file is {100 * (size / least - 1):.2f} % above the minimum of its widths")
    return "\n".join(lines)
