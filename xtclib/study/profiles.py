"""Profiles, the scales to work at: which backbone, which data and which teacher each one takes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForPreTraining

from xtclib import cache, records, teachers
from xtclib.bert import read_config
from xtclib.cache import BUILT_IN, cache_dir, key
from xtclib.files import fault, unknown
from xtclib.recipes.recipe import Recipe
from xtclib.tasks import reviews
from xtclib.tasks.base import Task, TaskData, find_task
from xtclib.tasks.masked import unlabelled
from xtclib.training import budget as training_budget
from xtclib.training.budget import Budget


@dataclass(frozen=True)
class Profile:
    """A scale to work at: which backbone, which data, how long to train."""

    name: str
    summary: str
    backbone: str
    data: str
    teacher: Budget
    budgets: dict[str, Budget]
    task: str = "sst2"  # where none is named
    live: str = "A"  # the budget of what a lesson trains while its reader waits
    rows: int | None = None
    precision: str = "auto"
    latency: tuple[int, int] = (8, 32)
    teacher_by_task: dict[str, Budget] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)  # of recipes whose paper has its own
    # Of students whose weights are all new, which a rate for fine-tuning leaves as they were drawn.
    new_weights: float | None = None

    def budget(self, name: str | Budget, recipe: Recipe) -> Budget:
        """A recipe's budget ``A``, ``B``, ``C`` or ``500steps`` at its rate; another as it is.

        One that names a rate, as ``A@1e-4`` does, has that.

        >>> from xtclib.recipes.recipe import load
        >>> profile("bert-base").budget("A", load("ternarybert")).learning_rate
        2e-05
        >>> profile("bert-base").budget("A", load("movement-90")).learning_rate
        3e-05
        >>> profile("reviews").budget("A", load("mobilebert")).learning_rate
        0.001
        """
        found = training_budget.budget(name, self.budgets)
        stem, _, percent = recipe.name.rpartition("-")  # movement-90 has movement's
        rate = self.rates.get(stem if percent.isdigit() else recipe.name)
        rate = rate or (self.new_weights if recipe.starts_anew else None)
        if rate is None or isinstance(name, Budget) or "@" in name:
            return found
        return replace(found, learning_rate=rate)


def _lengths(unit: str, a: float, b: float, c: float, base: Budget) -> dict[str, Budget]:
    changes: list[dict[str, Any]] = [{unit: value} for value in (a, b, c)]
    return {name: replace(base, **change) for name, change in zip("ABC", changes, strict=True)}


_SMALL = Budget(steps=1, learning_rate=5e-4, max_length=48, dropout=0.0)
_GLUE = Budget(epochs=3, max_length=128)
_REVIEWS = Budget(steps=1, learning_rate=2e-4, max_length=64, dropout=0.0)
_MINILM = replace(_GLUE, learning_rate=2e-4, dropout=0.0)
# XTC, arXiv:2206.01859, section 3: budgets of 3, 9 and 18 epochs; lr 5e-5, one warm-up epoch.
_PAPER = replace(_GLUE, learning_rate=5e-5, keep="evaluation", evaluations=20)
# Where a paper or its release has another rate than XTC's.
_RATES = {
    "ternarybert": 2e-5, "ternarytinybert": 2e-5, "binarybert-bwn": 2e-5, "binarybert-twn": 2e-5,
    "movement": 3e-5,
}  # fmt: skip

FEWEST = 100  # steps of a teacher of your own rows
PROFILES = {
    p.name: p
    for p in (
        Profile(
            "smoke", "a random tiny BERT and a handful of rows, for tests", "random", "mini",
            replace(_SMALL, steps=6), _lengths("steps", 4, 6, 8, _SMALL), rows=64,
            precision="fp32", latency=(2, 16),
        ),
        Profile(
            "mini", "a small 12-layer BERT and the built-in tasks, offline", "mini", "mini",
            replace(_SMALL, steps=400, learning_rate=3e-4, dropout=0.1),
            _lengths("steps", 200, 600, 1200, _SMALL),
            # The backbone knows this task best: a teacher of 400 steps would leave no row wrong.
            teacher_by_task={"sst2": replace(_SMALL, steps=120, learning_rate=1e-4, dropout=0.1)},
        ),
        Profile(
            "reviews", "the real 6-layer MiniLM on real movie reviews", "minilm", "reviews",
            replace(_GLUE, epochs=4, learning_rate=1e-4, max_length=64),
            _lengths("steps", 150, 400, 1200, _REVIEWS), task="reviews", live="60steps",
            latency=(8, 32), new_weights=1e-3,
        ),
        Profile(
            "minilm", "the real 6-layer MiniLM on GLUE", "minilm", "glue",
            replace(_GLUE, epochs=5, learning_rate=1e-4), _lengths("epochs", 3, 9, 18, _MINILM),
            latency=(8, 128),
            # Eight times CoLA's rows: a lower rate, chosen by the dev score among four budgets.
            teacher_by_task={"sst2": replace(_GLUE, epochs=4, learning_rate=3e-5)},
        ),
        Profile(
            "bert-base", "BERT-base on GLUE, the paper's setting", "google-bert/bert-base-uncased",
            "glue", replace(_GLUE, learning_rate=2e-5, keep="evaluation"),
            _lengths("epochs", 3, 9, 18, _PAPER), latency=(8, 128), rates=_RATES,
        ),
    )
}  # fmt: skip


def profile(name: str | Profile | None = None, task: str | Task | None = None,
            glue_dir: str | Path | None = None) -> Profile:  # fmt: skip
    """A profile by name; ``None`` takes ``XTC_PROFILE``, else ``reviews``, the real one.

    That has its own tasks: for a ``task`` of GLUE's it is ``minilm`` where a ``glue_dir`` is named,
    else ``mini``. Where its sentences are not there, ``mini`` too, with a warning.

    >>> profile("smoke").name
    'smoke'
    """
    if isinstance(name, Profile):
        return name
    name = name or os.environ.get("XTC_PROFILE")
    if not name and task and not find_task(task).source:
        name = "minilm" if glue_dir or os.environ.get("XTC_GLUE_DIR") else "mini"
    if not name and not (task or reviews.fetched()):
        warnings.warn("the real reviews are not here, generated sentences (profile mini) stand in: "
                      f"{reviews.FETCH}", stacklevel=2)  # fmt: skip
        name = "mini"
    name = name or "reviews"
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    return PROFILES[name]


def recorded(name: str | Profile | None, task: str | Task | None, glue_dir: str | Path | None,
             folder: str | Path) -> Profile:  # fmt: skip
    """The profile that a question over records means: as :func:`profile`, where that has any.

    Where none is named and that one has no record of the task, the first other one that has: to
    read records takes neither its data nor its backbone.

    >>> recorded("smoke", "sst2", None, "no-such-folder").name
    'smoke'
    """
    if name or os.environ.get("XTC_PROFILE"):
        return profile(name, task, glue_dir)
    asked = find_task(task or "reviews")
    meant = profile(None, asked, glue_dir)
    for each in (meant, *reversed(PROFILES.values())):
        place = records.record_path(folder, each.name, asked.name, "any", "A", 0).parent
        if any(place.glob("*.json")):
            return each
    return meant


def with_length(chosen: Profile, length: int | None) -> Profile:
    """A profile that reads ``length`` tokens of a row, for its teachers and every budget.

    >>> with_length(profile("smoke"), 32).teacher.max_length
    32
    """
    if length is None:
        return chosen
    if length < 3:  # two tokens stand around each text
        raise ValueError(f"a length is 3 tokens or more, received {length}")

    def longer(budgets: Mapping[str, Budget]) -> dict[str, Budget]:
        return {name: replace(each, max_length=length) for name, each in budgets.items()}

    teacher = replace(chosen.teacher, max_length=length)
    return replace(chosen, teacher=teacher, budgets=longer(chosen.budgets),
                   teacher_by_task=longer(chosen.teacher_by_task))  # fmt: skip


def length_for(task: Task, chosen: Profile) -> int | None:
    """The length that a task needs where a profile's is too short for it, or what a model reads."""
    if task.length is None:
        return None
    most = getattr(read_config(backbone_for(chosen)), "max_position_embeddings", task.length)
    return min(task.length, most - 2)


