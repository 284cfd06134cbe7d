import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xtclib.techniques.quantization.packing import (
    decode,
    encode,
    pack,
    pack_sparse,
    packed_length,
    storage_bits,
    unpack,
    unpack_sparse,
)


@given(
    bits=st.integers(1, 8),
    shape=st.lists(st.integers(0, 5), max_size=2),
    length=st.integers(0, 37),
    seed=st.integers(0, 99),
)
def test_numbers_round_trip(bits, shape, length, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 2**bits, (*shape, length), generator=generator)
    packed = pack(numbers, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape, packed_length(length, bits))
    assert torch.equal(unpack(packed, bits, length).long(), numbers)


@pytest.mark.parametrize("bits, values", [(1, 8), (1.6, 5), (2, 4), (4, 2), (8, 1)])
def test_every_byte_reads_and_packs_back(bits, values):
    """From uint8, as `unpack` gives it: the largest number must not wrap around."""
    every = torch.arange(243 if bits == 1.6 else 256, dtype=torch.uint8).unsqueeze(1)
    numbers = unpack(every, bits, values)
    assert numbers.dtype == torch.uint8 and torch.equal(pack(numbers, bits), every)


@given(bits=st.integers(1, 8), length=st.integers(1, 33), seed=st.integers(0, 99))
def test_codes_round_trip(bits, length, seed):
    generator = torch.Generator().manual_seed(seed)
    top = 1 if bits == 1 else 2 ** (bits - 1) - 1
    codes = torch.randint(-top, top + 1, (3, length), generator=generator).float()
    if bits == 1:
        codes = torch.where(codes >= 0, 1.0, -1.0)
    assert torch.equal(decode(encode(codes, bits, top), bits, top, length), codes)


@given(length=st.integers(1, 40), seed=st.integers(0, 99))
def test_one_bit_is_numpys_little_endian_packbits(length, seed):
    bits = np.random.default_rng(seed).integers(0, 2, length)
    wanted = np.packbits(bits, bitorder="little")
    assert pack(torch.from_numpy(bits), 1).numpy().tolist() == wanted.tolist()


@pytest.mark.parametrize(
    "numbers, bits, packed",
    [
        ([1, 0, 0, 0, 0, 0, 0, 1, 1], 1, [0b10000001, 1]),
        ([3, 2, 1, 0, 2], 2, [0b00011011, 2]),
        ([7, 1, 5], 3, [0x17, 0x05]),
        ([15, 1, 10], 4, [0x1F, 0x0A]),
        ([31, 0, 7], 5, [31, 0, 7]),
        ([255, 0, 128], 8, [255, 0, 128]),
    ],
)
def test_known_bytes(numbers, bits, packed):
    assert pack(torch.tensor(numbers), bits).tolist() == packed


def test_known_codes():
    assert encode(torch.tensor([-1.0, 0.0, 1.0]), 2, 1).tolist() == [0b100100]
    assert encode(torch.tensor([-7.0, 7.0]), 4, 7).tolist() == [0xE0]
    assert encode(torch.tensor([-127.0, 0.0, 127.0]), 8, 127).tolist() == [0, 127, 254]
    assert encode(torch.tensor([0.0, 255.0]), 8, 0).tolist() == [0, 255]


def test_padding_bits_are_zero():
    assert pack(torch.ones(1, dtype=torch.int64), 1).tolist() == [1]
    assert pack(torch.full((5,), 3), 2).tolist() == [255, 3]


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_width_is_stored_in_the_next_power_of_two(bits):
    assert storage_bits(bits) == {1: 1, 2: 2, 3: 4, 4: 4}.get(bits, 8)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_other_widths_are_refused(bits):
    with pytest.raises(ValueError, match=f"cannot pack {bits} bits: expected 1 to 8"):
        storage_bits(bits)


