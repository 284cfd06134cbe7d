"""FORMAT.md: its test vectors and sums are what the package writes and reads."""

import hashlib
import re
from pathlib import Path

import pytest
import torch

from xtclib.artefact import digest
from xtclib.packing import decode, encode, packed_length
from xtclib.quantizers import Scheme

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
