"""ONNX, still packed: a file of bytes with tables that open them, for stock ONNX Runtime.

In front of every product stands a small unpacking subgraph:

    bytes (rows, n) → Gather in a table (256, 8), (243, 5), (256, 4) … → Reshape → Transpose

so the file holds bits. ONNX Runtime folds the subgraph once, while it loads, and fuses what follows
(``DynamicQuantizeLinear → MatMulInteger → Cast → Mul → Add``) into its int8 kernel. Embeddings
gather packed rows and expand only those that are looked up.

Activations are those of integer runtimes, ``uint8-tensor`` (``DynamicQuantizeLinear``), or those
that the model was trained with. The extra ``onnx`` installs what this module needs.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic, symbolic_multi_out
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from xtclib.attention import score_attention, takes_another
from xtclib.bert import has_no_head, logits_of, longest, replace_module_, text_vectors
from xtclib.deployment.graph import SUM, quiet, serialized, with_sum
from xtclib.files import write_bytes
from xtclib.techniques.base import Stored
from xtclib.techniques.pruning.layers import SparseLinear
from xtclib.techniques.quantization.packed import Packed, PackedEmbedding, PackedLinear
from xtclib.techniques.quantization.packing import byte_table
from xtclib.techniques.quantization.quantizers import Scheme
from xtclib.techniques.students.shallow import LastStates

OPSET = 20  # the first with Gelu; ONNX Runtime reads it from 1.17 on
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
VECTORS = "sentence_embedding"  # what an encoder gives, as sentence-transformers calls it
DYNAMIC = Scheme("uint", 8, "tensor")
ACTIVATIONS = ("dynamic", "trained")
_ATTENTION = "xtc-onnx"


def padding_mask(attention_mask: Tensor, dtype=torch.float32, **kwargs) -> Tensor:
    """(batch, length) of 1 and 0 → (batch, 1, 1, length): 0, and the lowest number at padding."""
    padding = ~attention_mask[:, None, None, :].bool()
    return padding.to(dtype) * torch.finfo(dtype).min


def _dynamic(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX's DynamicQuantizeLinear: uint8 codes, scale, zero point; one scale per tensor."""
    types = (torch.uint8, torch.float32, torch.uint8)
    shapes = (x.shape, (), ())
    codes, scale, zero = symbolic_multi_out(
        "DynamicQuantizeLinear", (x,), dtypes=types, shapes=shapes
    )
    return codes, scale, zero


def _rounded(x: Tensor, scheme: Scheme) -> Tensor:
    """To integers and back."""
    if scheme.clip is not None:
        x, scheme = x.clamp(-scheme.clip, scheme.clip), replace(scheme, clip=None)
    if scheme == DYNAMIC:
        parts = _dynamic(x)
        return symbolic("DequantizeLinear", parts, dtype=torch.float32, shape=x.shape)
    codes, scale, _ = _symmetric(x, scheme)
    return (codes.float() - 128) * scale


# As in training, but rounding by ONNX's operators, and a mask that broadcasts over queries, unless
# an attention is local, as half of ModernBERT's are: there keys in the window are seen.
def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor,
    sliding_window: int | None = None, **options,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if sliding_window is not None:
        place = torch.arange(query.shape[2])
        far = (place[:, None] - place).abs() >= sliding_window
        mask = torch.minimum(mask, far.to(mask.dtype) * torch.finfo(mask.dtype).min)
    scheme = getattr(module, "attention_scheme", None)
    rounded = partial(_rounded, scheme=scheme) if scheme else None
    return score_attention(module, query, key, value, mask, **{**options, "rounded": rounded})


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, padding_mask)


