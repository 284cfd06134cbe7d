"""The stages of a run: techniques put on a student, then training, or reading what was trained."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from xtclib import cache, teachers
from xtclib.artefact import format
from xtclib.bert import encoder_layers
from xtclib.cache import cache_dir, key
from xtclib.files import staged_folder, write_json
from xtclib.recipes.recipe import Recipe, Stage
from xtclib.study import profiles
from xtclib.study.profiles import Profile
from xtclib.tasks import augmentation
from xtclib.tasks.augmentation import Augmentation
from xtclib.tasks.glue import Split, TaskData
from xtclib.tasks.rows import Calibration
from xtclib.teachers import Teacher, load_classifier, load_tokenizer
from xtclib.techniques.base import Technique
from xtclib.techniques.embeddings.technique import SmallVocabulary
from xtclib.techniques.pruning import surgery
from xtclib.training import dual, mlm
from xtclib.training.budget import Budget
from xtclib.training.device import bf16_is_fast, default_device
from xtclib.training.trainer import set_dropout_, train_stage


@dataclass(frozen=True)
class Job:
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

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The recipe's stages, whose techniques draw by the run's seed."""
        return tuple(
            replace(s, techniques=tuple(t.for_seed(self.seed) for t in s.techniques))
            for s in self.recipe.stages
        )


def _fresh(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).requires_grad_(True)


def backbone(job: Job) -> PreTrainedModel:
    """The profile's pre-trained model under a fresh classifier; it reads what the teacher reads."""
    path = profiles.backbone_for(job.profile)
    words, theirs = (t.get_vocab() for t in (load_tokenizer(path), job.teacher.tokenizer))
    if words != theirs:
        raise ValueError(
            f"recipe {job.recipe.name} starts from {path}, whose vocabulary of {len(words)} tokens "
            f"is not its teacher's of {len(theirs)}: choose the profile of the teacher's backbone"
        )
    return load_classifier(path, job.data.task, job.seed).eval()


def applied(
    job: Job, student: PreTrainedModel, techniques: Iterable[Technique]
) -> tuple[PreTrainedModel, Job]:
    """A student with techniques on, and the job with a teacher that reads the same token ids."""
    student = _fresh(student)
    for technique in techniques:
        rows = Calibration(job.data, job.teacher.tokenizer, job.budget.max_length, initial=job.seed)
        student = technique.apply(student, rows)
        model, tokenizer = technique.reads(job.teacher.model, job.teacher.tokenizer, rows)
        job = replace(job, teacher=replace(job.teacher, model=model, tokenizer=tokenizer))
    return student, job


def check_applies(job: Job, begun: PreTrainedModel) -> tuple[PreTrainedModel, object]:
    """The recipe's untrained counterpart, finalized, and its tokenizer.

    Every bad setting shows here, before training: each stage's schedules run for one idle step.
    """
    model = begun
    stages, techniques = job.stages, []
    for stage in stages:
        techniques += stage.techniques
        model, job = applied(job, model, stage.techniques)
        idle = copy.deepcopy(model)
        for technique in stage.techniques if stage.trains else ():
            technique.before_step(idle, 0, 2)
            technique.after_step(idle, 0, 2, 0.0)
        for technique in techniques:
            technique.check_student(stage, idle)
        _check_stage(job, stage, idle)
    return format.finalize(model, techniques), job.teacher.tokenizer


def _check_stage(job: Job, stage: Stage, student: PreTrainedModel) -> None:
    """Raises for an objective by which this student and its teacher cannot be compared."""
    if stage.augmentation and job.budget.keep == "held-out":
        raise ValueError(
            f"stage {stage.name!r} augments its rows, and copies of held-out rows would be "
            "trained on: choose the budget's keep 'last' or 'evaluation'"
        )
    if stage.task == "its own" and stage.objective:
        if stage.objective.needs_teacher and job.teacher.model is None:
            raise ValueError(
                f"stage {stage.name!r} compares with a teacher, but the student reads a vocabulary "
                "of its own, which its teacher does not: let it learn from labels"
            )
        stage.objective.check(student, job.teacher.model)
    elif stage.task == "mlm":
        path = profiles.backbone_for(job.profile)
        encoder_layers(student)  # or an error that says what it lacks
        if not isinstance(student.get_input_embeddings(), nn.Embedding):
            raise ValueError(
                f"stage {stage.name!r} guesses words, but the word table was split or packed: list "
                "it before that"
            )
        words = job.teacher.tokenizer.get_vocab()
        compares = stage.objective and stage.objective.needs_teacher
        if compares and words != load_tokenizer(path).get_vocab():
            raise ValueError(
                f"stage {stage.name!r} compares with {path}, but the student reads another "
                "vocabulary: list the stage before the vocabulary is cut"
            )
        if _has_head(stage):
            student = mlm.under_head(student, path, job.seed)
        if stage.objective:
            mlm.check_comparable(stage.objective, student, mlm.load_masked_lm(path, job.seed))


def _has_head(stage: Stage) -> bool:
    """Whether an ``mlm`` stage guesses words, or only compares layers."""
    return stage.objective is None or bool(stage.objective.labels or stage.objective.logits)


