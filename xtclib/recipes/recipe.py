"""Recipes: a named list of stages, written in YAML, with the paper they come from.

A stage is techniques, an objective and a budget; a budget is how long and how fast to train.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path

import yaml

from xtclib.distillation.objective import Objective
from xtclib.files import unknown
from xtclib.tasks.augmentation import Augmentation
from xtclib.techniques.base import Technique
from xtclib.techniques.embeddings.technique import SmallVocabulary
from xtclib.techniques.pruning.unstructured import Sparsify
from xtclib.techniques.registry import technique
from xtclib.techniques.students.theseus import KeepSuccessors, ReplaceModules
from xtclib.training.budget import Budget


def _check_keys(cls, values: dict, what: str) -> dict:
    if not isinstance(values, dict):
        raise ValueError(f"{what} should be `name: value` pairs, received {values!r}")
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            raise unknown(f"key of {what}", key, known)
    return values


def _objective(values: dict) -> Objective:
    if not isinstance(values, dict):
        raise ValueError(f"objective should be `name: value` pairs, received {values!r}")
    return Objective(**values)


TASKS_OF_A_STAGE = ("its own", "mlm", "dual")
STARTS = ("teacher", "backbone")


@dataclass(frozen=True)
class Stage:
    """Techniques and what trains them; without an objective nothing is trained.

    ``task``: ``its own``, the recipe's, or ``mlm``, guessing masked words; there an objective's
    ``labels`` are the masked words, its ``logits`` the probabilities that the pre-trained teacher
    gives to them, and without one the words alone are learned; or ``dual``, where a student with a
    vocabulary of its own learns beside a teacher (:mod:`xtclib.training.dual`). ``length`` and
    ``rate`` multiply the budget's steps and learning rate; ``augmentation`` adds rows to learn
    from, not steps.
    """

    name: str
    techniques: tuple[Technique, ...] = ()
    objective: Objective | None = None
    task: str = "its own"
    length: float = 1.0
    rate: float = 1.0
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS_OF_A_STAGE:
            raise unknown("task of a stage", self.task, TASKS_OF_A_STAGE)
        kinds = {type(t) for t in self.techniques}
        if {ReplaceModules, KeepSuccessors} <= kinds:
            raise ValueError(
                f"stage {self.name!r} replaces modules and keeps their successors at once: train "
                "in between, and list keep_successors in the next stage"
            )
        dual = any(isinstance(t, SmallVocabulary) for t in self.techniques)
        if dual != (self.task == "dual") or (dual and self.objective):
            raise ValueError(
                f"stage {self.name!r}: a stage whose task is dual needs small_vocabulary among its "
                "techniques and has a loss of its own, and no other stage takes that technique"
            )
        if self.augmentation and (self.task != "its own" or not self.objective):
            raise ValueError(
                f"stage {self.name!r}: augmentation makes more rows of the task, and this stage "
                "does not train on them: leave it out"
            )
        for name in ("length", "rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(
                    f"stage {self.name!r}: {name} multiplies the budget's, so it must be a "
                    f"positive number, received {value!r}"
                )
        for technique_ in self.techniques:
            if technique_.learns and self.task != "its own":
                raise ValueError(
                    f"stage {self.name!r}: {technique_.name} learns scores, which {self.task} does "
                    "not train: give it a stage with an objective"
                )
            if (technique_.learns or technique_.settled) and not self.trains:
                raise ValueError(
                    f"stage {self.name!r}: {technique_.name} works while a stage trains, and this "
                    "one does not: give it an objective"
                )

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
            whole,
            steps=None if whole.steps is None else max(math.ceil(whole.steps * self.length), 1),
            epochs=None if whole.epochs is None else whole.epochs * self.length,
            at_most=None if whole.at_most is None else math.ceil(whole.at_most * self.length),
            learning_rate=whole.learning_rate * self.rate,
        )


@dataclass(frozen=True)
class Recipe:
    """A named list of stages, what it is, and where it comes from."""

    name: str
    summary: str
    source: str
    stages: tuple[Stage, ...]
    left_out: str = ""
    start: str = "teacher"  # or the pre-trained backbone under a fresh classifier

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(f"recipe {self.name!r} has no stages")
        if self.start not in STARTS:
            raise unknown("start", self.start, STARTS)

    @property
    def trains(self) -> bool:
        """Whether any stage trains."""
        return any(stage.trains for stage in self.stages)

    @property
    def prunes(self) -> bool:
        """Whether it removes weights, heads, neurons, width or vocabulary.

        >>> load("nip-90").prunes, load("xtc-1bit-half").prunes
        (True, False)
        """
        return any(t.prunes for t in self.techniques)

    @property
    def family(self) -> str:
        """What makes its student small: ``pruned``, ``quantized``, or another shape, ``shaped``.

        >>> [load(name).family for name in ("nip-8bit-distilled", "xtc-1bit-half", "pkd-6l")]
        ['pruned', 'quantized', 'shaped']
        """
        if self.prunes:
            return "pruned"
        return "quantized" if any(t.name == "quantize" for t in self.techniques) else "shaped"

    @property
    def techniques(self) -> list[Technique]:
        """Every technique, in order of application."""
        return [t for stage in self.stages for t in stage.techniques]

    def to_dict(self) -> dict:
        """The recipe as YAML holds it."""
        return {
            "summary": self.summary,
            "source": self.source,
            **({"left_out": self.left_out} if self.left_out else {}),
            **({"start": self.start} if self.start != "teacher" else {}),
            "stages": [
                {
                    s.name: {
                        "techniques": [t.to_dict() for t in s.techniques],
                        **({"objective": s.objective.to_dict()} if s.objective else {}),
                        **({"task": s.task} if s.task != "its own" else {}),
                        **{n: getattr(s, n) for n in ("length", "rate") if getattr(s, n) != 1},
                        **({"augmentation": s.augmentation.to_dict()} if s.augmentation else {}),
                    }
                }
                for s in self.stages
            ],
        }

    @property
    def hash(self) -> str:
        """Twelve hex digits over everything that changes results: the stages and their start.

        >>> load("xtc-1bit").hash == load("xtc-2bit").hash
        False
        """
        values = self.to_dict()
        decides = [values["stages"], values["start"]] if "start" in values else values["stages"]
        text = json.dumps(decides, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def from_dict(name: str, values: dict) -> Recipe:
    """Builds a recipe from what its YAML holds; ``ValueError`` names any unknown key."""
    known = ("summary", "source", "left_out", "start", "stages")
    for key in values:
        if key not in known:
            raise unknown(f"key of recipe {name}", key, known)
    stages = []
    for entry in values.get("stages") or ():
        if not isinstance(entry, dict) or len(entry) != 1:
            raise ValueError(f"recipe {name!r}: a stage is one `name: {{…}}`, received {entry!r}")
        ((title, body),) = entry.items()
        body = _check_keys(Stage, body or {}, f"stage {title}")
        objective = body.get("objective")
        if objective is not None:
            objective = _objective(objective)
        listed = body.get("techniques") or ()
        if not isinstance(listed, (list, tuple)):
            raise ValueError(
                f"techniques of stage {title!r} is a list, received {listed!r}: write [{listed}]"
            )
        techniques = tuple(technique(t) for t in listed)
        rest = {k: v for k, v in body.items() if k in ("task", "length", "rate")}
        if body.get("augmentation") is not None:
            rest["augmentation"] = Augmentation.read(body["augmentation"])
        stages.append(Stage(title, techniques, objective, **rest))
    return Recipe(
        name,
        values.get("summary", ""),
        values.get("source", ""),
        tuple(stages),
        values.get("left_out", ""),
        values.get("start", "teacher"),
    )


def names() -> list[str]:
    """The built-in recipes, sorted."""
    folder = resources.files("xtclib.recipes")
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def load(recipe: str | Recipe | Path) -> Recipe:
    """A built-in recipe by name, or a recipe from a ``.yaml`` file.

    A recipe that prunes single weights takes its sparsity in percent behind its name: ``nip-90``.
    Raises ``ValueError`` with the nearest name, or ``FileNotFoundError`` for a missing file.

    >>> load("nip-90").techniques[0].sparsity
    0.9
    """
    if isinstance(recipe, Recipe):
        return recipe
    if str(recipe).endswith((".yaml", ".yml")):
        path = Path(recipe)
        if not path.is_file():
            raise FileNotFoundError(f"no recipe file at {path}; built in are: {', '.join(names())}")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            where = " ".join(str(error).split())
            raise ValueError(f"{path} is no valid YAML: {where}") from None
        return from_dict(path.stem, values)
    stem, _, percent = str(recipe).rpartition("-")
    if stem in names() and recipe not in names() and percent.isdigit():
        return at_sparsity(load(stem), int(percent) / 100, str(recipe))
    if recipe not in names():
        raise unknown("recipe", str(recipe), names())
    text = (resources.files("xtclib.recipes") / f"{recipe}.yaml").read_text(encoding="utf-8")
    return from_dict(recipe, yaml.safe_load(text))


def at_sparsity(recipe: Recipe, sparsity: float, name: str) -> Recipe:
    """A recipe that prunes single weights, at another sparsity and under a name of its own."""
    if not any(isinstance(t, Sparsify) for t in recipe.techniques):
        raise ValueError(
            f"unknown recipe {name!r}: {recipe.name} prunes no single weights, so no sparsity can "
            "be given"
        )
    stages = [
        replace(
            stage,
            techniques=tuple(
                replace(t, sparsity=sparsity) if getattr(t, "sparsity", None) is not None else t
                for t in stage.techniques
            ),
        )
        for stage in recipe.stages
    ]
    return replace(recipe, name=name, stages=tuple(stages))


def custom(name: str, stages: Sequence[Stage], summary: str = "", source: str = "") -> Recipe:
    """A recipe from Python objects, one to one with the YAML."""
    return Recipe(name, summary, source, tuple(stages))
