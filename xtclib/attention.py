"""An attention for ``transformers`` that shows its scores and can quantize its two products.

``use(model)`` selects it. With ``output_attentions=True`` the model then returns, in
``outputs.attentions``, the *scores* (batch, heads, length, length): before the softmax, after
``1/√d``, without the mask, differentiable. Results are those of eager attention.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

NAME = "xtc"


def score_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0,
    rounded: Callable[[Tensor], Tensor] | None = None, **kwargs,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``softmax(q·kᵀ·scaling + mask)·v`` and the scores; q, k, v (batch, heads, length, head dim).

    If the module carries a function ``rounded``, query, key, value and probabilities go through
    it, as TernaryBERT quantizes them (arXiv:2009.12812, section 3.2 and its release). A runtime
    with a way of its own hands it in.
    """
    rounded = rounded or getattr(module, "rounded", None)
    if rounded is not None:
        query, key, value = (rounded(x) for x in (query, key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    masked = scores if attention_mask is None else scores + attention_mask
    probabilities = F.dropout(F.softmax(masked, dim=-1), dropout, module.training)
    if rounded is not None:
        probabilities = rounded(probabilities)
    context = torch.matmul(probabilities.to(value.dtype), value)
    return context.transpose(1, 2).contiguous(), scores


# Without a mask function of its own an attention is handed no mask at all, and attends to padding.
AttentionInterface.register(NAME, score_attention)
AttentionMaskInterface.register(NAME, eager_mask)


def use(model: PreTrainedModel) -> PreTrainedModel:
    """Selects this attention in place and returns the model."""
    model.set_attn_implementation(NAME)
    return model


def trains_faster(model: PreTrainedModel, bf16: bool) -> bool:
    """Whether this attention trains a model faster than its own.

    PyTorch's fused one saves memory, but on a CPU it takes several times longer backwards in bf16;
    in fp32 it is the faster one (``benchmarks/attention.py``).
    """
    return bf16 and model.device.type == "cpu" and model.config._attn_implementation == "sdpa"
