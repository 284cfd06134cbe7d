"""Profiles, runs and records: one call compresses a teacher, measures it, writes it down."""

from __future__ import annotations

import copy
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

import xtclib
from xtclib import artefact, breakdown, recipes, teachers
from xtclib.files import folder_bytes, staged_folder, unknown, write_json
from xtclib.glue import TASKS, TaskData, find_task, load
from xtclib.metrics import majority
from xtclib.models import encoder_layers
from xtclib.recipes import Budget, Recipe
from xtclib.teachers import Teacher, cache_dir, key, load_tokenizer
from xtclib.techniques import apply_all
from xtclib.training import evaluate, set_dropout_, train_stage

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "data" / "results"


@dataclass(frozen=True)
class Profile:
    """A scale to work at: which backbone, which data, how long to train."""

    name: str
    summary: str
    backbone: str
    data: str
    teacher: Budget
    budgets: dict[str, Budget]
    rows: int | None = None
    precision: str = "auto"
    latency: tuple[int, int] = (8, 32)
    teacher_by_task: dict[str, Budget] = field(default_factory=dict)


def _lengths(unit: str, a: float, b: float, c: float, base: Budget) -> dict[str, Budget]:
    return {n: replace(base, **{unit: v}) for n, v in (("A", a), ("B", b), ("C", c))}


_SMALL = Budget(steps=1, learning_rate=5e-4, max_length=48, dropout=0.0)
_GLUE = Budget(epochs=3, max_length=128)
_MINILM = replace(_GLUE, learning_rate=2e-4, dropout=0.0)
# XTC, arXiv:2206.01859, section 3: budgets of 3, 9 and 18 epochs; lr 5e-5, one warm-up epoch.
_PAPER = replace(_GLUE, learning_rate=5e-5, keep="evaluation", evaluations=20)

PROFILES = {
    p.name: p
    for p in (
        Profile(
            "smoke",
            "a random tiny BERT and a handful of rows, for tests",
            "random",
            "mini",
            replace(_SMALL, steps=6),
            _lengths("steps", 4, 6, 8, _SMALL),
            rows=64,
            precision="fp32",
            latency=(2, 16),
        ),
        Profile(
            "mini",
            "a small 12-layer BERT and the built-in tasks, offline",
            "mini",
            "mini",
            replace(_SMALL, steps=400, learning_rate=3e-4, dropout=0.1),
            _lengths("steps", 200, 600, 1200, _SMALL),
            # The backbone knows this task best: a teacher of 400 steps would leave no row wrong.
            teacher_by_task={
                "sst2": replace(_SMALL, steps=120, learning_rate=1e-4, dropout=0.1),
            },
        ),
        Profile(
            "minilm",
            "the real 6-layer MiniLM on GLUE",
            "minilm",
            "glue",
            replace(_GLUE, epochs=3, learning_rate=6e-5),
            _lengths("epochs", 3, 9, 18, _MINILM),
            latency=(8, 128),
        ),
        Profile(
            "bert-base",
            "BERT-base on GLUE, the paper's setting",
            "google-bert/bert-base-uncased",
            "glue",
            replace(_GLUE, learning_rate=2e-5, keep="evaluation"),
            _lengths("epochs", 3, 9, 18, _PAPER),
            latency=(8, 128),
        ),
    )
}


def profile(name: str | Profile | None = None) -> Profile:
    """A profile by name; ``None`` takes ``XTC_PROFILE``, else ``mini``.

    >>> profile("smoke").name
    'smoke'
    """
    if isinstance(name, Profile):
        return name
    name = name or os.environ.get("XTC_PROFILE") or "mini"
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    return PROFILES[name]


def profiles() -> dict[str, str]:
    """Names and summaries of the profiles."""
    return {p.name: p.summary for p in PROFILES.values()}


def data_for(task: str, profile_: Profile | str, glue_dir: str | Path | None = None) -> TaskData:
    """A task's rows, from where the profile says: built in, a GLUE folder, or the Hub.

    ``glue_dir`` (else ``XTC_GLUE_DIR``) names a folder in GLUE's official layout and wins. Without
    one the built-in profiles read the committed tasks, the others the Hub.
    """
    chosen = profile(profile_)
    folder = glue_dir or os.environ.get("XTC_GLUE_DIR")
    if folder is None:
        folder = ROOT / "data" / "mini" if chosen.data == "mini" else "hub"
    if chosen.data == "mini" and folder != "hub" and not Path(folder).is_dir():
        raise FileNotFoundError(
            f"the tasks are not at {folder}: work in a clone of the repository, generate the "
            "built-in ones by `python scripts/pretrain_mini.py`, or name a GLUE folder (--glue-dir)"
        )
    return load(find_task(task), str(folder), limit=chosen.rows)