@pytest.mark.parametrize(
    "numbers, bits, message",
    [
        ([0, 2], 1, "between 0.0 and 2.0 into 1 bits: expected whole numbers from 0 to 1"),
        ([-1, 0], 4, "between -1.0 and 0.0 into 4 bits"),
        ([0, 8], 3, "into 3 bits: expected whole numbers from 0 to 7"),
        ([0.5, 1.0], 2, "between 0.5 and 1.0 into 2 bits"),
        ([256], 8, "into 8 bits: expected whole numbers from 0 to 255"),
        ([float("nan")], 8, "between nan and nan into 8 bits"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers, bits, message):
    with pytest.raises(ValueError, match=message):
        pack(torch.tensor(numbers), bits)


def test_a_binary_code_of_zero_is_refused():
    with pytest.raises(ValueError, match="between 0.5 and 0.5 into 1 bits"):
        encode(torch.zeros(2), 1, 1)


@pytest.mark.parametrize(
    "packed, message",
    [
        (torch.zeros(2, 2, dtype=torch.uint8), r"torch.uint8 of shape \(2, 2\).*with 1 bytes"),
        (torch.zeros(2, 1), r"cannot unpack 8 numbers of 1 bits from torch.float32"),
    ],
)
def test_unpacking_other_bytes_is_refused(packed, message):
    with pytest.raises(ValueError, match=message):
        unpack(packed, 1, 8)


@given(shape=st.lists(st.integers(1, 4), max_size=2), length=st.integers(0, 33),
       seed=st.integers(0, 99))  # fmt: skip
def test_trits_round_trip(shape, length, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 3, (*shape, length), generator=generator)
    packed = pack(numbers, 1.6)
    assert packed.dtype == torch.uint8 and packed.shape == (*shape, -(-length // 5))
    assert torch.equal(unpack(packed, 1.6, length).long(), numbers)


def test_every_byte_of_trits_has_its_own_digits():
    every = torch.arange(243, dtype=torch.uint8).unsqueeze(1)
    digits = unpack(every, 1.6, 5)
    assert len(digits.unique(dim=0)) == 243 and int(digits.max()) == 2
    assert torch.equal(pack(digits, 1.6), every)


def test_trits_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="into 1.6 bits: expected whole numbers from 0 to 2"):
        pack(torch.tensor([3]), 1.6)
    with pytest.raises(ValueError, match="a byte of 243 cannot hold five numbers to base 3"):
        unpack(torch.tensor([243], dtype=torch.uint8), 1.6, 5)


@given(rows=st.integers(0, 5), columns=st.integers(0, 19), density=st.floats(0, 1),
       seed=st.integers(0, 99))  # fmt: skip
def test_sparse_round_trips(rows, columns, density, seed):
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, columns, generator=generator) < density
    matrix = torch.randn(rows, columns, generator=generator).half().float() * kept
    mask, values = pack_sparse(matrix)
    assert mask.dtype == torch.uint8 and mask.shape == (rows, -(-columns // 8))
    assert values.dtype == torch.float16 and len(values) == int((matrix != 0).sum())
    assert torch.equal(unpack_sparse(mask, values, columns), matrix)
    exact = torch.randn(rows, columns, generator=generator) * kept  # fp32 keeps every bit
    assert torch.equal(unpack_sparse(*pack_sparse(exact, torch.float32), columns), exact)


def test_a_tenth_of_the_weights_takes_a_twelfth_of_fp32():
    torch.manual_seed(0)
    matrix = torch.randn(768, 768) * (torch.rand(768, 768) < 0.1)
    size = sum(t.numel() * t.element_size() for t in pack_sparse(matrix))
    assert size / (4 * 768 * 768) == pytest.approx((1 + 16 * 0.1) / 32, rel=0.01)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e5, 1e-9])
def test_sparse_values_that_fp16_cannot_hold_are_refused(value):
    with pytest.raises(ValueError, match=r"shape \(2, 2\) holds values that torch.float16 cannot"):
        pack_sparse(torch.tensor([[0.0, 1.0], [value, 0.0]]))


def test_a_mask_and_values_that_do_not_belong_together_are_refused():
    mask, values = pack_sparse(torch.eye(3))
    with pytest.raises(ValueError, match="a mask with 3 ones came with 2 values"):
        unpack_sparse(mask, values[:2], 3)
