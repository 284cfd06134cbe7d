"""Records of what was measured: written, read back, and grouped over seeds and tasks."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import torch
import transformers

import xtclib
from xtclib.cache import ROOT, key, locked
from xtclib.config import Count, Whole, config, short
from xtclib.files import slug, sweep, write_json

RESULTS = ROOT / "data" / "results"
_PASSING = {"latency", "seconds", "stages", "commit", "date", "machine"}  # of a record


def circumstances(*packages: str) -> dict:
    """What a measurement says of itself: machine, versions (of ``packages`` too), commit, date.

    >>> sorted(circumstances())
    ['commit', 'date', 'machine', 'versions']
    """
    machine = {
        "processor": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    versions = {
        "xtclib": xtclib.__version__, "torch": torch.__version__,
        "transformers": transformers.__version__, "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }  # fmt: skip
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return {"machine": machine, "versions": versions, "commit": _commit(), "date": today}


def _commit() -> str:
    """The commit, marked ``-dirty`` if the package or its pins differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "xtclib", "constraints.txt")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@config
class Record:
    """What was measured in one run; metrics in percent, sizes in bytes, times in ms and s.

    ``measures`` holds what only some families have: curves, thresholds, ranks. ``extra`` are
    the fields of a newer version, which are written back as they were read.
    """

    recipe: str
    task: str
    profile: str
    budget: str
    seed: int
    metrics: dict[str, dict[str, float]]
    bytes: Count
    recipe_hash: str = ""
    teacher_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    majority: dict[str, dict[str, float]] = field(default_factory=dict)
    untrained: dict[str, dict[str, float]] = field(default_factory=dict)
    folder_bytes: Whole = 0
    teacher_bytes: Whole = 0
    parameters: Whole = 0
    teacher_parameters: Whole = 0
    flops: Whole = 0
    teacher_flops: Whole = 0
    latency: dict = field(default_factory=dict)
    seconds: float = 0.0
    stages: list[dict] = field(default_factory=list)
    data: str = ""
    data_fingerprint: str = ""
    teacher_key: str = ""
    left_out: str = ""
    selected_on: str = ""
    note: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict = field(default_factory=dict)
    commit: str = ""
    date: str = ""
    training_budget: dict = field(default_factory=dict)
    measures: dict = field(default_factory=dict)
    extra: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        """What tables and figures read is there, or a ``ValueError`` that names the field."""
        lacking = f"of record {short(self.recipe)} lacks"
        for name in ("metrics", "teacher_metrics", "majority", "untrained"):
            found = getattr(self, name)
            if not all("score" in metrics for metrics in found.values()):
                raise ValueError(f"{name} {lacking} a `score` of each split")
        if not self.metrics:
            raise ValueError(f"metrics {lacking} a split")
        for model in ("teacher", "student") if self.latency else ():
            try:
                right = self.latency["milliseconds"][model]["median"] > 0
            except (KeyError, TypeError):
                right = False
            if not right or not {"batch", "length"} <= self.latency.keys():
                known = "batch, length or milliseconds of both models, with medians above 0"
                raise ValueError(f"latency {lacking} {known}")

    @property
    def score(self) -> float:
        """The task's number in GLUE's convention, averaged over its evaluation splits."""
        return mean_score(self.metrics)

    @property
    def teacher_score(self) -> float:
        """The same of the teacher."""
        return mean_score(self.teacher_metrics)

    @property
    def ratio(self) -> float:
        """How many times smaller than the teacher's fp32 file the packed file is."""
        return self.teacher_bytes / self.bytes

    def lasting(self) -> dict:
        """What the same run gives again, wherever and whenever: no times, no circumstances."""
        found = {name: value for name, value in asdict(self).items() if name not in _PASSING}
        found["measures"].get("applied", {}).pop("seconds", None)
        return found | {"losses": [stage.get("losses") for stage in self.stages]}

    def table(self) -> str:
        """The run against its teacher, as text."""
        latency = self.latency
        rows = [
            (f"{self.task}, score", self.teacher_score, self.score, 1),
            ("file on disk, MB", self.teacher_bytes / 1e6, self.bytes / 1e6, 2),
            ("times smaller", 1, self.ratio, 1),
            ("parameters, M", self.teacher_parameters / 1e6, self.parameters / 1e6, 2),
            ("GFLOPs, one row", self.teacher_flops / 1e9, self.flops / 1e9, 3),
        ]
        if latency:
            times = [latency["milliseconds"][name]["median"] for name in ("teacher", "student")]
            rows.append((f"ms, batch {latency['batch']} × {latency['length']}", *times, 1))
        lines = [f"{self.recipe} · {self.profile} · budget {self.budget} · seed {self.seed}",
                 f"{'':<24}{'teacher':>10}{'student':>10}"]  # fmt: skip
        lines += [f"{name:<24}{a:>10.{digits}f}{b:>10.{digits}f}" for name, a, b, digits in rows]
        return "\n".join([*lines, *([self.note] if self.note else [])])

    def save(self, folder: str | Path = RESULTS) -> Path:
        """Writes ``<folder>/<profile>/<task>/<recipe>-<budget>-s<seed>.json``."""
        path = record_path(folder, self.profile, self.task, self.recipe, self.budget, self.seed)
        values = asdict(self)
        with locked(f"record-{key(str(path.resolve()))}"):
            sweep(path)
            return write_json(path, values | values.pop("extra"))

    @classmethod
    def read(cls, path: str | Path) -> Record:
        """A record from its JSON: what is missing takes its default, what is unknown is kept.

        Raises ``ValueError`` with file and field for what no record can be made of.
        """
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError(f"{path} is no record: it is no file")
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError(f"expected names with values, received {short(values)}")
            known = {f.name for f in fields(cls)} - {"extra"}
            extra = {name: values.pop(name) for name in values.keys() - known}
            return cls(**values, extra=extra)
        except (ValueError, RecursionError) as error:  # no JSON, no mapping, or no such values
            raise ValueError(f"{path} is no record: {error}") from None


