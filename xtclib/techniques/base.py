"""What every technique and every stored layer offers, and what they may ask of a model.

A technique gives ``apply(model, data) → model`` and, where it needs them, what :class:`Technique`
lists: schedules, a penalty, ``finalize`` (every tensor at the width it is stored in) and
``rebuild`` (the same structure on an empty model, so that a saved artefact can load).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from xtclib.bert import Kinds, encoder_layers, replace_module_
from xtclib.config import Named, Registry, config
from xtclib.tasks.base import Task, TaskData
from xtclib.tasks.rows import Calibration


class Seen(NamedTuple):
    """A batch as a loss sees it: what the student gave, the labels, and how a task compares."""

    output: Any
    labels: Tensor
    task: Task


@config
class Technique(Named):
    """The interface; every method but ``apply`` has a default that does nothing.

    Schedules are two plain functions of the step, ``before_step`` and ``after_step``, rather than
    a ``TrainerCallback``: any training loop can call them.
    """

    family: ClassVar[str] = "shaped"  # under which its recipes stand in tables
    reshapes: ClassVar[bool] = False  # what it leaves is no ordinary model, packed or not
    prunes: ClassVar[bool] = False  # removes weights, heads, neurons, width or vocabulary
    needs_task: ClassVar[str | None] = None  # the one task of a stage that it goes with
    percent: ClassVar[str | None] = None  # the field that `nip-90` sets, in hundredths
    calibrates: ClassVar[bool] = False  # needs rows that nothing learns from nor is scored on
    by_row: ClassVar[bool] = False  # how much is computed depends on the row
    says: ClassVar[str | None] = None  # the entry of config.json by which a model runs otherwise

    def check(self, stage) -> None:
        """Raises ``ValueError`` for a stage (:class:`xtclib.recipes.Stage`) it cannot work in."""
        here = f"stage {stage.name!r}: {self.name}"
        if self.learns and stage.task != "its own":
            learns = f"{here} learns scores, which {stage.task} does not train"
            raise ValueError(f"{learns}: give it a stage with an objective")
        if (self.learns or self.settled) and not stage.trains:
            works = f"{here} works while a stage trains, and this one does not"
            raise ValueError(f"{works}: give it an objective")

    def check_student(self, stage, student: PreTrainedModel) -> None:
        """The same for what it has made of a student, in its own stage and in every later one."""

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        """The model with the technique on, ready to train. The input model is left as it is."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is applied")

    def reads(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Calibration
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A teacher and a tokenizer that fit the student, where the technique changes token ids."""
        return model, tokenizer

    def before_step(self, model: PreTrainedModel, step: int, total: int) -> None:
        """Called before every optimizer step, 0-based, of ``total``."""

    def after_step(self, model: PreTrainedModel, step: int, total: int, rate: float) -> None:
        """Called after every optimizer step, with the learning rate it was done at."""

    def penalty(self, model: PreTrainedModel, seen: Seen | None = None) -> Tensor | None:
        """What the technique adds to the loss of a batch, ``seen`` where there are labels."""
        return None

    def for_seed(self, seed: int) -> Technique:
        """The same technique for a run of this seed: what it draws by chance, it draws anew."""
        own = getattr(self, "seed", None)
        return self if own is None else replace(self, **{"seed": own + seed})

    @property
    def settled(self) -> float:
        """The share of the run after which the student is as small as it will be."""
        return 0.0

    @property
    def learns(self) -> bool:
        """Whether it has scores or penalties of its own, which need the Trainer's loss."""
        return False

    @property
    def starts_anew(self) -> bool:
        """Whether it draws weights that no pre-training has seen."""
        return False

    @property
    def looks_at(self) -> int:
        """How many rows it reads before anything trains: 0 where it looks at weights alone."""
        return 0

    @property
    def stored(self) -> bool:
        """Whether a file needs to know of the technique to be read."""
        return False

    @property
    def unpacked(self) -> Technique | None:
        """What a file of unpacked weights says of it; ``None``: nothing, it is an ordinary one."""
        return self if self.reshapes else None

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        """The trained model as it is stored."""
        return model

    def calibrate(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TaskData,
                  length: int) -> None:  # fmt: skip
        """Sets what is chosen once a model is finalized, by the rows that ``data`` holds out."""

    def measure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TaskData,
                length: int, timed: bool = True) -> dict:  # fmt: skip
        """What a record holds of it alone, in its ``measures``; milliseconds where ``timed``."""
        return {}

    def rebuild(self, model: PreTrainedModel) -> None:
        """Gives an empty model the finalized structure, in place, before weights are loaded."""

    def outline(self, model: PreTrainedModel) -> None:
        """Gives an empty model the layers whose products it runs, in place: for what it costs.

        Nothing, where they are those that it has.
        """

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        """An empty model with the structure that the technique will leave it, for its size."""
        self.rebuild(model)
        return model


TECHNIQUES = Registry("technique", Technique)
register = TECHNIQUES.register
technique = TECHNIQUES.read  # from what a recipe or an artefact holds


def held(config: PretrainedConfig) -> list[dict]:
    """What an artefact's config lists as its techniques; nothing for an ordinary model's."""
    found = getattr(config, "quantization_config", None) or {}
    return found.get("techniques", []) if isinstance(found, dict) else found.techniques


def apply_all(
    model: PreTrainedModel, techniques: Sequence[Technique], data: Calibration | None = None
) -> PreTrainedModel:
    """Applies a list of techniques in order."""
    for item in techniques:
        model = item.apply(model, data)
    return model


