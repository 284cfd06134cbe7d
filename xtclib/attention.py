"""An attention for ``transformers`` that shows its scores and can quantize its two products.

``use(model)`` selects it. With ``output_attentions=True`` the model then returns, in
``outputs.attentions``, the *scores* (batch, heads, length, length): before the softmax, after
``1/√d``, without the mask, differentiable. Results are those of eager attention. MPNet takes no
attention but its own: its scores are computed beside it (:func:`watch`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from xtclib.bert import attention_of, encoder_layers, part

NAME = "xtc"


def score_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0,
    rounded: Callable[[Tensor], Tensor] | None = None, **kwargs,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``softmax(q·kᵀ·scaling + mask)·v`` and the scores; q, k, v (batch, heads, length, head dim).

    If the module carries a function ``rounded``, query, key, value and probabilities go through
    it, as TernaryBERT quantizes them (arXiv:2009.12812, section 3.2 and its release). A runtime
    with a way of its own hands it in. A function ``received`` is shown the probabilities.
    """
    rounded = rounded or getattr(module, "rounded", None)
    if rounded is not None:
        query, key, value = (rounded(x) for x in (query, key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    masked = scores if attention_mask is None else scores + attention_mask
    # In fp32 where products are bf16: a CPU takes several times longer for a softmax of bf16.
    wide = torch.float32 if masked.dtype == torch.bfloat16 else None
    probabilities = F.softmax(masked, dim=-1, dtype=wide)
    if (received := getattr(module, "received", None)) is not None:
        received(probabilities)
    probabilities = F.dropout(probabilities, dropout, module.training)
    if rounded is not None:
        probabilities = rounded(probabilities)
    context = torch.matmul(probabilities.to(value.dtype), value)
    return context.transpose(1, 2).contiguous(), scores


# Without a mask function of its own an attention is handed no mask at all, and attends to padding.
AttentionInterface.register(NAME, score_attention)
AttentionMaskInterface.register(NAME, eager_mask)


def needed(module: nn.Module) -> bool:
    """Whether a module works by this attention alone: it carries what that goes through."""
    return hasattr(module, "rounded") or hasattr(module, "received")


def takes_another(model: PreTrainedModel) -> bool:
    """Whether a model takes an attention that is not its own."""
    return bool(getattr(model, "_supports_attention_backend", False))


def use(model: PreTrainedModel) -> PreTrainedModel:
    """Selects this attention in place, where the model takes another, and returns the model."""
    if takes_another(model):
        model.set_attn_implementation(NAME)
    return model


def leave(model: PreTrainedModel, taken: str = NAME) -> PreTrainedModel:
    """Gives a model that ``taken`` was selected for PyTorch's own attention, in place.

    Not where a module needs this one.
    """
    own = getattr(model.config, "_attn_implementation", None) == taken and takes_another(model)
    if own and not any(map(needed, model.modules())):
        model.set_attn_implementation("sdpa")
    return model


def shows_scores(model: PreTrainedModel) -> bool:
    """Whether the scores of a model can be read: by this attention, or by :func:`watch`."""
    return takes_another(model) or all(map(_is_biased, map(attention_of, encoder_layers(model))))


def _is_biased(attention: Any) -> bool:
    return "position_bias" in inspect.signature(attention.forward).parameters


def watch(layer: nn.Module, found: list[Tensor]) -> list[Any]:
    """Adds a layer's scores, with its bias by position, to a list at every pass; returns hooks."""
    attention, seen = attention_of(layer), dict[str, Tensor]()

    def note(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        seen[name] = output.unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)

    def score(module: nn.Module, inputs: tuple, output: tuple) -> None:
        if module is attention:  # and not a copy's
            query, key = seen.pop("query"), seen.pop("key")
            scores = torch.matmul(query, key.transpose(-1, -2)) * query.shape[-1] ** -0.5
            found.append(scores + inputs[2])

    both = [part(layer, n).register_forward_hook(partial(note, n)) for n in ("query", "key")]
    return [*both, attention.register_forward_hook(score)]


def trains_faster(model: PreTrainedModel, bf16: bool) -> bool:
    """Whether this attention trains a model faster than its own.

    PyTorch's fused one saves memory, but on a CPU it takes several times longer backwards in bf16;
    in fp32 it is the faster one (``benchmarks/attention.py``).
    """
    return bf16 and model.device.type == "cpu" and model.config._attn_implementation == "sdpa"
