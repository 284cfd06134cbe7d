"""Advice: which recipes meet what one wishes for, by records and this machine's layer times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING

import torch

from xtclib import bert
from xtclib.artefact import ledger
from xtclib.config import Count, NotNegative, Positive, config
from xtclib.costs import latency, layer_times
from xtclib.recipes import recipe as recipes
from xtclib.records import RESULTS, Record, read
from xtclib.study import profiles
from xtclib.study.evidence import Evidence, Expected, drop_of
from xtclib.tasks.base import Task, find_task

if TYPE_CHECKING:
    from xtclib.study.compress import Result

DEVICES = ("cpu", "cuda")
NAMES = {"mb": "MB", "drop": "points lost", "hours": "hours of training", "ms": "ms"}


@config
class Wishes:
    """What an artefact may cost at most; what is ``None`` may cost anything.

    ``mb``: 10⁶ bytes of its weights' file; ``ms``: a forward pass of ``batch`` rows of ``length``
    tokens (the profile's, unless told) on this machine; ``drop``: points below its teacher;
    ``hours``: of training.

    >>> Wishes(mb=10, drop=1)
    Wishes(mb=10.0, ms=None, drop=1.0, hours=None, batch=1, length=None)
    >>> Wishes()
    Traceback (most recent call last):
    ValueError: nothing is wished for: give at least one of mb, ms, drop, hours
    """

    mb: Positive | None = None
    ms: Positive | None = None
    drop: NotNegative | None = None
    hours: Positive | None = None
    batch: Count = 1
    length: Count | None = None

    def __post_init__(self) -> None:
        if not self.limits:
            raise ValueError("nothing is wished for: give at least one of mb, ms, drop, hours")

    @property
    def limits(self) -> dict[str, float]:
        """What is limited, in the order in which it is looked at: the cheapest to know first."""
        given = {name: getattr(self, name) for name in NAMES}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Choice:
    """A recipe at a budget, what it is expected to come to, and how much of that is known.

    ``bytes`` of its file: of a record of this task, or by `ledger.plan`. ``hours`` are NaN where
    this task has no record, ``ms`` where nobody has asked for them.
    """

    recipe: str
    budget: str
    expected: Expected
    bytes: float
    hours: float
    ms: float = math.nan

    def __str__(self) -> str:
        return f"{self.recipe}, {self.budget}"

    def value(self, name: str) -> float:
        """What is limited by the wish of that name."""
        own = {"mb": self.bytes / 1e6, "drop": self.expected.drop, "hours": self.hours}
        return own.get(name, self.ms)

    def excess(self, limits: dict[str, float]) -> float:
        """By what factor it is over the limit that it exceeds most; up to 1 where it meets all.

        Points are counted from one below the teacher's score, so that no drop is a limit too.
        """
        plus = {"drop": 1.0}
        ratios = [(self.value(n) + plus.get(n, 0)) / (most + plus.get(n, 0))
                  for n, most in limits.items()]  # fmt: skip
        return max((ratio for ratio in ratios if not math.isnan(ratio)), default=0.0)


@dataclass(frozen=True)
class Advice:
    """What fits, each with why it stands there; what fell out, by the first wish that it missed."""

    task: str
    profile: str
    wishes: Wishes
    teacher_ms: float
    fits: tuple[tuple[str, Choice], ...]
    out: dict[str, list[Choice]]
    nearest: Choice | None

    def table(self) -> str:
        """The advice as text."""
        limits = self.wishes.limits
        wanted = ", ".join(f"{value:g} {NAMES[name]}" for name, value in limits.items())
        lines = [f"task     {self.task} ({self.profile})", f"wish     at most {wanted}"]
        if not math.isnan(self.teacher_ms):
            lines.append(f"teacher  {self.teacher_ms:.1f} ms")
        shown = self.fits
        if not shown and self.nearest:
            lines.append("fits     nothing; nearest:")
            shown = (("is nearest: " + _missed(self.nearest, limits), self.nearest),)
        for why, each in shown:
            past = each.expected.high > limits.get("drop", math.inf) and bool(self.fits)
            lines += [f"{each} {why}" + ", though its range goes past the wish" * past,
                      self._told(each)]  # fmt: skip
        for name, missed in self.out.items():
            best = min(missed, key=lambda each: each.value(name))
            least = f"{best}, {best.value(name):.4g}"
            lines.append(f"out      {len(missed)} by {NAMES[name]}; the least there: {least}")
        return "\n".join(lines)

    def command(self) -> str:
        """What makes the best of what fits, for a shell; ``FOLDER`` is yours to name."""
        best = self.best
        assert best is not None
        at = f"--task {self.task} --profile {self.profile}"
        return f"xtc compress {best.recipe} {at} --budget {best.budget} --out FOLDER"

    def _told(self, each: Choice) -> str:
        time = "" if math.isnan(each.ms) else f", {each.ms:.1f} ms"
        if time and not math.isnan(self.teacher_ms):
            time += f" (teacher's ÷ {self.teacher_ms / each.ms:.1f})"
        known = f"{60 * each.hours:.1f} minutes of training" if each.hours else "trains nothing"
        minutes = "training time unknown" if math.isnan(each.hours) else known
        spent = f"{each.bytes / 1e6:.2f} MB{time}, {minutes}"
        return f"         loses {each.expected}\n         {spent}"

    @property
    def best(self) -> Choice | None:
        """What to take: of what fits, what loses least."""
        return self.fits[0][1] if self.fits else None


def _missed(choice: Choice, limits: dict[str, float]) -> str:
    over = [f"{choice.value(n):.3g} {NAMES[n]} for {most:g}" for n, most in limits.items()
            if choice.value(n) > most]  # fmt: skip
    return " and ".join(over)


def advise(
    wishes: Wishes, task: str | Task | None = None, profile: str | profiles.Profile | None = None,
    folder: str | Path = RESULTS, glue_dir: str | Path | None = None, device: str = "cpu",
) -> Advice:  # fmt: skip
    """Up to three recipes that meet all wishes: what loses least, is smallest, is fastest.

    Scores by the records of the profile (:class:`.evidence.Evidence`), those of other tasks where
    this one has none; bytes by records or exact plans; milliseconds by the layers' times here
    (:func:`.layer_times.predicted`), or, where the rows decide, by the records' ratio to the
    teacher. Nothing is trained.

    Raises ``ValueError`` for unknown names and devices, and where nothing was measured yet.
    """
    if device not in DEVICES:
        raise ValueError(f"unknown device {device!r}: expected {' or '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no GPU here to time layers on: run the same where one is")
    chosen = profiles.recorded(profile, task, glue_dir, folder)
    name = find_task(task or chosen.task).name
    records = read(chosen.name, folder)
    if not records:
        measure = f"xtc compress xtc-1bit --task {name} --profile {chosen.name} --record {folder}"
        raise ValueError(f"no record of the profile {chosen.name} is in {folder}: measure one or "
                         f"more first, such as by `{measure}`")  # fmt: skip
    if wishes.length is None:
        wishes = replace(wishes, length=chosen.latency[1])
    return _Desk(wishes, chosen, name, records, device).advice()


class _Desk:
    """One question, with the records that are looked at and the models that are timed for it."""

    def __init__(self, wishes: Wishes, profile: profiles.Profile, task: str,
                 records: list[Record], device: str) -> None:  # fmt: skip
        self.wishes, self.profile, self.task, self.device = wishes, profile, task, device
        self.records, self.evidence = records, Evidence.of(records)

    @cached_property
    def config(self):
        return bert.read_config(profiles.backbone_for(self.profile))

    @cached_property
    def teacher_ms(self) -> float:
        return self._predicted([])

    def choices(self) -> Iterator[Choice]:
        """What was measured on this task, and at budget A what was only on others."""
        here: dict[tuple[str, str], list[Record]] = {}
        for r in self.records:
            if r.task == self.task:
                here.setdefault((r.recipe, r.budget), []).append(r)
        measured = {recipe for recipe, _ in here}
        others = dict.fromkeys(r.recipe for r in self.records if r.recipe not in measured)
        for recipe, budget in (*here, *((recipe, "A") for recipe in others)):
            expected = self.evidence.expected(self.profile.name, self.task, recipe, budget)
            if expected is None or not _known(recipe):
                continue
            own = here.get((recipe, budget), [])
            size = own[0].bytes if own else self._planned_bytes(recipe)
            hours = fmean(r.seconds for r in own) / 3600 if own else math.nan
            yield Choice(recipe, budget, expected, size, hours)

    def advice(self) -> Advice:
        limits = self.wishes.limits
        left, out = [*self.choices()], dict[str, list[Choice]]()
        timed = "ms" in limits
        for name, most in limits.items():
            if name == "ms":
                left = [self.timed(each) for each in left]
            missed = [each for each in left if each.value(name) > most]
            left = [each for each in left if each.value(name) <= most]
            if missed:
                out[name] = missed
        nearest = None
        if not left and out:
            every = sorted((c for some in out.values() for c in some),
                           key=lambda c: c.excess(limits))  # fmt: skip
            near = [self.timed(c) for c in every[:8]] if timed else every
            nearest = min(near, key=lambda c: c.excess(limits))
        fits = [(why, self.timed(c)) for why, c in _best(left, timed)]
        told = self.teacher_ms if fits or timed else math.nan
        return Advice(self.task, self.profile.name, self.wishes, told, tuple(fits), out, nearest)

    def timed(self, choice: Choice) -> Choice:
        """The same with its milliseconds."""
        if not math.isnan(choice.ms):
            return choice
        recipe = recipes.load(choice.recipe)
        if not any(t.by_row for t in recipe.techniques):
            return replace(choice, ms=self._predicted(recipe.techniques))
        times = [r.latency["milliseconds"] for r in self.records
                 if r.recipe == choice.recipe and r.latency]  # fmt: skip
        ratios = [t["student"]["median"] / t["teacher"]["median"] for t in times]
        return replace(choice, ms=self.teacher_ms * median(ratios)) if ratios else choice

    def _predicted(self, techniques: list) -> float:
        assert self.wishes.length is not None
        model = ledger.planned(self.config, techniques)
        wanted = self.wishes.batch, self.wishes.length
        return layer_times.predicted(model, *wanted, device=self.device)

    def _planned_bytes(self, recipe: str) -> float:
        return sum(e.bytes for e in ledger.plan(self.config, recipes.load(recipe).techniques))


def _known(recipe: str) -> bool:
    """Whether a record's recipe can be run again by its name, on teachers as they come."""
    try:
        return not recipes.load(recipe).student
    except ValueError:
        return False


def _best(left: Sequence[Choice], timed: bool) -> list[tuple[str, Choice]]:
    """What loses least, is smallest and, where times are known, fastest; each recipe once."""
    orders: dict[str, Callable[[Choice], tuple]] = {
        "loses least": lambda c: (c.expected.drop, c.bytes),
        "is smallest": lambda c: (c.bytes, c.expected.drop),
        "is fastest": lambda c: (c.ms, c.expected.drop),
    }
    found: dict[tuple, tuple[list[str], Choice]] = {}
    for why, order in orders.items():
        if why == "is fastest" and not timed:
            continue
        if left:
            best = min(left, key=order)
            found.setdefault((best.recipe, best.budget), ([], best))[0].append(why)
    return [(", ".join(why), choice) for why, choice in found.values()]


def run(found: Advice, glue_dir: str | Path | None = None, out: Path | None = None,
        progress: bool = True, say: Callable[[str], object] = print) -> Result:  # fmt: skip
    """Compresses by what fits best."""
    from xtclib.study.compress import compress  # only here: what trains takes a second to import

    best = found.best
    assert best is not None
    return compress(best.recipe, found.task, found.profile, best.budget, glue_dir=glue_dir, out=out,
                    progress=progress, say=say)  # fmt: skip


def against(told: Choice, result: Result, wishes: Wishes) -> str:
    """What was expected beside what came, as text; times alone, on what was wished for."""
    record, length = result.record, wishes.length or 128
    times = latency.of_models({"student": result.student}, wishes.batch, length)
    drop = drop_of(record)
    inside = "within" if told.expected.low <= drop <= told.expected.high else "outside of"
    size = 100 * (told.bytes / record.bytes - 1)
    rows = [
        ("points lost", f"{told.expected.drop:.1f}", f"{drop:.1f}", f"{inside} its range"),
        ("MB", f"{told.bytes / 1e6:.3f}", f"{record.bytes / 1e6:.3f}", f"{size:+.2f} %"),
        ("minutes", f"{60 * told.hours:.1f}", f"{record.seconds / 60:.1f}", "of training"),
    ]
    if not math.isnan(told.ms):
        found = times["milliseconds"]["student"]["median"]
        off = 100 * (told.ms / found - 1)
        rows.append(("ms", f"{told.ms:.2f}", f"{found:.2f}", f"{off:+.1f} %"))
    lines = [f"{name:<14}{a:>12}{b:>12}   {note}" for name, a, b, note in rows]
    return "\n".join([f"{'':<14}{'expected':>12}{'measured':>12}", *lines])
