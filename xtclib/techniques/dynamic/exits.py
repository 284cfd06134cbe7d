"""Exits: a small classifier after some layers, through which a row may leave before the rest.

Hooks put them on an ordinary model. Rows that have left are taken out of the batch and the rest
goes on, smaller; once none is left no further layer runs. Sources: DeeBERT (arXiv:2004.12993),
FastBERT (arXiv:2004.02178), PABEE (arXiv:2006.04152), BERxiT (Xin et al., EACL 2021).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from xtclib.bert import encoder_layers, is_shared, set_layer_list_, shown_to
from xtclib.config import short
from xtclib.techniques.dynamic.criteria import (
    CRITERIA,
    ENDS,
    NUMBERS,
    Judge,
    bar_of,
)

HeadKind = Literal["linear", "pooler"]
Pooling = Literal["first", "mean"]
HEADS, POOLINGS = get_args(HeadKind), get_args(Pooling)


class Head(nn.Module):
    """A classifier on a row's vector: (batch, width) → (batch, labels).

    ``pooler``: behind a layer and a tanh of its own, as BERT's; ``linear``: without.
    """

    def __init__(self, kind: HeadKind, width: int, labels: int, dropout: float = 0.0,
                 device: Any = None) -> None:  # fmt: skip
        super().__init__()
        self.pooler = nn.Linear(width, width, device=device) if kind == "pooler" else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, labels, device=device)

    def forward(self, vector: Tensor) -> Tensor:
        if self.pooler is not None:
            vector = self.pooler(vector).tanh()
        return self.classifier(self.dropout(vector))


class ExitLayers(nn.ModuleList):
    """An encoder's layers, in whose turn none follows once every row has left."""

    def __init__(self, layers: nn.ModuleList, exits: Exits) -> None:
        super().__init__(layers)
        self.watched = (exits,)  # in a tuple: it is no part of the encoder

    def __iter__(self) -> Iterator[nn.Module]:
        (exits,) = self.watched
        for layer in super().__iter__():
            if exits.done:
                return
            yield layer


