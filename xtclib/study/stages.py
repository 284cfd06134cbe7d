"""The stages of a run: techniques put on a student, then training, or reading what was trained.

What a stage teaches is one of ``KINDS``, by its ``task``: the run's own task, masked words, or two
models at once. Each says what it reads, which students it cannot teach, and how.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib import cache, teachers
from xtclib.artefact import format
from xtclib.bert import encoder_layers, read_config
from xtclib.config import written
from xtclib.distillation.objective import Objective
from xtclib.files import slug, write_json
from xtclib.recipes.recipe import Recipe, Stage
from xtclib.study import profiles
from xtclib.tasks import augmentation
from xtclib.tasks.base import TaskData
from xtclib.tasks.masked import MASKED, under_head
from xtclib.tasks.rows import Calibration, Split
from xtclib.techniques.base import Technique
from xtclib.techniques.pruning import surgery
from xtclib.training.budget import Budget
from xtclib.training.device import default_device
from xtclib.training.dual import TwoVocabularies, train_beside
from xtclib.training.trainer import Lesson, Run, set_dropout_, train


@dataclass(frozen=True)
class Job:
    """What holds for every stage of a run."""

    recipe: Recipe
    profile: profiles.Profile
    budget: Budget
    budget_name: str
    seed: int
    data: TaskData
    teacher: teachers.Teacher
    progress: bool
    device: str | None
    report_to: str = "none"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The recipe's stages, whose techniques draw by the seed of each."""
        return tuple(
            replace(s, techniques=tuple(t.for_seed(self.during(i).seed) for t in s.techniques))
            for i, s in enumerate(self.recipe.stages)
        )

    def during(self, index: int) -> Job:
        """The job in its stage ``index``: one that pre-trains first of all does so by seed 0.

        Such a stage is the same for every seed, so that it is trained once, as pre-training is.
        """
        return replace(self, seed=0) if self.pretrains(self.recipe.stages[: index + 1]) else self

    def pretrains(self, stages: Iterable[Stage]) -> bool:
        """Whether such stages, the recipe's first, know nothing of the run's task and teacher."""
        begun = self.recipe.start == "backbone" or self.recipe.student
        return bool(begun) and all(KINDS[stage.task].pretrains for stage in stages)

    @property
    def backbone(self) -> str:
        """The profile's pre-trained model: a folder or a Hub id."""
        return profiles.backbone_for(self.profile)


@dataclass(frozen=True)
class Pair:
    """A student, and a teacher and a tokenizer that read the same token ids.

    No teacher, where the student reads a vocabulary of its own.
    """

    student: PreTrainedModel
    teacher: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase


