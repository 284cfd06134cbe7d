"""Studies: a question, and in grids the runs that answer it, as one YAML holds them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from xtclib.config import READ, Flag, Listed, Positive, Whole, config, read, short
from xtclib.files import read_yaml, slug, unknown
from xtclib.recipes import recipe as recipes
from xtclib.records import record_path
from xtclib.study import profiles
from xtclib.tasks.base import Task, find_task

DIVIDED = {1: "", 2: "-two-stage", 3: "-three-stage"}  # a recipe's name, by its stages


@dataclass(frozen=True)
class Wanted:
    """One run, by names alone: two machines agree on its key."""

    profile: str
    task: str | Task
    recipe: str | recipes.Recipe
    budget: str = "A"
    seed: int = 0

    def path(self, folder: str | Path) -> Path:
        """Where its record lies in a folder.

        >>> Wanted("reviews", "reviews", "xtc-1bit", "400steps@1e-4").path("records").as_posix()
        'records/reviews/reviews/xtc-1bit-400steps_1e-4-s0.json'
        """
        task, recipe = find_task(self.task).name, recipes.load(self.recipe).name
        return record_path(folder, self.profile, task, recipe, self.budget, self.seed)

    @property
    def key(self) -> str:
        """Its name, the same wherever it is asked for."""
        return slug(self.path("").with_suffix("").as_posix())

    def __str__(self) -> str:
        task, recipe = find_task(self.task).name, recipes.load(self.recipe).name
        return f"{task} · {recipe} · budget {self.budget} · seed {self.seed}"


@config
class Grid:
    """Runs that differ in what is listed: every combination, but for those ``without``.

    ``tasks``: the profile's own where none is listed; ``rates``: learning rates instead of the
    profile's; ``stages``: the recipe divided into one, two or three; ``augmented``: on more rows,
    or not. ``without``: combinations to leave out, each a value, or a list of them, by list.

    >>> grid = Grid(["xtc-1bit"], stages=[1, 3], budgets=["A", "C"],
    ...             without=[{"stages": 3, "budgets": "A"}])
    >>> [f"{run.recipe} {run.budget}" for run in grid.runs()]
    ['xtc-1bit A', 'xtc-1bit C', 'xtc-1bit-three-stage C']
    """

    recipes: Listed[str]
    profile: str = "reviews"
    tasks: Listed[str] = ()
    budgets: Listed[str] = ("A",)
    rates: Listed[Positive] = ()
    stages: Listed[Literal[1, 2, 3]] = ()
    augmented: Listed[Flag] = ()
    seeds: Listed[Whole] = (0,)
    without: Listed[dict] = ()

    def __post_init__(self) -> None:
        chosen = profiles.profile(self.profile)
        for name in ("recipes", "budgets", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"an empty grid: {name} lists nothing, name at least one")
        for task in self.tasks:
            find_task(task)
        if self.rates and any("@" in budget for budget in self.budgets):
            both = f"{self.budgets} name a rate, and rates are listed too"
            raise ValueError(f"budgets {both}: name them in one place")
        for condition in self.without:
            self._check(condition)
        every = {(run.recipe, run.budget) for run in self.runs()}
        if not every:
            raise ValueError(f"an empty grid: without leaves nothing of {short(self.recipes)}")
        for recipe, budget in sorted(every):
            chosen.budget(budget, recipes.load(recipe))

    def _check(self, condition: dict) -> None:
        listed = [f.name for f in fields(self) if f.name not in ("profile", "without")]
        for name, values in condition.items():
            if name not in listed:
                raise unknown("key of without", name, listed)
            for value in values if isinstance(values, list) else [values]:
                if value not in getattr(self, name):
                    known = f"{name} of the grid are {[*getattr(self, name)]}"
                    raise ValueError(f"without names {name} {value!r}, but {known}: take one")

    def runs(self) -> Iterator[Wanted]:
        """Every run, the last list turning fastest."""
        tasks = self.tasks or (profiles.profile(self.profile).task,)
        lists: dict[str, tuple] = {
            "tasks": tasks, "recipes": self.recipes, "stages": self.stages or (1,),
            "augmented": self.augmented or (False,), "budgets": self.budgets,
            "rates": self.rates or (None,), "seeds": self.seeds,
        }  # fmt: skip
        for values in itertools.product(*lists.values()):
            one: dict[str, Any] = dict(zip(lists, values, strict=True))
            if any(_holds(condition, one) for condition in self.without):
                continue
            recipe = one["recipes"] + DIVIDED[one["stages"]] + "-augmented" * one["augmented"]
            rate = "" if one["rates"] is None else f"@{one['rates']:g}"
            yield Wanted(self.profile, one["tasks"], recipe, one["budgets"] + rate, one["seeds"])


def _holds(condition: dict, one: dict) -> bool:
    return all(one[n] in v if isinstance(v, list) else one[n] == v for n, v in condition.items())


@config
class Study:
    """A question and the grids whose runs answer it.

    ``compare``: what to conclude, each a name with two selections of records, as
    :func:`xtclib.study.conclusions.paired` takes them.
    """

    grids: Listed[Annotated[Grid, READ]]
    question: str = ""
    compare: dict[str, Listed[dict]] | None = None

    def __post_init__(self) -> None:
        if not self.grids:
            raise ValueError("an empty study: grids lists nothing, name at least one")
        for name, pair in (self.compare or {}).items():
            if len(pair) != 2:
                raise ValueError(f"compare {name!r} takes two selections, received {len(pair)}")

    def runs(self, profile: str | None = None) -> list[Wanted]:
        """Every run once, of all profiles or of one.

        >>> Study([Grid(["xtc-1bit"]), Grid(["xtc-1bit"], seeds=[0, 1])]).runs()[1].seed
        1
        """
        every = itertools.chain.from_iterable(grid.runs() for grid in self.grids)
        return [*dict.fromkeys(run for run in every if profile in (None, run.profile))]


def load(path: str | Path) -> Study:
    """A study from its YAML.

    Raises ``FileNotFoundError``, or ``ValueError`` with the file's name for what is no study.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no study at {path}: name a YAML file with `grids`")
    values = read_yaml(path)
    try:
        return read(Study, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
