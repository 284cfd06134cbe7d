"""Layers of their own widths: heads and feed-forward neurons removed for good.

A removed head takes its rows of query, key and value and its columns of the output projection with
it; a removed neuron its row of the intermediate matrix and its column of the one after. What is
left is an ordinary model with smaller matrices, uneven from layer to layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from xtclib.models import encoder_layers


def widths(model: PreTrainedModel) -> list[dict[str, int]]:
    """Heads and feed-forward neurons of every layer."""
    return [
        {
            "heads": layer.attention.self.num_attention_heads,
            "neurons": layer.intermediate.dense.out_features,
        }
        for layer in _layers(model)
    ]


def uneven(model: PreTrainedModel) -> list[dict[str, int]] | None:
    """The widths of a model whose layers are not as its config says; ``None`` where all are."""
    if not isinstance(getattr(getattr(model.base_model, "encoder", None), "layer", None),
                      nn.ModuleList):  # fmt: skip
        return None  # no layers whose parts could have been removed
    said = {
        "heads": getattr(model.config, "num_attention_heads", None),
        "neurons": getattr(model.config, "intermediate_size", None),
    }
    found = widths(model)
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
        setattr(attention, name, _rows(getattr(attention, name), kept))
    layer.attention.output.dense = _columns(layer.attention.output.dense, kept)
    _set_heads(attention, len(heads))


def keep_neurons_(layer: nn.Module, neurons: Sequence[int]) -> None:
    """Leaves a layer the feed-forward neurons of these 0-based numbers, in place."""
    _check(neurons, layer.intermediate.dense.out_features, "neuron")
    kept = torch.tensor(list(neurons))
    layer.intermediate.dense = _rows(layer.intermediate.dense, kept)
    layer.output.dense = _columns(layer.output.dense, kept)


def resize_(model: PreTrainedModel, wanted: Sequence[Mapping[str, int]]) -> None:
    """Gives a model empty layers of these widths, in place, before weights are loaded."""
    layers = _layers(model)
    if len(layers) != len(wanted):
        raise ValueError(f"widths of {len(wanted)} layers were given for {len(layers)} layers")
    for layer, width in zip(layers, wanted, strict=True):
        attention, inner = layer.attention.self, width["neurons"]
        values = width["heads"] * attention.attention_head_size
        for name in ("query", "key", "value"):
            setattr(attention, name, _empty(getattr(attention, name), outputs=values))
        layer.attention.output.dense = _empty(layer.attention.output.dense, inputs=values)
        layer.intermediate.dense = _empty(layer.intermediate.dense, outputs=inner)
        layer.output.dense = _empty(layer.output.dense, inputs=inner)
        _set_heads(attention, width["heads"])


def saved_widths(config: PretrainedConfig) -> list[dict[str, int]] | None:
    """The widths that an artefact's config lists; ``None`` where every layer is as it says."""
    held = getattr(config, "quantization_config", None)
    return held.get("layers") if isinstance(held, dict) else getattr(held, "layers", None)


def head_magnitudes(model: PreTrainedModel) -> list[Tensor]:
    """Mean ``|w|`` of each head over its query, key, value and output weights: (heads,) a layer."""
    found = []
    for layer in _layers(model):
        attention = layer.attention.self
        heads = attention.num_attention_heads
        parts = [getattr(attention, n).weight for n in ("query", "key", "value")]
        parts.append(layer.attention.output.dense.weight.T)
        sizes = [part.detach().abs().reshape(heads, -1).mean(1) for part in parts]
        found.append(torch.stack(sizes).mean(0))
    return found


def neuron_magnitudes(model: PreTrainedModel) -> list[Tensor]:
    """``‖w_in‖ · ‖w_out‖`` of each feed-forward neuron: (neurons,) a layer.

    The product is what scaling one side up and the other down leaves as it is.
    """
    return [
        layer.intermediate.dense.weight.detach().norm(dim=1)
        * layer.output.dense.weight.detach().norm(dim=0)
        for layer in _layers(model)
    ]


def best(scores: Sequence[Tensor], keep: float, scope: str = "layer") -> list[list[int]]:
    """The numbers of the highest scores, rising, for each layer.

    ``scope``: ``layer`` keeps the same share everywhere, ``model`` compares all layers and keeps at
    least one in each. A score ties in favour of the lower number.

    >>> best([torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([9.0, 8.0, 7.0, 6.0])], 0.5)
    [[0, 2], [0, 1]]
    >>> best([torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([9.0, 8.0, 7.0, 6.0])], 0.5, "model")
    [[0], [0, 1, 2]]
    """
    if scope == "layer":
        kept = [s.argsort(descending=True, stable=True)[: max(round(keep * len(s)), 1)]
                for s in scores]  # fmt: skip
        return [layer.sort().values.tolist() for layer in kept]
    flat, starts, start = torch.cat(list(scores)), [], 0
    for layer in scores:
        starts.append(start)
        flat[start + int(layer.argmax())] = torch.inf  # no layer goes empty
        start += len(layer)
    count = max(round(keep * len(flat)), len(scores))
    chosen = flat.argsort(descending=True, stable=True)[:count].sort().values
    ends = [*starts[1:], len(flat)]
    return [
        (chosen[(chosen >= low) & (chosen < high)] - low).tolist()
        for low, high in zip(starts, ends, strict=True)
    ]


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    layers = encoder_layers(model)
    for layer in layers:
        for name in ("attention.self.query", "attention.output.dense", "intermediate.dense"):
            module = layer
            for part in name.split("."):
                module = getattr(module, part, None)
            if module is None:
                raise TypeError(
                    f"{type(model).__name__} has no `{name}` in its layers: heads and neurons can "
                    "be removed from BERT, RoBERTa, ELECTRA, MiniLM"
                )
    return layers


def _check(kept: Sequence[int], count: int, what: str) -> None:
    if not len(kept):
        raise ValueError(f"every {what} of a layer would go: keep at least one")
    if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
        raise ValueError(
            f"cannot keep {what}s {list(kept)[:8]}: expected rising numbers from 0 to {count - 1}"
        )


def _set_heads(attention: nn.Module, heads: int) -> None:
    attention.num_attention_heads = heads
    attention.all_head_size = heads * attention.attention_head_size


def _rows(linear: nn.Linear, kept: Tensor) -> nn.Linear:
    """A linear layer with only the outputs ``kept``."""
    new = nn.Linear(linear.in_features, len(kept), linear.bias is not None, device="meta")
    new.weight = nn.Parameter(linear.weight.detach()[kept].clone())
    if linear.bias is not None:
        new.bias = nn.Parameter(linear.bias.detach()[kept].clone())
    return new.train(linear.training)


def _columns(linear: nn.Linear, kept: Tensor) -> nn.Linear:
    """A linear layer with only the inputs ``kept``."""
    new = nn.Linear(len(kept), linear.out_features, linear.bias is not None, device="meta")
    new.weight = nn.Parameter(linear.weight.detach()[:, kept].clone())
    new.bias = linear.bias
    return new.train(linear.training)


def _empty(linear: nn.Linear, inputs: int | None = None, outputs: int | None = None) -> nn.Linear:
    """An uninitialized linear layer like this one, with other widths."""
    shape = inputs or linear.in_features, outputs or linear.out_features
    return nn.Linear(*shape, linear.bias is not None, device=linear.weight.device)
