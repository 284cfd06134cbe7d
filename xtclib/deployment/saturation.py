"""Where 8-bit products saturate: x86 without VNNI adds two of them in 16 bits.

``vpmaddubsw`` multiplies uint8 activations with int8 weights and adds neighbours to an int16, which
holds 32767: 2 · 255 · w is more than that from |w| = 65 on. With VNNI, and on ARM, sums have 32
bits. Weights of up to 7 bits cannot saturate.
"""

from __future__ import annotations

import platform
from pathlib import Path

EXACT = 64  # 2 · 255 · 64 = 32640
CPUINFO = Path("/proc/cpuinfo")  # of Linux


def adds_exactly() -> bool | None:
    """Whether this processor adds 8-bit products exactly; ``None`` where that cannot be told."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return True
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    return flags if flags is None else bool({"avx512_vnni", "avx_vnni"}.intersection(flags))


def largest_weight(path: str | Path) -> int:
    """The largest size of an integer weight in a file's products; 0 where it has none.

    Of packed weights, the largest that their table can give. Raises ``ImportError`` without onnx.
    """
    try:
        import onnx
    except ImportError:
        what = "looking for 8-bit weights needs onnx"
        raise ImportError(f"{what}: pip install 'xtclib[onnx]'") from None
    graph = onnx.load(str(path)).graph
    made = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    left = [node.input[1] for node in graph.node if node.op_type == "MatMulInteger"]
    largest, seen = 0, set[str]()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in made:
            left += made[name].input
        elif name in stored and stored[name].data_type == onnx.TensorProto.INT8:
            values = onnx.numpy_helper.to_array(stored[name]).astype(int)
            largest = max(largest, int(abs(values).max(initial=0)))
    return largest
