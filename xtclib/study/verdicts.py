"""What a gate found: a row for each limit, as a table for people and as JSON for programs."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any

from xtclib.records import circumstances, mean_score
from xtclib.study.saved import Asked


@dataclass(frozen=True)
class Row:
    """A check: what was measured and its limit, or what there is to say; ``None``: a remark.

    ``name``: of the limit, as an option without its dashes; ``note``: more than a cell holds.
    """

    name: str
    title: str
    measured: float | None
    limit: float | None
    passed: bool | None
    says: str
    note: str = ""

    @property
    def bound(self) -> str:
        """The limit in words."""
        if self.limit is None:
            return ""
        return f"at {'least' if self.name.startswith('min_') else 'most'} {self.limit:g}"


def row(name: str, title: str, measured: float, limit: float, error: float | None = None) -> Row:
    """A measured value at its limit, a ``max_`` or a ``min_``. A value at it holds, NaN does not.

    >>> row("max_mb", "file, MB", 10.0004, 10).says, row("max_mb", "file, MB", 10, 10).passed
    ('10.0004', True)
    """
    holds = operator.ge if name.startswith("min_") else operator.le
    measured = round(measured, 9)  # 80.0 - 77.1 is 2.9000000000000057
    passed = bool(holds(measured, limit))
    # As many digits as show why: 10.0004 MB is not 10.00 to a limit of 10.
    texts = [f"{measured:.{digits}f}" for digits in range(2, 10)]
    says = next((text for text in texts if holds(float(text), limit) == passed), texts[-1])
    says += "" if error is None else f" ± {error:.2f}"
    return Row(name, title, measured, limit, passed, says)


@dataclass
class Report:
    """All that a gate measured of an artefact, and what it makes of it.

    ``against``: its teacher, in words, ``teacher``: that one's key; ``scores``: metrics of both by
    split, ``error``: the standard error of what is lost, ``asked``: the rows they stand on;
    ``latency``: as in a record.
    """

    path: str
    against: str | None
    rows: list[Row]
    limits: list[str]
    asked: Asked | None = None
    scores: dict[str, dict] = field(default_factory=dict)
    error: float | None = None
    latency: dict = field(default_factory=dict)
    teacher: str = ""

    @property
    def failed(self) -> list[str]:
        """The titles of the checks that do not hold."""
        return [each.title for each in self.rows if each.passed is False]

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return not self.failed

    @property
    def answered(self) -> int:
        """On how many rows the score stands."""
        return sum(map(len, self.asked.data.evaluation.values())) if self.asked else 0

    def table(self) -> str:
        """The checks as text, what they stand on, and the verdict."""
        cells = [("check", "measured", "limit", "result")]
        results = {True: "+ passed", False: "× FAILED", None: "! note"}
        cells += [(e.title, e.says, e.bound, results[e.passed]) for e in self.rows]
        wide = [max(map(len, column)) + 2 for column in zip(*cells, strict=True)]
        lines = ["".join(map(str.ljust, line, wide)).rstrip() for line in cells]
        held = f"all {len(self.limits)} limits hold" if len(self.limits) > 1 else "the limit holds"
        lost = f"{len(self.failed)} of {len(self.limits)}: {'; '.join(self.failed)}"
        verdict = f"passed   {held}" if self.passed else f"FAILED   {lost}"
        return "\n".join([*lines, "", *self._stands_on(), verdict])

    def _stands_on(self) -> list[str]:
        lines = [f"against  {self.against}"] if self.against else []
        lines += [f"note     {each.note}" for each in self.rows if each.note]
        if self.asked:
            of = {name: mean_score(found) for name, found in self.scores.items()}
            splits = ", ".join(self.asked.data.evaluation)
            lines += [f"data     {self.asked.data.source}"]
            lines += [f"note     {note}" for note in self.asked.notes]
            lines += [f"score    teacher {of['teacher']:.2f}, artefact {of['artefact']:.2f}, on "
                      f"{self.answered} rows ({splits}), {self.asked.length} tokens"]  # fmt: skip
        if self.error is not None and (near := self._near()):
            lines += [f"note     {near}"]
        if self.latency:
            times = self.latency["milliseconds"].items()
            took = ", ".join(f"{name} {each['median']:.2f} ms" for name, each in times)
            one, threads = self.latency, self.latency["threads"]
            how = f"batch {one['batch']} × {one['length']} tokens, {threads} thread"
            how += "s" * (threads > 1)
            turns = " in turns" * (len(times) > 1)
            lines += [f"time     {took}: {how}, median of {one['repeats']}{turns}"]
        return lines

    def _near(self) -> str:
        """That a drop is within two standard errors of its limit, where it is."""
        for each in self.rows:
            if each.name == "max_drop" and self.error is not None:
                gap = abs((each.measured or 0) - (each.limit or 0))
                if gap < 2 * self.error:
                    return (f"{self.answered} rows are few for this limit: ± is one standard error "
                            "of the score lost, and the limit is less than two away")  # fmt: skip
        return ""

    def json(self) -> dict[str, Any]:
        """All of it with its circumstances, for ``json.dumps``; NaN is ``None``."""
        checks = [
            {"name": e.name, "title": e.title, "measured": e.measured, "limit": e.limit,
             "passed": e.passed, "says": e.says, "note": e.note} for e in self.rows
        ]  # fmt: skip
        found = {
            "passed": self.passed, "artefact": self.path, "against": self.against,
            "teacher_key": self.teacher,
            "checks": checks, "scores": self.scores, "standard_error": self.error,
            "rows": self.answered, "latency": self.latency,
        }  # fmt: skip
        if self.asked:
            found |= {"data": self.asked.data.source, "tokens": self.asked.length,
                      "data_fingerprint": self.asked.data.fingerprint,
                      "notes": list(self.asked.notes)}  # fmt: skip
        packages = ["onnxruntime"] if self.path.endswith(".onnx") else []
        return _plain({**found, **circumstances(*packages)})


def _plain(value: Any) -> Any:
    """Without NaN, which JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
