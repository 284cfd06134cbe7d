"""Tokens that are dropped on the way: who received little attention goes no further.

Hooks put it on an ordinary model. After a layer's attention a token is kept or dropped, so that the
feed-forward half and all later layers run on fewer; the first token stays. Sources: PoWER-BERT
(Goyal et al. 2020, arXiv:2001.08950), LTP (Kim et al. 2022, arXiv:2107.00910).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib import attention
from xtclib.bert import attention_of, encoder_layers, part_names, shown_to
from xtclib.config import short

By = Literal["rank", "threshold"]
BINS = 32  # shares of a row that a learned retention tells apart


def received(probabilities: Tensor, mask: Tensor) -> Tensor:
    """The attention that each token receives, a share of all: (batch, length), 0 at padding.

    ``s_k = mean over heads and real queries of A[h, q, k]``, from probabilities (batch, heads,
    length, length) and ``mask`` (batch, length). A row's sum to 1. PoWER-BERT's significance
    (section 3.1) is the sum in the place of the mean; LTP's score (equation 6) is this.

    >>> received(torch.tensor([[[[0.75, 0.25], [0.25, 0.75]]]]), torch.ones(1, 2))
    tensor([[0.5000, 0.5000]])
    """
    real = mask.to(probabilities.dtype)
    queries = real / real.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bhqk,bq->bk", probabilities, queries) / probabilities.shape[1] * real


def kept_by_rank(scores: Tensor, mask: Tensor, keep: float, tokens: Tensor) -> Tensor:
    """The tokens of largest score, (batch, length) of bool; the first is always among them.

    ``keep``: a count, or a share of the ``tokens`` (batch,) that each row began with, rounded up.

    >>> kept_by_rank(torch.tensor([[0.1, 0.2, 0.7]]), torch.ones(1, 3), 2, torch.tensor([3]))
    tensor([[ True, False,  True]])
    """
    count = torch.full_like(tokens, keep) if isinstance(keep, int) else shares(keep, tokens)
    return (ranks(scores, mask) < count[:, None].clamp(min=1)) & mask.bool()


def shares(keep: float, tokens: Tensor) -> Tensor:
    """A share of so many tokens as a count, rounded up: (batch,)."""
    return (keep * tokens - 1e-6).ceil().long()


def ranks(scores: Tensor, mask: Tensor) -> Tensor:
    """Each token's place by score, from 0, (batch, length): the first token first, padding last.

    >>> ranks(torch.tensor([[0.1, 0.2, 0.7, 0.9]]), torch.tensor([[1, 1, 1, 0]]))
    tensor([[0, 2, 1, 3]])
    """
    scores = scores.masked_fill(~mask.bool(), -1.0)
    scores[:, 0] = torch.inf
    return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


class Drops(nn.Module):
    """Which tokens a model drops, by what ``config.tokens`` says, and where a batch's are."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.config = model.config
        # Only a row's vector is read of a classifier; others get every token back at the end.
        self.restores = not type(model).__name__.endswith("ForSequenceClassification")
        self.scores: nn.Parameter | None = None  # what is learned: (layers, BINS) or (layers,)
        self.score_learning_rate: float | None = None
        self.soft, self.off, self.temperature = False, False, 1e-3
        self.rest()

    @property
    def said(self) -> dict:
        """What ``config.json`` says of the tokens."""
        return self.config.tokens

    def rest(self) -> None:
        """Forgets the last batch."""
        self.mask: Tensor | None = None  # (batch, tokens that are left)
        self.places: Tensor | None = None  # where they were
        self.begun: Tensor | None = None  # how many tokens each row had
        self.whole: Tensor | None = None  # every token's last state
        self.got: Tensor | None = None  # the attention each received in the layer that runs
        self.gate: Tensor | None = None  # what a soft threshold lets through
        self.dropped = False
        self.counts: list[Tensor] = []
        self.masses: list[Tensor] = []

    def begin(self, base: PreTrainedModel, args: tuple, given: dict) -> None:
        """Before a batch: which of its tokens are real."""
        self.rest()
        shown, mask = shown_to(args, given)
        if shown is not None:
            self.mask = shown.new_ones(shown.shape[:2], dtype=torch.long) if mask is None else mask
            self.begun = self.mask.sum(1)

    def enter(self, layer: nn.Module, args: tuple, given: dict) -> tuple[tuple, dict] | None:
        """Before a layer: the mask of the tokens that are left."""
        if not self.dropped:
            return None
        states, mask = args[0], self.mask
        added = (~mask[:, None, None, :].bool()).to(states.dtype)  # type: ignore[index]
        added = added * torch.finfo(states.dtype).min
        if len(args) > 1:
            return (states, added, *args[2:]), given
        return args, {**given, "attention_mask": added}

    def look(self, probabilities: Tensor) -> None:
        """From a layer's attention: who received how much of it."""
        if self.mask is not None and not self.off:
            self.got = received(probabilities, self.mask)

    def drop(self, index: int, module: nn.Module, args: tuple, output: Any) -> Any:
        """After a layer's attention: its tokens, without those that are dropped."""
        got, mask = self.got, self.mask
        if got is None or mask is None or self.off:
            return None
        states = output[0] if isinstance(output, tuple) else output
        if self.soft:
            states = self._softened(index, states, got, mask)
            self.counts.append(mask.sum(1))
        else:
            keep = self._kept(index, got, mask)
            if not bool((keep == mask.bool()).all()):
                states = self._without(states, keep)
            self.counts.append(keep.sum(1))
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def _kept(self, index: int, got: Tensor, mask: Tensor) -> Tensor:
        least = self.keep()[index]
        if self.said["by"] == "rank":
            return kept_by_rank(got, mask, least, self.begun)  # type: ignore[arg-type]
        keep = mask.bool() & ((got > least) if least > 0 else True)
        keep[:, 0] = True
        return keep

    def _without(self, states: Tensor, keep: Tensor) -> Tensor:
        """States of the kept tokens, (batch, most kept, width), in their order."""
        if self.places is None:
            self.places = torch.arange(states.shape[1], device=states.device).expand_as(keep)
            self.whole = torch.zeros_like(states) if self.restores else None
        if self.whole is not None:  # but for padded places, where dropped tokens are
            places, real = _wide(self.places, states), self.mask[..., None].bool()  # type: ignore
            old = torch.where(real, states, self.whole.gather(1, places))
            self.whole = self.whole.scatter(1, places, old)
        width = int(keep.sum(1).max())
        order = keep.int().argsort(dim=1, descending=True, stable=True)[:, :width]
        self.mask, self.places = keep.gather(1, order).long(), self.places.gather(1, order)
        self.dropped = True
        return states.gather(1, _wide(order, states))

    def _softened(self, index: int, states: Tensor, got: Tensor, mask: Tensor) -> Tensor:
        """States times how much of each token stays, which can be learned."""
        assert self.scores is not None
        real, scores = mask.to(states.dtype), self.scores
        if self.said["by"] == "rank":
            place = ranks(got, mask) * BINS // self.begun[:, None].clamp(min=1)  # type: ignore
            kept = scores[index][place.clamp(max=BINS - 1)].clone()
            kept[:, 0] = 1
            self.masses.append(scores[index].mean())
            return states * kept[..., None].to(states.dtype)
        gate = ((got - scores[index]) / self.temperature).sigmoid() * real
        gate[:, 0] = 1
        self.gate = gate if self.gate is None else self.gate * gate
        self.masses.append((self.gate.sum(1) / real.sum(1)).mean())
        return states

    def fade(self, layer: nn.Module, args: tuple, output: Any) -> Any:
        """After a layer, while thresholds are soft: its output times what they let through."""
        if self.gate is None:
            return None
        states = output[0] if isinstance(output, tuple) else output
        states = states * self.gate[..., None].to(states.dtype)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def restore(self, base: PreTrainedModel, args: tuple, output: Any) -> Any:
        """After the encoder: every token at its place, those dropped as they were then."""
        if self.whole is None:
            return output
        states = output[0]
        places = _wide(self.places, states)
        # A padded place holds a token that was dropped: it keeps what that was.
        real = self.mask[..., None].bool()  # type: ignore[index]
        states = torch.where(real, states, self.whole.gather(1, places))
        whole = self.whole.scatter(1, places, states)
        if isinstance(output, tuple):
            return (whole, *output[1:])
        output["last_hidden_state"] = whole
        return output

    def finish(self, model: PreTrainedModel, args: tuple, output: Any) -> Any:
        """After a batch: how many tokens each layer's feed-forward half saw of each row.

        While it is learned, how much is kept of each layer too. After a batch that failed, which
        is forgotten, ``output`` is ``None``.
        """
        if self.counts and output is not None and not isinstance(output, tuple):
            output["tokens"] = torch.stack(self.counts, 1)  # (batch, layers)
            if self.masses:
                output["masses"] = torch.stack(self.masses)  # (layers,)
        self.rest()
        return output

    def keep(self) -> list[int | float]:
        """For each layer a count, a share of a row's tokens, or the attention to be received.

        Of learned shares none is above the one before.
        """
        if self.scores is None:
            return self.said["keep"]
        if self.said["by"] == "threshold":
            return [max(round(value, 6), 0.0) for value in self.scores.detach().tolist()]
        shares = self.scores.detach().mean(1).cummin(0).values.tolist()
        return [max(round(share, 4), 1e-4) for share in shares]