def begun(job: Job) -> Pair:
    """What the first stage starts from: the teacher itself, or an encoder under a fresh head."""
    model, tokenizer = job.teacher.model, job.teacher.tokenizer
    path = job.recipe.student or job.backbone
    if job.recipe.start == "teacher" and not job.recipe.student:
        return Pair(model, model, tokenizer)
    read_config(path)  # or an error that says what is not there
    words, theirs = teachers.load_tokenizer(path).get_vocab(), tokenizer.get_vocab()
    own, backbone = "a student that has its words", "the profile of the teacher's backbone"
    cure = own if job.recipe.student else backbone
    if words != theirs:
        raise ValueError(
            f"recipe {job.recipe.name} starts from {path}, whose vocabulary of {len(words)} tokens "
            f"is not its teacher's of {len(theirs)}: choose {cure}"
        )
    return Pair(job.data.task.load_model(path, job.seed).eval(), model, tokenizer)


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

    Every bad setting shows here, before training: each stage's schedules run for one idle step,
    and its techniques and what it teaches judge what comes of it.
    """
    pair, techniques = begun(job.during(0)), list[Technique]()
    for index, stage in enumerate(job.stages):
        techniques += stage.techniques
        pair = applied(job.during(index), pair, stage.techniques)
        idle = copy.deepcopy(pair.student)
        for technique in stage.techniques if stage.trains else ():
            technique.before_step(idle, 0, 2)
            technique.after_step(idle, 0, 2, 0.0)
        for technique in techniques:
            technique.check_student(stage, idle)
        if stage.augmentation and not job.data.task.augments:
            raise ValueError(
                f"stage {stage.name!r} augments its rows, and a changed sentence does not keep its "
                f"tags: choose a recipe without augmentation for {job.data.task.name}"
            )
        if stage.augmentation and job.budget.keep == "held-out":
            raise ValueError(
                f"stage {stage.name!r} augments its rows, and would train on copies of held-out "
                "ones: choose the budget's keep 'last' or 'evaluation'"
            )
        KINDS[stage.task].check(job, stage, replace(pair, student=idle))
    return replace(pair, student=format.finalize(pair.student, techniques))


def trained(job: Job, pair: Pair, stage: Stage, techniques: list[Technique], before: list[dict]
            ) -> tuple[Pair, dict]:  # fmt: skip
    """One stage, trained or read from the cache, whose key holds all that went into it.

    ``techniques`` are those of all stages so far, ``before`` the notes of those that trained.
    Pre-training is shared by all teachers, and by all tasks with the same texts and number of
    labels, whose untrained classifier lies beside it.
    """
    first = job.pretrains(job.stages[: job.stages.index(stage) + 1])
    learned = [job.data.task.num_labels] if first else [job.teacher.key, job.data.fingerprint]
    name = cache.key(
        *learned, [t.to_dict() for t in techniques],
        stage.objective.to_dict() if stage.objective else stage.task,
        asdict(stage.budget(job.budget)), job.seed, job.profile.precision,
        [s["key"] for s in before], torch.__version__, transformers.__version__,
        *([written(stage.augmentation)] if stage.augmentation else ()), *_start(job, stage),
        *([stage.pad] if stage.pad != "longest" else ()),
        *(surgery.uneven(pair.student) or ()),  # what a criterion removed may change with its code
    )  # fmt: skip
    folder = cache.cache_dir() / "stages" / name
    place = cache.cache_dir() / "runs" / f"{slug(job.recipe.name)}-{name}"
    teach = partial(_train, job, pair, stage, techniques, place)
    cache.keep(folder, teach, together=True)
    shutil.rmtree(place, ignore_errors=True)  # its checkpoints are three times the model
    if job.budget.dropout is not None:
        set_dropout_(pair.student, job.budget.dropout)
    pair.student.load_state_dict(load_file(folder / "student.safetensors"))
    return pair, {**json.loads((folder / "notes.json").read_text()), "key": name}


def _start(job: Job, stage: Stage) -> list[str]:
    """What a stage's key holds beside the teacher: its backbone, and the texts it reads."""
    found: list[str] = [job.recipe.start] if job.recipe.start != "teacher" else []
    found += [teachers.weights_id(job.recipe.student)] if job.recipe.student else []
    kind = KINDS[stage.task]
    if found or kind.pretrains or stage.augmentation:
        backbone = teachers.weights_id(job.backbone)
        found += [backbone] if job.teacher.made_from.get("backbone") != backbone else []
    return [*found, stage.task, cache.key(kind.rows(job))] if kind.pretrains else found


def _train(job: Job, pair: Pair, stage: Stage, techniques: list[Technique], place: Path,
           folder: Path) -> None:  # fmt: skip
    """Trains a stage, with checkpoints at ``place``, and fills its folder."""
    start, kind = time.perf_counter(), KINDS[stage.task]
    run = Run(place, job.seed, job.profile.precision, job.device, job.progress, job.report_to)
    notes = kind.teach(job, stage, pair, run, lambda model: format.finalize(model, techniques))
    seconds = round(time.perf_counter() - start, 1)
    notes |= {"name": stage.name, "seconds": seconds}
    notes |= {"task": stage.task} if kind.pretrains else {}
    state = pair.student.state_dict()
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    save_file(tensors, folder / "student.safetensors")
    write_json(folder / "notes.json", notes)


def steps_of(job: Job, stage: Stage) -> int:
    """How long a stage trains: an epoch is the task's rows, or the texts it reads."""
    return stage.budget(job.budget).total_steps(len(KINDS[stage.task].rows(job)))


Finalize = Callable[[PreTrainedModel], PreTrainedModel]


class OwnTask:
    """The run's task, by the stage's objective."""

    pretrains: ClassVar[bool] = False

    def rows(self, job: Job) -> Split | list[str]:
        """What it reads; an epoch is as many rows."""
        return job.data.train

    def check(self, job: Job, stage: Stage, pair: Pair) -> None:
        """Raises ``ValueError`` for a pair that it cannot teach."""
        if not stage.objective:
            return
        if stage.objective.needs_teacher and pair.teacher is None:
            why = "compares with a teacher, which does not read the student's own vocabulary"
            raise ValueError(f"stage {stage.name!r} {why}: let it learn from labels")
        job.data.task.check(stage.objective, pair.student, pair.teacher)

    def teach(self, job: Job, stage: Stage, pair: Pair, run: Run, finalize: Finalize) -> dict:
        """Trains the pair's student in place, and returns notes on it."""
        data, budget = job.data, stage.budget(job.budget)
        if stage.augmentation:  # more rows, as many steps
            budget = replace(budget, steps=budget.total_steps(len(data.train)), epochs=None)
            data = replace(data, train=_augmented(job, stage.augmentation))
        lesson = Lesson(data, pair.tokenizer, budget, stage.objective, pair.teacher,
                        stage.techniques, finalize, stage.pad)  # fmt: skip
        return train(pair.student, lesson, run)[1]