def backbone_for(profile_: Profile | str) -> str:
    """A profile's pre-trained backbone: a folder or a Hub id."""
    chosen = profile(profile_)
    if chosen.backbone == "mini":
        return str(ROOT / "data" / "mini" / "backbone")
    if chosen.backbone == "minilm":
        return teachers.minilm()
    if chosen.backbone == "random":
        return str(_random_backbone())
    return chosen.backbone


def _random_backbone() -> Path:
    """A random 12-layer BERT, 32 wide, with the built-in vocabulary: made once, a second."""
    tokenizer = load_tokenizer(ROOT / "data" / "mini" / "backbone", 48)
    folder = cache_dir() / "backbones" / f"random-12x32-{key(tokenizer.get_vocab())}"
    if not (folder / "model.safetensors").is_file():
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=12,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.1,
        )
        torch.manual_seed(0)
        model = BertForSequenceClassification(config).bert
        shutil.rmtree(folder, ignore_errors=True)
        with staged_folder(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    return folder


def teacher_for(
    task: str,
    profile_: Profile | str | None = None,
    data: TaskData | None = None,
    path: str | Path | None = None,
    progress: bool = True,
    device: str | None = None,
) -> Teacher:
    """The profile's teacher for a task, fine-tuned on first use; or one of your own at ``path``."""
    chosen = profile(profile_)
    data = data or data_for(task, chosen)
    if path is not None:
        return teachers.load_teacher(path, data.task, data)
    spent = chosen.teacher_by_task.get(data.task.name, chosen.teacher)
    return teachers.fine_tuned(
        backbone_for(chosen), data, spent, 0, chosen.precision, progress, device
    )


@dataclass(frozen=True)
class Record:
    """What was measured in one run; metrics in percent, sizes in bytes, times in ms and s."""

    recipe: str
    recipe_hash: str
    task: str
    profile: str
    budget: str
    seed: int
    metrics: dict[str, dict[str, float]]
    teacher_metrics: dict[str, dict[str, float]]
    majority: dict[str, dict[str, float]]
    untrained: dict[str, dict[str, float]]
    bytes: int
    folder_bytes: int
    teacher_bytes: int
    parameters: int
    teacher_parameters: int
    flops: int
    teacher_flops: int
    latency: dict
    seconds: float
    stages: list[dict]
    data: str
    data_fingerprint: str
    teacher_key: str
    left_out: str
    selected_on: str
    note: str
    versions: dict[str, str]
    machine: dict
    commit: str
    date: str
    training_budget: dict = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The task's number in GLUE's convention, averaged over its evaluation splits."""
        return _mean_score(self.metrics)

    @property
    def teacher_score(self) -> float:
        """The same of the teacher."""
        return _mean_score(self.teacher_metrics)

    @property
    def ratio(self) -> float:
        """How many times smaller than the teacher's fp32 file the packed file is."""
        return self.teacher_bytes / self.bytes

    def table(self) -> str:
        """The run against its teacher, as text."""
        times = self.latency["milliseconds"]
        rows = [
            ("", "teacher", "student"),
            (f"{self.task}, score", f"{self.teacher_score:.1f}", f"{self.score:.1f}"),
            ("file on disk, MB", f"{self.teacher_bytes / 1e6:.2f}", f"{self.bytes / 1e6:.2f}"),
            ("times smaller", "1.0", f"{self.ratio:.1f}"),
            (
                "parameters, M",
                f"{self.teacher_parameters / 1e6:.2f}",
                f"{self.parameters / 1e6:.2f}",
            ),
            ("GFLOPs, one row", f"{self.teacher_flops / 1e9:.3f}", f"{self.flops / 1e9:.3f}"),
            (
                f"ms, batch {self.latency['batch']} × {self.latency['length']}",
                f"{times['teacher']['median']:.1f}",
                f"{times['student']['median']:.1f}",
            ),
        ]
        lines = [f"{name:<24}{a:>10}{b:>10}" for name, a, b in rows]
        head = f"{self.recipe} · {self.profile} · budget {self.budget} · seed {self.seed}"
        return "\n".join([head, *lines, *([self.note] if self.note else [])])

    def save(self, folder: str | Path = RESULTS) -> Path:
        """Writes ``<folder>/<profile>/<task>/<recipe>-<budget>-s<seed>.json``."""
        path = record_path(folder, self.profile, self.task, self.recipe, self.budget, self.seed)
        return write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | Path) -> Record:
        """A record from its JSON; ``ValueError`` if a field is missing or unknown."""
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            raise ValueError(
                f"{path} is no record of this version: missing {sorted(known - set(values))}, "
                f"unknown {sorted(set(values) - known)}; measure it again (`xtc results`)"
            )
        return cls(**values)


