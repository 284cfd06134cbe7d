"""What a stage teaches: the run's own task, masked words, or two models at once.

Each kind says what it reads, which students it cannot teach, and how. ``KINDS`` has them by the
``task`` of a recipe's stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib import cache, teachers
from xtclib.bert import encoder_layers
from xtclib.cache import cache_dir, key
from xtclib.distillation.objective import Objective
from xtclib.recipes.recipe import Recipe, Stage
from xtclib.study import profiles
from xtclib.study.profiles import Profile
from xtclib.tasks import augmentation
from xtclib.tasks.augmentation import Augmentation
from xtclib.tasks.base import TaskData
from xtclib.tasks.masked import MASKED, under_head
from xtclib.tasks.rows import Split
from xtclib.teachers import Teacher, load_tokenizer
from xtclib.techniques.embeddings.technique import SmallVocabulary
from xtclib.training.budget import Budget
from xtclib.training.device import default_device
from xtclib.training.dual import TwoVocabularies, train_beside
from xtclib.training.trainer import Lesson, Run, set_dropout_, train


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
    report_to: str = "none"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The recipe's stages, whose techniques draw by the run's seed."""
        return tuple(
            replace(s, techniques=tuple(t.for_seed(self.seed) for t in s.techniques))
            for s in self.recipe.stages
        )

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


Finalize = Callable[[PreTrainedModel], PreTrainedModel]


class OwnTask:
    """The run's task, by the stage's objective."""

    pretrains: ClassVar[bool] = False

    def rows(self, job: Job) -> Sequence:
        """What it reads; an epoch is as many rows."""
        return job.data.train

    def check(self, job: Job, stage: Stage, pair: Pair) -> None:
        """Raises ``ValueError`` for a pair that it cannot teach."""
        if not stage.objective:
            return
        if stage.objective.needs_teacher and pair.teacher is None:
            raise ValueError(
                f"stage {stage.name!r} compares with a teacher, but the student reads a vocabulary "
                "of its own, which its teacher does not: let it learn from labels"
            )
        job.data.task.check(stage.objective, pair.student, pair.teacher)

    def teach(self, job: Job, stage: Stage, pair: Pair, run: Run, finalize: Finalize) -> dict:
        """Trains the pair's student in place, and returns notes on it."""
        data, budget = job.data, stage.budget(job.budget)
        if stage.augmentation:  # more rows, as many steps
            data = replace(data, train=_augmented(job, stage.augmentation))
            steps = budget.total_steps(len(self.rows(job)))
            budget = replace(budget, steps=steps, epochs=None)
        lesson = Lesson(
            data, pair.tokenizer, budget, stage.objective, pair.teacher, stage.techniques, finalize
        )
        return train(pair.student, lesson, run)[1]


class Texts(OwnTask):
    """Guessing the masked words of a text, by the student's encoder under a head for words."""

    pretrains: ClassVar[bool] = True

    def rows(self, job: Job) -> list[str]:
        return profiles.texts_for(job.profile, job.data)

    def check(self, job: Job, stage: Stage, pair: Pair) -> None:
        student = pair.student
        encoder_layers(student)  # or an error that says what it lacks
        if not isinstance(student.get_input_embeddings(), nn.Embedding):
            raise ValueError(
                f"stage {stage.name!r} guesses words, but the word table was split or packed: list "
                "it before that"
            )
        words = pair.tokenizer.get_vocab()
        compares = stage.objective and stage.objective.needs_teacher
        if compares and words != load_tokenizer(job.backbone).get_vocab():
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
        objective, teacher = stage.objective or Objective(labels=1), None
        if objective.needs_teacher:
            teacher = MASKED.load_model(job.backbone, job.seed)
        lesson = Lesson(
            MASKED.data(self.rows(job)), pair.tokenizer, _to_the_end(job, stage), objective,
            teacher, stage.techniques,
        )  # fmt: skip
        return train(self.model(job, stage, pair), lesson, run)[1]


class TwoModels(Texts):
    """A student with a small vocabulary, beside a teacher that learns it too."""

    def check(self, job: Job, stage: Stage, pair: Pair) -> None:
        """Whatever makes such a student fits."""

    def teach(self, job: Job, stage: Stage, pair: Pair, run: Run, finalize: Finalize) -> dict:
        how = next(t for t in stage.techniques if isinstance(t, SmallVocabulary))
        teacher = MASKED.load_model(job.backbone, job.seed)
        budget = _to_the_end(job, stage)
        if budget.dropout is not None:  # the teacher learns with its own
            set_dropout_(pair.student, budget.dropout)
        task = TwoVocabularies(
            ours=pair.tokenizer, theirs=load_tokenizer(job.backbone), mix=how.mix,
            offset=len(teacher.get_input_embeddings().weight), max_length=budget.max_length,
        )  # fmt: skip
        lesson = Lesson(task.data(self.rows(job)), pair.tokenizer, replace(budget, dropout=None))
        student = self.model(job, stage, pair)
        return train_beside(student, teacher, lesson, run, how)[1]


KINDS: dict[str, OwnTask] = {"its own": OwnTask(), "mlm": Texts(), "dual": TwoModels()}


def _to_the_end(job: Job, stage: Stage) -> Budget:
    """A stage's budget on texts, none of which are held out or scored on the way."""
    return replace(stage.budget(job.budget), keep="last")


def _augmented(job: Job, how: Augmentation) -> Split:
    """A task's rows with their copies, made once: all seeds share them."""
    path = job.backbone  # with its own tokenizer: rows are text
    name = key(teachers.weights_id(path), job.data.train.fingerprint, how.to_dict())
    file = cache_dir() / "augmented" / f"{name}.json"
    with cache.locked(name):
        if not file.is_file():
            model = MASKED.load_model(path).to(job.device or default_device())
            rows = augmentation.augment(
                job.data.train, load_tokenizer(path), model, how, progress=job.progress
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            augmentation.save(rows, file)
    return augmentation.load(file)
