"""Searches: Optuna over places in a recipe, scored on training rows that are cut off for it.

The reported split has no part in a search: a fifth of the training rows stands in for it
(:meth:`xtclib.tasks.base.TaskData.within_training`), which neither student nor teacher learns from.
Trials lie in a journal, which resumes and which many processes share, with a record of each; what
they trained stays in the cache. A design is YAML, here for bits by layer, layers, rate and length:

.. code-block:: yaml

    recipe:
      stages:
        - smaller:
            techniques:
              - layer_reduction: {layers: 6}
              - quantize: {by_layer: [int8-row, int8-row]}
            objective: {logits: 1, hidden_states: 1}
    profile: mini
    objectives: [score, bytes]
    trials: 40
    space:
      layer_reduction.layers: [2, 3, 4, 6]
      quantize.by_layer.*: [binary-row, ternary-row, int4-row, int8-row]
      budget.learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}
      budget.steps: {low: 50, high: 400}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from xtclib import cache, processes
from xtclib.config import Count, Listed, Whole, config, read
from xtclib.files import check_new_file, first_line, read_yaml
from xtclib.recipes import recipe as recipes
from xtclib.records import Record, mean_score
from xtclib.study import profiles
from xtclib.study.compress import compress, two_errors
from xtclib.study.journal import FILE, Journal, load_optuna
from xtclib.study.space import Space, dimensions
from xtclib.tasks.base import find_task
from xtclib.training.budget import Budget

OBJECTIVES: dict[str, Callable[[Record], float]] = {
    "score": lambda record: record.score,
    "bytes": lambda record: record.bytes,
    "milliseconds": lambda record: record.latency["milliseconds"]["student"]["median"],
}


@config
class Design:
    """What is searched: a recipe, by its name or as YAML holds it, and the ``space`` around it.

    ``space``: ``{low: …, high: …}`` or a list of choices by place (:mod:`xtclib.study.space`).
    ``budget``: a name, or the fields that differ from the profile's ``A``. Of the ``objectives``
    ``score`` is to be large, ``bytes`` of the file and ``milliseconds`` of a batch small; whoever
    measures milliseconds has the machine to itself.

    >>> Design("gptq-4bit", {"quantize.weights": ["int3-row", "int4-row"]}, trials=2).objectives
    ('score', 'bytes')
    """

    recipe: str | dict
    space: Annotated[dict[str, Any], BeforeValidator(dimensions)]
    task: str | None = None
    profile: str | None = None
    budget: str | dict | None = None
    trials: Count = 20
    seed: Whole = 0
    objectives: Listed[Literal["score", "bytes", "milliseconds"]] = ("score", "bytes")

    def __post_init__(self) -> None:
        if not self.objectives or len({*self.objectives}) < len(self.objectives):
            known = f"expected some of {', '.join(OBJECTIVES)}, each once"
            raise ValueError(f"received the objectives {[*self.objectives]}, {known}")
        lengths = {"budget.steps", "budget.epochs", "steps", "epochs"}
        fixed = isinstance(self.budget, str) or not lengths.isdisjoint(self.budget or ())
        if fixed and (varied := sorted(lengths.intersection(self.space))):
            told = f"received the budget {self.budget!r}, and {varied[0]} in the space"
            raise ValueError(f"{told}: both say how long it trains, leave one of them out")


@dataclass(frozen=True)
class Found:
    """What a search came to: Optuna's study; records and reasons of refusal by trial's number."""

    design: Design
    study: Any
    records: dict[int, Record]
    refused: dict[int, str]


def load(source: Design | Mapping | str | Path) -> Design:
    """A design from a YAML file or a mapping; ``ValueError`` for what is none."""
    if not isinstance(source, (str, Path)):
        return read(Design, source)
    return read(Design, read_yaml(Path(source).expanduser()))


def search(design: Design | Mapping | str | Path, folder: str | Path,
           glue_dir: str | Path | None = None, progress: bool = True,
           say: Callable[[str], object] = print) -> Found:  # fmt: skip
    """Runs a design's trials, each by :func:`.compress.compress`, until there are as many.

    ``folder`` takes the journal and the records. Called again it goes on: finished trials are kept,
    one whose process was killed is run again, up to three times; more ``trials`` may be asked for.
    Several processes may call it at once, on one disk. What a recipe or a run refuses is a pruned
    trial with its reason. A trial counts if it beats the majority class by more than two standard
    errors.

    By TPE (Bergstra et al. 2011), which learns from the eleventh trial on, where NSGA-II's first
    generation alone takes fifty; for several objectives Ozaki et al. 2020 (MOTPE), for constraints
    Watanabe and Hutter 2022, arXiv:2211.14411. A trial is drawn by the seed and its place in line:
    a search that was cut off ends as it would have.

    Raises ``ValueError`` for a design that cannot be searched and for a folder with another one,
    ``ImportError`` without ``optuna``, ``OSError`` where the folder cannot be written.
    """
    load_optuna()
    processes.join()
    if processes.count() > 1:
        raise ValueError("a search is one process: start it several times to share its trials")
    design, folder = load(design), Path(folder).expanduser()
    given = design.recipe
    recipe = recipes.load(given) if isinstance(given, str) else recipes.from_dict("own", given)
    chosen = profiles.profile(design.profile, design.task, glue_dir)
    task = find_task(design.task or chosen.task)
    if task.teacher:
        why = f"{task.name} takes the teacher of {task.teacher}, which learned from what is cut off"
        raise ValueError(f"{why}: search on a task that has its own")
    chosen = profiles.with_length(chosen, profiles.length_for(task, chosen))
    space = Space.of(recipe, _budget(design.budget, chosen, recipe), design.space)
    check_new_file(folder / FILE)
    data = profiles.data_for(task, chosen, glue_dir).within_training()
    say(f"data     {data.source}")
    made_of = {
        "recipe": recipe.hash, "budget": asdict(space.budget), "space": space.dimensions,
        "objectives": design.objectives, "seed": design.seed, "profile": chosen.name,
        "data": data.fingerprint,
    }  # fmt: skip
    directions = ["maximize" if name == "score" else "minimize" for name in design.objectives]
    sums = {name: cache.key(part) for name, part in made_of.items()}
    journal = Journal(folder, sums, directions)
    how = {"profile": chosen, "seed": design.seed, "data": data, "progress": progress}
    offered, rows = space.distributions(), sum(map(len, data.evaluation.values()))
    with journal.worker() as worker:
        while trial := journal.next(worker, offered, design.trials, design.seed):
            name = f"{recipe.name}-t{trial.user_attrs['slot']}"
            try:
                record = _run(space, trial.params, name, how)
            except (ValueError, TypeError, FloatingPointError) as error:
                journal.refuse(trial, first_line(error))
                say(f"refused  {name}: {first_line(error)}")
                continue
            floor = mean_score(record.majority)
            short = floor + two_errors(floor, rows) - record.score
            measured = [OBJECTIVES[objective](record) for objective in design.objectives]
            journal.accept(trial, record.save(folder), measured, short or 1e-9)
            say(f"trial    {name}: {_told(record)}")
    return _found(design, journal)


def best(found: Found) -> Record:
    """The first of the front; ``ValueError`` where no trial beats the majority class."""
    if not (records := front(found)):
        many = f"{len(found.records)} trials measured, {len(found.refused)} refused"
        why = f" ({next(iter(found.refused.values()))})" if found.refused else ""
        raise ValueError(f"no trial beats the majority class, of {many}{why}: widen the space")
    return records[0]


def front(found: Found) -> list[Record]:
    """The records that none beats: as good in every objective and better in one. Best first.

    Of those alone that beat the majority class; what is best, the first objective says.
    """

    def losses(trial: Any) -> list[float]:
        each = zip(found.design.objectives, trial.values, strict=True)
        return [-value if name == "score" else value for name, value in each]

    return [found.records[t.number] for t in sorted(found.study.best_trials, key=losses)]


def again(record: Record) -> tuple[recipes.Recipe, Budget]:
    """A trial's recipe and budget: to run on all of the training rows and report."""
    recipe = recipes.from_dict(record.recipe, record.measures["search"]["recipe"])
    return recipe, Budget(**record.training_budget)