class Texts(OwnTask):
    """Guessing the masked words of a text, by the student's encoder under a head for words."""

    pretrains: ClassVar[bool] = True

    def rows(self, job: Job) -> list[str]:
        return profiles.texts_for(job.profile, job.data)

    def check(self, job: Job, stage: Stage, pair: Pair) -> None:
        encoder_layers(pair.student)  # or an error that says what it lacks
        if not isinstance(pair.student.get_input_embeddings(), nn.Embedding):
            why = "guesses words, but the word table was split or packed"
            raise ValueError(f"stage {stage.name!r} {why}: list it before that")
        compares = stage.objective and stage.objective.needs_teacher
        words = pair.tokenizer.get_vocab()
        if compares and words != teachers.load_tokenizer(job.backbone).get_vocab():
            raise ValueError(
                f"stage {stage.name!r} compares with {job.backbone}, but the student reads another "
                "vocabulary: list the stage before the vocabulary is cut"
            )
        student = self.model(job, stage, pair)
        if stage.objective:
            MASKED.check(stage.objective, student, MASKED.load_model(job.backbone, job.seed))

    def model(self, job: Job, stage: Stage, pair: Pair) -> PreTrainedModel:
        """What is trained: with a head for words, unless the stage only compares layers."""
        objective = stage.objective
        if objective and not (objective.labels or objective.logits):
            return pair.student
        return under_head(pair.student, job.backbone, job.seed)

    def teach(self, job: Job, stage: Stage, pair: Pair, run: Run, finalize: Finalize) -> dict:
        objective, budget = stage.objective or Objective(labels=1), self.budget(job, stage)
        compares = objective.needs_teacher
        teacher = MASKED.load_model(job.backbone, job.seed) if compares else None
        data = MASKED.data(self.rows(job))
        lesson = Lesson(data, pair.tokenizer, budget, objective, teacher, stage.techniques,
                        pad=stage.pad)  # fmt: skip
        return train(self.model(job, stage, pair), lesson, run)[1]

    def budget(self, job: Job, stage: Stage) -> Budget:
        """The stage's, on texts, none of which are held out or scored on the way."""
        return replace(stage.budget(job.budget), keep="last")


class TwoModels(Texts):
    """A student with a small vocabulary, beside a teacher that learns it too."""

    def teach(self, job: Job, stage: Stage, pair: Pair, run: Run, finalize: Finalize) -> dict:
        how: Any = next(t for t in stage.techniques if t.needs_task == stage.task)
        teacher = MASKED.load_model(job.backbone, job.seed)
        budget = self.budget(job, stage)
        if budget.dropout is not None:  # the teacher learns with its own
            set_dropout_(pair.student, budget.dropout)
        task = TwoVocabularies(
            ours=pair.tokenizer, theirs=teachers.load_tokenizer(job.backbone), mix=how.mix,
            offset=len(teacher.get_input_embeddings().weight), max_length=budget.max_length,
        )  # fmt: skip
        lesson = Lesson(task.data(self.rows(job)), pair.tokenizer, replace(budget, dropout=None))
        student = self.model(job, stage, pair)
        return train_beside(student, teacher, lesson, run, how)[1]


KINDS: dict[str, OwnTask] = {"its own": OwnTask(), "mlm": Texts(), "dual": TwoModels()}


def _augmented(job: Job, how: augmentation.Augmentation) -> Split:
    """A task's rows with their copies, made once: all seeds share them."""
    path = job.backbone  # with its own tokenizer: rows are text
    name = cache.key(teachers.weights_id(path), job.data.train.fingerprint, written(how))
    folder = cache.cache_dir() / "augmented" / name

    def make(partial: Path) -> None:
        model = MASKED.load_model(path).to(job.device or default_device())
        words, progress = teachers.load_tokenizer(path), job.progress
        rows = augmentation.augment(job.data.train, words, model, how, progress=progress)
        augmentation.write_rows(rows, partial / "rows.json")

    cache.keep(folder, make)
    return augmentation.read_rows(folder / "rows.json")
