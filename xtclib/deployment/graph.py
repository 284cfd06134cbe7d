"""What becomes of an exported graph before it is written: folded, halved, deduplicated, silent."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import warnings
from pathlib import Path

import numpy as np


def serialized(model, metadata: dict[str, str]) -> bytes:
    """An ``onnx_ir`` model as bytes: folded where it is small, floats in fp16, no traces of code.

    Only constants of up to 16 numbers are folded, so packed weights stay packed.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common as passes
    from onnxscript import optimizer

    optimizer.optimize_ir(model, input_size_limit=16)
    halve_(model.graph)
    for tidy in (
        passes.DeduplicateInitializersPass(size_limit=2**31),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.ClearMetadataAndDocStringPass(),  # paths and source lines of this machine
    ):
        tidy(model)
    model.producer_name, model.producer_version = "xtclib", None
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    proto = ir.to_proto(model)
    proto.graph.ClearField("value_info")  # readers infer it; stale for tools that rewrite weights
    return proto.SerializeToString()


def halve_(graph) -> None:
    """Stores fp32 constants that fp16 holds exactly in fp16, with a Cast behind; in place."""
    import onnx_ir as ir

    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor.dtype != ir.DataType.FLOAT or tensor.size < 2:
            continue
        numbers = tensor.numpy()
        half = numbers.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), numbers):
            continue
        name = f"{value.name}_fp16"
        small = ir.Value(
            name=name, type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape(half.shape),
            const_value=ir.tensor(half, name=name),
        )  # fmt: skip
        cast = ir.node("Cast", [small], {"to": ir.DataType.FLOAT.value})
        cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
        graph.initializers.add(small)
        graph.insert_before(graph[0], cast)
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[value.name]
        cast.outputs[0].name = value.name


# In protobuf: the entry's name, the tag of its value, the value's length (64), the value.
SUM = "xtc_sha256"
_SUM = re.compile(SUM.encode() + rb"\x12\x40([0-9a-f]{64})")


def with_sum(content: bytes) -> bytes:
    """A file with the metadata entry ``SUM`` of 64 zeros, its own sha256 in their place.

    The sum is over the bytes as received, zeros and all, so it needs no parser to check.
    """
    (place,) = _SUM.finditer(content)
    found = hashlib.sha256(content).hexdigest().encode()
    return content[: place.start(1)] + found + content[place.end(1) :]


def check_sum(path: Path) -> None:
    """Raises ``ValueError`` for a file that is not, to the last bit, what was exported."""
    content = memoryview(path.read_bytes())
    places = list(_SUM.finditer(content))
    if len(places) != 1:
        raise ValueError(
            f"{path} carries no checksum: it was exported by another program or an older xtclib, "
            "or it was altered; export it again (`xtc export`)"
        )
    start, end = places[0].span(1)
    found = hashlib.sha256(content[:start])
    found.update(b"0" * 64)
    found.update(content[end:])
    if found.hexdigest() != bytes(content[start:end]).decode():
        raise ValueError(
            f"{path} does not match its sha256: it was altered or damaged, copy it again"
        )


@contextlib.contextmanager
def quiet():
    """The exporter's own notes say nothing to who exports a model that is known to work."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
