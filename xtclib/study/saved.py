"""What was saved, opened for whoever judges it: a model, its words, and the rows it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from xtclib import bert, teachers
from xtclib.artefact import format
from xtclib.study import profiles
from xtclib.tasks import reviews
from xtclib.tasks.asked import asked
from xtclib.tasks.base import TaskData


@dataclass(frozen=True)
class Saved:
    """A saved model with its tokenizer, and what it says of itself.

    ``trained_on``: task, data, source, length and profile, of an artefact; ``longest``: tokens that
    it has positions for; ``encodes``: whether it gives vectors, without a head.
    """

    path: Path
    model: Any
    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    trained_on: dict
    longest: int | None
    encodes: bool

    @property
    def is_onnx(self) -> bool:
        """Whether ONNX Runtime runs it."""
        return self.path.is_file()

    @property
    def bytes(self) -> int:
        """The weights' file on disk, or its parts."""
        file = self.path if self.is_onnx else self.path / format.WEIGHTS
        files = [file] if file.is_file() else self.path.glob("model-*.safetensors")
        return sum(each.stat().st_size for each in files)


def opened(path: Path, tokenizer: Path | None = None) -> Saved:
    """An artefact's or a classifier's folder, or an ``.onnx`` file; checked as it is read.

    ``tokenizer``: the folder of an ``.onnx`` file's, its own unless told. Raises
    ``FileNotFoundError`` for what is not there, ``ValueError`` for what is damaged or no classifier
    and ``ImportError`` where ONNX Runtime is missing.
    """
    if path.suffix != ".onnx":
        model, words = format.load(path)
        labels = list(model.config.id2label.values())
        was = getattr(model.config, "trained_on", None) or {}
        return Saved(path, model, words, labels, was, bert.longest(model), bert.has_no_head(model))
    from xtclib.deployment import runtimes

    file, where = runtimes.OnnxModel(path), tokenizer or path.parent
    if not (where / "tokenizer.json").is_file():
        cure = "name the artefact's folder by --tokenizer"
        raise FileNotFoundError(f"no tokenizer.json in {where}: {cure}")
    words = teachers.load_tokenizer(where, file.max_length or 128)
    return Saved(path, file, words, file.labels, file.trained_on, file.max_length, file.encodes)


@dataclass(frozen=True)
class Asked:
    """The rows that a saved model is asked, how many tokens of each it reads, and whose they are.

    ``notes``: in what they are others than those that it was trained for.
    """

    data: TaskData
    length: int
    profile: profiles.Profile
    notes: tuple[str, ...]


def rows_for(
    saved: Saved, task: str | None = None, data: str | None = None, profile: str | None = None,
    glue_dir: str | Path | None = None, teacher: str | Path | None = None, **columns: str | None,
) -> Asked:  # fmt: skip
    """The rows of a saved model's own task, or of ``task``, or of the file ``data``.

    ``columns``: of the file, as for :func:`xtclib.tasks.asked.asked`; ``teacher``: by whom a task
    without labels is judged. Raises ``ValueError`` for a task that the model is not for, and for
    rows that it learned from.
    """
    path, was = saved.path, saved.trained_on
    if "own" in was and not (task or data):
        raise ValueError(f"{path} was trained on rows of one's own: name their file by --data")
    about = asked(task, data, saved.labels, was.get("own"), **columns) or was.get("task")
    whose = profiles.profile(profile or was.get("profile"), about, glue_dir)
    about = about or whose.task
    if teacher is not None and not isinstance(about, str):
        about = about.taught_by(teacher)
    rows = profiles.data_for(about, whose, glue_dir)
    if rows.task.details and rows.fingerprint != was.get("data"):
        rows = rows.task.whole(rows)
    reviews.check_apart(was, rows)
    rows.task.check_labels(path, saved.labels)
    rows.task.check_head(path, saved.encodes)
    length = None if profile or not was else was["max_length"]
    length = min(length or rows.task.length or whose.teacher.max_length, saved.longest or 10**6)
    here = {"task": rows.task.name, "max_length": length, "data": rows.fingerprint}
    notes = tuple(
        f"it was trained on another {what}: {was[what]} ({was['source']})"
        for what, value in here.items() if was.get(what, value) != value
    )  # fmt: skip
    return Asked(rows, length, whose, notes)