def _symmetric(x: Tensor, scheme: Scheme, end: Tensor | None = None) -> tuple[Tensor, ...]:
    """Codes of an ``int`` scheme, moved up by 128: uint8 products are the kernel's fastest.

    ``end``: the learned one, (1,).
    """
    zero = torch.tensor(128, dtype=torch.uint8)
    if end is not None:
        scale, top = (end / scheme.steps).squeeze(), scheme.levels[1]
        return ((x / scale).clamp(-top, top).round() + 128).to(torch.uint8), scale, zero
    size = x.abs()
    token = scheme.granularity == "token"
    largest = size.amax(-1, keepdim=True) if token else size.flatten().amax(0)
    inverse = scheme.steps / torch.where(largest > 0, largest, torch.ones_like(largest))
    codes = (x * inverse).round()
    codes = (codes.clamp(*scheme.levels) if scheme.rule else codes) + 128
    return codes.to(torch.uint8), largest / scheme.steps, zero


def _gather(rows: Tensor, ids: Tensor) -> Tensor:
    """``rows[ids]`` as ONNX's Gather, whatever the type."""
    shape = (*ids.shape, *rows.shape[1:])
    return symbolic("Gather", (rows, ids), {"axis": 0}, dtype=rows.dtype, shape=shape)


class _Unpacked(nn.Module):
    """What both layers share: bytes, the table that opens them, fp16 scales."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.rows, self.columns = packed.rows, packed.columns
        self.register_buffer("bytes", packed.weight.squeeze(-1))
        self.register_buffer("table", byte_table(packed.width, packed.offset))
        self.register_buffer("scale", packed._rows_of(packed.weight_scale, None).flatten().float())
        zero = getattr(packed, "weight_zero", None)
        zero = zero if zero is None else packed._rows_of(zero, None).flatten()
        self.register_buffer("zero", zero)

    def open(self, rows: Tensor) -> Tensor:
        """Bytes (…, n) → integers (…, columns)."""
        found = _gather(self.table, rows.int()).flatten(-2)
        return found if found.shape[-1] == self.columns else found[..., : self.columns]


class _OnnxLinear(_Unpacked):
    """A packed linear layer as ONNX Runtime computes it."""

    def __init__(self, packed: PackedLinear, activations: str) -> None:
        super().__init__(packed)
        scheme = packed.activations and replace(packed.activations, clip=None)
        self.activations = DYNAMIC if scheme and activations == "dynamic" else scheme
        self.bias = packed.bias
        self.clip = packed.activations.clip if packed.activations else None
        learned = self.activations is not None and self.activations.learned is not None
        self.register_buffer("end", packed.input_clip.float() if learned else None)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.open(self.bytes).T  # (inputs, outputs)
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        if self.activations is None:
            y, scale = x @ self.centred(weight), self.scale
        else:
            codes, x_scale, zero = (
                _dynamic(x) if self.activations == DYNAMIC
                else _symmetric(x, self.activations, self.end)
            )  # fmt: skip
            operands = [codes, weight, zero] + ([self.zero] if self.zero is not None else [])
            shape = *x.shape[:-1], self.rows
            y = symbolic("MatMulInteger", operands, dtype=torch.int32, shape=shape).float()
            scale = self.scale
            if x_scale.ndim:
                # One scale a token: ONNX Runtime (seen in 1.31) would fuse y · (x_scale · scale)
                # into MatMulIntegerToFloat and use the first token's scale for all.
                y = y * x_scale
            else:
                scale = x_scale * scale
        y = y * scale
        return y if self.bias is None else y + self.bias

    def centred(self, weight: Tensor) -> Tensor:
        return weight.float() if self.zero is None else weight.float() - self.zero.float()


class _OnnxEmbedding(_Unpacked):
    """A packed embedding: gathers bytes, expands only the rows that are looked up."""

    def __init__(self, packed: PackedEmbedding, activations: str) -> None:
        super().__init__(packed)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.open(_gather(self.bytes, ids)).float()
        if self.zero is not None:
            found = found - self.at(self.zero, ids).float()
        return found * self.at(self.scale, ids)

    @staticmethod
    def at(per_row: Tensor, ids: Tensor) -> Tensor:
        return _gather(per_row, ids).unsqueeze(-1) if len(per_row) > 1 else per_row


def _unmasked(layer: SparseLinear, activations: str) -> nn.Module:
    """Runtimes have no product for masks."""
    plain = layer.unmasked()
    return _OnnxLinear(plain, activations) if isinstance(plain, PackedLinear) else plain


class _OnnxLSTM(nn.Module):
    """ONNX's LSTM, which takes lengths; its gates are input, output, forget, cell."""

    def __init__(self, lstm: LastStates, activations: str) -> None:
        super().__init__()
        self.hidden = lstm.hidden_size
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            ways = [getattr(lstm, f"{name}_l0{way}").detach() for way in ("", "_reverse")]
            gates = [w.chunk(4) for w in ways]
            self.register_buffer(
                name, torch.stack([torch.cat([i, o, f, c]) for i, f, c, o in gates])
            )

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = vectors.shape
        bias = torch.cat([self.bias_ih, self.bias_hh], 1)
        lengths = mask.sum(1).clamp(min=1).int()
        given = (vectors.transpose(0, 1), self.weight_ih, self.weight_hh, bias, lengths)
        shapes = ((length, 2, batch, self.hidden), (2, batch, self.hidden))
        how = {"direction": "bidirectional", "hidden_size": self.hidden}
        types = (torch.float32,) * 2
        _, states = symbolic_multi_out("LSTM", given, how, dtypes=types, shapes=shapes)
        return states.transpose(0, 1).flatten(1)