def table(found: Found) -> str:
    """The front as text, a line a trial, and what it has where."""
    lines = []
    for record in front(found):
        places = ", ".join(f"{k} {v}" for k, v in record.measures["search"]["chosen"].items())
        lines.append(f"{record.recipe}: {_told(record)}\n  {places}")
    return "\n".join(lines)


def _told(record: Record) -> str:
    score, size, time = (measured(record) for measured in OBJECTIVES.values())
    return f"{score:.1f} %, {size / 1e6:.2f} MB, {time:.2f} ms"


def _budget(given: str | dict | None, chosen: profiles.Profile, recipe: recipes.Recipe) -> Budget:
    if not isinstance(given, dict):
        return chosen.budget(given or "A", recipe)
    lengths = {"steps": None, "epochs": None}
    clear = {} if lengths.keys().isdisjoint(given) else lengths
    return read(Budget, asdict(chosen.budget("A", recipe)) | clear | given)


def _run(space: Space, chosen: Mapping, name: str, how: Mapping[str, Any]) -> Record:
    """A trial's record; ``ValueError`` for what a recipe or a run refuses."""
    recipe, budget = space.made(chosen)
    run = compress(replace(recipe, name=name), budget=budget, say=lambda _: None, **how)
    own = {"search": {"chosen": dict(chosen), "recipe": recipe.to_dict()}}
    return replace(run.record, measures={**run.record.measures, **own})


def _found(design: Design, journal: Journal) -> Found:
    ended = {"COMPLETE": {}, "PRUNED": {}}  # type: dict[str, dict[int, dict]]
    for trial in journal.study.get_trials(deepcopy=False):
        ended.setdefault(trial.state.name, {})[trial.number] = trial.user_attrs
    records = {n: Record.read(journal.folder / t["record"]) for n, t in ended["COMPLETE"].items()}
    refused = {n: told["refused"] for n, told in ended["PRUNED"].items()}
    return Found(design, journal.study, records, refused)
