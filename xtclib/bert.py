"""Finding the parts of a BERT-like model, and building students from teachers.

A model is told by its parts, not by its name: an encoder with a list of layers, or one that is used
in turns, whose matrices are called as in one of the rows of ``_NAMES``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from xtclib.config import short
from xtclib.files import first_line, unknown

L = TypeVar("L", bound=nn.Linear)
Kinds = type | tuple[type, ...]  # as isinstance takes them
KIN = (
    "BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, MobileBERT, MiniLM, DistilBERT, MPNet, DeBERTa-v2, "
    "ALBERT or ModernBERT"
)
PARTS = "query", "key", "value", "attention output", "feed-forward in", "feed-forward out"
# What these matrices of a layer are called; where three are one, it is named three times.
_BERTS, _DISTILBERTS, *_OTHERS = _NAMES = [
    dict(zip(PARTS, row.split(), strict=True))
    for row in (
        "attention.self.query attention.self.key attention.self.value attention.output.dense "
        "intermediate.dense output.dense",
        "attention.q_lin attention.k_lin attention.v_lin attention.out_lin ffn.lin1 ffn.lin2",
        # MPNet's, DeBERTa's, ALBERT's, ModernBERT's
        "attention.attn.q attention.attn.k attention.attn.v attention.attn.o "
        "intermediate.dense output.dense",
        "attention.self.query_proj attention.self.key_proj attention.self.value_proj "
        "attention.output.dense intermediate.dense output.dense",
        "attention.query attention.key attention.value attention.dense ffn ffn_output",
        "attn.Wqkv attn.Wqkv attn.Wqkv attn.Wo mlp.Wi mlp.Wo",
    )
]
PART_OF = {name: part for names in _NAMES for part, name in reversed(names.items())}
_LISTS = "encoder.layer", "transformer.layer", "layers"  # where the layers are, below the base
_SHARED = "encoder.albert_layer_groups.0.albert_layers"


# What a config may ask for at most. Before a model is built from a file: a million layers take
# minutes, a billion labels all memory.
LARGEST = 1_000_000
_MOST = {"num_labels": 100_000, "num_hidden_layers": 1000, "n_layers": 1000, "vocab_size": 10**7}
_SIZES = (
    "num_hidden_layers n_layers num_labels vocab_size hidden_size dim intermediate_size hidden_dim "
    "num_attention_heads n_heads embedding_size max_position_embeddings type_vocab_size "
    "num_feedforward_networks true_hidden_size intra_bottleneck_size num_hidden_groups "
    "inner_group_num relative_attention_num_buckets local_attention max_relative_positions "
    "position_buckets"
).split()
_UNSET = "max_relative_positions", "position_buckets"  # by -1, as DeBERTa has it
_ACTIVATIONS = "hidden_act", "activation"


def read_config(path: str | Path) -> PretrainedConfig:
    """The config of a folder or Hub id, checked before anything is made of it.

    Raises ``ValueError`` for one that cannot be read, that asks for more than any machine builds,
    and for an unknown activation; ``FileNotFoundError`` where there is none.
    """
    where, altered = f"config.json in {path}", "it was altered or damaged, copy the folder again"
    try:
        values, _ = PretrainedConfig.get_config_dict(path)
    except RecursionError:
        raise ValueError(f"{where} cannot be read (nested too deeply): {altered}") from None
    except OSError as error:
        if not (Path(path) / "config.json").is_file():
            raise FileNotFoundError(
                f"no config.json in {str(path)!r}: expected a model's folder, or its id on the Hub "
                f"if that can be reached ({first_line(error)})"
            ) from None
        raise ValueError(f"{where} cannot be read ({first_line(error)}): {altered}") from None
    except Exception as error:  # transformers raises of every kind here
        raise ValueError(f"{where} cannot be read ({first_line(error)}): {altered}") from None
    check_config_values(values, where)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"{where} cannot be read ({first_line(error)}): {altered}") from None


def check_config_values(values: object, where: str) -> None:
    """Raises ``ValueError`` for a config's values that would exhaust a machine, or are no sizes."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} cannot be read: expected names with values, not {short(values)}")
    for name in _SIZES:
        value, most = values.get(name), _MOST.get(name, LARGEST)
        unset = value is None or (value == -1 and name in _UNSET)
        if not unset and (type(value) is not int or not 0 <= value <= most):
            raise ValueError(
                f"{where} says {name}={short(value)}, expected a whole number up to {most}"
            )
    for name in (name for name in values if "dropout" in name and values[name] is not None):
        value = values[name]
        if type(value) not in (int, float) or not 0 <= value <= 1:  # NaN fails too
            raise ValueError(f"{where} says {name}={short(value)}, expected a number from 0 to 1")
    for name in _ACTIVATIONS:
        if isinstance(value := values.get(name), str) and value not in ACT2FN:
            raise ValueError(f"{where}: {unknown(name, value, sorted(ACT2FN))}")


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The encoder's list of layers; ``TypeError`` for a model whose layers are not BERT's.

    A layer that is used several times, as ALBERT's, is listed as often.
    """
    if not is_berts(model):
        raise TypeError(
            f"{type(model).__name__} has no layers that are built as BERT's, which this changes "
            f"or compares: expected {KIN} (students that learn from logits alone take any teacher)"
        )
    return _layers(model)


def is_berts(model: PreTrainedModel) -> bool:
    """Whether a model has a list of layers whose matrices have names that are known here."""
    layers = _layers(model)
    return isinstance(layers, nn.ModuleList) and all(part_names(layer) for layer in layers)


def is_shared(model: PreTrainedModel) -> bool:
    """Whether all layers of a model are one, used in turns, as ALBERT's."""
    return _at(model.base_model, _SHARED) is not None


