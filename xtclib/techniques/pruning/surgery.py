"""Layers of their own widths: heads and feed-forward neurons removed for good.

A removed head takes its rows of query, key and value and its columns of the output projection with
it; a removed neuron its row of the intermediate matrix and its column of the one after. What is
left is an ordinary model with smaller matrices, uneven from layer to layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from xtclib.bert import KIN, encoder_layers, linear_of, replace_module_

_ALL = slice(None)
_NEEDED = "attention.self.query", "attention.output.dense", "intermediate.dense"


def widths(model: PreTrainedModel) -> list[dict[str, int]]:
    """Heads and feed-forward neurons of every layer, and a head's size where it is unusual."""
    config, found = model.config, []
    inner = getattr(config, "true_hidden_size", config.hidden_size)  # MobileBERT's, in its blocks
    usual = inner // config.num_attention_heads
    for layer in _layers(model):
        heads, neurons = layer.attention.self, layer.intermediate.dense.out_features
        found.append({"heads": heads.num_attention_heads, "neurons": neurons})
        if heads.attention_head_size != usual:  # the hidden width was cut, heads were not
            found[-1]["head_size"] = heads.attention_head_size
    return found


def uneven(model: PreTrainedModel) -> list[dict[str, int]] | None:
    """The widths of a model whose layers are not as its config says; ``None`` where all are."""
    encoder = getattr(model.base_model, "encoder", None)
    if not isinstance(getattr(encoder, "layer", None), nn.ModuleList):
        return None  # no layers whose parts could have been removed
    config, found = model.config, widths(model)
    said = {"heads": config.num_attention_heads, "neurons": config.intermediate_size}
    return None if all(width == said for width in found) else found


def keep_heads_(layer: nn.Module, heads: Sequence[int]) -> None:
    """Leaves a layer the heads of these 0-based numbers, in place.

    Raises ``ValueError`` for none, for unknown ones, and for numbers that do not rise.
    """
    attention = layer.attention.self
    _check(heads, attention.num_attention_heads, "head")
    size = attention.attention_head_size
    kept = (torch.tensor(list(heads)).unsqueeze(1) * size + torch.arange(size)).flatten()
    for name in ("query", "key", "value"):
        setattr(attention, name, _cut(getattr(attention, name), kept))
    layer.attention.output.dense = _cut(layer.attention.output.dense, inputs=kept)
    attention.num_attention_heads, attention.all_head_size = len(heads), len(kept)


def keep_neurons_(layer: nn.Module, neurons: Sequence[int]) -> None:
    """Leaves a layer the feed-forward neurons of these 0-based numbers, in place."""
    _check(neurons, layer.intermediate.dense.out_features, "neuron")
    kept = torch.tensor(list(neurons))
    layer.intermediate.dense = _cut(layer.intermediate.dense, kept)
    layer.output.dense = _cut(layer.output.dense, inputs=kept)


def resize_(model: PreTrainedModel, wanted: Sequence[Mapping[str, int]]) -> None:
    """Gives a model empty layers of these widths, in place, before weights are loaded."""
    layers = _layers(model)
    if len(layers) != len(wanted):
        raise ValueError(f"widths of {len(wanted)} layers were given for {len(layers)} layers")
    for layer, width in zip(layers, wanted, strict=True):
        attention, inner = layer.attention.self, width["neurons"]
        size = width.get("head_size", attention.attention_head_size)
        attention.attention_head_size, attention.scaling = size, size**-0.5
        values = width["heads"] * size
        for name in ("query", "key", "value"):
            setattr(attention, name, _empty(getattr(attention, name), outputs=values))
        layer.attention.output.dense = _empty(layer.attention.output.dense, inputs=values)
        layer.intermediate.dense = _empty(layer.intermediate.dense, outputs=inner)
        layer.output.dense = _empty(layer.output.dense, inputs=inner)
        attention.num_attention_heads, attention.all_head_size = width["heads"], values


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
        attention = layer.attention.self
        for linear in (attention.query, attention.key, attention.value, layer.intermediate.dense):
            yield linear, True, False
        for linear in (layer.attention.output.dense, layer.output.dense):
            yield linear, False, True
    if getattr(model.base_model, "pooler", None) is not None:
        yield model.base_model.pooler.dense, True, True
    if getattr(model, "classifier", None) is not None:
        yield model.classifier, True, False


def _check_width(model: PreTrainedModel) -> None:
    """``TypeError`` for models whose hidden width is not the same all the way through."""
    config, head = model.config, getattr(model, "classifier", None)
    even = getattr(config, "embedding_size", config.hidden_size) == config.hidden_size
    if not even or not isinstance(head, (nn.Linear, type(None))):
        wanted = "expected BERT's: embeddings as wide as its layers, one linear layer as classifier"
        raise TypeError(f"the hidden width of {type(model).__name__} cannot be cut: {wanted}")


HEADS, NEURONS = "heads", "neurons"


def readers(model: PreTrainedModel, part: str) -> list[tuple[nn.Module, nn.Linear, int]]:
    """For each layer: the module above, the ``dense`` that reads heads or neurons, how many."""
    found = []
    for layer in _layers(model):
        above = layer.attention.output if part == HEADS else layer.output
        heads, neurons = layer.attention.self.num_attention_heads, above.dense.in_features
        found.append((above, above.dense, heads if part == HEADS else neurons))
    return found


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    layers = encoder_layers(model)
    for layer, name in itertools.product(layers, _NEEDED):
        try:
            attrgetter(name)(layer)
        except AttributeError:
            lacks = f"{type(model).__name__} has no `{name}` in its layers"
            raise TypeError(f"{lacks}: parts are removed from a {KIN}") from None
    return layers


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