def data_for(
    task: str | Task, profile_: Profile | str, glue_dir: str | Path | None = None
) -> TaskData:
    """A task's rows, from where the profile says: built in, a GLUE folder, or the Hub.

    ``glue_dir`` (else ``XTC_GLUE_DIR``) names a folder in GLUE's official layout and wins. Without
    one the built-in profiles read the committed tasks, the others the Hub. A task with a source of
    its own is read from there.
    """
    chosen, wanted = profile(profile_), find_task(task)
    if wanted.source:
        wanted = wanted if wanted.tunes else wanted.taught_by(backbone_for(chosen))
        return wanted.load(wanted.source, limit=chosen.rows)
    if chosen.data == "reviews":
        raise ValueError(
            f"the profile {chosen.name} has reviews, ratings and kin, received {wanted.name}: "
            "choose the profile minilm (with --glue-dir) or mini for it"
        )
    folder = glue_dir or os.environ.get("XTC_GLUE_DIR")
    if folder is None:
        folder = BUILT_IN if chosen.data == "mini" else "hub"
    folder = folder if folder == "hub" else Path(folder).expanduser()
    if chosen.data == "mini" and folder != "hub" and not Path(folder).is_dir():
        raise FileNotFoundError(
            f"the tasks are not at {folder}: work in a clone of the repository, generate the "
            "built-in ones by `python scripts/pretrain_mini.py`, or name a GLUE folder (--glue-dir)"
        )
    return wanted.load(str(folder), limit=chosen.rows)