def trained(
    job: Job, student: PreTrainedModel, stage: Stage, techniques: list, before: list[dict]
) -> tuple[PreTrainedModel, dict]:
    """One stage, trained or read from the cache, whose key holds all that went into it."""
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
        *(surgery.uneven(student) or ()),  # what a criterion removed may change with its code
    )
    folder = cache_dir() / "stages" / name
    with cache.locked(name):
        if not (folder / "notes.json").is_file():
            _train(job, student, stage, techniques, folder)
    if job.budget.dropout is not None:
        set_dropout_(student, job.budget.dropout)
    student.load_state_dict(load_file(folder / "student.safetensors"))
    return student, json.loads((folder / "notes.json").read_text())


def _start(job: Job, stage: Stage) -> list:
    """What a stage's key holds beside the teacher: its backbone, and the texts it reads."""
    found = [job.recipe.start] if job.recipe.start != "teacher" else []
    needed = found or stage.task != "its own" or stage.augmentation
    path = profiles.backbone_for(job.profile) if needed else ""
    if path and job.teacher.made_from.get("backbone") != teachers.weights_id(path):
        found.append(teachers.weights_id(path))
    return (
        [*found, key(profiles.texts_for(job.profile, job.data))]
        if stage.task != "its own"
        else found
    )


def _train(
    job: Job, student: PreTrainedModel, stage: Stage, techniques: list, folder: Path
) -> None:
    """Trains a stage and writes its folder whole or not at all."""
    start = time.perf_counter()
    run = cache_dir() / "runs" / folder.name
    if stage.task != "its own":
        student, notes = _pretrain(job, student, stage, run / "pretraining.pt")
    else:
        data, budget = job.data, stage.budget(job.budget)
        if stage.augmentation:  # more rows, as many steps
            data = replace(data, train=_augmented(job, stage.augmentation))
            budget = replace(budget, steps=steps_of(job, stage), epochs=None)
        student, notes = train_stage(
            student,
            job.teacher.tokenizer,
            data,
            stage.objective,
            budget,
            run,
            job.teacher.model,
            job.seed,
            job.profile.precision,
            job.progress,
            device=job.device,
            finalize=lambda model: format.finalize(model, techniques),
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


def _augmented(job: Job, how: Augmentation) -> Split:
    """A task's rows with their copies, made once: all seeds share them."""
    path = profiles.backbone_for(job.profile)  # with its own tokenizer: rows are text
    name = key(teachers.weights_id(path), job.data.train.fingerprint, how.to_dict())
    file = cache_dir() / "augmented" / f"{name}.json"
    with cache.locked(name):
        if not file.is_file():
            model = mlm.load_masked_lm(path).to(job.device or default_device())
            rows = augmentation.augment(
                job.data.train, load_tokenizer(path), model, how, progress=job.progress
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            augmentation.save(rows, file)
    return augmentation.load(file)


def steps_of(job: Job, stage: Stage) -> int:
    """How long a stage trains: an epoch is the task's rows, or the texts it reads."""
    rows = job.data.train if stage.task == "its own" else profiles.texts_for(job.profile, job.data)
    return stage.budget(job.budget).total_steps(len(rows))


def _pretrain(
    job: Job, student: PreTrainedModel, stage: Stage, file: Path
) -> tuple[PreTrainedModel, dict]:
    """A stage on texts, by the encoder of a classifier."""
    budget, texts = stage.budget(job.budget), profiles.texts_for(job.profile, job.data)
    steps, device = steps_of(job, stage), job.device or default_device()
    precision, path = job.profile.precision, profiles.backbone_for(job.profile)
    if budget.dropout is not None:
        set_dropout_(student, budget.dropout)
    student, teacher = student.to(device), None
    model = mlm.under_head(student, path, job.seed).to(device) if _has_head(stage) else student
    if stage.task == "dual" or (stage.objective and stage.objective.needs_teacher):
        teacher = mlm.load_masked_lm(path, job.seed)
    common = {
        "batch": budget.batch_size,
        "lr": budget.learning_rate,
        "warmup": budget.warmup,
        "weight_decay": budget.weight_decay,
        "seed": job.seed,
        "bf16": precision == "bf16" or (precision == "auto" and bf16_is_fast(device)),
        "max_length": budget.max_length,
        "progress": job.progress,
        "file": file,
    }
    resumed = file.is_file()
    if stage.task == "dual":
        how = next(t for t in stage.techniques if isinstance(t, SmallVocabulary))
        both = job.teacher.tokenizer, load_tokenizer(path)
        losses = dual.train(model, teacher, both, texts, steps, how, **common)
    else:
        rest = {"objective": stage.objective, "teacher": teacher, "techniques": stage.techniques}
        losses = mlm.pretrain(model, job.teacher.tokenizer, texts, steps, **common, **rest)
    tenth = max(steps // 20, 1)
    means = [
        {"step": i + tenth, "loss": round(float(np.mean(losses[i : i + tenth])), 6)}
        for i in range(0, steps - tenth + 1, tenth)
    ]
    notes = {
        "steps": steps, "rows": len(texts), "task": stage.task, "resumed": resumed, "losses": means
    }  # fmt: skip
    return student.eval(), notes
