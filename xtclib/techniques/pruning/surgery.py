"""Layers of their own widths: heads and feed-forward neurons removed for good.

A removed head takes its rows of query, key and value and its columns of the output projection with
it; a removed neuron its row of the intermediate matrix and its column of the one after. What is
left is an ordinary model with smaller matrices, uneven from layer to layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from xtclib.bert import (
    attention_of,
    encoder_layers,
    heads_of,
    is_berts,
    is_shared,
    linear_of,
    part,
    part_names,
    replace_module_,
    set_part_,
)

_ALL = slice(None)
_PROJECTIONS = "query", "key", "value"


def widths(model: PreTrainedModel) -> list[dict[str, int]]:
    """Heads and feed-forward neurons of every layer, and a head's size where it is unusual."""
    config, found = model.config, []
    inner = getattr(config, "true_hidden_size", config.hidden_size)  # MobileBERT's, in its blocks
    usual = inner // config.num_attention_heads
    for layer in _layers(model):
        size = attention_of(layer).attention_head_size
        neurons = part(layer, "feed-forward in").out_features
        found.append({"heads": heads_of(layer), "neurons": neurons})
        if size != usual:  # the hidden width was cut, heads were not
            found[-1]["head_size"] = size
    return found


def uneven(model: PreTrainedModel) -> list[dict[str, int]] | None:
    """The widths of a model whose layers are not as its config says; ``None`` where all are."""
    if not is_berts(model) or _whole(model):
        return None  # no layers whose parts could have been removed
    config, found = model.config, widths(model)
    neurons = config.hidden_dim if hasattr(config, "hidden_dim") else config.intermediate_size
    said = {"heads": config.num_attention_heads, "neurons": neurons}
    return None if all(width == said for width in found) else found


def keep_heads_(layer: nn.Module, heads: Sequence[int]) -> None:
    """Leaves a layer the heads of these 0-based numbers, in place.

    Raises ``ValueError`` for none, for unknown ones, and for numbers that do not rise.
    """
    attention, count = attention_of(layer), heads_of(layer)
    _check(heads, count, "head")
    size, numbers = attention.attention_head_size, torch.tensor(list(heads))
    kept = (numbers.unsqueeze(1) * size + torch.arange(size)).flatten()
    for name in _PROJECTIONS:
        set_part_(layer, name, _cut(part(layer, name), kept))
    output = part(layer, "attention output")
    set_part_(layer, "attention output", _cut(output, inputs=kept))
    _set_heads_(attention, len(heads), size)
    if len(heads) < count:
        _own_bias_(attention, numbers.to(output.weight.device))


def _set_heads_(attention: Any, heads: int, size: int) -> None:
    names = ("n_heads", "dim") if hasattr(attention, "n_heads") else _BERTS_HEADS
    for name, value in zip(names, (heads, heads * size), strict=True):
        setattr(attention, name, value)


_BERTS_HEADS = "num_attention_heads", "all_head_size"


def _own_bias_(attention: Any, heads: Tensor) -> None:
    """Leaves a head its bias by position, which MPNet makes once, for the heads of all layers.

    ``heads``: 0-based numbers, among those that the layer has, of those that stay.
    """
    if "position_bias" not in inspect.signature(attention.forward).parameters:
        return
    before = getattr(attention, "head_numbers", None)
    if before is None:
        attention.register_forward_pre_hook(_biased)
    attention.register_buffer("head_numbers", heads if before is None else before[heads])


def _biased(attention: Any, inputs: tuple) -> tuple:
    hidden, mask, bias = inputs
    return hidden, mask, bias[:, attention.head_numbers]


def keep_neurons_(layer: nn.Module, neurons: Sequence[int]) -> None:
    """Leaves a layer the feed-forward neurons of these 0-based numbers, in place."""
    first, second = (part(layer, f"feed-forward {side}") for side in ("in", "out"))
    _check(neurons, first.out_features, "neuron")
    kept = torch.tensor(list(neurons))
    set_part_(layer, "feed-forward in", _cut(first, kept))
    set_part_(layer, "feed-forward out", _cut(second, inputs=kept))


def resize_(model: PreTrainedModel, wanted: Sequence[Mapping[str, int]]) -> None:
    """Gives a model empty layers of these widths, in place, before weights are loaded."""
    layers = _layers(model)
    if len(layers) != len(wanted):
        raise ValueError(f"widths of {len(wanted)} layers were given for {len(layers)} layers")
    for layer, width in zip(layers, wanted, strict=True):
        attention, inner = attention_of(layer), width["neurons"]
        size = width.get("head_size", attention.attention_head_size)
        if width["heads"] != heads_of(layer):
            numbers = torch.empty(width["heads"], dtype=torch.long)
            _own_bias_(attention, numbers.to(part(layer, "query").weight.device))
        attention.attention_head_size = size
        if hasattr(attention, "scaling"):
            attention.scaling = size**-0.5
        values = width["heads"] * size
        sizes: dict[str, dict] = {name: {"outputs": values} for name in _PROJECTIONS}
        sizes |= {"attention output": {"inputs": values}}
        sizes |= {"feed-forward in": {"outputs": inner}, "feed-forward out": {"inputs": inner}}
        for name, size_of in sizes.items():
            set_part_(layer, name, _empty(part(layer, name), **size_of))
        _set_heads_(attention, width["heads"], size)


