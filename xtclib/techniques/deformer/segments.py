"""Two segments read apart: the mask and the positions that make it, and hooks that put them on.

Source: Cao et al. 2020, arXiv:2005.00697, section 3, and its release.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib.bert import encoder_layers, is_shared, part_names
from xtclib.config import short

States = Literal["fp32", "fp16", "int8"]
KINDS = get_args(States)


def apart(types: Tensor, mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What is added to scores so that a token sees its segment alone: (batch, 1, length, length).

    0 where both tokens are of one segment and the key is no padding, else the lowest number;
    ``types`` and ``mask`` (batch, length).

    >>> apart(torch.tensor([[0, 1, 1]]), torch.tensor([[1, 1, 0]]))[0, 0] == 0
    tensor([[ True, False, False],
            [False,  True, False],
            [False,  True, False]])
    """
    alike = (types[:, None, :, None] == types[:, None, None, :]) & mask[:, None, None, :].bool()
    return (~alike).to(dtype) * torch.finfo(dtype).min


def positions(types: Tensor) -> Tensor:
    """Positions (batch, length) that begin at 0 in each segment, as the release's.

    >>> positions(torch.tensor([[0, 0, 1, 1, 0]]))
    tensor([[0, 1, 0, 1, 4]])
    """
    second = types.bool()
    return torch.where(second, types.cumsum(1) - 1, torch.arange(types.shape[1]).to(types.device))


def stored(states: Tensor, kind: States) -> Tensor:
    """States as a cache holds them, with their gradients straight through.

    ``fp16`` rounds each number, ``int8`` each token by a scale of its own.
    """
    if kind == "fp32":
        return states
    if kind == "fp16":
        found = states.detach().half()
    else:
        codes, scale = int8(states.detach())
        found = codes * scale
    return states + (found.to(states.dtype) - states).detach()


def int8(states: Tensor) -> tuple[Tensor, Tensor]:
    """Codes from -127 to 127 and a scale for each token, (…, width) and (…, 1)."""
    largest = states.float().abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / 127
    return (states / scale).round(), scale


def install_(model: PreTrainedModel) -> None:
    """Has the lower layers read the segments apart, by ``model.config.segments``; in place.

    ``{layers, states}``: how many layers, 0 for none, and how the second segment's states are
    stored between them and the upper ones. Raises ``ValueError`` for other values and ``TypeError``
    for a model that does not tell two segments.
    """
    check(model)
    given, depth = getattr(model.config, "segments", None), len(encoder_layers(model))
    said: dict[str, Any] = given if isinstance(given, dict) else {}
    layers = said.get("layers")
    if not (type(layers) is int and 0 <= layers < depth) or said.get("states") not in KINDS:
        expected = f"expected 0 to {depth - 1} layers, and states of fp32, fp16 or int8"
        raise ValueError(f"config.json says segments={short(given)}, {expected}")
    if not layers:
        return
    model.base_model.register_forward_pre_hook(_place, with_kwargs=True)
    model.base_model.register_forward_hook(_forget)
    for layer in encoder_layers(model)[:layers]:
        layer.register_forward_pre_hook(_mask, with_kwargs=True)
    upper = encoder_layers(model)[layers]
    upper.stores = said["states"]
    upper.register_forward_pre_hook(_store, with_kwargs=True)


def check(model: PreTrainedModel) -> None:
    """Raises ``TypeError`` for a model whose lower layers cannot read two segments apart."""
    tells = getattr(model.config, "type_vocab_size", 0) >= 2 and not is_shared(model)
    names = [part_names(layer).get("query", "") for layer in encoder_layers(model)]
    takes = inspect.signature(model.base_model.forward).parameters
    bottleneck = hasattr(model.config, "true_hidden_size")
    if not (tells and all(n == "attention.self.query" for n in names) and "position_ids" in takes
            ) or bottleneck:  # fmt: skip
        lacks = f"{type(model).__name__} does not tell two segments by types and positions"
        raise TypeError(f"{lacks}, which deformer reads apart: expected BERT or ELECTRA")


def _place(base: PreTrainedModel, args: tuple, given: dict) -> tuple[tuple, dict]:
    """Positions that begin anew, and for the layers the mask and the segments of this batch."""
    bound = inspect.signature(base.forward).bind_partial(*args, **given).arguments
    bound.update(bound.pop("kwargs", {}))
    shown: Any = bound.get("input_ids")
    shown = bound["inputs_embeds"] if shown is None else shown
    shape = shown.shape[:2]
    types, mask = (bound.get(name) for name in ("token_type_ids", "attention_mask"))
    types = shown.new_zeros(shape, dtype=torch.long) if types is None else types
    mask = torch.ones_like(types) if mask is None else mask
    for layer in encoder_layers(base):
        layer.segments = types, mask
    if bound.get("position_ids") is None:
        bound["position_ids"] = positions(types)
    return (), bound


def _forget(base: PreTrainedModel, *_: object) -> None:
    for layer in encoder_layers(base):
        layer.segments = None  # type: ignore[assignment]


def _mask(layer: nn.Module, args: tuple, given: dict) -> tuple[tuple, dict]:
    states: Tensor = args[0] if args else given["hidden_states"]
    types, shown = layer.segments  # type: ignore[misc]
    mask = apart(types, shown, states.dtype)
    if len(args) > 1:
        return (args[0], mask, *args[2:]), given
    return args, {**given, "attention_mask": mask}


def _store(layer: nn.Module, args: tuple, given: dict) -> tuple[tuple, dict]:
    states: Tensor = args[0] if args else given["hidden_states"]
    second = layer.segments[0].bool()[..., None]  # type: ignore[index]
    states = torch.where(second, stored(states, layer.stores), states)  # type: ignore[arg-type]
    if args:
        return (states, *args[1:]), given
    return args, {**given, "hidden_states": states}
