"""The case study's table of effectiveness, each published line beside a recipe measured here.

Ganesh et al. 2021, *Compressing Large-Scale Transformer-Based Models: A Case Study on BERT*,
arXiv:2002.11985; the numbers are in ``data/published/effectiveness.csv``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, median

from xtclib import bert
from xtclib.artefact import ledger
from xtclib.costs.published import table
from xtclib.deployment.runtimes import read_measured
from xtclib.recipes import recipe as recipes
from xtclib.records import RESULTS, Record, read
from xtclib.study import profiles

# Published line → the recipe that is nearest to it; True where it is the method of that paper.
LINES: dict[int, tuple[str, bool]] = {
    2: ("qbert-mixed-2.3", True), 3: ("gptq-3bit", False), 4: ("rpp-50", True),
    5: ("magnitude-downstream-50", False), 6: ("movement-90", True), 7: ("kwon-50", False),
    8: ("width-pruning", False), 9: ("kprune-50", False), 10: ("bilstm-kd", False),
    11: ("cnn-kd", False), 12: ("minilmv2-6l", False), 13: ("logits-half", False),
    14: ("mobilebert", True), 15: ("tinybert-4l", True), 16: ("dualtrain", True),
    17: ("drone-50", False), 18: ("deformer-9of12", True), 19: ("deebert", True),
    20: ("power-bert", True), 21: ("albert-shared", True), 22: ("nip-distilled", False),
    23: ("prune-half", False), 24: ("xtc-2bit-half", False), 25: ("xtc-2bit", False),
    26: ("xtc-2bit-exits", False),
}  # fmt: skip
PLACES = {"sst2": "minilm", "mrpc": "minilm", "reviews": "reviews"}  # tasks, with their profiles
# By benchmarks/effectiveness.py; the second where a machine with a GPU ran it.
TIMES = RESULTS / "deployment" / "effectiveness.json"
TIMES_GPU = RESULTS / "deployment" / "effectiveness-cuda.json"
NEAR = 1.0  # points, within which two differences count as alike
FASTER = 1.1  # times, from which on something counts as faster


@dataclass(frozen=True)
class Line:
    """A family's line: published, and measured on MiniLM. Sizes and times are shares and ratios.

    ``scores``: by task (budget, seeds, mean score, lowest, highest, its teacher's); the difference
    is the mean over tasks of ``score − teacher``, in points. ``faster``, on a processor, and
    ``faster_gpu``: by batch, empty where nobody measured it.
    """

    row: int
    family: str
    paper: str
    recipe: str
    own: bool
    published: dict[str, float | None]
    size: float
    size_inside: float
    faster: dict[int, float]
    scores: dict[str, tuple[str, int, float, float, float, float]]
    seconds: float
    faster_gpu: dict[int, float]

    @property
    def difference(self) -> float:
        """The mean over the tasks it was measured on, in points."""
        return fmean(score - teacher for *_, score, _, _, teacher in self.scores.values())

    @property
    def verdict(self) -> str:
        """In words: loses as much as published, more or less; faster on both sides, or not."""
        printed = self.published["difference"] or 0.0
        apart = self.difference - printed
        loss = "as much" if abs(apart) <= NEAR else "less" if apart > 0 else "more"
        then, now = self.published["CPU"], self.faster.get(1, math.nan)
        if then is None or math.isnan(now):
            return f"loses {loss}"
        agrees = (then >= FASTER) == (now >= FASTER)
        return f"loses {loss}; " + ("speed agrees" if agrees else "speed does not")


def lines(folder: str | Path = RESULTS) -> list[Line]:
    """Every published line that a recipe stands beside, in the table's order."""
    times, on_gpu = (read_measured(f)["faster"] if f.is_file() else {} for f in (TIMES, TIMES_GPU))
    found = []
    for row, (recipe, own) in LINES.items():
        rows = [r for r in table("effectiveness") if r["row"] == row]
        printed: dict[str, float | None] = {
            "size": _printed(rows, metric="model size", with_embeddings="yes"),
            "inside": _printed(rows, metric="model size", with_embeddings="no"),
            "GPU": _printed(rows, metric="speed-up", device="GPU"),
            "CPU": _printed(rows, metric="speed-up", device="CPU"),
            "difference": _printed(rows, metric="mean difference"),
        }
        records = {task: _longest(recipe, task, str(folder)) for task in PLACES}
        scores = {task: _score(some) for task, some in records.items() if some}
        every = [r for some in records.values() for r in some]
        faster, gpu = (
            {int(batch): ratio for batch, ratio in some.get(recipe, {}).items()}
            for some in (times, on_gpu)
        )
        found.append(Line(row, str(rows[0]["system"]), str(rows[0]["paper"]), recipe, own, printed,
                          fmean(r.bytes / r.teacher_bytes for r in every),
                          _outside(recipe) / _outside(None), faster, scores,
                          median(r.seconds for r in every), gpu))  # fmt: skip
    return found


def _printed(rows: list, **where: str) -> float | None:
    found = [r["value"] for r in rows if all(r[name] == value for name, value in where.items())]
    return float(found[0]) if found else None


@cache
def _of(task: str, folder: str) -> list[Record]:
    return read(PLACES[task], folder, task=task)


def _longest(recipe: str, task: str, folder: str) -> tuple[Record, ...]:
    """The records of the longest budget that a recipe was trained for; ``()`` where there is none.

    Budgets with a rate of their own are studies of rates, and are left out.
    """
    found = [r for r in _of(task, folder) if r.recipe == recipe and "@" not in r.budget]
    steps = {r.budget: sum(s.get("steps", 0) for s in r.stages) for r in found}
    longest = max(steps, key=lambda name: steps[name], default=None)
    return tuple(r for r in found if r.budget == longest)


def _score(records: tuple[Record, ...]) -> tuple[str, int, float, float, float, float]:
    own = [r.score for r in records]
    teacher = fmean(r.teacher_score for r in records)
    return records[0].budget, len(own), fmean(own), min(own), max(own), teacher


@cache
def _outside(recipe: str | None) -> float:
    """The bytes of MiniLM by a recipe, or as it is, without its embeddings: by plan."""
    techniques = recipes.load(recipe).techniques if recipe else []
    entries = ledger.plan(bert.read_config(profiles.backbone_for("minilm")), techniques)
    return sum(e.bytes for e in entries if "embeddings" not in e.tensor)


HEAD = ("row", "family", "published in", "recipe", "same method", "published size, %",
        "published size without embeddings, %", "published speed-up, GPU",
        "published speed-up, CPU", "published difference, points", "size, %",
        "size without embeddings, %", "speed-up, batch 1", "speed-up, batch 8",
        "speed-up on a GPU, batch 1", "speed-up on a GPU, batch 8",
        *(f"{task}, {what}" for task in PLACES for what in ("budget", "seeds", "score", "teacher")),
        "difference, points", "seconds of training", "verdict")  # fmt: skip


def cells(line: Line) -> list[str]:
    """A line as the CSV has it, in the order of ``HEAD``; empty where nothing is known."""

    def shown(value: float | None, digits: int = 1) -> str:
        return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"

    scores = []
    for task in PLACES:
        budget, seeds, score, _, _, teacher = line.scores.get(task, ("", 0, *4 * (math.nan,)))
        scores += [budget, str(seeds or ""), shown(score), shown(teacher)]
    printed = [shown(line.published[n], 2) for n in ("size", "inside", "GPU", "CPU", "difference")]
    return [
        str(line.row), line.family, line.paper, line.recipe, "yes" if line.own else "no", *printed,
        shown(100 * line.size), shown(100 * line.size_inside),
        *(shown(on.get(b), 2) for on in (line.faster, line.faster_gpu) for b in (1, 8)), *scores,
        shown(line.difference), shown(line.seconds, 0), line.verdict,
    ]  # fmt: skip
