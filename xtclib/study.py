"""Runs: one call compresses a teacher, measures it, writes it down."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

import xtclib
from xtclib import (
    artefact,
    breakdown,
    integrity,
    latency,
    recipes,
    settings,
    teachers,
)
from xtclib.evaluation import evaluate
from xtclib.files import check_new_folder, folder_bytes, write_json
from xtclib.glue import TASKS, TaskData, find_task
from xtclib.metrics import majority
from xtclib.models import encoder_layers
from xtclib.recipes import Budget, Recipe
from xtclib.results import RESULTS, Record, circumstances, mean_score, record_path
from xtclib.settings import Profile
from xtclib.stages import Job, applied, backbone, check_applies, steps_of, trained
from xtclib.teachers import Teacher, cache_dir, key


@dataclass(frozen=True)
class Run:
    """A compressed model with everything that was measured of it."""

    record: Record
    student: PreTrainedModel
    tokenizer: object
    teacher: Teacher
    data: TaskData
    folder: Path


def compress(
    recipe: str | Recipe,
    task: str = "sst2",
    profile: str | Profile | None = None,  # noqa: A002 - the field's word for it
    budget: str | Budget = "A",
    seed: int = 0,
    glue_dir: str | Path | None = None,
    teacher: str | Path | Teacher | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    say=print,
    device: str | None = None,
) -> Run:
    """Runs a recipe on a task and measures the result against its teacher.

    Resumes: finished stages and checkpoints lie in the cache under a key of everything that
    determines them, so a killed run goes on and a repeated one is read. What the recipe asks for
    and no model of this shape has is an error before anything trains, the teacher too. ``out``
    takes the artefact; it must not exist or be empty, which is checked before training.
    ``teacher``: a folder or Hub id of a model fine-tuned for the task; by default the profile's
    own. ``say`` prints what is done.

    Raises ``ValueError`` for unknown names, ``FileExistsError`` if ``out`` holds something.
    """
    recipe, chosen = recipes.load(recipe), settings.profile(profile)
    find_task(task)
    spent = recipes.budget(budget, chosen.budgets)
    budget_name = budget if isinstance(budget, str) else "custom"
    if out is not None:
        check_new_folder(out)
    data = settings.data_for(task, chosen, glue_dir)
    say(f"data     {data.source}")
    arguments = recipe, chosen, spent, budget_name, seed, data
    if teacher is None and not settings.has_teacher(data, chosen):
        # What the recipe asks for that no model of this shape has shows before hours of training.
        bare = settings.untrained_teacher(data, chosen)
        check = Job(*arguments, bare, progress, device)
        check_applies(check, bare.model if recipe.start == "teacher" else backbone(check))
    if not isinstance(teacher, Teacher):
        teacher = settings.teacher_for(task, chosen, data, teacher, progress, device)
    say(
        f"teacher  {len(encoder_layers(teacher.model))} layers, "
        f"{'from the cache' if teacher.cached else 'fine-tuned now'} ({teacher.key})"
    )
    job = Job(*arguments, teacher, progress, device)
    begun = teacher.model if recipe.start == "teacher" else backbone(job)
    untrained, tokenizer = check_applies(job, begun)
    student, stages = begun, []
    done: list = []
    for index, stage in enumerate(job.stages):
        student, job = applied(job, student, stage.techniques)
        done += stage.techniques
        if not stage.trains:
            continue
        say(
            f"stage    {index + 1}/{len(recipe.stages)} {stage.name}: "
            f"{steps_of(job, stage)} steps, learning rate {stage.budget(spent).learning_rate:g}"
        )
        student, notes = trained(job, student, stage, done, stages)
        stages.append(notes)
    student = artefact.finalize(student, done)
    return _measure(replace(job, teacher=teacher), student, tokenizer, stages, untrained, out, say)


def _measure(
    job: Job,
    student: PreTrainedModel,
    tokenizer,
    stages: list[dict],
    untrained: PreTrainedModel,
    out: str | Path | None,
    say: Callable[[str], object],
) -> Run:
    recipe, chosen, data, teacher = job.recipe, job.profile, job.data, job.teacher
    length = job.budget.max_length
    student = student.to("cpu").eval()
    teacher_model = teacher.model.to("cpu").eval()
    metrics = evaluate(student, tokenizer, data, length)
    teacher_metrics = _scores(teacher_model, teacher.tokenizer, data, length)
    floor = {n: majority(data.task, s, data.train) for n, s in data.evaluation.items()}
    start = _scores(untrained, tokenizer, data, length, recipe.hash) if recipe.trains else metrics
    target = Path(out) if out is not None else _kept_artefact(recipe, chosen, teacher, stages)
    with teachers.locked(f"artefact-{target.name}"):
        artefact.save(student, tokenizer, target, replace=out is None)
    batch, width = chosen.latency
    layer_flops = [breakdown.flops(m.config, 1, width) for m in (student, teacher_model)]
    times = latency.of_models({"teacher": teacher_model, "student": student}, batch, width)
    record = Record(
        recipe=recipe.name,
        recipe_hash=recipe.hash,
        task=data.task.name,
        profile=chosen.name,
        budget=job.budget_name,
        seed=job.seed,
        metrics=metrics,
        teacher_metrics=teacher_metrics,
        majority=floor,
        untrained=start,
        bytes=(target / artefact.WEIGHTS).stat().st_size,
        folder_bytes=folder_bytes(target),
        teacher_bytes=_saved_bytes(teacher_model),
        parameters=breakdown.parameters(student),
        teacher_parameters=breakdown.parameters(teacher_model),
        flops=layer_flops[0],
        teacher_flops=layer_flops[1],
        latency=times,
        seconds=round(sum(s["seconds"] for s in stages), 1),
        stages=stages,
        data=data.source,
        data_fingerprint=data.fingerprint,
        teacher_key=teacher.key,
        left_out=recipe.left_out,
        selected_on=job.budget.keep if recipe.trains else "nothing is trained",
        note=verdict(
            recipe,
            *(mean_score(found) for found in (metrics, floor, start)),
            steps=sum(s["steps"] for s in stages),
            rows=sum(len(split) for split in data.evaluation.values()),
        ),
        **circumstances(),
        training_budget=asdict(job.budget),
    )
    say(f"artefact {target} ({record.bytes / 1e6:.2f} MB, {record.ratio:.1f} × smaller)")
    return Run(record, student, tokenizer, teacher, data, target)


def _scores(model: PreTrainedModel, tokenizer, data: TaskData, length: int, made_by: str = ""):
    """The metrics of a model that this run did not train, from the cache if it was scored before.

    Runs that differ in seed or recipe share their teacher, and often the untrained student.
    """
    held = {name: integrity.digest(t.detach().cpu()) for name, t in model.state_dict().items()}
    config = {n: v for n, v in model.config.to_dict().items() if n != "_name_or_path"}
    parts = type(model).__name__, config, made_by, held, tokenizer.get_vocab(), data.fingerprint
    versions = xtclib.__version__, torch.__version__, transformers.__version__
    name = key(*parts, length, *versions, torch.backends.cpu.get_cpu_capability())
    file = cache_dir() / "scores" / f"{name}.json"
    if not file.is_file():
        write_json(file, evaluate(model, tokenizer, data, length))
    return json.loads(file.read_text(encoding="utf-8"))


def verdict(
    recipe: Recipe, found: float, floor: float, untrained: float, steps: int, rows: int
) -> str:
    """What a student's score ``found`` does not beat, and why; empty where it beats all.

    The majority class's score ``floor`` counts as beaten by more than two standard errors of a
    share of ``rows`` answers, ``2·√(floor·(100 − floor) / rows)`` points, or of a correlation,
    whose floor is 0, ``2·100/√rows``; ``untrained`` is the score of the same student before its
    ``steps``.

    >>> verdict(recipes.load("cnn-kd"), 51.0, 50.0, 49.0, steps=200, rows=800)
    'does not beat the majority class (50.0 ± 3.5): 200 steps in all are few for new weights'
    """
    variance = floor * (100 - floor) if floor > 0 else 100**2
    noise, missed = 2 * (variance / rows) ** 0.5, []
    if found <= floor + noise:
        missed.append(f"the majority class ({floor:.1f} ± {noise:.1f})")
    if recipe.trains and found <= untrained:
        missed.append(f"its untrained counterpart ({untrained:.1f})")
    if not missed:
        return ""
    if not recipe.trains:
        why = "nothing was trained"
    elif any(technique.starts_anew for technique in recipe.techniques):
        why = f"{steps} steps in all are few for new weights"
    elif found > floor + noise:
        why = f"{steps} steps are likely few, or their rate too high for so small a change"
    else:
        why = f"{steps} steps in all are likely too few to make up for what was taken"
    return f"does not beat {' or '.join(missed)}: {why}"


def _kept_artefact(recipe: Recipe, chosen: Profile, teacher: Teacher, stages: list[dict]) -> Path:
    """Where the cache keeps a run's latest artefact."""
    made_from = key(teacher.key, recipe.hash, [s["key"] for s in stages])
    return cache_dir() / "artefacts" / f"{chosen.name}-{recipe.name}-{made_from}"