def record_path(
    folder: str | Path, profile_: str, task: str, recipe: str, budget: str, seed: int
) -> Path:
    """Where a record lies."""
    return Path(folder) / profile_ / task / f"{recipe}-{budget}-s{seed}.json"


def records(profile_: str, folder: str | Path = RESULTS, **where: object) -> list[Record]:
    """The committed records of a profile, filtered by field values; sorted by file name.

    >>> records("mini", recipe="no-such-recipe")
    []
    """
    paths = sorted(Path(folder, profile_).glob("*/*.json"))
    found = [Record.read(path) for path in paths]
    return [r for r in found if all(getattr(r, k) == v for k, v in where.items())]


def _mean_score(metrics: dict[str, dict[str, float]]) -> float:
    return sum(m["score"] for m in metrics.values()) / len(metrics)


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
    determines them, so a killed run goes on and a repeated one is read. ``out`` takes the artefact;
    it must not exist or be empty, which is checked before training. ``teacher``: a folder or Hub id
    of a model fine-tuned for the task; by default the profile's own. ``say`` prints what is done.

    Raises ``ValueError`` for unknown names, ``FileExistsError`` if ``out`` holds something.
    """
    recipe, chosen = recipes.load(recipe), xtclib.study.profile(profile)
    find_task(task)
    spent = recipes.budget(budget, chosen.budgets)
    budget_name = budget if isinstance(budget, str) else "custom"
    if (
        out is not None
        and Path(out).exists()
        and (not Path(out).is_dir() or any(Path(out).iterdir()))
    ):
        raise FileExistsError(f"{out} already holds files: choose another --out or empty it")
    data = data_for(task, chosen, glue_dir)
    say(f"data     {data.source}")
    if not isinstance(teacher, Teacher):
        teacher = teacher_for(task, chosen, data, teacher, progress, device)
    say(
        f"teacher  {len(encoder_layers(teacher.model))} layers, "
        f"{'from the cache' if teacher.cached else 'fine-tuned now'} ({teacher.key})"
    )
    start = _check_applies(recipe, teacher.model)
    student, stages = teacher.model, []
    done: list = []
    for index, stage in enumerate(recipe.stages):
        student = apply_all(_fresh(student), stage.techniques, data)
        done += stage.techniques
        if stage.objective is None:
            continue
        say(
            f"stage    {index + 1}/{len(recipe.stages)} {stage.name}: "
            f"{spent.total_steps(len(data.train))} steps, learning rate {spent.learning_rate:g}"
        )
        student, notes = _trained(
            student,
            teacher,
            data,
            chosen,
            stage,
            spent,
            seed,
            progress,
            device,
            done,
            stages,
        )
        stages.append(notes)
    student = artefact.finalize(student, done)
    return _measure(
        recipe, chosen, budget_name, spent, seed, data, teacher, student, stages, start, out, say
    )


def _fresh(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).requires_grad_(True)


def _check_applies(recipe: Recipe, teacher: PreTrainedModel) -> PreTrainedModel:
    """The recipe's untrained counterpart, finalized; every bad setting shows before training."""
    model = _fresh(teacher)
    return artefact.finalize(apply_all(model, recipe.techniques), recipe.techniques)


def _trained(
    student, teacher, data, chosen, stage, spent, seed, progress, device, techniques, before
) -> tuple[PreTrainedModel, dict]:
    """One stage, trained or read from the cache, whose key holds all that went into it."""
    name = key(
        teacher.key,
        data.fingerprint,
        [t.to_dict() for t in techniques],
        asdict(stage.objective),
        asdict(spent),
        seed,
        chosen.precision,
        [s["key"] for s in before],
        torch.__version__,
        transformers.__version__,
    )
    folder = cache_dir() / "stages" / name
    if (folder / "notes.json").is_file():
        if spent.dropout is not None:
            set_dropout_(student, spent.dropout)
        student.load_state_dict(load_file(folder / "student.safetensors"))
        return student, json.loads((folder / "notes.json").read_text())
    start = time.perf_counter()
    run = cache_dir() / "runs" / name
    student, notes = train_stage(
        student,
        teacher.tokenizer,
        data,
        stage.objective,
        spent,
        run,
        teacher.model,
        seed,
        chosen.precision,
        progress,
        device=device,
        finalize=lambda model: artefact.finalize(model, techniques),
    )
    notes |= {"name": stage.name, "key": name, "seconds": round(time.perf_counter() - start, 1)}
    with staged_folder(folder) as partial:
        tensors = {k: v.detach().cpu().contiguous() for k, v in student.state_dict().items()}
        save_file(tensors, partial / "student.safetensors")
        write_json(partial / "notes.json", notes)
    shutil.rmtree(run, ignore_errors=True)  # its checkpoints are three times the model
    return student, notes