def part_names(layer: nn.Module) -> dict[str, str]:
    """The name within a layer of each of its ``PARTS``; none for a layer of an unknown kind."""
    attention = getattr(layer, "attention", layer)
    if hasattr(attention, "q_lin"):
        return _DISTILBERTS
    inside = dict(getattr(attention, "self", layer).named_children()).keys()
    if inside - {"dropout", "distance_embedding"} == {"query", "key", "value"}:
        return _BERTS
    return next((row for row in _OTHERS if all(_at(layer, n) for n in row.values())), {})


def part(layer: nn.Module, name: str) -> Any:
    """One of the ``PARTS`` of a layer.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    >>> part(encoder_layers(BertModel(tiny))[0], "attention output").out_features
    4
    """
    return attrgetter(part_names(layer)[name])(layer)


def set_part_(layer: nn.Module, name: str, new: nn.Module) -> None:
    """Puts ``new`` where one of the ``PARTS`` of a layer is, in place."""
    owner, _, last = part_names(layer)[name].rpartition(".")
    setattr(attrgetter(owner)(layer) if owner else layer, last, new)


def attention_of(layer: nn.Module) -> Any:
    """The module of a layer that has its query, and knows how large a head is."""
    return attrgetter(part_names(layer)["query"].rpartition(".")[0])(layer)


def heads_of(layer: nn.Module) -> int:
    """How many attention heads a layer has."""
    attention = attention_of(layer)
    size = getattr(attention, "attention_head_size", None) or attention.head_dim
    return part(layer, "attention output").in_features // size