def _saved_bytes(model: PreTrainedModel) -> int:
    """The size of a model's fp32 ``model.safetensors``, written and read off the disk."""
    folder = cache_dir() / "sizes" / key(os.getpid(), time.time())
    try:
        model.save_pretrained(folder)
        return (folder / artefact.WEIGHTS).stat().st_size
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Planned:
    """One run of a sweep, and its record if it was measured before and nothing has changed."""

    task: str
    recipe: Recipe
    budget: str
    seed: int
    record: Record | None

    def __str__(self) -> str:
        return f"{self.task} · {self.recipe.name} · budget {self.budget} · seed {self.seed}"


def planned(
    recipe_names: Iterable[str],
    tasks: Iterable[str] = tuple(TASKS),
    profile: str | Profile | None = None,  # noqa: A002
    budgets: Iterable[str] = ("A",),
    seeds: Iterable[int] = (0,),
    folder: str | Path = RESULTS,
    glue_dir: str | Path | None = None,
) -> Iterator[Planned]:
    """Every run of a sweep in order, with the records that ``folder`` has; nothing is run.

    A record counts as measured if its recipe hash, data, teacher and training budget are today's;
    other versions of torch and transformers do not make it old. Without training, budgets and seeds
    change nothing: such a recipe has one run a task.
    """
    chosen = settings.profile(profile)
    recipe_names, budgets, seeds = list(recipe_names), list(budgets), list(seeds)
    for task in tasks:
        data = settings.data_for(task, chosen, glue_dir)

        @cache
        def teacher_key(torch_: str, transformers_: str, data: TaskData = data) -> str:
            versions = {"torch": torch_, "transformers": transformers_}
            return settings.teacher_key(data, chosen, versions)

        for recipe in map(recipes.load, recipe_names):
            runs = itertools.product(budgets, seeds)
            for budget, seed in runs if recipe.trains else itertools.islice(runs, 1):
                path = record_path(folder, chosen.name, data.task.name, recipe.name, budget, seed)
                spent = asdict(recipes.budget(budget, chosen.budgets))
                current = _is_current(path, recipe, data, spent, teacher_key)
                yield Planned(task, recipe, budget, seed, Record.read(path) if current else None)