def saved_widths(config: PretrainedConfig) -> list[dict[str, int]] | None:
    """The widths that an artefact's config lists; ``None`` where every layer is as it says."""
    held = getattr(config, "quantization_config", None)
    return held.get("layers") if isinstance(held, dict) else getattr(held, "layers", None)


def keep_hidden_(model: PreTrainedModel, dimensions: Sequence[int]) -> None:
    """Leaves the whole model these hidden dimensions, in place; heads keep their size.

    Raises ``ValueError`` unless the heads divide the width: ``transformers`` insists on that.
    """
    config = model.config
    _check_width(model)
    _check(dimensions, config.hidden_size, "hidden dimension")
    if len(dimensions) % config.num_attention_heads:
        asked = f"does not divide by {config.num_attention_heads} heads, as transformers asks"
        raise ValueError(f"a hidden width of {len(dimensions)} {asked}: keep another share")
    kept = torch.tensor(list(dimensions))
    for table in _tables(model):
        table.weight = nn.Parameter(table.weight.detach()[:, kept].clone())
        table.embedding_dim = len(kept)
    for norm in [m for m in model.modules() if isinstance(m, nn.LayerNorm)]:
        norm.normalized_shape = (len(kept),)
        norm.weight = nn.Parameter(norm.weight.detach()[kept].clone())
        norm.bias = nn.Parameter(norm.bias.detach()[kept].clone())
    names = {module: name for name, module in model.named_modules()}
    for linear, reads, writes in list(_on_hidden(model)):
        new = _cut(linear, kept if writes else _ALL, kept if reads else _ALL)
        replace_module_(model, names[linear], new)
    config.hidden_size = len(kept)
    if hasattr(config, "embedding_size"):
        config.embedding_size = len(kept)


def _tables(model: PreTrainedModel) -> list[nn.Embedding]:
    return [m for m in model.base_model.embeddings.modules() if isinstance(m, nn.Embedding)]


def _on_hidden(model: PreTrainedModel) -> Iterator[tuple[nn.Linear, bool, bool]]:
    """Linear layers with whether they read and whether they write hidden states."""
    for layer in _layers(model):
        for name in (*_PROJECTIONS, "feed-forward in"):
            yield part(layer, name), True, False
        for name in ("attention output", "feed-forward out"):
            yield part(layer, name), False, True
    if getattr(model.base_model, "pooler", None) is not None:
        yield model.base_model.pooler.dense, True, True
    if getattr(model, "classifier", None) is not None:
        yield model.classifier, True, False


def _check_width(model: PreTrainedModel) -> None:
    """``TypeError`` for models whose hidden width is not the same all the way through."""
    config, head = model.config, getattr(model, "classifier", None)
    even = getattr(config, "embedding_size", config.hidden_size) == config.hidden_size
    berts = all("attention.self.query" in part_names(la).values() for la in _layers(model))
    if not (even and berts) or not isinstance(head, (nn.Linear, type(None))):
        wanted = "expected BERT's: embeddings as wide as its layers, one linear layer as classifier"
        raise TypeError(f"the hidden width of {type(model).__name__} cannot be cut: {wanted}")


HEADS, NEURONS = "heads", "neurons"


def readers(
    model: PreTrainedModel, part_: str
) -> list[tuple[Callable[[nn.Module], None], nn.Linear, int]]:
    """For each layer: what reads heads or neurons, how to put another in its place, how many."""
    name = "attention output" if part_ == HEADS else "feed-forward out"
    found: list = []
    for layer in _layers(model):
        dense = part(layer, name)
        count = heads_of(layer) if part_ == HEADS else dense.in_features
        found.append((partial(set_part_, layer, name), dense, count))
    return found


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    if why := _whole(model):
        lacks = f"no heads, neurons or width can be taken out of {type(model).__name__}: {why}"
        raise TypeError(f"{lacks} (they can from BERT, RoBERTa, ELECTRA, DistilBERT, MPNet)")
    return encoder_layers(model)


def _whole(model: PreTrainedModel) -> str:
    """Why nothing can be taken out of a model's layers; empty where heads and neurons can."""
    if is_shared(model):
        return "all its layers are one"
    layers = encoder_layers(model)
    if any(part_names(layer)["query"] == part_names(layer)["key"] for layer in layers):
        return "its query, key and value are one matrix"
    if any(hasattr(attention_of(layer), "pos_att_type") for layer in layers):
        return "its heads score positions too, by matrices of their own"
    return ""


def _check(kept: Sequence[int], count: int, what: str) -> None:
    if not len(kept):
        raise ValueError(f"every {what} of a layer would go: keep at least one")
    if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
        wanted = f"expected rising numbers from 0 to {count - 1}"
        raise ValueError(f"cannot keep {what}s {list(kept)[:8]}: {wanted}")


def _cut(linear: nn.Linear, outputs: Tensor | slice = _ALL, inputs: Tensor | slice = _ALL):
    """A linear layer with only some of its outputs and inputs."""
    bias = None if linear.bias is None else linear.bias.detach()[outputs].clone()
    weight = linear.weight.detach()[outputs][:, inputs].clone()
    return linear_of(weight, bias).train(linear.training)


def _empty(linear: nn.Linear, inputs: int | None = None, outputs: int | None = None) -> nn.Linear:
    """An uninitialized linear layer like this one, with other widths."""
    shape = inputs or linear.in_features, outputs or linear.out_features
    return nn.Linear(*shape, linear.bias is not None, device=linear.weight.device)