# How a layer is exported that is not as it stands; a stored one that is not here as its dense self.
FORMS = {
    PackedLinear: _OnnxLinear, PackedEmbedding: _OnnxEmbedding, SparseLinear: _unmasked,
    LastStates: _OnnxLSTM,
}  # fmt: skip


class _Logits(nn.Module):
    """The model as a function of its inputs, in their order: logits, or an encoder's vectors."""

    def __init__(self, model: PreTrainedModel, inputs: list[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self.inputs, tensors, strict=True))
        output = self.model(**given)
        if has_no_head(self.model):
            return text_vectors(output.last_hidden_state, given["attention_mask"])
        return logits_of(output)


def export_onnx(model: PreTrainedModel, path: str | Path, activations: str = "dynamic") -> Path:
    """Writes a classifier as one ``.onnx`` file, packed weights still packed; returns its path.

    ``activations`` of a packed model: ``dynamic`` (uint8, one scale per tensor, ONNX's
    DynamicQuantizeLinear: the fastest) or ``trained`` (its own schemes, to the same integers).
    Inputs are int64 of shape (batch, length), both dynamic: ids, mask, and segments where the model
    knows more than one; the output is ``logits``, (batch, classes), a tagger's (batch, length,
    tags) or, for both ends of an answer, (batch, length, 2), or an encoder's
    ``sentence_embedding``, (batch, width). Labels, the longest length and the scheme stand in the
    file's metadata. An old file survives a failure. 8-bit weights may saturate on x86 processors
    without VNNI, as all of ONNX Runtime's int8 does there; weights of up to 4 bits cannot.

    Raises ``ValueError`` for other ``activations``, and for a scheme that runtimes have no product
    for.
    """
    path = Path(path)
    if path.is_dir() or path.suffix != ".onnx":
        raise ValueError(f"cannot export to {path}: expected the name of a file ending in .onnx")
    if hasattr(model, "exits"):
        raise ValueError("a model with exits is several files: write them by `export_segments`")
    model = prepared(model, activations)
    content = with_sum(to_onnx(model, {**about(model, activations), SUM: "0" * 64}))
    try:
        return write_bytes(path, content)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error}; what was there is unchanged") from None


