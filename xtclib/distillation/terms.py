"""What a distillation term compares: which signal, in which layers, and through which projection.

A term is one pure function and one call of :func:`.objective.register_term`. A recipe then names it
with a weight, ``patience: 10``, or with more: ``patience: {weight: 10, layers: last}``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib import attention
from xtclib.bert import attention_of, encoder_layers, heads_of, kept_layers, part, part_names
from xtclib.config import Flag, Listed, NotNegative, Share, config, written
from xtclib.distillation import losses
from xtclib.files import unknown

LayerMap = Literal["uniform", "last", "release"]
LAYER_MAPS = get_args(LayerMap)
# Which of a student's states 0 to S take part; state 0 is the embeddings, state i layer i's output.
STATES: dict[str, Callable[[int], list[int]]] = {
    "all": lambda depth: list(range(depth + 1)),
    "layers": lambda depth: list(range(1, depth + 1)),
    "inner": lambda depth: list(range(1, depth)),
    "last": lambda depth: [depth],
    "embeddings": lambda depth: [0],
}


def states_of(which: str | float, depth: int) -> list[int]:
    """The states by a name of ``STATES``, or those above a share of the layers.

    >>> states_of("inner", 4), states_of(0.75, 12)
    ([1, 2, 3], [10, 11, 12])
    """
    if isinstance(which, str):
        return STATES[which](depth)
    return list(range(round(which * depth) + 1, depth + 1))


# The part of a layer whose output a signal is.
INPUTS = {"queries": "query", "keys": "key", "values": "value"}


@dataclass(frozen=True)
class Term:
    """A loss ``(student, teacher, mask, **options)``, the signal it reads, and of which states."""

    loss: Callable[..., Tensor]
    reads: str
    states: str

    @property
    def options(self) -> list[str]:
        """The names of the loss's own settings."""
        return list(inspect.signature(self.loss).parameters)[3:]


TERMS: dict[str, Term] = {
    "hidden_states": Term(losses.hidden_mse, "hidden_states", "all"),
    "embeddings": Term(losses.hidden_mse, "hidden_states", "embeddings"),
    "cosine": Term(losses.hidden_cosine, "hidden_states", "last"),
    "patience": Term(losses.patience, "hidden_states", "inner"),
    "attention_scores": Term(losses.attention_mse, "attention_scores", "layers"),
    "attention_probabilities": Term(losses.attention_probability_mse, "attention_scores", "layers"),
    "attention_divergence": Term(losses.attention_divergence, "attention_scores", "layers"),
    "query_relations": Term(losses.relation_divergence, "queries", "last"),
    "key_relations": Term(losses.relation_divergence, "keys", "last"),
    "value_relations": Term(losses.relation_divergence, "values", "last"),
}