def _wide(places: Tensor | None, states: Tensor) -> Tensor:
    """Places (batch, tokens) as an index into states (batch, tokens, width)."""
    return places[..., None].expand(-1, -1, states.shape[-1])  # type: ignore[index]


def check(model: PreTrainedModel) -> None:
    """Raises ``TypeError`` for a model whose tokens cannot be dropped on the way."""
    kind = type(model).__name__
    names = [part_names(layer).get("query") for layer in encoder_layers(model)]
    fixed = getattr(model.config, "position_embedding_type", "absolute") == "absolute"
    if not fixed or any(name != "attention.self.query" for name in names):
        other = f"the attention of {kind} is not BERT's own with absolute positions"
        raise TypeError(f"{other}: tokens are dropped from BERT, RoBERTa, XLM-R or ELECTRA")
    if hasattr(model.config, "true_hidden_size"):
        raise TypeError(f"{kind} has no layers of BERT's own form, from which tokens are dropped")
    layers = encoder_layers(model)
    if len(set(map(attention_of, layers))) < len(layers):
        one = f"layers of this {kind} have one attention"
        raise TypeError(f"{one}, and each drops tokens by its own: leave one of them out")


def check_values(said: Any, depth: int) -> None:
    """Raises ``ValueError`` for what ``config.json`` cannot say of tokens."""
    given: dict[str, Any] = said if isinstance(said, dict) else {}
    by, keep = given.get("by"), given.get("keep")
    listed = isinstance(keep, list) and len(keep) == depth
    if not (by in ("rank", "threshold") and listed):
        expected = f"expected by rank or threshold, and a number for each of {depth} layers"
        raise ValueError(f"config.json says tokens={short(said)}, {expected}: copy it again")
    check_keep(by, keep)


