"""Runs: one call compresses a teacher, measures it, writes it down."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from xtclib import (
    artefact,
    breakdown,
    latency,
    mlm,
    recipes,
    settings,
    structure,
    teachers,
)
from xtclib.batches import Calibration
from xtclib.evaluation import evaluate
from xtclib.files import check_new_folder, folder_bytes, staged_folder, write_json
from xtclib.glue import TASKS, TaskData, find_task
from xtclib.interface import Technique
from xtclib.metrics import majority
from xtclib.models import encoder_layers, load_classifier
from xtclib.recipes import Budget, Recipe, Stage
from xtclib.results import RESULTS, Record, circumstances, mean_score, record_path
from xtclib.settings import Profile
from xtclib.teachers import Teacher, cache_dir, key, load_tokenizer
from xtclib.training import bf16_is_fast, default_device, set_dropout_, train_stage


@dataclass(frozen=True)
class Run:
    """A compressed model with everything that was measured of it."""

    record: Record
    student: PreTrainedModel
    tokenizer: object
    teacher: Teacher
    data: TaskData
    folder: Path


@dataclass(frozen=True)
class _Job:
    """What holds for every stage of a run."""

    recipe: Recipe
    profile: Profile
    budget: Budget
    budget_name: str
    seed: int
    data: TaskData
    teacher: Teacher
    progress: bool
    device: str | None


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
    determines them, so a killed run goes on and a repeated one is read. ``out`` takes the artefact;
    it must not exist or be empty, which is checked before training. ``teacher``: a folder or Hub id
    of a model fine-tuned for the task; by default the profile's own. ``say`` prints what is done.

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
    if not isinstance(teacher, Teacher):
        teacher = settings.teacher_for(task, chosen, data, teacher, progress, device)
    say(
        f"teacher  {len(encoder_layers(teacher.model))} layers, "
        f"{'from the cache' if teacher.cached else 'fine-tuned now'} ({teacher.key})"
    )
    job = _Job(recipe, chosen, spent, budget_name, seed, data, teacher, progress, device)
    begun = teacher.model if recipe.start == "teacher" else _backbone(job)
    untrained, tokenizer = _check_applies(job, begun)
    student, stages = begun, []
    done: list = []
    for index, stage in enumerate(recipe.stages):
        student, job = _applied(job, student, stage.techniques)
        done += stage.techniques
        if not stage.trains:
            continue
        say(
            f"stage    {index + 1}/{len(recipe.stages)} {stage.name}: "
            f"{_steps(job, stage)} steps, learning rate {spent.learning_rate:g}"
        )
        student, notes = _trained(job, student, stage, done, stages)
        stages.append(notes)
    student = artefact.finalize(student, done)
    return _measure(replace(job, teacher=teacher), student, tokenizer, stages, untrained, out, say)


def _fresh(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).requires_grad_(True)


def _backbone(job: _Job) -> PreTrainedModel:
    """The profile's pre-trained model under a fresh classifier; it reads what the teacher reads."""
    path = settings.backbone_for(job.profile)
    words, theirs = (t.get_vocab() for t in (load_tokenizer(path), job.teacher.tokenizer))
    if words != theirs:
        raise ValueError(
            f"recipe {job.recipe.name} starts from {path}, whose vocabulary of {len(words)} tokens "
            f"is not its teacher's of {len(theirs)}: choose the profile of the teacher's backbone"
        )
    return load_classifier(path, job.data.task, job.seed).eval()


def _applied(
    job: _Job, student: PreTrainedModel, techniques: Iterable[Technique]
) -> tuple[PreTrainedModel, _Job]:
    """A student with techniques on, and the job with a teacher that reads the same token ids."""
    student = _fresh(student)
    for technique in techniques:
        rows = Calibration(job.data, job.teacher.tokenizer, job.budget.max_length)
        student = technique.apply(student, rows)
        model, tokenizer = technique.reads(job.teacher.model, job.teacher.tokenizer, rows)
        job = replace(job, teacher=replace(job.teacher, model=model, tokenizer=tokenizer))
    return student, job


