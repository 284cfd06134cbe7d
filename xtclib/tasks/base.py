"""Tasks: what is asked of a model, as objects that answer for themselves.

A task says which model it takes, how rows become batches, what the loss on labels is, what a
model's logits decide and how that is scored. A new one is one file: a subclass of :class:`Task`
and a call of :func:`register`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from xtclib.bert import read_config
from xtclib.cache import key
from xtclib.files import slug, unknown
from xtclib.tasks.rows import Rows, Split, collate


class Task(ABC):
    """What is asked of a model.

    ``labels`` name the model's outputs, in order; ``primary`` is the one metric to quote where only
    one fits. Here is how texts and pairs of texts with one label each are read; a task of another
    shape says so by :meth:`tokenize`, :meth:`collate` and :meth:`answers`.
    """

    name: str
    title: str
    labels: tuple[str, ...] = ()
    primary: str = "score"
    model_class: ClassVar[Any] = AutoModelForSequenceClassification
    # Weights by which a file shows that it was trained for such a task: one of them is there.
    heads: ClassVar[tuple[str, ...]] = (
        "classifier.weight", "classifier.out_proj.weight", "classifier.dense.weight"
    )  # fmt: skip
    settings: ClassVar[dict] = {}  # of the model's config
    label_type: ClassVar[torch.dtype] = torch.int64
    augments: ClassVar[bool] = True  # whether a changed text keeps its label
    length: ClassVar[int | None] = None  # tokens of a row, where a profile's are too few
    cuts: ClassVar[bool] = True  # whether what is longer than that is lost
    tunes: ClassVar[bool] = True  # whether a teacher learns it; else the backbone is one as it is
    source: str = ""  # where its rows are, for a task that reads no folder it is given
    judge: str = ""  # what its references depend on beside the rows: a sum of a teacher's weights
    teacher: str = ""  # the task whose teacher teaches it, where that is another's

    @property
    def num_labels(self) -> int:
        """Width of the model's output."""
        return len(self.labels)

    @property
    def details(self) -> dict[str, Any]:
        """What a name does not tell of a task, for the artefact; empty for one that comes along."""
        return {}

    def load(self, source: str, limit: int | None = None) -> TaskData:
        """The task's rows from a folder or ``"hub"``; at most ``limit`` of each split."""
        raise NotImplementedError(f"{self.name} does not say where its rows are")

    def taught_by(self, path: str | Path) -> Task:
        """The task under a teacher of this folder or Hub id, for one whose rows depend on it."""
        return self

    def whole(self, data: TaskData) -> TaskData:
        """What of ``data`` to score a model on that never saw it: all, where the task knows to."""
        return data

    def texts(self, data: TaskData) -> list[str]:
        """What a stage that guesses masked words reads: the training rows, without their labels."""
        return [*data.train.first, *(data.train.second or ())]

    def load_model(self, path: str | Path, seed: int = 0, **options: Any) -> Any:
        """A model for the task from a folder or Hub id; a missing head is drawn by ``seed``.

        The label names go into the config, so that a model says what its outputs mean. ``options``
        go to ``from_pretrained``.
        """
        read_config(path)  # or an error, before anything is built
        torch.manual_seed(seed)
        names = dict(enumerate(self.labels))
        return self.model_class.from_pretrained(
            path, num_labels=self.num_labels, id2label=names,
            label2id={name: i for i, name in names.items()}, dtype=torch.float32,
            trust_remote_code=False, use_safetensors=True, **self.settings, **options,
        )  # fmt: skip

    def tokenize(self, split: Split, tokenizer: Tokenizer, max_length: int) -> Rows:
        """Rows as token ids: a dataset of dicts, with the number of tokens of each, ``lengths``."""
        return Rows.tokenize(split, tokenizer, max_length)

    def collate(self, rows: list[dict], tokenizer: Tokenizer, draw: int = 0) -> dict[str, Any]:
        """A padded batch with ``labels``. What falls by chance is drawn by the seed ``draw``."""
        return collate(rows, tokenizer.pad_token_id, self.label_type)

    def answering(self, model: PreTrainedModel, labels: Tensor) -> AbstractContextManager:
        """Around a forward pass: a head may be told here which answers are wanted."""
        return nullcontext()

    def logits(self, output, mask: Tensor) -> Tensor:
        """What a model's output says, (batch, …, labels); ``mask`` (batch, length)."""
        return output.logits

    def answers(self, output, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, labels) and labels (n,): what the losses compare, where there is a label."""
        return self.logits(output, mask), labels

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of :meth:`answers`."""

    def compare(self, student: Tensor, teacher: Tensor, loss: Callable[..., Tensor]) -> Tensor:
        """The loss of a student's logits against its teacher's, by the objective's ``loss``."""
        return loss(student, teacher)

    @abstractmethod
    def decide(self, logits: np.ndarray, batch: dict[str, Tensor]) -> Sequence[Any] | np.ndarray:
        """The answer for each row of a batch, from :meth:`logits`."""

    @abstractmethod
    def score(self, answers: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """The task's metrics in percent, and as ``score`` the one number for it."""

    @abstractmethod
    def majority(self, split: Split, train: Split | None = None) -> dict[str, float]:
        """The score on ``split`` of the best constant answer for ``train``, else for ``split``."""

    def check_labels(self, path: str | Path, labels: Sequence[str]) -> None:
        """Raises ``ValueError`` for labels that are not the task's, in order; no names are fine."""
        if len(labels) != self.num_labels:
            raise ValueError(
                f"{path} has {len(labels)} labels, but {self.name} has {self.num_labels}: use a "
                "model that was fine-tuned for this task, or name its task by --task"
            )
        named, own = [str(label).lower() for label in labels], [n.lower() for n in self.labels]
        unnamed = [f"label_{i}" for i in range(len(named))], [str(i) for i in range(len(named))]
        if named != own and named not in unnamed:
            what = "orders its labels" if sorted(named) == sorted(own) else "has the labels"
            raise ValueError(
                f"{path} {what} {named}, but {self.name} is {own}: give its config these names in "
                "the order of its outputs (id2label), or use another model"
            )

    def check_head(self, path: str | Path, encodes: bool) -> None:
        """Raises ``ValueError`` for a model without a head where one is asked for, or with one."""
        if encodes == bool(self.heads):
            gives = "gives vectors" if encodes else "has a head"
            raise ValueError(f"{path} {gives}, {self.name} is no task for it: name rows of its own")

    def check(self, objective, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        """Raises ``ValueError`` for an objective by which two models for it cannot be compared."""
        objective.check(student, teacher)


CUT = "cut from training"  # what a split is called that stands in for the reported one


@dataclass(frozen=True)
class TaskData:
    """A task with its rows: ``train``, the splits to evaluate on, and a sentence on their source.

    ``evaluation`` is keyed "dev", "test" where the labelled rows are a test set, or for MNLI
    "matched" and "mismatched"; ``evaluation_name`` is what to write over a column: "SST-2 dev".
    """

    task: Task
    train: Split
    evaluation: dict[str, Split]
    source: str
    evaluation_name: str
    held_out: Split | None = None  # labelled rows of neither, where the task has some

    def holding_out(self) -> TaskData:
        """The same with labelled rows apart: a twentieth of the training rows, up to 1000.

        Those that the task holds out itself, where it does.
        """
        if self.held_out is not None:
            return self
        train, apart = self.train.parted(0)
        source = f"{self.source}, {len(apart)} training rows held out"
        return replace(self, train=train, held_out=apart, source=source)

    def within_training(self) -> TaskData:
        """The same, scored on a fifth of the training rows, up to 1000, not on the reported ones.

        For whoever chooses among settings: the splits to evaluate on are not in it at all.
        """
        train, cut = self.train.parted(0, part=5)
        return replace(
            self, train=train, evaluation={CUT: cut}, evaluation_name=f"{self.task.title} {CUT}",
            source=f"{self.source}; scored on {len(cut)} of the training rows, {CUT}",
        )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the fingerprints of all splits, with their names."""
        splits = {"train": self.train, **self.evaluation}
        rows = [[name, split.fingerprint] for name, split in splits.items()]
        names = [self.task.labels] if self.task.details else []  # else its name tells them
        return key(*rows, *names, *filter(None, [self.task.judge]))


def by_length(task: Task, rows: Rows, tokenizer: Tokenizer, size: int
              ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:  # fmt: skip
    """Batches of rows of similar length, each as long as its longest, with the rows' numbers."""
    order = np.argsort(rows.lengths, kind="stable").tolist()
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen, task.collate([rows[i] for i in chosen], tokenizer)


def batched(data: TaskData, tokenizer: Tokenizer, length: int, size: int, count: int = 128
            ) -> list[dict[str, Tensor]]:  # fmt: skip
    """The first rows of the first split to evaluate on, in batches to be timed, without labels."""
    split = next(iter(data.evaluation.values()))
    rows = data.task.tokenize(split.select(range(len(split))[:count]), tokenizer, length)
    batches = by_length(data.task, rows, tokenizer, size)
    return [{k: v for k, v in each.items() if k != "labels"} for _, each in batches]


_TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Makes a task known by its name, to recipes, commands and :func:`find_task`; returns it."""
    _TASKS[_plain(task.name)] = task
    return task


def find_task(name: str | Task) -> Task:
    """The task of that name, however it is spelled: "sst2", "SST-2", "sts_b".

    Raises `ValueError` with the nearest name for an unknown one.

    >>> find_task("STS-B").name
    'stsb'
    """
    if isinstance(name, Task):
        return name
    if not isinstance(name, str):
        raise TypeError(f"received {name!r} as a task, expected one of {', '.join(_TASKS)}")
    if _plain(name) not in _TASKS:
        raise unknown("task", name, [task.name for task in _TASKS.values()])
    return _TASKS[_plain(name)]


def file_name(source: str | Path) -> str:
    """What a file or folder is called, wherever it is named from; a Hub id as it is."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else str(source)


def own_name(source: str | Path) -> str:
    """A file's name as a task's, which is no other task's."""
    name = slug(Path(file_name(source)).stem).lower()
    return f"own-{name}" if _plain(name) in _TASKS else name


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")
