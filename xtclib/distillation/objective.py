"""Objectives: the terms of a stage's loss, and what they come to for a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Literal

from pydantic import model_validator
from pydantic_core import ArgsKwargs
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from xtclib.bert import encoder_layers
from xtclib.config import Expect, Flag, NotNegative, Positive, config, written
from xtclib.distillation import losses, terms
from xtclib.distillation.terms import INPUTS, STATES, TERMS, LayerMap, Match, Signals, Term
from xtclib.files import unknown
from xtclib.tasks.base import Task
from xtclib.tasks.classification import CLASSES


@config
class Objective:
    """The terms of a stage's loss, each with its weight; 0 leaves a term out.

    ``loss = labels·L_labels + logits·L_logits + Σ weight·Σ_pairs L_term`` over the terms of
    :data:`.terms.TERMS`, each given by a weight or by ``{weight: …, layers: …}``
    (:class:`.terms.Match`). XTC sets logits, hidden states and attention scores to 1. Logits are
    averaged over the batch, with ``per_class`` over the classes too. ``masked``: means are over
    real tokens; ``False``: over padding too, as in XTC's release; ``'keys'``: the same, with the
    scores of masked keys 0 in both models, as in TinyBERT's, TernaryBERT's and BinaryBERT's. Those
    releases pad every row (a stage's ``pad``) and set ``per_class`` and ``layer_map='release'``.
    ``progressive`` trains embeddings and layers one after the other, each by its own states alone
    (MobileBERT, arXiv:2004.02984, section 3.4). A regression task takes the MSE to the teacher's
    output as its logits term; one whose classes may hold at once a sigmoid for each instead of the
    softmax.

    >>> Objective(logits=1, patience={"weight": 10, "layers": "last"}).needs_teacher
    True
    """

    labels: NotNegative = 0.0
    logits: NotNegative = 0.0
    logits_loss: Literal["soft_cross_entropy", "kl_divergence", "mse"] = "soft_cross_entropy"
    temperature: Positive = 1.0
    layer_map: LayerMap = "uniform"
    masked: Annotated[bool | Literal["keys"], Expect("true, false or 'keys'")] = True
    per_class: Flag = False
    progressive: Flag = False
    matches: tuple[Match, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: ArgsKwargs) -> ArgsKwargs:
        """Keys that are no fields are terms; what weighs nothing is left out."""
        values = dict(given.kwargs or {})
        terms = {match.term: match for match in values.pop("matches", ())}
        for name in [name for name in values if name not in _FIELDS]:
            if name not in TERMS:
                raise unknown("key of objective", name, (*_FIELDS[:-1], *TERMS))
            terms[name] = Match.read(name, values.pop(name))
        matches = tuple(terms[name] for name in TERMS if name in terms and terms[name].weight)
        return ArgsKwargs(given.args, values | {"matches": matches})

    def __post_init__(self) -> None:
        if not (self.needs_teacher or self.labels):
            raise ValueError("the objective is empty: give at least one term a positive weight")
        if self.progressive and (self.labels or self.logits or not self.matches):
            one = "progressive transfer trains one layer at a time, by terms that compare layers"
            raise ValueError(f"{one}: put labels and logits into a stage of their own")
        softened = {m.term for m in self.matches if TERMS[m.term].reads == "attention_scores"}
        softened -= {"attention_scores"}
        if self.masked == "keys" and softened:
            zero = f"masked: keys sets scores to 0, which {min(softened)} would take for likely"
            raise ValueError(f"{zero} keys: choose true or false")

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return bool(self.logits or self.matches)

    @property
    def reads(self) -> set[str]:
        """The signals that both models have to show beside their logits."""
        return {TERMS[match.term].reads for match in self.matches}

    def to_dict(self, whole: bool = True) -> dict:
        """What recipes hold; not ``whole``: without what has its default.

        >>> Objective(labels=1, cosine=2).to_dict(whole=False)
        {'labels': 1.0, 'cosine': 2.0}
        """
        values = written(self, whole)
        values.pop("matches", None)
        return values | {match.term: match.to_plain() for match in self.matches}

    def compare(self, student: Tensor, teacher: Tensor, independent: bool = False) -> Tensor:
        """The loss of logits (batch, classes) by ``logits_loss``.

        ``independent``: a sigmoid for each class instead of a softmax over them, for classes of
        which several hold at once; the squared error is the same.
        """
        if self.logits_loss == "mse":
            return losses.logits_mse(student, teacher, self.per_class)
        divergence = self.logits_loss == "kl_divergence"
        if independent:
            loss = losses.bernoulli_divergence if divergence else losses.bernoulli_cross_entropy
        else:
            loss = losses.kl_divergence if divergence else losses.soft_cross_entropy
        return loss(student, teacher, self.temperature, self.per_class)

    def check(
        self, student: PreTrainedModel, teacher: PreTrainedModel, answers: bool = True
    ) -> None:
        """Raises ``ValueError`` for terms that these two models cannot be compared by.

        ``answers``: whether the models' logits are those of their labels, and not of words.
        """
        if self.needs_teacher:
            _check_alike(student.config, teacher.config, answers and bool(self.logits))
        for match in self.matches:
            match.check(student, teacher, self.layer_map)
        if self.progressive:
            pairs = [pair for found in self.pairs(student, teacher).values() for pair in found]
            idle = set(range(len(encoder_layers(student)) + 1)) - {at for at, _ in pairs}
            if idle:
                lacks = f"progressive transfer trains every state, no term compares {sorted(idle)}"
                raise ValueError(f"{lacks} (0: the embeddings): add hidden_states")

    def pairs(self, student: PreTrainedModel, teacher: PreTrainedModel) -> dict[str, list]:
        """(student state, teacher state) for every term that compares layers."""
        if not self.matches:
            return {}
        depths = len(encoder_layers(student)), len(encoder_layers(teacher))
        kept = terms.kept_of(student, teacher)
        return {m.term: m.pairs(*depths, self.layer_map, kept) for m in self.matches}


def _check_alike(student: PretrainedConfig, teacher: PretrainedConfig, answers: bool) -> None:
    """Raises ``ValueError`` unless both read the same token ids and, for ``answers``, say the same.

    Labels without names (``LABEL_0`` and so on) are only counted.
    """
    sizes = student.vocab_size, teacher.vocab_size
    if sizes[0] != sizes[1]:
        read = f"the student reads {sizes[0]} tokens and its teacher {sizes[1]}"
        raise ValueError(f"{read}, so ids mean other words to each: give both one tokenizer")
    if not answers:
        return
    ours, theirs = ([str(c.id2label[i]) for i in range(c.num_labels)] for c in (student, teacher))
    named = not any(names[0].startswith("LABEL_") for names in (ours, theirs))
    if len(ours) != len(theirs) or (named and ours != theirs):
        labels = f"the student's labels are {ours} and its teacher's {theirs}"
        raise ValueError(f"{labels}: give both the same labels in the same order")


_FIELDS = [field.name for field in fields(Objective)]


def register_term(
    name: str, loss: Callable[..., Tensor], reads: str = "hidden_states", states: str = "layers"
) -> None:
    """A loss ``(student, teacher, mask, **options) → scalar`` as a term that objectives can name.

    ``reads``: the signal that it compares, ``hidden_states``, ``attention_scores`` or a name in
    :data:`.terms.INPUTS`; ``states``: of which of the student's states, a name in
    :data:`.terms.STATES`. Raises ``ValueError`` for other names, and for one that is taken.
    """
    signals = ("hidden_states", "attention_scores", *INPUTS)
    if reads not in signals:
        raise unknown("signal", reads, signals)
    if states not in STATES:
        raise unknown("choice of states", states, STATES)
    if name in _FIELDS or name in TERMS:
        raise ValueError(f"{name!r} is a key of objectives already: give the term another name")
    TERMS[name] = Term(loss, reads, states)


def distillation_loss(
    objective: Objective, student: Signals, teacher: Signals | None, labels: Tensor | None,
    mask: Tensor, pairs: dict[str, list[tuple[int, int]]],
    projections: nn.ModuleDict | dict | None = None, task: Task = CLASSES,
) -> dict[str, Tensor]:  # fmt: skip
    """Every term of an objective, weighted, by name; their sum is the loss.

    ``teacher`` may be ``None`` where nothing is compared; ``pairs`` is :meth:`Objective.pairs`,
    ``projections`` what :func:`.terms.projections` made; ``mask`` (batch, length) is 1 at real
    tokens; ``task`` says how labels and logits are compared. Source: XTC, arXiv:2206.01859,
    section 2, after TinyBERT and TernaryBERT, and the terms' own.
    """
    terms: dict[str, Tensor] = {}
    if objective.labels:
        terms["labels"] = objective.labels * task.loss(student.logits, labels)
    if not objective.needs_teacher:
        return terms
    assert teacher is not None  # refused where a run begins
    if objective.logits:
        found = task.compare(student.logits, teacher.logits.float(), objective.compare)
        terms["logits"] = objective.logits * found
    seen = mask if objective.masked is True else None
    shown = mask if objective.masked == "keys" else None
    for match in objective.matches:
        chosen = pairs[match.term]
        if chosen:
            projection = (projections or {})[match.term] if match.projection else None
            terms[match.term] = match.loss(student, teacher, seen, chosen, projection, shown)
    return terms
