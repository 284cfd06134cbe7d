"""Bit codecs: small integers to bytes and back, exactly.

The last dimension is packed, low bits first, and padded with zero bits to a whole byte:

======  =============  ==================  =====================
bits    values a byte  stored number       integers
======  =============  ==================  =====================
1       8              (code + 1) / 2      −1, +1
1.6     5              code + 1            −1, 0, +1
2       4              code + 1            −1, 0, +1
4       2              code + 7            −7 … 7
8       1              code + 127          −127 … 127
======  =============  ==================  =====================

Asymmetric codes are stored as they are, with their zero point beside them. At 1.6 bits the five
numbers of a byte are digits to base 3, lowest first: 3⁵ = 243 of 256 bytes are in use, against
log₂ 3 = 1.585 bits that three equally likely values need.

Floats are stored as fp16; a matrix with many zeros as a bit mask and the values that are not zero.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

TRIT = 1.6  # bits of a number from 0 to 2, five in a byte
_CHUNK = 2**15
_POWERS = (1, 3, 9, 27, 81)


def storage_bits(bits: float) -> float:
    """The width that ``bits`` are stored in: the next of 1, 2, 4 and 8; 1.6 is itself.

    >>> storage_bits(3), storage_bits(1.6)
    (4, 1.6)
    """
    if bits == TRIT:
        return bits
    if not 1 <= bits <= 8:
        raise ValueError(f"cannot pack {bits} bits: expected 1 to 8")
    return next(width for width in (1, 2, 4, 8) if width >= bits)


def packed_length(length: int, bits: float) -> int:
    """Bytes that ``length`` integers of ``bits`` take.

    >>> packed_length(9, 1), packed_length(9, 1.6), packed_length(11, 1.6)
    (2, 2, 3)
    """
    return -(-length // _per_byte(bits))


def _per_byte(bits: float) -> int:
    return 5 if bits == TRIT else 8 // int(storage_bits(bits))


def pack(numbers: Tensor, bits: float) -> Tensor:
    """Packs whole numbers ``0 … 2ᵇ−1`` of shape (…, n) into uint8 of shape (…, ⌈n·b/8⌉).

    At 1.6 bits numbers are 0, 1 and 2. ``ValueError`` if one does not fit or is not whole.

    >>> pack(torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1]), 1)
    tensor([13,  1], dtype=torch.uint8)
    """
    per_byte, top = _per_byte(bits), 2 if bits == TRIT else 2**bits - 1  # 256 itself is no uint8
    fits = (numbers >= 0) & (numbers <= top) & (numbers == numbers.round())
    if not bool(fits.all()):
        found = f"between {float(numbers.min())} and {float(numbers.max())} into {bits} bits"
        raise ValueError(f"cannot pack numbers {found}: expected whole numbers from 0 to {top}")
    numbers = numbers.to(torch.uint8)
    numbers = torch.nn.functional.pad(numbers, (0, -numbers.shape[-1] % per_byte))
    numbers = numbers.unflatten(-1, (-1, per_byte))  # (…, bytes, values in a byte)
    if bits == TRIT:
        powers = torch.tensor(_POWERS, dtype=torch.uint8, device=numbers.device)
        return (numbers * powers).sum(-1, dtype=torch.uint8)
    shifts = torch.arange(0, 8, 8 // per_byte, dtype=torch.uint8, device=numbers.device)
    return (numbers << shifts).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: float, length: int) -> Tensor:
    """The inverse of :func:`pack`: uint8 numbers of shape (…, length).

    >>> unpack(torch.tensor([13, 1], dtype=torch.uint8), 1, 9)
    tensor([1, 0, 1, 1, 0, 0, 0, 0, 1], dtype=torch.uint8)
    """
    return _look_up(_numbers(bits), packed, bits, length)


@cache
def _numbers(bits: float) -> Tensor:
    """The stored numbers of every byte: (256, values a byte), or (243, 5)."""
    with torch.inference_mode(False):
        bytes_ = torch.arange(243 if bits == TRIT else 256).unsqueeze(1)
        if bits == TRIT:
            return (bytes_ // torch.tensor(_POWERS) % 3).to(torch.uint8)
        width = storage_bits(bits)
        return ((bytes_ >> torch.arange(0, 8, width)) & (2**width - 1)).to(torch.uint8)


def _look_up(table: Tensor, packed: Tensor, bits: float, length: int) -> Tensor:
    """``table[packed]``, its rows one after the other."""
    if packed.dtype != torch.uint8 or packed.shape[-1] != packed_length(length, bits):
        wanted = f"expected torch.uint8, last with {packed_length(length, bits)} bytes"
        found = f"{packed.dtype} of shape {tuple(packed.shape)}"
        raise ValueError(f"cannot unpack {length} numbers of {bits} bits from {found}: {wanted}")
    if bits == TRIT and packed.numel() and int(packed.max()) > 242:
        byte = f"a byte of {int(packed.max())} cannot hold five numbers to base 3, 242 at most"
        raise ValueError(f"{byte}: the bytes are damaged, or of another width")
    table, flat = table.to(packed.device), packed.reshape(-1)
    found = table.new_empty(len(flat), table.shape[1])
    # Indices take four bytes each: a few at a time leave no holes in memory between large results.
    for start in range(0, len(flat), _CHUNK):
        part = slice(start, start + _CHUNK)
        torch.index_select(table, 0, flat[part].int(), out=found[part])
    return found.view(*packed.shape[:-1], packed.shape[-1] * table.shape[1])[..., :length]


def encode(codes: Tensor, bits: float, offset: int) -> Tensor:
    """Packs codes ``−offset … offset`` (offset 0: unsigned); binary ±1 become bits 1 and 0.

    >>> encode(torch.tensor([-1.0, 1.0]), 1, 1)
    tensor([2], dtype=torch.uint8)
    """
    return pack((codes + 1) / 2 if bits == 1 else codes + offset, bits)


def decode(packed: Tensor, bits: float, offset: int, length: int, dtype=torch.float32) -> Tensor:
    """The inverse of :func:`encode`.

    >>> decode(torch.tensor([2], dtype=torch.uint8), 1, 1, 2)
    tensor([-1.,  1.])
    """
    return _look_up(byte_table(bits, offset).to(dtype), packed, bits, length)


@cache
def byte_table(bits: float, offset: int) -> Tensor:
    """What each byte decodes to, (256, values a byte), or (243, 5): int8, uint8 for offset 0.

    :func:`decode` is a lookup in it; so is an exported model, in runtimes that cannot shift bits.

    >>> byte_table(1, 1)[13]
    tensor([ 1, -1,  1,  1, -1, -1, -1, -1], dtype=torch.int8)
    """
    with torch.inference_mode(False):
        numbers = _numbers(bits).int()
        codes = numbers * 2 - 1 if bits == 1 else numbers - offset
        return codes.to(torch.int8 if offset else torch.uint8)


def pack_sparse(matrix: Tensor, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """A matrix (rows, columns) as its mask (rows, ⌈columns/8⌉) of bytes and its non-zero values.

    Bits are 1 where a value is not zero; values, in ``dtype``, stand row by row. At density d this
    takes 1 + 16·d bits a weight in fp16, less than fp16 alone below d = 15/16.

    Raises ``ValueError`` for values that are not finite in ``dtype``, or that it would round to 0.

    >>> mask, values = pack_sparse(torch.tensor([[0.0, 1.5, 0.0], [-2.0, 0.0, 0.0]]))
    >>> mask.tolist(), values.tolist()
    ([[2], [1]], [1.5, -2.0])
    """
    present = matrix != 0  # NaN is present, and refused below
    values = matrix[present].to(dtype)
    if not bool(values.isfinite().all() and (values != 0).all()):
        holds = f"a matrix of shape {tuple(matrix.shape)} holds values that {dtype} cannot"
        raise ValueError(f"{holds}: NaN, infinite, too large or too small; round or rescale it")
    return pack(present.to(torch.uint8), 1), values


def unpack_sparse(mask: Tensor, values: Tensor, columns: int, dtype=torch.float32) -> Tensor:
    """The inverse of :func:`pack_sparse`: (rows, columns) in ``dtype``.

    Raises ``ValueError`` if the mask has other than as many ones as there are values.

    >>> unpack_sparse(*pack_sparse(torch.tensor([[0.0, 1.5]])), 2)
    tensor([[0.0000, 1.5000]])
    """
    present = unpack(mask, 1, columns).bool()
    count = int(present.sum())
    if count != len(values):
        raise ValueError(f"a mask with {count} ones came with {len(values)} values: give as many")
    matrix = torch.zeros(present.shape, dtype=dtype, device=mask.device)
    matrix[present] = values.to(dtype)
    return matrix
