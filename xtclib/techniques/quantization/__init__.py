"""Quantization: weights and activations as small integers times a scale."""

from xtclib.techniques.quantization.packed import PackedEmbedding, PackedLinear
from xtclib.techniques.quantization.quantizers import (
    Scheme,
    fake_quantize,
    quantize,
    relative_error,
)
from xtclib.techniques.quantization.splitting import split
from xtclib.techniques.quantization.technique import with_activations

__all__ = [
    "PackedEmbedding", "PackedLinear", "Scheme", "fake_quantize", "quantize", "relative_error",
    "split", "with_activations",
]  # fmt: skip