def check_keep(by: str, keep: Any) -> None:
    """Raises ``ValueError`` for counts or shares that keep no token, and for odd thresholds."""
    for value in keep:
        if by == "threshold":
            if not (type(value) in (int, float) and 0 <= value <= 1):
                raise ValueError(f"a threshold is from 0 to 1, received {short(value)}")
        elif not (type(value) is int and value >= 1 or type(value) is float and 0 < value <= 1):
            expected = "a row keeps a token or more: give counts from 1, or shares up to 1.0"
            raise ValueError(f"{expected}; received {short(value)}")


def install_(model: PreTrainedModel) -> None:
    """Has a model drop tokens as ``model.config.tokens`` says, in place.

    Raises ``ValueError`` for values that cannot be, ``TypeError`` for another kind of model.
    """
    check(model)
    check_values(getattr(model.config, "tokens", None), len(encoder_layers(model)))
    drops = Drops(model)
    model.drops = drops
    model.base_model.register_forward_pre_hook(drops.begin, with_kwargs=True)
    model.base_model.register_forward_hook(drops.restore)
    model.register_forward_hook(drops.finish, always_call=True)
    for index, layer in enumerate(encoder_layers(model)):
        layer.refusal = "comes before drop_tokens: list it first"
        attention_of(layer).received = drops.look
        layer.attention.register_forward_hook(partial(drops.drop, index))
        layer.register_forward_hook(drops.fade)
        if index:
            layer.register_forward_pre_hook(drops.enter, with_kwargs=True)
    attention.use(model)
