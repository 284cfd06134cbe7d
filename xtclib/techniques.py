"""Techniques: small frozen configs that turn a model into a smaller one.

A technique gives ``apply(model, data) → model`` and, where it needs them, what
:class:`xtclib.interface.Technique` lists: schedules, a penalty, ``finalize`` (every tensor at the
width it is stored in) and ``rebuild`` (the same structure on an empty model, so that a saved
artefact can load). They compose in a list.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from xtclib.attention import quantize_attention_
from xtclib.batches import Calibration
from xtclib.files import unknown
from xtclib.interface import Technique, check_numbers, needs
from xtclib.layers import PackedEmbedding, PackedLinear, QuantEmbedding, QuantLinear
from xtclib.masked import HardConcrete, SparseLinear
from xtclib.models import (
    check_finite,
    check_plain,
    embeddings,
    encoder_layers,
    encoder_linears,
    keep_layers,
    pack_,
    refuse_longer_,
    refuse_packed,
    replace_module_,
    spread,
    trim_positions_,
    validate_keep,
    word_embeddings,
)
from xtclib.packing import TRIT, packed_length
from xtclib.pruning import LearnGates, PruneHeads, PruneNeurons, PruneVocabulary, PruneWidth
from xtclib.quantizers import Scheme
from xtclib.sparsify import ReweightedProximal, Sparsify
from xtclib.splitting import SplitTernary
from xtclib.structure import best, layer_influence
from xtclib.students import CNN, BiLSTM, Bottleneck, Compact, DistilBert, SmallVocabulary
from xtclib.theseus import KeepSuccessors, ReplaceModules

KEEP_NAMES = ("every-other", "top", "bottom", "importance")


@dataclass(frozen=True)
class LayerReduction(Technique):
    """Keeps some of the teacher's layers (XTC, arXiv:2206.01859, section 4).

    ``keep``: a list of 0-based teacher layers, or ``every-other`` (spread evenly), ``top`` (the
    last ones), ``bottom`` (the first), or ``importance`` (those that change their input most, on
    rows of the task: :func:`structure.layer_influence`). ``layers``: how many, as a count or as a
    fraction of the teacher's; half by default. Embeddings, pooler and classifier are copied.

    >>> LayerReduction().indices(12), LayerReduction(layers=5).indices(12)
    ([1, 3, 5, 7, 9, 11], [2, 4, 6, 8, 10])
    >>> LayerReduction("top", 3).indices(12), LayerReduction("bottom", 0.25).indices(12)
    ([9, 10, 11], [0, 1, 2])
    """

    name: ClassVar[str] = "layer_reduction"
    keep: str | tuple[int, ...] = "every-other"
    layers: int | float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            if self.keep not in KEEP_NAMES:
                raise unknown("way to keep layers", self.keep, KEEP_NAMES)
        elif not isinstance(self.keep, (list, tuple, range)):
            raise ValueError(
                f"keep must be a list of layers or one of {', '.join(KEEP_NAMES)}, "
                f"received {self.keep!r}"
            )
        else:
            object.__setattr__(self, "keep", tuple(self.keep))
            if not self.keep:
                raise ValueError("the list of layers to keep is empty: keep at least one layer")
            if self.layers is not None:
                raise ValueError(
                    f"an explicit list of layers was given together with layers={self.layers}; "
                    "leave one of them out"
                )
        check_numbers(self, "layers")
        if self.layers is not None and not (
            0 < self.layers < 1 or (self.layers >= 1 and isinstance(self.layers, int))
        ):
            raise ValueError(
                f"cannot keep {self.layers} layers: give a whole number from 1, or a fraction of "
                "the teacher's below 1"
            )

    def indices(self, depth: int) -> list[int]:
        """The 0-based teacher layers that a student of a ``depth``-layer teacher keeps."""
        if not isinstance(self.keep, str):
            return validate_keep(self.keep, depth)
        count = self.count(depth)
        if self.keep == "importance":
            raise ValueError("which layers matter depends on the model and the task: apply it")
        if self.keep == "top":
            return list(range(depth - count, depth))
        if self.keep == "bottom":
            return list(range(count))
        stride, spare = divmod(depth, count)
        if spare and stride > 1:  # the release's choice for 5 of 12: 2, 4, 6, 8, 10
            return [stride * (i + 1) for i in range(count)]
        return spread(count, depth)

    def count(self, depth: int) -> int:
        """How many layers remain; ``ValueError`` unless between 1 and ``depth``."""
        wanted = self.layers if self.layers is not None else max(depth // 2, 1)
        count = max(round(wanted * depth), 1) if wanted < 1 else wanted
        if count > depth:
            raise ValueError(f"cannot keep {count} of {depth} layers: choose between 1 and {depth}")
        return count

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        refuse_packed(model)
        depth = len(encoder_layers(model))
        if self.keep != "importance":
            return keep_layers(model, self.indices(depth))
        rows = needs(data, "layer_reduction by importance")
        influence = torch.tensor(layer_influence(model, rows.batches()))
        return keep_layers(model, best([influence], self.count(depth) / depth)[0])

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        depth = len(encoder_layers(model))
        if self.keep == "importance":  # whichever: they are of one size
            return keep_layers(model, range(self.count(depth)))
        return keep_layers(model, self.indices(depth))


@dataclass(frozen=True)
class Quantize(Technique):
    """Quantizes encoder weights, word embeddings and activations, and trains through it.

    ``weights``, ``embeddings``, ``activations`` and ``attention`` each take a scheme such as
    ``binary``, ``ternary-row``, ``int4-group128``, ``int8-token``, or ``None``. ``attention``
    quantizes the operands of the two attention products as well (TernaryBERT, Q8BERT do).
    What is left (position and type embeddings, LayerNorm, biases, pooler, classifier) is stored in
    fp16. Source: XTC, arXiv:2206.01859, section 3 and its release.
    """

    name: ClassVar[str] = "quantize"
    weights: Scheme | None = Scheme("binary")
    embeddings: Scheme | None = Scheme("binary", granularity="row")
    activations: Scheme | None = Scheme("int", 8, "token")
    attention: Scheme | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, Scheme.parse(value))
        for field in ("weights", "embeddings", "attention"):
            scheme = getattr(self, field)
            if scheme is not None and scheme.learned:
                raise ValueError(
                    f"{field}={scheme}: only the inputs of linear layers learn their ends; give "
                    f"{field} a scheme such as 'int8'"
                )
        if self.weights is None and self.activations is not None:
            raise ValueError(
                f"activations={self.activations} without weights: an integer product needs both; "
                "give weights a scheme, such as 'int8'"
            )

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        refuse_packed(model)
        if any(isinstance(module, HardConcrete) for module in model.modules()):
            check_plain(model, self.name)
        check_finite(model, "cannot quantize this model")
        model = copy.deepcopy(model)
        if self.weights is not None:
            for name, linear in encoder_linears(model).items():
                new = QuantLinear.from_linear(linear, self.weights, self.activations)
                replace_module_(model, name, new)
        if self.embeddings is not None:
            table = QuantEmbedding.from_embedding(word_embeddings(model), self.embeddings)
            model.set_input_embeddings(table)
        if self.attention is not None:
            quantize_attention_(model, self.attention)
        if data is not None and self.activations is not None and self.activations.learned:
            inputs = {k: v.to(model.device) for k, v in next(data.batches()).items()}
            with torch.no_grad():  # the ends start at the task's first rows
                model.eval()(**inputs)
        return model

    @property
    def stored(self) -> bool:
        return True

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        return pack_(model)

    def rebuild(self, model: PreTrainedModel) -> None:
        device = next(model.parameters()).device
        if self.weights is not None:
            for name, module in [*encoder_linears(model, (nn.Linear, SparseLinear)).items()]:
                kind = SparseLinear if isinstance(module, SparseLinear) else PackedLinear
                shape = module.in_features, module.out_features, module.bias is not None
                new = kind(*shape, self.weights, self.activations, device)
                if kind is SparseLinear:  # as many values, at another width
                    new.set_count_(packed_length(len(module.weight_values), new.width))
                replace_module_(model, name, new)
        if self.embeddings is not None:
            table = word_embeddings(model)
            rows, columns = table.weight.shape
            model.set_input_embeddings(PackedEmbedding(rows, columns, self.embeddings, device))
        if self.attention is not None:
            quantize_attention_(model, self.attention)


@dataclass(frozen=True)
class Storage(Technique):
    """How the rest of the file is stored: what :class:`Quantize` leaves in fp16. List it after.

    ``pooler``, ``positions`` and ``classifier`` take a scheme for the weights of the pooler, the
    position table and the last layer (inputs stay as they are); ``length`` trims the positions to
    that many, where there are more; ``ternary`` is the width of ternary weights: 2 bits, or 1.6
    (five to a byte). On before training, training sees all but the last.

    >>> Storage(pooler="int8-row", length=128).to_dict()["storage"]["length"]
    128
    """

    name: ClassVar[str] = "storage"
    pooler: Scheme | None = None
    positions: Scheme | None = None
    length: int | None = None
    ternary: float = 2
    classifier: Scheme | None = None

    def __post_init__(self) -> None:
        for field in ("pooler", "positions", "classifier"):
            if getattr(self, field) is not None:
                scheme = Scheme.parse(getattr(self, field))
                if scheme.learned:
                    raise ValueError(f"{field}={scheme}: weights do not learn their ends, try int8")
                object.__setattr__(self, field, scheme)
        if self.ternary not in (TRIT, 2):
            raise ValueError(f"ternary weights take 1.6 or 2 bits, received {self.ternary}")

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        embeddings(model)  # or an error that says what it lacks
        model = copy.deepcopy(model)
        if self.length is not None:
            trim_positions_(model, min(self.length, _positions(model)))
        if self.positions is not None:
            block = embeddings(model)
            block.position_embeddings = QuantEmbedding.from_embedding(
                block.position_embeddings, self.positions
            )
        for name, scheme in self._linears(model).items():
            linear = QuantLinear.from_linear(model.get_submodule(name), scheme)
            replace_module_(model, name, linear)
        return model

    @property
    def stored(self) -> bool:
        return True

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        model = pack_(model)
        self._set_widths(model)
        return model

    def rebuild(self, model: PreTrainedModel) -> None:
        device = next(model.parameters()).device
        if self.length is not None:
            refuse_longer_(model, min(self.length, _positions(model)))
        if self.positions is not None:
            block = embeddings(model)
            rows, columns = block.position_embeddings.weight.shape
            block.position_embeddings = PackedEmbedding(rows, columns, self.positions, device)
        for name, scheme in self._linears(model).items():
            linear = model.get_submodule(name)
            shape = linear.in_features, linear.out_features, linear.bias is not None
            replace_module_(model, name, PackedLinear(*shape, scheme, device=device))
        self._set_widths(model)

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.length is not None:
            trim_positions_(model, min(self.length, _positions(model)))
        self.rebuild(model)
        return model

    def to_dict(self) -> dict:
        """Without ``classifier`` where it is unset, as before there was one: hashes stay."""
        values = super().to_dict()[self.name]
        return {self.name: {k: v for k, v in values.items() if k != "classifier" or v is not None}}

    def _linears(self, model: PreTrainedModel) -> dict[str, Scheme]:
        """Names and schemes of the linear layers outside the encoder that are packed."""
        whole = model.base_model is not model  # else AutoModel's: no head, no prefix
        prefix = f"{model.base_model_prefix}." if whole else ""
        wanted = {f"{prefix}pooler.dense": self.pooler}
        if whole:
            wanted["classifier"] = self.classifier
        found = {name: scheme for name, scheme in wanted.items() if scheme is not None}
        modules = dict(model.named_modules())
        for name in found:
            if not isinstance(modules.get(name), nn.Linear):
                raise TypeError(f"{type(model).__name__} has no linear layer at `{name}`")
        return found

    def _set_widths(self, model: PreTrainedModel) -> None:
        for module in model.modules():
            packed = isinstance(module, (PackedLinear, PackedEmbedding))
            if packed and module.weights.family == "ternary":
                module.set_width_(self.ternary)


def _positions(model: PreTrainedModel) -> int:
    return embeddings(model).position_embeddings.weight.shape[0]


TECHNIQUES: dict[str, type[Technique]] = {
    c.name: c
    for c in (
        LayerReduction,
        Compact,
        DistilBert,
        Bottleneck,
        BiLSTM,
        CNN,
        SmallVocabulary,
        ReplaceModules,
        KeepSuccessors,
        PruneHeads,
        PruneNeurons,
        PruneWidth,
        PruneVocabulary,
        LearnGates,
        Sparsify,
        ReweightedProximal,
        Quantize,
        SplitTernary,
        Storage,
    )
}


def technique(config: Technique | dict | str) -> Technique:
    """Builds a technique from what a recipe or artefact holds: ``{name: {field: value}}``.

    >>> technique({"layer_reduction": {"keep": [1, 3]}})
    LayerReduction(keep=(1, 3), layers=None)
    """
    if isinstance(config, Technique):
        return config
    if isinstance(config, str):
        config = {config: {}}
    if not isinstance(config, dict) or len(config) != 1:
        raise ValueError(f"a technique is one `name: {{fields}}`, received {config!r}")
    ((name, values),) = config.items()
    if name not in TECHNIQUES:
        raise unknown("technique", name, TECHNIQUES)
    cls, values = TECHNIQUES[name], values or {}
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            raise unknown(f"key of {name}", key, known)
    return cls(**values)


def apply_all(
    model: PreTrainedModel, techniques: Sequence[Technique], data: Calibration | None = None
) -> nn.Module:
    """Applies a list of techniques in order."""
    for item in techniques:
        model = item.apply(model, data)
    return model


def finalize_all(model: PreTrainedModel, techniques: Sequence[Technique]) -> nn.Module:
    """Finalizes a list of techniques in order."""
    for item in techniques:
        model = item.finalize(model)
    return model