def sweep(
    recipe_names: Iterable[str],
    tasks: Iterable[str] = tuple(TASKS),
    profile: str | Profile | None = None,  # noqa: A002
    budgets: Iterable[str] = ("A",),
    seeds: Iterable[int] = (0,),
    folder: str | Path = RESULTS,
    glue_dir: str | Path | None = None,
    progress: bool = True,
    say=print,
) -> list[Record]:
    """Every combination, as records in ``folder``; those measured before are read, not run again.

    What counts as measured: :func:`planned`. Nothing that was measured is lost if the sweep is cut
    off.
    """
    chosen, found = settings.profile(profile), []
    for one in planned(recipe_names, tasks, chosen, budgets, seeds, folder, glue_dir):
        record = one.record
        if record is None:
            say(f"\n{one}")
            run = compress(
                one.recipe, one.task, chosen, one.budget, one.seed, glue_dir, progress=progress,
                say=say,
            )  # fmt: skip
            record = run.record
            record.save(folder)
            say(record.table())
        found.append(record)
    return found


def _is_current(
    path: Path, recipe: Recipe, data: TaskData, spent: dict, teacher_key: Callable[..., str]
) -> bool:
    if not path.is_file():
        return False
    values = json.loads(path.read_text(encoding="utf-8"))
    if set(values) != {f.name for f in fields(Record)}:
        return False  # of another version of this project
    record = Record(**values)
    made_with = (record.versions["torch"], record.versions["transformers"])
    return (
        record.recipe_hash == recipe.hash
        and record.data_fingerprint == data.fingerprint
        and record.training_budget == spent
        and record.teacher_key == teacher_key(*made_with)
    )
