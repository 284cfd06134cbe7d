"""The stages of a run: techniques put on a student, then training, or reading what was trained."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from xtclib import cache, teachers
from xtclib.artefact import format
from xtclib.cache import cache_dir, key
from xtclib.files import staged_folder, write_json
from xtclib.recipes.recipe import Stage
from xtclib.study.lessons import KINDS, Job, Pair
from xtclib.tasks.rows import Calibration
from xtclib.teachers import load_tokenizer
from xtclib.techniques.base import Technique
from xtclib.techniques.pruning import surgery
from xtclib.techniques.students.theseus import ReplaceModules, being_replaced
from xtclib.training.trainer import Run, set_dropout_


def begun(job: Job) -> Pair:
    """What the first stage starts from: the teacher itself, or the backbone under a fresh head."""
    model = job.teacher.model if job.recipe.start == "teacher" else _backbone(job)
    return Pair(model, job.teacher.model, job.teacher.tokenizer)


def _backbone(job: Job) -> PreTrainedModel:
    """The profile's pre-trained model with a fresh head; it reads what the teacher reads."""
    path = job.backbone
    words, theirs = (t.get_vocab() for t in (load_tokenizer(path), job.teacher.tokenizer))
    if words != theirs:
        raise ValueError(
            f"recipe {job.recipe.name} starts from {path}, whose vocabulary of {len(words)} tokens "
            f"is not its teacher's of {len(theirs)}: choose the profile of the teacher's backbone"
        )
    return job.data.task.load_model(path, job.seed).eval()


def applied(job: Job, pair: Pair, techniques: Iterable[Technique]) -> Pair:
    """A copy of the student with techniques on, and a teacher that reads the same token ids."""
    student = copy.deepcopy(pair.student).requires_grad_(True)
    teacher, tokenizer = pair.teacher, pair.tokenizer
    for technique in techniques:
        rows = Calibration(job.data, tokenizer, job.budget.max_length, initial=job.seed)
        student = technique.apply(student, rows)
        teacher, tokenizer = technique.reads(teacher, tokenizer, rows)
    return Pair(student, teacher, tokenizer)


def check_applies(job: Job) -> Pair:
    """The recipe's untrained counterpart, finalized, with the teacher and tokenizer of the end.

    Every bad setting shows here, before training: each stage's schedules run for one idle step.
    """
    pair = begun(job)
    for stage in job.stages:
        pair = applied(job, pair, stage.techniques)
        idle = copy.deepcopy(pair.student)
        for technique in stage.techniques if stage.trains else ():
            technique.before_step(idle, 0, 2)
            technique.after_step(idle, 0, 2, 0.0)
        _check_stage(job, stage, Pair(idle, pair.teacher, pair.tokenizer))
    techniques = [technique for stage in job.stages for technique in stage.techniques]
    return Pair(format.finalize(pair.student, techniques), pair.teacher, pair.tokenizer)


def _check_stage(job: Job, stage: Stage, pair: Pair) -> None:
    """Raises for an objective by which this student and its teacher cannot be compared."""
    replaced = being_replaced(pair.student)
    if replaced and stage.trains and not _replaces(stage):
        raise ValueError(
            f"stage {stage.name!r} would train modules that are still being replaced: list "
            "keep_successors first among its techniques"
        )
    if replaced and stage.objective and stage.objective.matches:
        raise ValueError(
            f"stage {stage.name!r} compares layers while modules are being replaced, where chance "
            "decides which layers there are: leave labels and logits"
        )
    if stage.augmentation and job.budget.keep == "held-out":
        raise ValueError(
            f"stage {stage.name!r} augments its rows, and copies of held-out rows would be "
            "trained on: choose the budget's keep 'last' or 'evaluation'"
        )
    KINDS[stage.task].check(job, stage, pair)


def _replaces(stage: Stage) -> bool:
    return any(isinstance(technique, ReplaceModules) for technique in stage.techniques)


def trained(
    job: Job, pair: Pair, stage: Stage, techniques: list[Technique], before: list[dict]
) -> tuple[Pair, dict]:
    """One stage, trained or read from the cache, whose key holds all that went into it.

    ``techniques`` are those of all stages so far, ``before`` the notes of those that trained.
    """
    name = key(
        job.teacher.key,
        job.data.fingerprint,
        [t.to_dict() for t in techniques],
        stage.objective.to_dict() if stage.objective else stage.task,
        asdict(stage.budget(job.budget)),
        job.seed,
        job.profile.precision,
        [s["key"] for s in before],
        torch.__version__,
        transformers.__version__,
        *([stage.augmentation.to_dict()] if stage.augmentation else ()),
        *_start(job, stage),
        *(surgery.uneven(pair.student) or ()),  # what a criterion removed may change with its code
    )
    folder = cache_dir() / "stages" / name
    with cache.locked(name):
        if not (folder / "notes.json").is_file():
            _train(job, pair, stage, techniques, folder)
    if job.budget.dropout is not None:
        set_dropout_(pair.student, job.budget.dropout)
    pair.student.load_state_dict(load_file(folder / "student.safetensors"))
    return pair, json.loads((folder / "notes.json").read_text())


def _start(job: Job, stage: Stage) -> list:
    """What a stage's key holds beside the teacher: its backbone, and the texts it reads."""
    found = [job.recipe.start] if job.recipe.start != "teacher" else []
    kind = KINDS[stage.task]
    path = job.backbone if found or kind.pretrains or stage.augmentation else ""
    if path and job.teacher.made_from.get("backbone") != teachers.weights_id(path):
        found.append(teachers.weights_id(path))
    return [*found, stage.task, key(kind.rows(job))] if kind.pretrains else found


def _train(job: Job, pair: Pair, stage: Stage, techniques: list[Technique], folder: Path) -> None:
    """Trains a stage and writes its folder whole or not at all."""
    start, kind = time.perf_counter(), KINDS[stage.task]
    run = Run(
        cache_dir() / "runs" / folder.name, job.seed, job.profile.precision, job.device,
        job.progress, job.report_to,
    )  # fmt: skip
    notes = kind.teach(job, stage, pair, run, lambda model: format.finalize(model, techniques))
    seconds = round(time.perf_counter() - start, 1)
    notes |= {"name": stage.name, "key": folder.name, "seconds": seconds}
    if kind.pretrains:
        notes["task"] = stage.task
    with staged_folder(folder) as partial:
        state = pair.student.state_dict()
        tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
        save_file(tensors, partial / "student.safetensors")
        write_json(partial / "notes.json", notes)
    shutil.rmtree(run.folder, ignore_errors=True)  # its checkpoints are three times the model


def steps_of(job: Job, stage: Stage) -> int:
    """How long a stage trains: an epoch is the task's rows, or the texts it reads."""
    return stage.budget(job.budget).total_steps(len(KINDS[stage.task].rows(job)))