def _check_applies(job: _Job, begun: PreTrainedModel) -> tuple[PreTrainedModel, object]:
    """The recipe's untrained counterpart, finalized, and its tokenizer.

    Every bad setting shows here, before training: each stage's schedules run for one idle step.
    """
    model = begun
    for stage in job.recipe.stages:
        model, job = _applied(job, model, stage.techniques)
        idle = copy.deepcopy(model)
        for technique in stage.techniques if stage.trains else ():
            technique.before_step(idle, 0, 2)
            technique.after_step(idle, 0, 2, 0.0)
        if stage.task == "mlm":
            mlm.under_head(idle, settings.backbone_for(job.profile), job.seed)
    return artefact.finalize(model, job.recipe.techniques), job.teacher.tokenizer


def _trained(
    job: _Job, student: PreTrainedModel, stage: Stage, techniques: list, before: list[dict]
) -> tuple[PreTrainedModel, dict]:
    """One stage, trained or read from the cache, whose key holds all that went into it."""
    name = key(
        job.teacher.key,
        job.data.fingerprint,
        [t.to_dict() for t in techniques],
        asdict(stage.objective) if stage.objective else stage.task,
        asdict(job.budget),
        job.seed,
        job.profile.precision,
        [s["key"] for s in before],
        torch.__version__,
        transformers.__version__,
        *_start(job, stage),
        *(structure.uneven(student) or ()),  # what a criterion removed may change with its code
    )
    folder = cache_dir() / "stages" / name
    with teachers.locked(name):
        if not (folder / "notes.json").is_file():
            _train(job, student, stage, techniques, folder)
    if job.budget.dropout is not None:
        set_dropout_(student, job.budget.dropout)
    student.load_state_dict(load_file(folder / "student.safetensors"))
    return student, json.loads((folder / "notes.json").read_text())


def _start(job: _Job, stage: Stage) -> list:
    """What a stage's key holds beside the teacher: its backbone, and the texts it reads."""
    found = [job.recipe.start] if job.recipe.start != "teacher" else []
    path = settings.backbone_for(job.profile) if found or stage.task == "mlm" else ""
    if path and job.teacher.made_from.get("backbone") != teachers.weights_id(path):
        found.append(teachers.weights_id(path))
    return (
        [*found, key(settings.texts_for(job.profile, job.data))] if stage.task == "mlm" else found
    )


def _train(
    job: _Job, student: PreTrainedModel, stage: Stage, techniques: list, folder: Path
) -> None:
    """Trains a stage and writes its folder whole or not at all."""
    start = time.perf_counter()
    run = cache_dir() / "runs" / folder.name
    if stage.task == "mlm":
        student, notes = _pretrain(job, student, stage)
    else:
        student, notes = train_stage(
            student,
            job.teacher.tokenizer,
            job.data,
            stage.objective,
            job.budget,
            run,
            job.teacher.model,
            job.seed,
            job.profile.precision,
            job.progress,
            device=job.device,
            finalize=lambda model: artefact.finalize(model, techniques),
            techniques=stage.techniques,
        )
    notes |= {
        "name": stage.name,
        "key": folder.name,
        "seconds": round(time.perf_counter() - start, 1),
    }
    with staged_folder(folder) as partial:
        tensors = {k: v.detach().cpu().contiguous() for k, v in student.state_dict().items()}
        save_file(tensors, partial / "student.safetensors")
        write_json(partial / "notes.json", notes)
    shutil.rmtree(run, ignore_errors=True)  # its checkpoints are three times the model


def _steps(job: _Job, stage: Stage) -> int:
    """How long a stage trains: an epoch is the task's rows, or the texts that ``mlm`` reads."""
    rows = job.data.train if stage.task != "mlm" else settings.texts_for(job.profile, job.data)
    return job.budget.total_steps(len(rows))


