"""Recipes: a named list of stages, written in YAML, with the paper they come from.

A stage is techniques, an objective and a budget; a budget is how long and how fast to train.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from xtclib.config import READ, Listed, Positive, config, named, read, written
from xtclib.distillation.objective import Objective
from xtclib.files import read_yaml, slug, unknown
from xtclib.tasks.augmentation import Augmentation
from xtclib.techniques.base import TECHNIQUES, Technique
from xtclib.training.budget import Budget

AUGMENTED = "-augmented"  # behind a recipe's name


@config
class Stage:
    """Techniques and what trains them; without an objective nothing is trained.

    ``task``: ``its own``, the recipe's, or ``mlm``, guessing masked words; there an objective's
    ``labels`` are the masked words, its ``logits`` the probabilities that the pre-trained teacher
    gives to them, and without one the words alone are learned; or ``dual``, where a student with a
    vocabulary of its own learns beside a teacher (:mod:`xtclib.training.dual`). ``length`` and
    ``rate`` multiply the budget's steps and learning rate; ``augmentation`` adds rows to learn
    from, not steps. ``pad``: rows to their batch's ``longest``, or all to ``max_length``, as the
    official releases do, which matters where an objective's means go over padding.
    """

    name: str
    techniques: Listed[Annotated[Technique, TECHNIQUES]] = ()
    objective: Annotated[Objective, READ] | None = None
    task: Literal["its own", "mlm", "dual"] = "its own"
    length: Positive = 1.0
    rate: Positive = 1.0
    augmentation: Annotated[Augmentation, READ] | None = None
    pad: Literal["longest", "max_length"] = "longest"

    def __post_init__(self) -> None:
        for technique in self.techniques:
            technique.check(self)
        makers = [name for name, kind in TECHNIQUES.items() if kind.needs_task == self.task]
        if makers and not any(t.name in makers for t in self.techniques):
            needs = f"a stage whose task is {self.task} needs {' or '.join(makers)}"
            raise ValueError(f"stage {self.name!r}: {needs} among its techniques")
        if self.augmentation and (self.task != "its own" or not self.objective):
            why = "augmentation makes rows of the task, and this stage does not train on them"
            raise ValueError(f"stage {self.name!r}: {why}: leave it out")

    @property
    def trains(self) -> bool:
        """Whether anything is learned in this stage."""
        return self.objective is not None or self.task != "its own"

    def budget(self, whole: Budget) -> Budget:
        """The recipe's budget at this stage's length and rate.

        >>> Stage("s", length=0.5, rate=2).budget(Budget(steps=7, learning_rate=1e-3)).steps
        4
        """
        if self.length == self.rate == 1:
            return whole
        return replace(
            whole, steps=whole.steps and math.ceil(whole.steps * self.length),
            epochs=whole.epochs and whole.epochs * self.length,
            at_most=whole.at_most and math.ceil(whole.at_most * self.length),
            learning_rate=whole.learning_rate * self.rate,
        )  # fmt: skip


def _stage(value: object) -> Stage:
    """A stage from ``{name: {…}}``."""
    if isinstance(value, Stage):
        return value
    name, body = named("stage", value)
    return read(Stage, body, str(name))


@config
class Recipe:
    """A named list of stages, what it is, and where it comes from.

    ``start``: the teacher, or its pre-trained ``backbone`` under a fresh classifier; ``student``
    instead: a smaller pre-trained encoder with the teacher's vocabulary, a folder or Hub id such as
    ``google/bert_uncased_L-4_H-256_A-4``, ``huawei-noah/TinyBERT_General_4L_312D`` or
    ``google/mobilebert-uncased``.
    """

    name: str
    summary: str = ""
    source: str = ""
    stages: Listed[Annotated[Stage, BeforeValidator(_stage)]] = ()
    left_out: str = ""
    start: Literal["teacher", "backbone"] = "teacher"
    student: str = ""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(f"recipe {self.name!r} has no stages")
        if self.student and self.start != "teacher":
            raise ValueError(
                f"recipe {self.name!r} starts from the {self.start} and from {self.student}: "
                "choose start or student"
            )

    @property
    def trains(self) -> bool:
        """Whether any stage trains."""
        return any(stage.trains for stage in self.stages)

    @property
    def calibrates(self) -> bool:
        """Whether it sets thresholds by rows that neither student nor teacher learned from."""
        return any(t.calibrates for t in self.techniques)

    @property
    def starts_anew(self) -> bool:
        """Whether its student takes no weight over from its teacher.

        >>> load("mobilebert").starts_anew, load("distilbert").starts_anew
        (True, False)
        """
        return any(t.starts_anew for t in self.techniques)

    @property
    def prunes(self) -> bool:
        """Whether it removes weights, heads, neurons, width or vocabulary.

        >>> load("nip-90").prunes, load("xtc-1bit-half").prunes
        (True, False)
        """
        return any(t.prunes for t in self.techniques)

    @property
    def family(self) -> str:
        """What makes its student small: ``pruned``, ``quantized``, or what a technique says it is.

        ``factorized``, ``shared`` (weights of layers), ``apart`` (two texts read so), or another
        shape, ``shaped``.

        >>> [load(name).family for name in ("nip-8bit-distilled", "xtc-1bit-half", "pkd-6l")]
        ['pruned', 'quantized', 'shaped']
        """
        if self.prunes:
            return "pruned"
        kinds = [t.family for t in self.techniques if t.family != "shaped"]
        return "quantized" if "quantized" in kinds else next(iter(kinds), "shaped")

    @property
    def techniques(self) -> list[Technique]:
        """Every technique, in order of application."""
        return [t for stage in self.stages for t in stage.techniques]

    def starting_from(self, student: str) -> Recipe:
        """The recipe with a pre-trained encoder of its own, under a name that says so.

        Its techniques work on that encoder: one that halves the layers halves these.

        >>> load("logits-half").starting_from("google/mobilebert-uncased").name
        'logits-half-from-mobilebert-uncased'
        """
        name = f"{self.name}-from-{slug(Path(student).name)}"
        return replace(self, name=name, start="teacher", student=student)

    def augmented(self) -> Recipe:
        """The recipe on more rows, under a name that says so; as many steps, as TinyBERT's copies.

        >>> load("xtc-1bit").augmented().stages[0].augmentation.copies
        20
        """
        own = [s.objective is not None and s.task == "its own" for s in self.stages]
        if not any(own) or any(s.augmentation for s in self.stages):
            why = "augments its rows already" if any(own) else "trains on no rows of the task"
            raise ValueError(f"recipe {self.name!r} {why}: leave {AUGMENTED} out")
        more = [
            replace(s, augmentation=Augmentation(copies=20)) if its else s
            for s, its in zip(self.stages, own, strict=True)
        ]
        return replace(self, name=self.name + AUGMENTED, stages=tuple(more))

    def to_dict(self) -> dict:
        """The recipe as YAML holds it, without what has its default."""
        values = written(self, whole=False)
        del values["name"]
        stages = [written(stage, whole=False) for stage in self.stages]
        return {**values, "stages": [{s.pop("name"): s} for s in stages]}

    @property
    def hash(self) -> str:
        """Twelve hex digits over what changes results: stages and start, where no default.

        >>> load("xtc-1bit").hash == load("xtc-2bit").hash
        False
        """
        values = self.to_dict()
        made = [values["stages"], values.get("start")]
        made += [self.student] if self.student else []
        text = json.dumps(made, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def from_dict(name: str, values: dict) -> Recipe:
    """Builds a recipe from what its YAML holds; ``ValueError`` names any unknown key."""
    return read(Recipe, values, name)


@cache
def names() -> list[str]:
    """The built-in recipes, sorted."""
    folder = resources.files("xtclib.recipes")
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def load(recipe: str | Recipe | Path) -> Recipe:
    """A built-in recipe by name, or a recipe from a ``.yaml`` file.

    A recipe that prunes single weights takes its sparsity in percent behind its name: ``nip-90``;
    any that trains on the task's rows takes more of them: ``xtc-1bit-augmented``.
    Raises ``ValueError`` with the nearest name, or ``FileNotFoundError`` for a missing file.

    >>> load("nip-90").techniques[0].sparsity
    0.9
    """
    if isinstance(recipe, Recipe):
        return recipe
    if str(recipe).endswith((".yaml", ".yml")):
        path = Path(recipe).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no recipe file at {path}; built in are: {', '.join(names())}")
        try:
            return from_dict(path.stem, read_yaml(path) or {})
        except RecursionError:
            raise ValueError(f"{path} is nested too deeply to be a recipe") from None
    stem, _, percent = str(recipe).rpartition("-")
    if stem in names() and recipe not in names() and percent.isdigit():
        return _at_sparsity(load(stem), int(percent) / 100, str(recipe))
    if str(recipe).endswith(AUGMENTED) and recipe not in names():
        return load(str(recipe).removesuffix(AUGMENTED)).augmented()
    if recipe not in names():
        raise unknown("recipe", str(recipe), names())
    return _built_in(str(recipe))


@cache
def _built_in(name: str) -> Recipe:
    with resources.as_file(resources.files("xtclib.recipes") / f"{name}.yaml") as path:
        return from_dict(name, read_yaml(path))


def _at_sparsity(recipe: Recipe, sparsity: float, name: str) -> Recipe:
    """A recipe that prunes single weights, at another sparsity and under a name of its own."""
    if not any(t.percent for t in recipe.techniques):
        why = f"{recipe.name} prunes no single weights, so no sparsity can be given"
        raise ValueError(f"unknown recipe {name!r}: {why}")

    def changed(t: Technique) -> Technique:
        if t.percent is None or getattr(t, t.percent) is None:
            return t
        return replace(t, **{t.percent: sparsity})

    stages = [replace(s, techniques=tuple(map(changed, s.techniques))) for s in recipe.stages]
    return replace(recipe, name=name, stages=tuple(stages))


def custom(name: str, stages: Sequence[Stage], summary: str = "", source: str = "") -> Recipe:
    """A recipe from Python objects, one to one with the YAML."""
    return Recipe(name, summary, source, tuple(stages))