@config
class Match:
    """One term of an objective: its weight, the states it compares, and the loss's own options.

    ``states``: which of the student's, a name in ``STATES``, or a share of the layers, for those
    above it; by default the term's. ``layers``: the
    teacher's state for each of them, as a list or a layer map's name; by default the objective's.
    ``projection``: a learned matrix, shared by the states, takes the student's width to the
    teacher's. The states' losses are summed; ``per_layer``: their mean. Raises ``ValueError`` for
    what is none of these.
    """

    name: ClassVar[str] = "term"
    term: str
    weight: NotNegative = 1.0
    states: Literal["all", "layers", "inner", "last", "embeddings"] | Share | None = None
    layers: LayerMap | Listed[int] | None = None
    projection: Flag = False
    per_layer: Flag = False
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.term not in TERMS:
            raise unknown("term", self.term, TERMS)
        if self._term.reads != "hidden_states" and self.states in ("all", "embeddings"):
            inside = f"{self.term} compares what is inside layers, and the embeddings are in none"
            raise ValueError(f"{inside}: choose the states layers, inner or last")
        if self.projection and self._term.reads != "hidden_states":
            raise ValueError(f"{self.term} compares no hidden states: leave out `projection`")

    @property
    def _term(self) -> Term:
        return TERMS[self.term]

    @classmethod
    def read(cls, term: str, value: float | Mapping) -> Match:
        """What a recipe holds behind a term's name: a weight, or ``{weight: …, layers: …}``.

        >>> Match.read("patience", {"weight": 10, "layers": "last"}).layers
        'last'
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            return cls(term, value)
        own = TERMS[term].options
        known = [f.name for f in fields(cls) if f.name not in ("term", "options")]
        for key in value:
            if key not in (*known, *own):
                raise unknown(f"key of {term}", key, (*known, *own))
        options = tuple((k, v) for k, v in value.items() if k in own)
        return cls(term, **{k: v for k, v in value.items() if k in known}, options=options)

    def to_plain(self) -> float | dict:
        """What :meth:`read` takes: a number where only the weight is set."""
        said = written(self, whole=False) | dict(self.options)
        del said["term"]
        said.pop("options", None)
        return {"weight": self.weight, **said} if said.keys() - {"weight"} else self.weight

    def pairs(
        self, student: int, teacher: int, kind: str = "uniform", kept: list[int] | None = None
    ) -> list[tuple[int, int]]:
        """(student state, teacher state) for depths of ``student`` and ``teacher`` layers.

        ``kept``: the teacher's layers that the student was cut out as (:func:`.losses.layer_map`).

        >>> Match("patience").pairs(6, 12)                       # PKD-skip
        [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]
        >>> Match("patience", layers="last").pairs(3, 12)        # PKD-last
        [(1, 10), (2, 11)]
        """
        chosen = states_of(self.states or self._term.states, student)
        wanted = kind if self.layers is None else self.layers
        if isinstance(wanted, str):
            to = losses.layer_map(student, teacher, wanted, kept)
            return [(i, to[i]) for i in chosen]
        if len(wanted) != len(chosen):
            named = f"layers of {self.term} names {len(wanted)} of the teacher's states"
            part = f"{len(chosen)} of the student's take part ({chosen})"
            raise ValueError(f"{named}, but {part}: name one for each")
        lowest = 0 if self._term.reads == "hidden_states" else 1
        for state in wanted:
            if not lowest <= state <= teacher:
                has = f"the teacher has {lowest} to {teacher}"
                raise ValueError(f"layers of {self.term} names {state}, but {has}")
        return list(zip(chosen, wanted, strict=True))

    def check(self, student: PreTrainedModel, teacher: PreTrainedModel, kind: str) -> None:
        """Raises ``ValueError`` for a term that these two models cannot be compared by."""
        depths: list[int] = []
        for whose, model in (("student", student), ("teacher", teacher)):
            try:
                depths.append(len(encoder_layers(model)))
            except TypeError:
                lacks = f"the {whose}, a {type(model).__name__}, has none of BERT's kind"
                raise ValueError(
                    f"{self.term} compares layers, but {lacks}: leave it out, logits always work"
                ) from None
        pairs = self.pairs(depths[0], depths[1], kind, kept_of(student, teacher))
        if not pairs:
            inner = f"the inner layers, and a student of {depths[0]} layer has none"
            raise ValueError(f"{self.term} compares {inner}: choose other `states`")
        widths = student.config.hidden_size, teacher.config.hidden_size
        reads = self._term.reads
        if reads == "hidden_states" and widths[0] != widths[1] and not self.projection:
            wide = f"the student is {widths[0]} wide and its teacher {widths[1]}"
            raise ValueError(f"{self.term} compares states, but {wide}: add `projection: true`")
        for whose, model in (("student", student), ("teacher", teacher)):
            _check_shown(self.term, reads, whose, model)
        if reads == "attention_scores":
            _check_heads(self.term, student, teacher, pairs)
        if reads in INPUTS:
            heads = dict(self.options).get("heads", 12)
            for whose, model in (("student's", student), ("teacher's", teacher)):
                for layer in encoder_layers(model):
                    width = part(layer, INPUTS[reads]).out_features
                    losses.check_relation_heads(width, heads, whose)

    def loss(self, student: Signals, teacher: Signals, mask: Tensor | None, pairs, projection=None,
             shown: Tensor | None = None):  # fmt: skip
        """The weighted sum of the term over pairs of states; its mean if ``per_layer``.

        ``shown`` (batch, keys): scores of other keys are 0 in both models.
        """
        total = 0.0
        for i, j in pairs:
            ours, theirs = student.at(self._term.reads, i), teacher.at(self._term.reads, j)
            if projection is not None:
                ours = projection(ours)
            if shown is not None and self._term.reads == "attention_scores":
                ours, theirs = (x * shown[:, None, None] for x in (ours, theirs))
            total += self._term.loss(ours, theirs.to(ours.dtype), mask, **dict(self.options))
        return self.weight * total / (len(pairs) if self.per_layer else 1)


class Signals:
    """What one forward pass shows: its output, and signals by name, one for each state."""

    def __init__(self, output, kept: Mapping[str, list[Tensor]] | None = None) -> None:
        self.output, self._kept = output, kept or {}
        self.logits: Any = getattr(output, "logits", None)

    def at(self, reads: str, state: int) -> Tensor:
        """A signal at a state. What belongs to a layer rather than to its output starts at 1."""
        if reads == "hidden_states":
            return self.output.hidden_states[state]
        kept = self._kept.get(reads) or self.output.attentions
        return kept[max(state, 1) - 1]


class Reader:
    """Runs a model and keeps the signals that some terms read.

    Queries, keys and values are caught as they leave their linear layers, so that any attention
    kernel will do; scores, but for MPNet's, need :mod:`xtclib.attention`, which it selects, also
    where that trains faster than the model's own (in ``bf16``).
    """

    def __init__(self, model: PreTrainedModel, wanted: Iterable[str], bf16: bool = False) -> None:
        self.wanted, self._hooks = set(wanted), []
        self._kept: dict[str, list[Tensor]] = {}
        self._model, self._before = model, model.config._attn_implementation
        if "attention_scores" in self.wanted or attention.trains_faster(model, bf16):
            attention.use(model)
        for name in self.wanted & set(INPUTS):
            kept = self._kept[name] = []
            parts = [part(layer, INPUTS[name]) for layer in encoder_layers(model)]
            for each in dict.fromkeys(parts):  # one that runs in turns is hooked once
                hook = partial(lambda kept, module, inputs, found: kept.append(found), kept)
                self._hooks.append(each.register_forward_hook(hook))
        if "attention_scores" in self.wanted and not attention.takes_another(model):
            kept = self._kept["attention_scores"] = []
            own = {attention_of(layer): layer for layer in encoder_layers(model)}
            for layer in own.values():
                self._hooks += attention.watch(layer, kept)

    def __call__(self, model: nn.Module, **inputs: Tensor) -> Signals:
        """``model`` is the reader's own, or a wrapper of it."""
        for kept in self._kept.values():
            kept.clear()
        asked = {"hidden_states": "output_hidden_states", "attention_scores": "output_attentions"}
        shown = {asked[name]: True for name in self.wanted - set(self._kept) if name in asked}
        return Signals(model(**inputs, **shown), {k: list(v) for k, v in self._kept.items()})

    def close(self) -> None:
        """Takes the hooks off the model and gives it its attention back."""
        for hook in self._hooks:
            hook.remove()
        if self._model.config._attn_implementation != self._before:
            self._model.set_attn_implementation(self._before)


