"""Objectives: the terms of a stage's loss, and what they come to for a batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from xtclib.bert import encoder_layers
from xtclib.distillation.losses import kl_divergence, logits_mse, soft_cross_entropy
from xtclib.distillation.terms import LAYER_MAPS, TERMS, Match, Signals, is_number, wanted
from xtclib.files import unknown
from xtclib.tasks.base import Task
from xtclib.tasks.classification import CLASSES

LOGITS_LOSSES = ("soft_cross_entropy", "kl_divergence", "mse")
_ALWAYS_TOLD = ("hidden_states", "attention_scores")


@dataclass(frozen=True, init=False)
class Objective:
    """The terms of a stage's loss, each with its weight; 0 leaves a term out.

    ``loss = labels·L_labels + logits·L_logits + Σ weight·Σ_pairs L_term`` over the terms of
    :data:`.terms.TERMS`, each given by a weight or by ``{weight: …, layers: …}``
    (:class:`.terms.Match`). XTC sets logits, hidden states and attention scores to 1.
    ``masked=False``, ``per_class=True`` and ``layer_map='release'`` are the official code's
    variants. ``progressive`` trains embeddings and layers one after the other, each by its own
    states alone (MobileBERT, arXiv:2004.02984, section 3.4). A regression task takes the MSE to
    the teacher's output as its logits term.

    >>> Objective(logits=1, patience={"weight": 10, "layers": "last"}).needs_teacher
    True
    """

    labels: float
    logits: float
    logits_loss: str
    temperature: float
    layer_map: str
    masked: bool
    per_class: bool
    progressive: bool
    matches: tuple[Match, ...]

    def __init__(
        self,
        *,
        labels: float = 0.0,
        logits: float = 0.0,
        logits_loss: str = "soft_cross_entropy",
        temperature: float = 1.0,
        layer_map: str = "uniform",
        masked: bool = True,
        per_class: bool = False,
        progressive: bool = False,
        **terms: float | dict | Match,
    ) -> None:
        for name in terms:
            if name not in TERMS:
                raise unknown("key of objective", name, (*_OPTIONS, *TERMS))
        found = {name: Match.read(name, value) for name, value in terms.items()}
        matches = tuple(found[name] for name in TERMS if name in found and found[name].weight)
        self.__dict__.update(
            labels=labels, logits=logits, logits_loss=logits_loss, temperature=temperature,
            layer_map=layer_map, masked=masked, per_class=per_class, progressive=progressive,
            matches=matches,
        )  # fmt: skip
        for name in ("labels", "logits"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value < float("inf"):
                raise ValueError(f"weight of {name} must be a number of at least 0, got {value!r}")
        if not (self.needs_teacher or labels):
            raise ValueError("the objective is empty: give at least one term a positive weight")
        if logits_loss not in LOGITS_LOSSES:
            raise unknown("logits loss", logits_loss, LOGITS_LOSSES)
        if layer_map not in LAYER_MAPS:
            raise unknown("layer map", layer_map, LAYER_MAPS)
        for name in ("masked", "per_class", "progressive"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, received {getattr(self, name)!r}")
        if not is_number(temperature) or not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive, received {temperature!r}")
        if progressive and (labels or logits or not matches):
            raise ValueError(
                "progressive transfer trains one layer at a time, by terms that compare layers: "
                "put labels and logits into a stage of their own"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return bool(self.logits or self.matches)

    @property
    def reads(self) -> set[str]:
        """The signals that both models have to show beside their logits."""
        return wanted(self.matches)

    def to_dict(self) -> dict:
        """What recipes hold. Terms that were there from the start are told at 0 too: hashes stay.

        >>> Objective(labels=1).to_dict()["hidden_states"]
        0.0
        """
        values = {name: getattr(self, name) for name in _OPTIONS}
        if not self.progressive:
            del values["progressive"]
        terms = dict.fromkeys(_ALWAYS_TOLD, 0.0)
        return {**values, **terms, **{match.term: match.to_plain() for match in self.matches}}

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
                raise ValueError(
                    f"progressive transfer trains the states one by one, but no term compares "
                    f"{sorted(idle)} (0: the embeddings): add hidden_states"
                )

    def pairs(self, student: PreTrainedModel, teacher: PreTrainedModel) -> dict[str, list]:
        """(student state, teacher state) for every term that compares layers."""
        if not self.matches:
            return {}
        depths = len(encoder_layers(student)), len(encoder_layers(teacher))
        return {match.term: match.pairs(*depths, self.layer_map) for match in self.matches}


def _check_alike(student: PretrainedConfig, teacher: PretrainedConfig, answers: bool) -> None:
    """Raises ``ValueError`` unless both read the same token ids and, for ``answers``, say the same.

    Labels without names (``LABEL_0`` and so on) are only counted.
    """
    sizes = student.vocab_size, teacher.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the student reads {sizes[0]} tokens and its teacher {sizes[1]}: the same ids mean "
            "other words to each; give both one tokenizer"
        )
    if not answers:
        return
    said = [[str(config.id2label[i]) for i in range(config.num_labels)]
            for config in (student, teacher)]  # fmt: skip
    named = not any(names[0].startswith("LABEL_") for names in said)
    if len(said[0]) != len(said[1]) or (named and said[0] != said[1]):
        raise ValueError(
            f"the student's labels are {said[0]} and its teacher's {said[1]}: logits are compared "
            "in order, so give both the same labels in the same order"
        )


_OPTIONS = tuple(name for name in Objective.__dataclass_fields__ if name != "matches")


def distillation_loss(
    objective: Objective,
    student: Signals,
    teacher: Signals | None,
    labels: Tensor | None,
    mask: Tensor,
    pairs: dict[str, list[tuple[int, int]]],
    projections: nn.ModuleDict | dict | None = None,
    task: Task = CLASSES,
) -> dict[str, Tensor]:
    """Every term of an objective, weighted, by name; their sum is the loss.

    ``pairs`` is :meth:`Objective.pairs`, ``projections`` what
    :func:`.terms.projections` made; ``mask``
    (batch, length) is 1 at real tokens; ``task`` says how labels and logits are compared. Source:
    XTC, arXiv:2206.01859, section 2, after TinyBERT and TernaryBERT, and the terms' own.
    """
    terms: dict[str, Tensor] = {}
    if objective.labels:
        terms["labels"] = objective.labels * task.loss(student.logits, labels)
    if objective.logits:
        loss = partial(_logits_loss, objective)
        found = task.compare(student.logits, teacher.logits.float(), loss)
        terms["logits"] = objective.logits * found
    seen = mask if objective.masked else None
    for match in objective.matches:
        chosen = pairs[match.term]
        if chosen:
            projection = (projections or {})[match.term] if match.projection else None
            terms[match.term] = match.loss(student, teacher, seen, chosen, projection)
    return terms


def _logits_loss(objective: Objective, student: Tensor, teacher: Tensor) -> Tensor:
    if objective.logits_loss == "mse":
        return logits_mse(student, teacher)
    if objective.logits_loss == "kl_divergence":
        return kl_divergence(student, teacher, objective.temperature)
    return soft_cross_entropy(student, teacher, objective.temperature, objective.per_class)
