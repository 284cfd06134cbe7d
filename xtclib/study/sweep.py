"""Sweeps: many runs, as records; what was measured before is read, not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import median

from xtclib.cache import BUILT_IN
from xtclib.files import check_new_file
from xtclib.recipes import recipe as recipes
from xtclib.records import RESULTS, Record, circumstances
from xtclib.records import read as read_records
from xtclib.study import profiles
from xtclib.study.compress import compress
from xtclib.study.design import Wanted
from xtclib.tasks.base import Task, TaskData


@dataclass(frozen=True)
class Planned:
    """A run that is wanted, and its record if it was measured before and nothing has changed."""

    run: Wanted
    recipe: recipes.Recipe
    steps: int
    record: Record | None

    def __str__(self) -> str:
        return str(self.run)


def planned(runs: Iterable[Wanted], folder: str | Path = RESULTS,
            glue_dir: str | Path | None = None) -> Iterator[Planned]:  # fmt: skip
    """Runs in their order, with the records that ``folder`` has; nothing is run.

    A record counts as measured if its recipe hash, data, teacher and training budget are today's;
    other versions of torch and transformers do not make it old. Without training, budgets and seeds
    change nothing: of such a recipe a task has one run, its first. Built-in tasks are read where
    they are built in, whatever ``glue_dir`` is for the others.
    """

    data_of = cache(partial(_rows, glue_dir))

    @cache
    def teacher_of(profile: str, task: str | Task, apart: bool, torch_: str, transformers_: str):
        versions = {"torch": torch_, "transformers": transformers_}
        data = data_of(profile, task, apart)
        return profiles.teacher_key(data, profiles.profile(profile), versions)

    load, once = cache(recipes.load), set[tuple]()
    for run in runs:
        recipe, chosen, task = load(run.recipe), profiles.profile(run.profile), run.task
        if not recipe.trains:
            untrained = run.profile, task, recipe.name
            if untrained in once:
                continue
            once.add(untrained)
        rows = run.profile, task, recipe.calibrates
        data, spent = data_of(*rows), chosen.budget(run.budget, recipe)
        today = recipe.hash, data.fingerprint, asdict(spent)
        steps = sum(s.budget(spent).total_steps(len(data.train)) for s in recipe.stages if s.trains)
        taught = partial(teacher_of, *rows)
        yield Planned(run, recipe, steps, _current(run.path(folder), today, taught))


def rows_of(run: Wanted, glue_dir: str | Path | None = None) -> TaskData:
    """What a run trains and is scored on; its teacher learns from no row that is held out."""
    return _rows(glue_dir, run.profile, run.task, recipes.load(run.recipe).calibrates)


def _rows(glue_dir: str | Path | None, profile: str, task: str | Task, apart: bool) -> TaskData:
    data = profiles.data_for(task, profile, folder_for(profile, glue_dir))
    return data.holding_out() if apart else data


def folder_for(profile: str, glue_dir: str | Path | None) -> str | Path | None:
    """Where a profile's GLUE tasks are read: the built-in ones where they are built in."""
    return BUILT_IN if profiles.profile(profile).data == "mini" else glue_dir


def measured(run: Wanted, folder: str | Path, glue_dir: str | Path | None = None,
             progress: bool = True, say: Callable[[str], object] = print, timed: bool = True,
             before: Record | None = None) -> Record:  # fmt: skip
    """A run, measured and written; ``timed`` where nothing else runs on this machine.

    Of ``before``, the record of such a run that was not timed, all stays but what a clock tells: on
    other threads sums are made in another order, and a row of thousands may turn.
    """
    check_new_file(run.path(folder))
    recipe, chosen = recipes.load(run.recipe), profiles.profile(run.profile)
    given = folder_for(run.profile, glue_dir)
    record = compress(recipe, run.task, chosen, run.budget, run.seed, given, progress=progress,
                      say=say, timed=timed).record  # fmt: skip
    if before:
        record = replace(before, latency=record.latency, measures=record.measures)
    record.save(folder)
    return record


def sweep(runs: Iterable[Wanted], folder: str | Path = RESULTS,
          glue_dir: str | Path | None = None, progress: bool = True,
          say: Callable[[str], object] = print) -> list[Record]:  # fmt: skip
    """Every run, one after the other, as records in ``folder``; those measured before are read.

    What counts as measured: :func:`planned`. A record is written as soon as it is measured. A run
    that is refused does not stop the rest; the ``ValueError`` comes at the end.
    """
    found, refused = [], []
    for one in planned(runs, folder, glue_dir):
        record = one.record
        if record is None:
            say(f"\n{one}")
            try:
                record = measured(one.run, folder, glue_dir, progress, say)
            except ValueError as error:
                refused.append(f"{one}: {error}")
                say(f"refused  {error}")
                continue
            say(record.table())
        found.append(record)
    if refused:
        others = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise ValueError(f"refused: {refused[0]}{others}")
    return found


def seconds_of(plan: Iterable[Planned], folder: str | Path = RESULTS) -> dict[str, float | None]:
    """How long each run will train, by its key: steps times what a step took on this machine.

    The median of a profile's records from such a processor: of the same recipe where there is one,
    else of all; ``None`` where nothing was measured on one, and for what does not train.
    """
    here = {name: circumstances()["machine"][name] for name in ("processor", "capability")}

    @cache
    def paces(profile: str) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for record in read_records(profile, folder):
            steps = sum(stage.get("steps", 0) for stage in record.stages)
            if steps and here.items() <= record.machine.items():
                found.setdefault(record.recipe, []).append(record.seconds / steps)
        return found

    spent: dict[str, float | None] = {}
    for one in plan:
        known = paces(one.run.profile)
        every = known.get(one.recipe.name) or [p for found in known.values() for p in found]
        spent[one.run.key] = one.steps * median(every) if every and one.steps else None
    return spent


def records_of(runs: Iterable[Wanted], folder: str | Path = RESULTS) -> list[Record]:
    """The records of runs that are there, current or not."""
    paths = [run.path(folder) for run in runs]
    return [Record.read(path) for path in paths if path.is_file()]


def _current(path: Path, today: tuple, teacher_key: Callable[..., str]) -> Record | None:
    """The record at a path, if it reads and nothing that it was made from has changed."""
    try:
        record = Record.read(path)
    except (FileNotFoundError, ValueError):  # an unreadable one is measured again
        return None
    teacher = teacher_key(*(record.versions.get(name, "") for name in ("torch", "transformers")))
    found = record.recipe_hash, record.data_fingerprint, record.training_budget
    return record if found == today and record.teacher_key == teacher else None
