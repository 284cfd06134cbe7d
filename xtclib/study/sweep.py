"""Sweeps: many runs, as records; what was measured before is read, not run again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from xtclib.files import check_new_file
from xtclib.recipes import recipe as recipes
from xtclib.records import RESULTS, Record, record_path
from xtclib.study import profiles
from xtclib.study.compress import compress
from xtclib.tasks.base import Task, TaskData
from xtclib.tasks.glue import TASKS


@dataclass(frozen=True)
class Planned:
    """One run of a sweep, and its record if it was measured before and nothing has changed."""

    task: Task
    recipe: recipes.Recipe
    budget: str
    seed: int
    record: Record | None

    def __str__(self) -> str:
        return f"{self.task.name} · {self.recipe.name} · budget {self.budget} · seed {self.seed}"


def planned(
    recipe_names: Iterable[str], tasks: Iterable[str | Task] = tuple(TASKS),
    profile: str | profiles.Profile | None = None, budgets: Iterable[str] = ("A",),
    seeds: Iterable[int] = (0,), folder: str | Path = RESULTS, glue_dir: str | Path | None = None,
) -> Iterator[Planned]:  # fmt: skip
    """Every run of a sweep in order, with the records that ``folder`` has; nothing is run.

    A record counts as measured if its recipe hash, data, teacher and training budget are today's;
    other versions of torch and transformers do not make it old. Without training, budgets and seeds
    change nothing: such a recipe has one run a task.
    """
    chosen = profiles.profile(profile)
    recipe_names, budgets, seeds = list(recipe_names), list(budgets), list(seeds)
    for task in tasks:
        data = profiles.data_for(task, chosen, glue_dir)

        @cache
        def teacher_key(torch_: str, transformers_: str, data: TaskData = data) -> str:
            versions = {"torch": torch_, "transformers": transformers_}
            return profiles.teacher_key(data, chosen, versions)

        for recipe in map(recipes.load, recipe_names):
            runs = itertools.product(budgets, seeds)
            for budget, seed in runs if recipe.trains else itertools.islice(runs, 1):
                path = record_path(folder, chosen.name, data.task.name, recipe.name, budget, seed)
                spent = asdict(chosen.budget(budget, recipe))
                today = recipe.hash, data.fingerprint, spent
                yield Planned(data.task, recipe, budget, seed, _current(path, today, teacher_key))


def sweep(
    recipe_names: Iterable[str], tasks: Iterable[str | Task] = tuple(TASKS),
    profile: str | profiles.Profile | None = None, budgets: Iterable[str] = ("A",),
    seeds: Iterable[int] = (0,), folder: str | Path = RESULTS, glue_dir: str | Path | None = None,
    progress: bool = True, say: Callable[[str], object] = print,
) -> list[Record]:  # fmt: skip
    """Every combination, as records in ``folder``; those measured before are read, not run again.

    What counts as measured: :func:`planned`. A record is written as soon as it is measured. A run
    that is refused does not stop the rest; the ``ValueError`` comes at the end.
    """
    chosen, found, refused = profiles.profile(profile), [], []
    for one in planned(recipe_names, tasks, chosen, budgets, seeds, folder, glue_dir):
        record = one.record
        if record is None:
            say(f"\n{one}")
            check_new_file(record_path(folder, chosen.name, one.task.name, one.recipe.name, "A", 0))
            try:
                record = compress(one.recipe, one.task, chosen, one.budget, one.seed, glue_dir,
                                  progress=progress, say=say).record  # fmt: skip
            except ValueError as error:
                refused.append(f"{one}: {error}")
                say(f"refused  {error}")
                continue
            record.save(folder)
            say(record.table())
        found.append(record)
    if refused:
        others = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise ValueError(f"refused: {refused[0]}{others}")
    return found


def sweeps(entries: Iterable[Mapping[str, Any]], progress: bool = True) -> None:
    """Several sweeps, each the arguments of one; what was refused in any is told at the end."""
    refused = []
    for entry in entries:
        try:
            sweep(**entry, progress=progress)
        except ValueError as error:
            refused.append(str(error))
    if refused:
        raise ValueError("; ".join(refused))


def _current(path: Path, today: tuple, teacher_key: Callable[..., str]) -> Record | None:
    """The record at a path, if it reads and nothing that it was made from has changed."""
    try:
        record = Record.read(path)
    except (FileNotFoundError, ValueError):  # an unreadable one is measured again
        return None
    teacher = teacher_key(*(record.versions.get(name, "") for name in ("torch", "transformers")))
    found = record.recipe_hash, record.data_fingerprint, record.training_budget
    return record if found == today and record.teacher_key == teacher else None