def record_path(folder: str | Path, profile: str, task: str, recipe: str, budget: str, seed: int):
    """Where a record lies, as a ``Path``."""
    name = f"{slug(recipe)}-{slug(budget)}-s{seed}.json"
    return Path(folder).expanduser() / slug(profile) / slug(task) / name


def read(profile: str, folder: str | Path = RESULTS, **where: object) -> list[Record]:
    """The committed records of a profile, filtered by field values; sorted by file name.

    >>> read("reviews", recipe="no-such-recipe")
    []
    """
    paths = sorted(Path(folder, profile).glob("*/*.json"))
    found = [Record.read(path) for path in paths]
    return [r for r in found if all(getattr(r, k) == v for k, v in where.items())]


def mean_score(metrics: dict[str, dict[str, float]]) -> float:
    """The mean over evaluation splits of the task's number; NaN where there are none."""
    return mean(m["score"] for m in metrics.values()) if metrics else math.nan


@dataclass(frozen=True)
class Group:
    """Records that differ in seed only: scores in percent, sizes in bytes.

    ``scores`` has one value a seed, the mean over ``tasks``; ``low`` and ``high`` are its range.
    """

    recipe: str
    budget: str
    scores: tuple[float, ...]
    bytes: float
    teacher: float
    teacher_bytes: float
    majority: float
    tasks: tuple[str, ...]
    trained: bool  # a budget is of no meaning to what was not

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.scores)

    @cached_property
    def mean(self) -> float:
        """The mean score over seeds."""
        return mean(self.scores)

    @property
    def low(self) -> float:
        """The worst seed's score."""
        return min(self.scores)

    @property
    def high(self) -> float:
        """The best seed's score."""
        return max(self.scores)


def grouped(records: Iterable[Record]) -> list[Group]:
    """Records by recipe and budget, in order of appearance; a seed's score is its mean over tasks.

    Raises ``ValueError`` where there are none, where they mix profiles, and where a run lacks a
    task that another has: its mean would be of something else.

    >>> grouped([])
    Traceback (most recent call last):
    ValueError: received no records, expected at least one: run `make results`
    """
    records = list(records)
    if not records:
        raise ValueError("received no records, expected at least one: run `make results`")
    profiles = sorted({r.profile for r in records})
    if len(profiles) > 1:
        raise ValueError(f"received records of {', '.join(profiles)}, expected one profile")
    tasks = {r.task for r in records}
    runs: dict[tuple[str, str], dict[int, list[Record]]] = {}
    for r in records:
        runs.setdefault((r.recipe, r.budget), {}).setdefault(r.seed, []).append(r)
    found = []
    for (recipe, budget), seeds in runs.items():
        for seed, group in seeds.items():
            if sorted(r.task for r in group) != sorted(tasks):
                absent = sorted(tasks - {r.task for r in group}) or "none, but doubles others"
                lacks = f"{recipe}, budget {budget}, seed {seed} lacks {absent}"
                raise ValueError(f"{lacks}: choose tasks all have, by common(records)")
        every = [r for group in seeds.values() for r in group]
        floors = [mean(m["score"] for m in r.majority.values()) for r in every]
        found.append(Group(
            recipe, budget, tuple(mean(r.score for r in group) for group in seeds.values()),
            mean(r.bytes for r in every), mean(r.teacher_score for r in every),
            mean(r.teacher_bytes for r in every), mean(floors), tuple(sorted(tasks)),
            any(r.stages for r in every),
        ))  # fmt: skip
    return found


def common(records: Iterable[Record]) -> list[Record]:
    """The records of those tasks that every recipe, budget and seed among them has.

    >>> common([])
    []
    """
    records = list(records)
    runs: dict[tuple, set[str]] = {}
    for r in records:
        runs.setdefault((r.recipe, r.budget, r.seed), set()).add(r.task)
    shared = set.intersection(*runs.values()) if runs else set()
    return [r for r in records if r.task in shared]


def differences(records: Iterable[Record], first: str, second: str) -> dict[int, float]:
    """Points that recipe ``first`` is ahead of ``second``, by seed, where both were measured alike.

    Raises ``ValueError`` where the records of the two differ in profile, task or budget.

    >>> differences([], "rpp-90", "nip-90")
    {}
    """
    records = [r for r in records if r.recipe in (first, second)]
    settings = {(r.profile, r.task, r.budget) for r in records}
    if len(settings) > 1:
        raise ValueError(f"records of {sorted(settings)} do not compare: choose one of them")
    ours, theirs = ({r.seed: r.score for r in records if r.recipe == n} for n in (first, second))
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs)}