def needs(data: Calibration | None, what: str) -> Calibration:
    """``data``, or a ``ValueError`` that says what it is needed for."""
    if data is None:
        given = "give `apply` an `xtclib.tasks.rows.Calibration` (`compress` does)"
        raise ValueError(f"{what} looks at the task's rows: {given}")
    return data


def count_of(size: float | None, full: int, what: str) -> int:
    """A count, or a share of ``full``; ``None`` is all. ``ValueError`` for more than ``full``.

    >>> count_of(3, 12, "layers"), count_of(0.25, 12, "layers"), count_of(None, 12, "layers")
    (3, 3, 12)
    """
    if size is None:
        return full
    if size > full:
        asked = f"cannot keep {size} of {full} {what}"
        raise ValueError(f"{asked}: give a count up to that, or a share below 1")
    return size if isinstance(size, int) else max(round(size * full), 1)


def table_of(rows: Tensor, padding: int | None = None) -> nn.Embedding:
    """A plain table around these rows, (ids, width), which it does not copy.

    >>> table_of(torch.ones(3, 2)).embedding_dim
    2
    """
    table = nn.Embedding(*rows.shape, padding, device="meta")
    table.weight = rows if isinstance(rows, nn.Parameter) else nn.Parameter(rows)
    return table


def check_finite(model: nn.Module, what: str) -> None:
    """Raises ``ValueError`` naming the first parameter that holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            found = f"{what}: the parameter {name!r} holds NaN or infinite values"
            raise ValueError(f"{found}; use another checkpoint, or train with a lower rate")


class Held(NamedTuple):
    """What a stored tensor holds: ``values`` of ``width`` bits, no code taking less than ``limit``.

    ``limit``: log₂ of the number of levels, the least if all are equally likely.
    """

    values: int
    width: float
    limit: float


class Stored(nn.Module):
    """A layer as it is saved. It answers for itself, so that nothing outside knows its kind.

    The layer that trains has a method ``stored`` that gives this one. One that stands for a linear
    layer has its ``in_features`` and ``out_features``.
    """

    format: ClassVar[int] = 1  # of the artefact, that a reader needs

    def trainable(self) -> nn.Module:
        """The layer that trains, from the values that are stored."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it trains on")

    def dense(self) -> nn.Module:
        """An ordinary layer with the same values, for whoever knows no other."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it stands for")

    def entries(self) -> dict[str, Held]:
        """What its tensors of packed bytes hold, by their own names."""
        return {}

    def make_room_(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Resizes what only the file tells the size of, by its tensors' shapes, in place."""


def pack_(model: PreTrainedModel) -> PreTrainedModel:
    """Every layer that has a stored form as that, every other parameter in fp16; in place."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "stored"):
            replace_module_(model, name, module.stored())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model


def refuse_packed(model: nn.Module) -> None:
    """Raises ``ValueError`` for a model whose weights are stored, not trained."""
    if any(isinstance(module, Stored) for module in model.modules()):
        change = "apply `xtclib.trainable` first to change it or train it on"
        raise ValueError(f"the model is already packed; {change}")


def refuse_second(model: PreTrainedModel, name: str) -> None:
    """Raises ``ValueError`` for a model that a technique has run otherwise already: one may."""
    for other in TECHNIQUES.values():
        if other.says and getattr(model.config, other.says, None):
            why = "one is enough" if other.name == name else "choose one of them"
            raise ValueError(f"{name} cannot follow {other.name}: {why}")


def copied(model: PreTrainedModel, cut: str = "", allowed: Kinds = ()) -> PreTrainedModel:
    """A copy for a technique to change; ``ValueError`` for a model that is packed.

    ``cut``: a technique that removes what is there: of ordinary, finite layers (or ``allowed``).
    """
    refuse_packed(model)
    if cut:
        check_plain(model, cut, allowed)
        check_finite(model, "cannot prune this model")
    return copy.deepcopy(model)


def word_table(model: PreTrainedModel, what: str) -> nn.Embedding:
    """The word table, for ``what`` to change; ``ValueError`` if something has changed it before."""
    table = model.get_input_embeddings()
    if type(table) is not nn.Embedding:
        once = "comes before what changes the word table, and one that does is enough"
        raise ValueError(f"{what} {getattr(table, 'refusal', f'{once}: list it first')}")
    return table


def check_plain(model: nn.Module, what: str, allowed: Kinds = ()) -> None:
    """Raises ``ValueError`` if an encoder's layer was changed by what ``what`` has to precede.

    Such a layer says so itself: its ``refusal`` ends the sentence that ``what`` begins.
    """
    inside = {module for layer in encoder_layers(model) for module in layer.modules()}
    for module in inside:
        refusal = getattr(module, "refusal", None)
        if refusal and not isinstance(module, allowed):
            raise ValueError(f"{what} {refusal}")


def check_layers(model: nn.Module, what: str) -> None:
    """Raises ``ValueError`` if an encoder's layers cannot be taken apart, as ``what`` does.

    Such a layer has a ``refusal`` itself, or a module in it that runs another's: its ``leader``.
    """
    for layer in encoder_layers(model):
        for module in (layer, *(m for m in layer.modules() if hasattr(m, "leader"))):
            if refusal := getattr(module, "refusal", None):
                raise ValueError(f"{what} {refusal}")