def prepared(model: PreTrainedModel, activations: str) -> PreTrainedModel:
    """A copy whose layers are as they are exported.

    Raises ``ValueError`` for other ``activations``, for a scheme that runtimes have no product for,
    and for a model that drops tokens.
    """
    if activations not in ACTIVATIONS:
        raise ValueError(
            f"activations must be one of {', '.join(ACTIVATIONS)}, received {activations!r}"
        )
    if hasattr(model, "drops"):
        raise ValueError(
            "how many tokens are dropped depends on the row, which ONNX does not trace"
        )
    schemes = [getattr(m, n, None) for m in model.modules()
               for n in ("activations", "attention_scheme")]  # fmt: skip
    foreign = [s for s in schemes if s and s.family == "uint" and replace(s, clip=None) != DYNAMIC]
    if activations == "trained" and foreign:
        raise ValueError(
            f"ONNX has no product for activations {foreign[0]}, whose zero point is not one uint8 "
            f"a tensor: export with activations='dynamic', or train with {DYNAMIC}"
        )
    model = copy.deepcopy(model).cpu().eval()
    for name, module in list(model.named_modules()):
        if activations == "dynamic" and getattr(module, "attention_scheme", None):
            module.attention_scheme = DYNAMIC
        if type(module) in FORMS:
            replace_module_(model, name, FORMS[type(module)](module, activations))
        elif isinstance(module, Stored):
            replace_module_(model, name, module.dense())
    return model


def about(model: PreTrainedModel, activations: str) -> dict[str, str]:
    """The metadata that :class:`OnnxModel` reads."""
    config = model.config
    said = {"activations": activations, "labels": list(config.id2label.values()),
            "max_length": longest(model),
            "trained_on": getattr(config, "trained_on", None) or {}}  # fmt: skip
    return {"xtc": json.dumps(said)}


def to_onnx(model: PreTrainedModel, metadata: dict[str, str] | None = None) -> bytes:
    """Any classifier as the bytes of an ONNX file; floats that fp16 holds exactly are fp16 in it.

    Raises ``ImportError`` if the extra ``onnx`` is not installed.
    """
    with masked(model):
        example = example_of(model)
        output = VECTORS if has_no_head(model) else "logits"
        return trace(_Logits(model, list(example)), example, [output], metadata)


def example_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs that a model takes, in their order, by which it is traced."""
    inputs = [name for name in INPUTS if name in inspect.signature(model.forward).parameters]
    if getattr(model.config, "type_vocab_size", 0) < 2:  # tokenizers of RoBERTa give no segments
        inputs = [name for name in inputs if name != "token_type_ids"]
    ids = torch.full((2, 5), 5)
    example = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    return {name: example[name] for name in inputs}


@contextlib.contextmanager
def masked(model: PreTrainedModel) -> Iterator[None]:
    """Within it a model has the attention that is exported, with masks that broadcast."""
    _require_onnx()
    before, training = model.config._attn_implementation, model.training
    if takes_another(model):
        model.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        if takes_another(model):
            model.set_attn_implementation(before)
        model.train(training)


def trace(
    module: nn.Module, example: dict[str, Tensor], outputs: list[str], metadata: dict | None = None
) -> bytes:
    """Any module of named inputs (batch, length, …) and outputs, as an ONNX file's bytes."""
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with quiet(), torch.no_grad():
        # Its own optimizer would open small packed weights; `serialized` leaves them.
        program = torch.onnx.export(
            module.eval(), tuple(example.values()), input_names=list(example),
            output_names=outputs, dynamic_shapes=((sizes,) * len(example),), opset_version=OPSET,
            dynamo=True, optimize=False, verbose=False,
        )  # fmt: skip
    return serialized(program.model, metadata or {})


def operators(path: str | Path, optimized: bool = False) -> Counter[str]:
    """How often each operator stands in an ONNX file, or in what ONNX Runtime makes of it."""
    import onnx

    if not optimized:
        return Counter(node.op_type for node in onnx.load(str(path)).graph.node)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the result suits this machine alone
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return operators(options.optimized_model_filepath)


def _require_onnx() -> None:
    try:
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise ImportError(
            f"exporting to ONNX needs {error.name}: pip install 'xtclib[onnx]'"
        ) from error