def _measure(
    recipe, chosen, budget_name, spent, seed, data, teacher, student, stages, untrained, out, say
) -> Run:
    tokenizer, length = teacher.tokenizer, spent.max_length
    student = student.to("cpu").eval()
    teacher_model = teacher.model.to("cpu").eval()
    metrics = evaluate(student, tokenizer, data, length)
    teacher_metrics = evaluate(teacher_model, tokenizer, data, length)
    floor = {n: majority(data.task, s, data.train) for n, s in data.evaluation.items()}
    start = evaluate(untrained, tokenizer, data, length) if recipe.trains else metrics
    target = (
        Path(out) if out is not None else _results_folder(recipe, chosen, budget_name, seed, data)
    )
    if out is None:
        shutil.rmtree(target, ignore_errors=True)
    artefact.save(student, tokenizer, target)
    batch, width = chosen.latency
    layer_flops = [breakdown.flops(m.config, 1, width) for m in (student, teacher_model)]
    times = breakdown.model_latency(
        {"teacher": teacher_model, "student": student}, batch, width, repeats=10
    )
    record = Record(
        recipe=recipe.name,
        recipe_hash=recipe.hash,
        task=data.task.name,
        profile=chosen.name,
        budget=budget_name,
        seed=seed,
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
        selected_on=spent.keep if recipe.trains else "nothing is trained",
        note=_verdict(recipe, metrics, floor, start),
        versions=_versions(),
        machine=_machine(),
        commit=_commit(),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        training_budget=asdict(spent),
    )
    say(f"artefact {target} ({record.bytes / 1e6:.2f} MB, {record.ratio:.1f} × smaller)")
    return Run(record, student, tokenizer, teacher, data, target)


def _verdict(recipe: Recipe, metrics: dict, floor: dict, untrained: dict) -> str:
    """Empty if the student beats the majority class and its untrained counterpart."""
    found, low, start = (_mean_score(m) for m in (metrics, floor, untrained))
    if found <= low:
        return f"does not beat the majority class ({low:.1f})" + (
            "" if recipe.trains else ": nothing was trained"
        )
    if recipe.trains and found <= start:
        return f"does not beat its untrained counterpart ({start:.1f}): the budget is too short"
    return ""


def _results_folder(recipe, chosen, budget_name, seed, data) -> Path:
    name = f"{chosen.name}-{data.task.name}-{recipe.name}-{budget_name}-s{seed}"
    return cache_dir() / "artefacts" / name


def _saved_bytes(model: PreTrainedModel) -> int:
    """The size of a model's fp32 ``model.safetensors``, written and read off the disk."""
    folder = cache_dir() / "sizes" / key(os.getpid(), time.time())
    try:
        model.save_pretrained(folder)
        return (folder / artefact.WEIGHTS).stat().st_size
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _versions() -> dict[str, str]:
    return {
        "xtclib": xtclib.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _machine() -> dict:
    return {
        "processor": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str:
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return out.stdout.strip()


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

    A record counts as measured if its recipe hash, data and training budget are today's. Nothing
    that was measured is lost if the sweep is cut off.
    """
    chosen = xtclib.study.profile(profile)
    recipe_names, budgets, seeds = list(recipe_names), list(budgets), list(seeds)
    found = []
    for task in tasks:
        data = data_for(task, chosen, glue_dir)
        for name in recipe_names:
            recipe = recipes.load(name)
            # Without training, budgets and seeds change nothing.
            for budget in budgets if recipe.trains else list(budgets)[:1]:
                for seed in seeds if recipe.trains else list(seeds)[:1]:
                    path = record_path(
                        folder, chosen.name, data.task.name, recipe.name, budget, seed
                    )
                    spent = asdict(recipes.budget(budget, chosen.budgets))
                    if _is_current(path, recipe, data, spent):
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


def _is_current(path: Path, recipe: Recipe, data: TaskData, spent: dict) -> bool:
    if not path.is_file():
        return False
    values = json.loads(path.read_text(encoding="utf-8"))
    if set(values) != {f.name for f in fields(Record)}:
        return False  # of another version of this project
    wanted = (recipe.hash, data.fingerprint, spent)
    return (
        values.get("recipe_hash"),
        values.get("data_fingerprint"),
        values.get("training_budget"),
    ) == wanted
