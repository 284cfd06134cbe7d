"""FORMAT.md: its test vectors and sums are what the package writes and reads."""

import hashlib
import re
from pathlib import Path

import pytest
import torch

from xtclib.artefact.format import digest
from xtclib.techniques.quantization.packing import (
    decode,
    encode,
    pack_sparse,
    packed_length,
    unpack_sparse,
)
from xtclib.techniques.quantization.quantizers import Scheme

TEXT = (Path(__file__).resolve().parent.parent / "FORMAT.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\w+) \| ([\d.]+) \| ([-\d ]+) \| ((?:[0-9a-f]{2} ?)+) \|$", re.M)
VECTORS = [
    (scheme, float(width), [int(i) for i in integers.split()], bytes.fromhex(stored))
    for scheme, width, integers, stored in ROW.findall(TEXT)
]


def test_every_width_has_a_vector():
    assert {width for _, width, _, _ in VECTORS} == {1, 1.6, 2, 4, 8} and len(VECTORS) >= 12


@pytest.mark.parametrize("scheme, width, integers, stored", VECTORS)
def test_vectors(scheme, width, integers, stored):
    parsed = Scheme.parse(scheme)
    width = width if width == 1.6 else int(width)
    offset = 0 if parsed.family == "uint" else parsed.levels[1]
    packed = encode(torch.tensor(integers, dtype=torch.float32), width, offset)
    assert bytes(packed.tolist()) == stored
    assert len(stored) == packed_length(len(integers), width)
    assert decode(packed, width, offset, len(integers)).int().tolist() == integers


@pytest.mark.parametrize("shape, text", [((2, 3, 1), "(2, 3, 1)"), ((4,), "(4,)"), ((), "()")])
def test_sums_are_of_type_shape_and_bytes(shape, text):
    tensor = torch.ones(shape, dtype=torch.float16)
    head = f"torch.float16{text}".encode()
    wanted = hashlib.sha256(head + tensor.numpy().tobytes()).hexdigest()
    assert digest(tensor) == wanted and f"torch.float16{text}" in TEXT.replace(
        "torch.uint8", "torch.float16"
    )


HALVES = re.findall(r"^\| (-?[\d.]+) \| ([0-9a-f]{2} [0-9a-f]{2}) \|$", TEXT, re.M)
SPARSE = re.findall(r"^\| ([-\d. ;]+) \| ([0-9a-f ]+) \| ([0-9a-f ]*)\|$", TEXT, re.M)


@pytest.mark.parametrize("number, stored", HALVES)
def test_fp16_vectors(number, stored):
    tensor = torch.tensor([float(number)], dtype=torch.float16)
    assert float(tensor) == float(number)
    assert tensor.view(torch.uint8).tolist() == list(bytes.fromhex(stored))


@pytest.mark.parametrize("rows, mask, values", SPARSE)
def test_sparse_vectors(rows, mask, values):
    matrix = torch.tensor([[float(x) for x in row.split()] for row in rows.split(";")])
    packed, kept = pack_sparse(matrix)
    assert packed.flatten().tolist() == list(bytes.fromhex(mask))
    assert kept.view(torch.uint8).tolist() == list(bytes.fromhex(values))
    assert torch.equal(unpack_sparse(packed, kept, matrix.shape[1]), matrix)


def test_there_are_vectors_of_both():
    assert len(HALVES) == 4 and len(SPARSE) == 3