class Exits(nn.Module):
    """The exits of a model, and where the rows of a batch are while it runs."""

    def __init__(self, model: PreTrainedModel, said: dict) -> None:
        super().__init__()
        config, table = model.config, encoder_layers(model)
        width, device = config.hidden_size, next(table.parameters()).device
        self.after, self.depth = tuple(said["after"]), len(table)
        self.config, self.kind = config, kind_of(config)
        make = partial(Head, said["head"], width, config.num_labels, device=device)
        self.heads = nn.ModuleList(make() for _ in self.after)
        self.certainty = None
        if said["criterion"] == "learned":
            self.certainty = nn.Linear(width, 1, device=device)
        self.collecting = False
        self.rest()

    @property
    def said(self) -> dict:
        """What ``config.json`` says of the exits."""
        return self.config.exits

    def rest(self) -> None:
        """Forgets the last batch."""
        self.seen: list[Tensor] = []
        self.certain: list[Tensor] = []
        self.rows: Tensor | None = None  # which of the batch go on; all
        self.found: Tensor | None = None
        self.left: Tensor | None = None  # after how many layers each row left
        self.done, self.size = False, 0
        self.labels: Tensor | None = None
        self.mask: Tensor | None = None
        self.bar = float("inf")
        self.judge = self.judged()

    def judged(self) -> Judge:
        """A judge by the criterion that the config says."""
        return Judge(self.said["criterion"], self.kind, self.said["tolerance"])

    def begin(self, model: PreTrainedModel, args: tuple, given: dict) -> tuple[tuple, dict] | None:
        """Before a batch: how large it is, and the bar. Labels are kept for whole batches."""
        self.rest()
        shown, mask = shown_to(args, given)
        self.size = 0 if shown is None else shown.shape[0]
        self.mask = None if mask is None or bool(mask.all()) else mask  # nothing is padded
        if model.training or self.collecting:
            return None
        self.bar = bar_of(self.said["criterion"], self.said["threshold"])
        if given.get("labels") is None or self.bar == float("inf"):
            return None
        self.labels = given["labels"]
        return args, {**given, "labels": None}

    def enter(self, layer: nn.Module, args: tuple, given: dict) -> tuple[tuple, dict] | None:
        """Before a layer: masks and biases of the rows that are left."""
        if self.rows is None:
            return None
        first, *others = args
        shared = "rel_embeddings"  # DeBERTa's table, which may be as long as the batch
        given = {k: v if k == shared else self._of_rows(v) for k, v in given.items()}
        return (first, *map(self._of_rows, others)), given

    def _of_rows(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._of_rows, value))
        whole = isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == self.size
        return value[self.rows] if whole else value

    def leave(self, exit: int, layer: nn.Module, args: tuple, output: Any) -> Any:
        """After a layer with an exit: who is sure leaves, the rest is what the layer gives."""
        if not self.size:  # the encoder runs by itself
            return None
        states = output[0] if isinstance(output, tuple) else output
        if self.collecting or layer.training:
            vector = self.vector(states)
            self.seen.append(self.heads[exit](vector))
            if (certain := self.certain_of(vector)) is not None:
                self.certain.append(certain)
            return None
        if self.bar == float("inf"):
            return None
        vector = self.vector(states)
        logits = self.heads[exit](vector)
        leaving = self.judge.sure(logits, self.certain_of(vector)) > self.bar
        count = int(leaving.sum())
        if not count:
            return None
        self._note(logits, leaving, self.after[exit])
        if count == len(leaving):
            self.done = True
            return None
        going = (~leaving).nonzero().squeeze(1)
        self.rows = going if self.rows is None else self.rows[going]
        self.judge.keep(going)
        states = states[going]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def _note(self, logits: Tensor, leaving: Tensor, layers: int) -> None:
        """Writes down the answers of rows that leave."""
        if self.found is None or self.left is None:
            self.found = logits.new_zeros(self.size, logits.shape[-1])
            self.left = torch.full((self.size,), self.depth, device=logits.device)
        gone = leaving.nonzero().squeeze(1)
        rows = gone if self.rows is None else self.rows[gone]
        self.found[rows], self.left[rows] = logits[gone], layers

    def vector(self, states: Tensor) -> Tensor:
        """What exits read of (batch, length, width): the first token, or the real ones' mean."""
        if self.said["pooling"] == "first":
            return states[:, 0]
        if self.mask is None:
            return states.mean(1)
        mask = self.mask if self.rows is None else self.mask[self.rows]
        weight = mask[..., None].to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1).clamp(min=1)

    def certain_of(self, vector: Tensor) -> Tensor | None:
        """The learned certainty of an exit's answer, (batch,): one layer for all exits."""
        return None if self.certainty is None else self.certainty(vector).squeeze(-1).sigmoid()

    def finish(self, model: PreTrainedModel, args: tuple, output: Any) -> Any:
        """After a batch: every row's answer at its place, and the layer after which it left.

        After a batch that failed too, which is forgotten: ``output`` is ``None`` then.
        """
        if output is None:
            self.rest()
            return None
        if self.seen:
            if not isinstance(output, tuple):
                output["exit_logits"] = torch.stack(self.seen)  # (exits, batch, labels)
                if self.certain:
                    output["exit_certainty"] = torch.stack(self.certain)  # (exits, batch)
        elif self.size:
            output = self._answered(output)
        self.rest()
        return output

    def _answered(self, output: Any) -> Any:
        logits = output[0] if isinstance(output, tuple) else output.logits
        left = self.left
        if left is None or self.found is None:
            left = torch.full((self.size,), self.depth, device=logits.device)
        else:
            if not self.done:
                self.found[self.rows] = logits
            logits = self.found
        loss: tuple[Tensor, ...] = ()
        if self.labels is not None:
            loss = (ForSequenceClassificationLoss(self.labels, logits, self.config),)
        if isinstance(output, tuple):
            return (*loss, logits, *output[1:])
        output["logits"], output["layers"] = logits, left
        if loss:
            output["loss"] = loss[0]
        return output


def kind_of(config) -> str:
    """What a classifier's labels are, as transformers calls it: ``problem_type``."""
    number = "regression" if config.num_labels == 1 else "single_label_classification"
    return config.problem_type or number


def check(model: PreTrainedModel) -> None:
    """Raises ``TypeError`` for a model that answers otherwise than once a row, by own layers."""
    kind = type(model).__name__
    if not kind.endswith("ForSequenceClassification"):
        raise TypeError(f"{kind} gives no answer for a whole row, with which one could leave early")
    encoder_layers(model)
    if is_shared(model):
        one = f"{kind} uses one layer in turns, and an exit stands after a layer"
        raise TypeError(f"{one}: choose a model whose layers are its own")