def _at(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
    return module


def _layers(model: PreTrainedModel) -> nn.ModuleList | None:
    base = model.base_model
    if once := _at(base, _SHARED):
        turns = model.config.num_hidden_layers
        one = len(base.encoder.albert_layer_groups) == len(once) == 1
        return nn.ModuleList([once[0]] * turns) if one else None
    return next((found for path in _LISTS if (found := _at(base, path)) is not None), None)


def set_encoder_layers_(model: PreTrainedModel, layers: Iterable[nn.Module]) -> None:
    """Gives the encoder these layers, in place, numbers them, and says in the config how many.

    Of a layer that is used in turns there are then as many turns. ModernBERT's first layer has no
    norm: the one that becomes the first takes its norm's scale into its matrix.
    """
    kept, before = nn.ModuleList(layers), encoder_layers(model)
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    model.config.num_hidden_layers = len(kept)
    if is_shared(model):
        return
    if getattr(model.config, "layer_types", None):  # local and global attention take turns
        model.config.layer_types = [layer.attention_type for layer in kept]
    if isinstance(getattr(before[0], "attn_norm", None), nn.Identity):
        first, norm = kept[0], kept[0].attn_norm
        if not isinstance(norm, nn.Identity):
            reads = getattr(first.attn.Wqkv, "reader", first.attn.Wqkv)
            reads.weight.data.mul_(norm.weight.data)
            first.attn_norm = nn.Identity()
    set_layer_list_(model, kept)


def set_layer_list_(model: PreTrainedModel, layers: nn.ModuleList) -> None:
    """Puts a list of layers where the encoder has its own, in place."""
    path = next(path for path in _LISTS if _at(model.base_model, path) is not None)
    replace_module_(model.base_model, path, layers)


def encoder_linears(model: nn.Module, kinds: Kinds = nn.Linear) -> dict[str, nn.Linear]:
    """Every linear layer of the encoder by its full name: what XTC quantizes.

    Query, key, value, both output projections and the intermediate layer; not the pooler, not the
    classifier.
    """
    inside = {module for layer in encoder_layers(model) for module in layer.modules()}
    found = model.named_modules()
    return {name: m for name, m in found if m in inside and isinstance(m, kinds)}


def embeddings(model: PreTrainedModel) -> nn.Module:
    """The block that adds word, position and type embeddings; ``TypeError`` without positions."""
    block = getattr(model.base_model, "embeddings", None)
    if not isinstance(getattr(block, "position_embeddings", None), nn.Module):
        lacks = f"{type(model).__name__} has no table at `embeddings.position_embeddings`"
        raise TypeError(f"{lacks}; expected {KIN}")
    return block


def longest(model: PreTrainedModel) -> int | None:
    """How many tokens a model has positions for; ``None`` where there is no such bound.

    RoBERTa's kin number them from ``padding_idx + 1``: 514 positions are 512 tokens.

    >>> from transformers import RobertaConfig, RobertaModel
    >>> config = RobertaConfig(vocab_size=8, hidden_size=12, max_position_embeddings=42)
    >>> longest(RobertaModel(config))
    40
    """
    rows = getattr(model.config, "max_position_embeddings", None)
    return rows and rows - _first_position(getattr(model.base_model, "embeddings", None))


def _first_position(block: nn.Module | None) -> int:
    padding = getattr(block, "padding_idx", None)  # RoBERTa's kin alone keep it here
    return 0 if padding is None else padding + 1


def trim_positions_(model: PreTrainedModel, length: int) -> None:
    """Cuts the position table to ``length`` tokens at most, in place; longer input is refused.

    ``TypeError`` for a model without that table, and for one that scores relative positions, by as
    many as there are.
    """
    if getattr(model.config, "relative_attention", False):
        relative = f"{type(model).__name__} scores relative positions, by as many as it has"
        raise TypeError(f"{relative}: they cannot be trimmed, leave out `length`")
    block = embeddings(model)
    table, rows = block.position_embeddings, length + _first_position(block)
    if rows < table.weight.shape[0]:
        short = nn.Embedding(rows, table.weight.shape[1], table.padding_idx, device="meta")
        short.weight = nn.Parameter(table.weight.detach()[:rows].clone())
        block.position_embeddings = short
        for name in ("position_ids", "token_type_ids"):
            if hasattr(block, name):
                block.register_buffer(name, getattr(block, name)[:, :rows], persistent=False)
        model.config.max_position_embeddings = rows
    refuse_longer_(model, length)


def refuse_longer_(model: PreTrainedModel, length: int) -> None:
    """Has a model refuse, with ``ValueError``, more than ``length`` tokens, or than it can read."""
    block = embeddings(model)
    length = min(length, longest(model) or length)
    block.register_forward_pre_hook(partial(_refuse, length), with_kwargs=True)


def shown_to(args: tuple, named: dict) -> tuple[Tensor | None, Tensor | None]:
    """The ids (batch, length), or their embeddings, and the mask among a model's arguments.

    >>> shown_to((), {"input_ids": torch.ones(1, 2)})
    (tensor([[1., 1.]]), None)
    """
    given = (*args[:1], named.get("input_ids"), named.get("inputs_embeds"))
    mask = args[1] if len(args) > 1 else named.get("attention_mask")
    return next((tensor for tensor in given if tensor is not None), None), mask


def _refuse(length: int, block: nn.Module, inputs: tuple, named: dict) -> None:
    shown, _ = shown_to(inputs[:1], named)
    count = 0 if shown is None else shown.shape[1]
    if count > length:
        long = f"received {count} tokens, but this model has {length} positions"
        raise ValueError(f"{long}: truncate the input (its tokenizer does by truncation=True)")


def has_no_head(model: nn.Module) -> bool:
    """Whether a model gives states alone: ``transformers`` calls it ``BertModel``, … ``Model``."""
    return type(model).__name__.endswith("Model")


def logits_of(output: Any) -> Tensor:
    """What a model's output says: logits, both ends' of an answer side by side, or else states."""
    if getattr(output, "start_logits", None) is not None:
        return torch.stack([output.start_logits, output.end_logits], -1)
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


def text_vectors(states: Tensor, mask: Tensor) -> Tensor:
    """One vector of length one for each text: the mean of its tokens' states, padding left out.

    ``v = Σ mask·h / Σ mask``, then ``v / ‖v‖``; states (batch, length, width), mask (batch,
    length), to (batch, width). Source: Sentence-BERT, arXiv:1908.10084, section 3.

    >>> text_vectors(Tensor([[[3, 0], [0, 4], [9, 9]]]), Tensor([[1, 1, 0]]))
    tensor([[0.6000, 0.8000]])
    """
    weight = mask[..., None].to(states.dtype)
    mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1)
    return nn.functional.normalize(mean, dim=-1)