def backbone_for(profile_: Profile | str) -> str:
    """A profile's pre-trained backbone: a folder or a Hub id."""
    chosen = profile(profile_)
    if chosen.backbone == "mini":
        return str(BUILT_IN / "backbone")
    if chosen.backbone == "minilm":
        return teachers.minilm()
    if chosen.backbone == "random":
        return str(_random_backbone())
    return chosen.backbone


def texts_for(chosen: Profile, data: TaskData) -> list[str]:
    """What the ``mlm`` task reads: the built-in corpus, else the task's own training sentences."""
    if chosen.data == "mini":
        return unlabelled(BUILT_IN / "corpus.txt")[: chosen.rows]
    return data.task.texts(data)[: chosen.rows]


def _random_backbone() -> Path:
    """A random 12-layer BERT, 32 wide, with a head for masked words: made once, in a second."""
    tokenizer = teachers.load_tokenizer(BUILT_IN / "backbone", 48)
    folder = cache_dir() / "backbones" / f"random-12x32-mlm-{key(tokenizer.get_vocab())}"

    def make(partial: Path) -> None:
        torch.manual_seed(0)
        model = BertForPreTraining(BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=12,
            num_attention_heads=2, intermediate_size=64, max_position_embeddings=64,
            initializer_range=0.1,
        ))  # fmt: skip
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)

    cache.keep(folder, make)
    return folder


def teacher_for(
    task: str | Task, profile_: Profile | str | None = None, data: TaskData | None = None,
    path: str | Path | None = None, progress: bool = True, device: str | None = None,
) -> teachers.Teacher:  # fmt: skip
    """The profile's teacher for a task, fine-tuned on first use; or one of your own at ``path``.

    The profile ``reviews`` comes with its teachers, as adapters; ``path="full"`` has the whole
    backbone fine-tuned there too.
    """
    chosen = profile(profile_)
    data = data or data_for(task, chosen)
    if path is not None and path != "full":
        return teachers.load_teacher(path, data.task, data)
    if not data.task.tunes:
        return teachers.load_teacher(backbone_for(chosen), data.task)
    data = _taught_on(data, chosen)
    if path is None and chosen.data == "reviews":
        backbone = backbone_for(chosen)
        found = teachers.shipped(backbone, data)
        if found is not None:
            return found
        if (teachers.ADAPTERS / data.task.name).is_dir():
            warnings.warn(f"the shipped teacher of {data.task.name} was made from other weights "
                          f"or rows than {backbone} and {data.source}: all of the backbone is "
                          "fine-tuned instead, which takes minutes", stacklevel=2)  # fmt: skip
    return teachers.fine_tuned(*_teaching(data, chosen), progress, device)


def stand_in(data: TaskData, chosen: Profile) -> teachers.Teacher | None:
    """A model of the teacher's shape, untrained; none where the cache has the teacher itself."""
    data = _taught_on(data, chosen)
    if _shipped_key(data, chosen) or not data.task.tunes:
        return None
    if not fault(teachers.folder_of(data.task, teacher_key(data, chosen))):
        return None
    path, _, budget, *_ = _teaching(data, chosen)
    tokenizer = teachers.load_tokenizer(path, budget.max_length)
    made_from = {"backbone": teachers.weights_id(path)}
    model = data.task.load_model(path).eval()
    return teachers.Teacher(model, tokenizer, "untrained", made_from, False)


def teacher_key(data: TaskData, chosen: Profile, versions: Mapping[str, str] | None = None) -> str:
    """The key of the teacher that ``teacher_for`` gives, without making it.

    ``versions`` of torch and transformers: today's, unless told.
    """
    data = _taught_on(data, chosen)
    name = _shipped_key(data, chosen)
    if not data.task.tunes:
        name = key(teachers.weights_id(backbone_for(chosen)))
    return name or key(teachers.ingredients(*_teaching(data, chosen), versions))


def _taught_on(data: TaskData, chosen: Profile) -> TaskData:
    """What the teacher learns from: the task's own rows, or another task's that it names."""
    return data_for(data.task.teacher, chosen) if data.task.teacher else data


def _shipped_key(data: TaskData, chosen: Profile) -> str | None:
    own = chosen.data == "reviews"
    return teachers.shipped_key(backbone_for(chosen), data) if own else None


def _teaching(data: TaskData, chosen: Profile) -> tuple[str, TaskData, Budget, int, str]:
    """What a profile's teacher is made from: backbone, rows, budget, seed and precision."""
    budget = chosen.teacher_by_task.get(data.task.name, chosen.teacher)
    if data.task.details and budget.total_steps(len(data.train)) < FEWEST and budget.epochs:
        budget = replace(budget, steps=FEWEST, epochs=None)  # of a small file, more epochs
    return backbone_for(chosen), data, budget, 0, chosen.precision