def install_(model: PreTrainedModel) -> None:
    """Puts the exits on a model that ``model.config.exits`` tells of, in place.

    Raises ``ValueError`` for values that no exits have, ``TypeError`` for a model without a place
    for them.
    """
    check(model)
    check_values(getattr(model.config, "exits", None), len(encoder_layers(model)), model.config)
    exits = Exits(model, model.config.exits)
    model.exits = exits
    layers = ExitLayers(encoder_layers(model), exits)
    set_layer_list_(model, layers)
    conv = getattr(getattr(model.base_model, "encoder", None), "conv", None)  # DeBERTa-v2's
    model.register_forward_pre_hook(exits.begin, with_kwargs=True)
    model.register_forward_hook(exits.finish, always_call=True)
    for number, layer in enumerate(layers, 1):
        layer.refusal = "comes before early_exit: list it first"
        if number > exits.after[0]:
            layer.register_forward_pre_hook(exits.enter, with_kwargs=True)
        if number in exits.after:
            last = conv if conv is not None and number == 1 else layer  # it ends the first layer
            last.register_forward_hook(partial(exits.leave, exits.after.index(number)))


def check_after(after: Any, depth: int) -> None:
    """Raises ``ValueError`` for layers that no exit can stand after."""
    where = f"exits after layers {short(list(after))} of {depth}"
    if not after:
        raise ValueError("early_exit has no exits: name at least one layer, or leave out `after`")
    if sorted(set(after)) != list(after):
        raise ValueError(f"{where}: their numbers must rise, without repeats")
    if not 1 <= after[0] <= after[-1] < depth:
        last = "the last has the model's own classifier"
        raise ValueError(f"{where}: {last}, choose from 1 to {depth - 1}")


def check_threshold(criterion: str, threshold: Any, exits: int) -> None:
    """Raises ``ValueError`` for a threshold that the criterion does not have."""
    if isinstance(threshold, str) and threshold in ENDS:
        return
    number = type(threshold) in (int, float)
    if criterion == "patience":
        if number and 1 <= threshold <= exits and threshold == int(threshold):
            return
        expected = f"patience is 1 to {exits}, the number of exits, or never or always"
        raise ValueError(f"{expected}: received {threshold!r}")
    if not (number and 0 <= threshold <= 1):
        expected = f"a threshold of {criterion} is from 0 to 1, or never or always"
        raise ValueError(f"{expected}: received {short(threshold)}")


def check_values(said: Any, depth: int, config: Any) -> None:
    """Raises ``ValueError`` for what ``config.json`` cannot say of exits."""
    given: dict[str, Any] = said if isinstance(said, dict) else {}
    after, criterion = given.get("after"), given.get("criterion")
    whole = isinstance(after, list) and all(type(layer) is int for layer in after)
    tolerance: Any = given.get("tolerance")
    speeds: Any = given.get("speeds")
    pairs = isinstance(speeds, list) and all(isinstance(p, list) and len(p) == 2 for p in speeds)
    numbers = pairs and all(type(speed) in (int, float) for _, speed in speeds)
    numbers = numbers and type(tolerance) is float and tolerance > 0
    if not (whole and criterion in CRITERIA and given.get("head") in HEADS and numbers
            and given.get("pooling") in POOLINGS):  # fmt: skip
        expected = "expected after, head, pooling, criterion, threshold, tolerance and speeds"
        raise ValueError(f"config.json says exits={short(said)}, {expected}: copy it again")
    if kind_of(config) == "regression" and criterion not in NUMBERS:
        choose = f"choose {' or '.join(NUMBERS)}"
        raise ValueError(f"{criterion} is of classes, and the model gives a number: {choose}")
    check_after(after, depth)
    check_threshold(str(criterion), given.get("threshold"), len(after or []))


@contextlib.contextmanager
def all_exits(model: PreTrainedModel) -> Iterator[None]:
    """Within it every row goes through all layers, and the output has ``exit_logits``."""
    model.exits.collecting = True
    try:
        yield
    finally:
        model.exits.collecting = False