def _pretrain(job: _Job, student: PreTrainedModel, stage: Stage) -> tuple[PreTrainedModel, dict]:
    """A stage of guessing masked words, by the encoder of a classifier; not resumable within."""
    budget, tokenizer = job.budget, job.teacher.tokenizer
    texts, steps = settings.texts_for(job.profile, job.data), _steps(job, stage)
    device = job.device or default_device()
    precision = job.profile.precision
    if budget.dropout is not None:
        set_dropout_(student, budget.dropout)
    student = student.to(device)
    model = mlm.under_head(student, settings.backbone_for(job.profile), job.seed).to(device)
    losses = mlm.pretrain(
        model,
        tokenizer,
        texts,
        steps,
        budget.batch_size,
        budget.learning_rate,
        budget.warmup,
        budget.weight_decay,
        seed=job.seed,
        bf16=precision == "bf16" or (precision == "auto" and bf16_is_fast(device)),
        max_length=budget.max_length,
        progress=job.progress,
        techniques=stage.techniques,
    )
    tenth = max(steps // 20, 1)
    means = [
        {"step": i + tenth, "loss": round(float(np.mean(losses[i : i + tenth])), 6)}
        for i in range(0, steps - tenth + 1, tenth)
    ]
    return student.eval(), {"steps": steps, "rows": len(texts), "task": "mlm", "losses": means}


def _measure(
    job: _Job,
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
    teacher_metrics = evaluate(teacher_model, teacher.tokenizer, data, length)
    floor = {n: majority(data.task, s, data.train) for n, s in data.evaluation.items()}
    start = evaluate(untrained, tokenizer, data, length) if recipe.trains else metrics
    target = Path(out) if out is not None else _kept_artefact(recipe, chosen, teacher, stages)
    with teachers.locked(f"artefact-{target.name}"):
        artefact.save(student, tokenizer, target, replace=out is None)
    batch, width = chosen.latency
    layer_flops = [breakdown.flops(m.config, 1, width) for m in (student, teacher_model)]
    times = latency.of_models(
        {"teacher": teacher_model, "student": student}, batch, width, repeats=10
    )
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
        note=_verdict(recipe, metrics, floor, start),
        **circumstances(),
        training_budget=asdict(job.budget),
    )
    say(f"artefact {target} ({record.bytes / 1e6:.2f} MB, {record.ratio:.1f} × smaller)")
    return Run(record, student, tokenizer, teacher, data, target)


def _verdict(recipe: Recipe, metrics: dict, floor: dict, untrained: dict) -> str:
    """Empty if the student beats the majority class and its untrained counterpart."""
    found, low, start = (mean_score(m) for m in (metrics, floor, untrained))
    if found <= low:
        return f"does not beat the majority class ({low:.1f})" + (
            "" if recipe.trains else ": nothing was trained"
        )
    if recipe.trains and found <= start:
        return (
            f"does not beat its untrained counterpart ({start:.1f}): the budget is short, or its "
            "rate too high for so small a change"
        )
    return ""


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

    A record counts as measured if its recipe hash, data, teacher and training budget are today's;
    other versions of torch and transformers do not make it old. Nothing that was measured is lost
    if the sweep is cut off.
    """
    chosen = settings.profile(profile)
    recipe_names, budgets, seeds = list(recipe_names), list(budgets), list(seeds)
    found = []
    for task in tasks:
        data = settings.data_for(task, chosen, glue_dir)

        @cache
        def teacher_key(torch_: str, transformers_: str, data: TaskData = data) -> str:
            versions = {"torch": torch_, "transformers": transformers_}
            return settings.teacher_key(data, chosen, versions)

        for name in recipe_names:
            recipe = recipes.load(name)
            # Without training, budgets and seeds change nothing.
            for budget in budgets if recipe.trains else list(budgets)[:1]:
                for seed in seeds if recipe.trains else list(seeds)[:1]:
                    path = record_path(
                        folder, chosen.name, data.task.name, recipe.name, budget, seed
                    )
                    spent = asdict(recipes.budget(budget, chosen.budgets))
                    if _is_current(path, recipe, data, spent, teacher_key):
                        found.append(Record.read(path))
                        continue
                    say(f"\n{task} · {recipe.name} · budget {budget} · seed {seed}")
                    run = compress(
                        recipe, task, chosen, budget, seed, glue_dir, progress=progress, say=say
                    )
                    run.record.save(folder)
                    say(run.record.table())
                    found.append(run.record)
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