def linear_of(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A plain linear layer around these tensors, which it does not copy.

    >>> linear_of(nn.Linear(3, 2).weight).out_features
    2
    """
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    if bias is not None:
        linear.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
    return linear


def around(cls: type[L], linear: nn.Linear) -> L:
    """A linear layer of another class around the same parameters."""
    layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    layer.weight, layer.bias = linear.weight, linear.bias
    return layer.train(linear.training)


def replace_module_(model: nn.Module, name: str, new: nn.Module) -> None:
    """Puts ``new`` where ``name`` points to, in place."""
    model.set_submodule(name, new)


def spread(count: int, depth: int) -> list[int]:
    """``count`` 0-based layers of ``depth``, evenly spread and ending with the last.

    >>> spread(6, 12), spread(4, 12)
    ([1, 3, 5, 7, 9, 11], [2, 5, 8, 11])
    """
    return [(i + 1) * depth // count - 1 for i in range(count)]


def keep_layers(model: PreTrainedModel, keep: Iterable[int]) -> PreTrainedModel:
    """A copy of ``model`` with only the encoder layers ``keep`` (0-based), the rest copied.

    Its config says which layers of the first model are left, as ``kept_layers``.

    Raises ``ValueError`` for none, for unknown ones, and for numbers that do not rise.
    """
    keep, depth = list(keep), len(encoder_layers(model))
    if not keep:
        raise ValueError("the list of layers to keep is empty: keep at least one layer")
    outside = [i for i in keep if not isinstance(i, int) or not 0 <= i < depth]
    if outside:
        has = f"the teacher has {depth} layers, numbered 0 to {depth - 1}"
        raise ValueError(f"cannot keep layers {outside}: {has}")
    if sorted(set(keep)) != keep:
        raise ValueError(f"layers to keep must be rising and without repeats, received {keep}")
    student = copy.deepcopy(model)
    set_encoder_layers_(student, [encoder_layers(student)[i] for i in keep])
    before = kept_layers(model) or range(depth)
    student.config.kept_layers = [before[i] for i in keep]
    return student


def kept_layers(model: PreTrainedModel) -> list[int] | None:
    """Which 0-based layers of the model that it was cut out of are left; ``None`` if all are."""
    kept = getattr(model.config, "kept_layers", None)
    return kept if kept and len(kept) == len(encoder_layers(model)) else None