def projections(
    matches: Iterable[Match], student: PreTrainedModel, teacher: PreTrainedModel
) -> nn.ModuleDict:
    """A matrix for each term that asks for one: (…, student width) → (…, teacher width).

    The identity where the widths agree, else PyTorch's default. Source: ``W_h`` of TinyBERT,
    arXiv:1909.10351, equation 8, one for all layers.
    """
    found = nn.ModuleDict()
    for match in matches:
        if match.projection:
            ours, theirs = student.config.hidden_size, teacher.config.hidden_size
            found[match.term] = nn.Linear(ours, theirs, bias=False)
            if ours == theirs:
                nn.init.eye_(found[match.term].weight)
    return found


def kept_of(student: PreTrainedModel, teacher: PreTrainedModel) -> list[int] | None:
    """Which of the teacher's layers a student was cut out as, if it was; both may have been."""
    ours, theirs = kept_layers(student), kept_layers(teacher)
    if ours is None or ours == theirs:
        return None
    theirs = theirs or list(range(len(encoder_layers(teacher))))
    return [theirs.index(k) for k in ours] if set(ours) <= set(theirs) else None


def _check_heads(term: str, student, teacher, pairs) -> None:
    """Scores are compared head by head: a layer with fewer heads than its teacher's has none."""
    for i, j in pairs:
        i, j = max(i, 1) - 1, max(j, 1) - 1
        ours, theirs = heads_of(encoder_layers(student)[i]), heads_of(encoder_layers(teacher)[j])
        if ours != theirs:
            has = f"layer {i} of the student has {ours} heads and its teacher's {theirs}"
            raise ValueError(f"{term} compares heads, but {has}: leave it out of this stage")


def _check_shown(term: str, reads: str, whose: str, model: PreTrainedModel) -> None:
    """Raises ``ValueError`` for a signal that a model does not show."""
    lacks = ""
    if reads == "attention_scores" and not attention.shows_scores(model):
        lacks = "computes its attention in a way of its own, which shows no scores"
    names = part_names(encoder_layers(model)[0])
    if reads in INPUTS and names["query"] == names["key"]:
        lacks = "has query, key and value in one matrix"
    if lacks:
        raise ValueError(
            f"{term} cannot be compared: the {whose}, a {type(model).__name__}, {lacks}; leave the "
            "term out, hidden_states always work"
        )
