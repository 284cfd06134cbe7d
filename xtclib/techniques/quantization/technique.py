"""Quantization as techniques: which tensors take which scheme, in training and on disk."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from xtclib import bert
from xtclib.attention import takes_another, use
from xtclib.config import READ, Count, Listed, config, short
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import Stored, Technique, check_finite, copied, needs, pack_, register
from xtclib.techniques.quantization.gptq import Calibrated, round_
from xtclib.techniques.quantization.layers import QuantEmbedding, QuantLinear, quantizing
from xtclib.techniques.quantization.mixed import Mixed
from xtclib.techniques.quantization.packed import Packed, PackedEmbedding, PackedLinear
from xtclib.techniques.quantization.products import InputQuantizer
from xtclib.techniques.quantization.quantizers import AsScheme, Scheme, StoredScheme, fake_quantize


def quantize_attention_(model: PreTrainedModel, scheme: Scheme) -> None:
    """Marks every self-attention of a model to quantize the operands of its two products."""
    if not (bert.is_berts(model) and takes_another(model)):
        lacks = f"{type(model).__name__} has no BERT-like self-attention whose products"
        raise ValueError(f"{lacks} could be quantized; leave out `attention`")
    use(model)
    for module in map(bert.attention_of, bert.encoder_layers(model)):
        module.attention_scheme, module.rounded = scheme, partial(fake_quantize, scheme=scheme)


@register
@config
class Quantize(Technique):
    """Quantizes encoder weights, word embeddings and activations, and trains through it.

    ``weights``, ``embeddings``, ``activations`` and ``attention`` each take a scheme such as
    ``binary``, ``ternary-row``, ``int4-group128``, ``int8-token``, or ``None``. ``attention``
    quantizes the operands of the two attention products as well (TernaryBERT, Q8BERT do).
    What is left (position and type embeddings, LayerNorm, biases, pooler, classifier) is stored in
    fp16. Source: XTC, arXiv:2206.01859, section 3 and its release.

    In place of ``weights``: ``by_layer``, schemes from the first layer to the last, as many layers
    for each; or ``mixed``, where matrices differ (:class:`.mixed.Mixed`). Without training:
    ``calibrated`` rounds weights by what they read (:class:`.gptq.Calibrated`), for good, so no
    later stage trains.
    """

    name: ClassVar[str] = "quantize"
    family: ClassVar[str] = "quantized"
    weights: StoredScheme | None = Scheme("binary")
    embeddings: StoredScheme | None = Scheme("binary", granularity="row")
    activations: AsScheme | None = Scheme("int", 8, "token")
    attention: StoredScheme | None = None
    calibrated: Annotated[Calibrated, READ] | None = None
    mixed: Annotated[Mixed, READ] | None = None
    by_layer: Listed[StoredScheme] | None = None
    stored = True

    def __post_init__(self) -> None:
        if self.by_layer is not None and (self.mixed or not (self.by_layer and self.weights)):
            other = "mixed" if self.mixed else "no scheme" if self.weights else "weights: null"
            raise ValueError(f"quantize has by_layer and {other}: list schemes, and no other")
        if self.weights is None and self.calibrated is not None:
            raise ValueError("calibrated rounds weights: give weights a scheme, such as 'int4-row'")
        if self.weights is None and self.activations is not None:
            lone = f"activations={self.activations} without weights: an integer product needs both"
            raise ValueError(f"{lone}; give weights a scheme, such as 'int8'")

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        first, how, model = model, self.calibrated, copied(model)
        check_finite(model, "cannot quantize this model")
        if self.mixed:
            rows = replace(needs(data, "quantize by sensitivity"), rows=self.mixed.rows)
            model.config.schemes = _said(self.mixed.schemes(model, rows))
        self._replace_(model, quantizing)
        if self.embeddings is not None:
            _set_words_(model, QuantEmbedding.from_embedding, self.embeddings)
        if self.attention is not None:
            quantize_attention_(model, self.attention)
        if data is not None and self.activations is not None and self.activations.learned:
            inputs = {k: v.to(model.device) for k, v in next(data.batches()).items()}
            with torch.no_grad():  # the ends start at the task's first rows
                model.eval()(**inputs)
        if how is not None:
            rows = replace(needs(data, "quantize by calibrated rows"), rows=how.rows)
            round_(model.eval(), first, rows, how)
        return model

    def check_student(self, stage, student: PreTrainedModel) -> None:
        if self.calibrated is not None and stage.trains:
            told = f"stage {stage.name!r} trains, and `calibrated` rounds for good"
            raise ValueError(f"{told}: list it last, in a stage without an objective")

    def to_dict(self, whole: bool = True) -> dict:
        """As for any technique, without what is ``None`` of three that came later.

        So a file that has none of them is, byte for byte, what it was before they existed.
        """
        found = super().to_dict(whole)[self.name]
        optional = ("calibrated", "mixed", "by_layer")
        return {self.name: {k: v for k, v in found.items() if v is not None or k not in optional}}

    @property
    def looks_at(self) -> int:
        return max((how.rows for how in (self.calibrated, self.mixed) if how), default=0)

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        return pack_(model)

    def rebuild(self, model: PreTrainedModel) -> None:
        self._replace_(model, _empty)
        if self.embeddings is not None:
            _set_words_(model, PackedEmbedding.like, self.embeddings)
        if self.attention is not None:
            quantize_attention_(model, self.attention)

    def _replace_(self, model: PreTrainedModel, make: Callable) -> None:
        """Replaces the encoder's linear layers; those of one block round their input together."""
        if self.weights is None:
            return
        inputs: dict = defaultdict(lambda: InputQuantizer(self.activations))
        linears = bert.encoder_linears(model, (nn.Linear, Stored))
        schemes = self._mixture(model, linears) if self.mixed else self._layers(model, linears)
        for name, linear in linears.items():
            block = name.rpartition(".")[0]
            scheme = schemes.get(name, self.weights)
            bert.replace_module_(model, name, make(linear, scheme, inputs[block]))

    def _mixture(self, model: PreTrainedModel, linears: Mapping) -> dict[str, Scheme]:
        """Each matrix's scheme, as the config lists them."""
        said = getattr(model.config, "schemes", None)
        if not isinstance(said, dict) or said.keys() != linears.keys():
            raise ValueError(
                f"config.json says schemes={short(said)}, expected one for each matrix: "
                "copy the artefact again"
            )
        return {name: Scheme.parse(text) for name, text in said.items()}

    def _layers(self, model: PreTrainedModel, linears: Mapping) -> dict[str, Scheme]:
        """The scheme of each matrix by its layer's place: ``by_layer[⌊i·schemes/depth⌋]``."""
        listed, layers = self.by_layer or (), bert.encoder_layers(model)
        if len(listed) > len(layers):
            more = f"by_layer lists {len(listed)} schemes, but the model has {len(layers)} layers"
            raise ValueError(f"{more}: list one a layer at most")
        found = dict[str, Scheme]()
        for i, layer in enumerate(layers) if listed else ():
            inside, scheme = set(layer.modules()), listed[i * len(listed) // len(layers)]
            found |= {name: scheme for name, linear in linears.items() if linear in inside}
        return found

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.mixed:
            shapes = {n: la.weight.shape for n, la in bert.encoder_linears(model).items()}
            model.config.schemes = _said(self.mixed.chosen(shapes))
        return super().plan(model)


def _said(schemes: Mapping[str, Scheme]) -> dict[str, str | dict]:
    """Schemes as a config lists them: by their names, or where those do not say all, by fields."""
    named = {name: (str(s), s) for name, s in schemes.items()}
    return {n: text if Scheme.parse(text) == s else s.to_dict(whole=False)
            for n, (text, s) in named.items()}  # fmt: skip


def _set_words_(model: PreTrainedModel, make: Callable, scheme: Scheme) -> None:
    """Replaces the word table, or the smaller one inside what stands in its place."""
    words = model.get_input_embeddings()
    if hasattr(words, "table"):
        words.table = make(words.table, scheme)
    elif isinstance(words, nn.Embedding):
        model.set_input_embeddings(make(words, scheme))
    else:
        lacks = f"quantize finds no table of vectors in {type(words).__name__}"
        raise ValueError(f"{lacks}, which is small by itself: give it `embeddings: null`")


def _empty(linear: nn.Module, weights: Scheme, inputs: InputQuantizer) -> nn.Module:
    if isinstance(linear, Stored):
        return linear.quantizing(weights, inputs)
    return PackedLinear.like(linear, weights, inputs)


@register
@config
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
    pooler: StoredScheme | None = None
    positions: StoredScheme | None = None
    length: Count | None = None
    ternary: Literal[2, 1.6] = 2  # type: ignore[valid-type]
    classifier: StoredScheme | None = None
    stored = True

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        model = copy.deepcopy(model)
        if self.length is not None:
            bert.trim_positions_(model, self.length)
        if self.positions is not None:
            block = bert.embeddings(model)
            table = QuantEmbedding.from_embedding(block.position_embeddings, self.positions)
            block.position_embeddings = table
        for name, scheme in self._linears(model).items():
            linear = QuantLinear.from_linear(model.get_submodule(name), scheme)
            bert.replace_module_(model, name, linear)
        return model

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        return self._set_widths(pack_(model))

    def rebuild(self, model: PreTrainedModel) -> None:
        if self.length is not None:
            bert.refuse_longer_(model, self.length)
        if self.positions is not None:
            block = bert.embeddings(model)
            table = PackedEmbedding.like(block.position_embeddings, self.positions)
            block.position_embeddings = table
        for name, scheme in self._linears(model).items():
            bert.replace_module_(model, name, PackedLinear.like(model.get_submodule(name), scheme))
        self._set_widths(model)

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.length is not None:
            bert.trim_positions_(model, self.length)
        self.rebuild(model)
        return model

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

    def _set_widths(self, model: PreTrainedModel) -> PreTrainedModel:
        for module in model.modules():
            if isinstance(module, Packed) and module.weights.family == "ternary":
                module.set_width_(self.ternary)
        return model


def with_activations(model: PreTrainedModel, scheme: Scheme | str) -> PreTrainedModel:
    """A copy of a packed model whose quantized inputs are rounded by another scheme.

    What a runtime with a scheme of its own computes: ``uint8-tensor`` is ONNX's. Weights and the
    layers whose inputs are not quantized stay.
    """
    scheme, model = Scheme.parse(scheme), copy.deepcopy(model)
    linears = [m for m in model.modules() if isinstance(m, PackedLinear) and m.activations]
    if not linears:
        lacks = f"this {type(model).__name__} has no packed layer that quantizes its input"
        raise ValueError(f"{lacks}: compress it first, with `activations`")
    for linear in linears:
        linear.inputs.scheme = scheme
        linear._buffers.pop("input_clip", None)
    for item in model.config.quantization_config.techniques:  # what is saved says what is computed
        if Quantize.name in item:
            item[Quantize.name]["activations"] = scheme.to_dict()
    return model
