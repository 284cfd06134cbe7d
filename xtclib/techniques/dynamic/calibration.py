"""What a threshold gives: seen once on rows of their own, chosen for a wish, timed on a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib.clock import in_turns
from xtclib.config import Positive, config
from xtclib.tasks.base import Task, TaskData, batched, by_length
from xtclib.tasks.rows import Split
from xtclib.techniques.dynamic.criteria import bar_of
from xtclib.techniques.dynamic.exits import all_exits, check_threshold

GRID = 50  # thresholds that a curve has at most
Goal = Literal["loss", "speed", "depth"]


@config
class Wish:
    """What a threshold is to reach: a ``loss`` in points, a ``speed``, or a ``depth`` in layers."""

    goal: Goal
    amount: float


@dataclass(frozen=True)
class Point:
    """A threshold, and what it gave on some rows.

    ``depth``: layers in the mean over rows; ``speed``: the full model's operations in its layers
    over those that were run, ``n·Σ tokens / Σ tokens·layers``; ``score`` in percent.
    """

    threshold: float | str
    depth: float
    speed: float
    score: float


@dataclass(frozen=True)
class Observed:
    """What every exit says of some rows, in their order.

    ``sure`` (rows, exits); ``answers``, for each exit and the last layer what the task decides;
    ``tokens`` (rows,); ``depths``, after how many layers each stands, the last with all.
    """

    sure: Tensor
    answers: list[list[Any]]
    tokens: np.ndarray
    depths: tuple[int, ...]
    criterion: str
    task: Task
    labels: list[Any]

    def exits(self, threshold: float | str) -> np.ndarray:
        """By which exit each row leaves, (rows,); the last is the model's own."""
        over = self.sure > bar_of(self.criterion, threshold)  # type: ignore[arg-type]
        last = torch.ones(len(over), 1, dtype=torch.bool)
        return torch.cat([over, last], 1).int().argmax(1).numpy()

    def layers(self, threshold: float | str) -> np.ndarray:
        """After how many layers each row leaves, (rows,)."""
        return np.array(self.depths)[self.exits(threshold)]

    def at(self, threshold: float | str) -> Point:
        """What a threshold gives on these rows."""
        chosen = self.exits(threshold)
        layers = np.array(self.depths)[chosen]
        answers = [self.answers[exit][row] for row, exit in enumerate(chosen)]
        speed = self.depths[-1] * self.tokens.sum() / (self.tokens * layers).sum()
        score = self.task.score(answers, self.labels)["score"]
        return Point(threshold, float(layers.mean()), float(speed), score)

    def curve(self, thresholds: Iterable[float | str] | None = None) -> list[Point]:
        """Points from the fastest to the full model, over all thresholds that tell rows apart."""
        return [self.at(t) for t in (self.thresholds() if thresholds is None else thresholds)]

    def thresholds(self) -> list[float | str]:
        """At most ``GRID`` thresholds between always and never, at quantiles of ``sure``."""
        if self.criterion == "patience":
            return [*range(1, self.sure.shape[1] + 1), "never"]
        bars = np.unique(np.quantile(self.sure.numpy(), np.linspace(0, 1, GRID)).round(6))
        found = [round(1 - float(b), 6) if self.criterion == "entropy" else float(b) for b in bars]
        return ["always", *(t for t in found if 0 <= t <= 1), "never"]


@torch.inference_mode()
def observe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, split: Split,
            length: int = 128, batch_size: int = 64) -> Observed:  # fmt: skip
    """Runs rows through all layers once, and keeps what every exit says of each."""
    rows = task.tokenize(split, tokenizer, length)
    own, training = model.exits, model.training
    exits = len(own.heads)
    found: dict[int, tuple[list[Any], Tensor]] = {}
    model.eval()
    for chosen, batch in by_length(task, rows, tokenizer, batch_size):
        given = {k: v.to(model.device) for k, v in batch.items() if k != "labels"}
        with all_exits(model):
            output = model(**given)
        stacked = torch.cat([output["exit_logits"], output.logits[None]]).float().cpu()
        decided = [task.decide(each.numpy(), batch) for each in stacked]
        certain, judge = output.get("exit_certainty"), own.judged()
        learned = [None] * exits if certain is None else certain.float().cpu()
        pairs = zip(stacked[:-1], learned, strict=True)
        sure = torch.stack([judge.sure(logits, each) for logits, each in pairs])
        for at, row in enumerate(chosen):
            found[row] = [each[at] for each in decided], sure[:, at]
    model.train(training)
    every = [found[i] for i in range(len(rows))]
    sure = torch.stack([sure for _, sure in every])
    answers = [[said[exit] for said, _ in every] for exit in range(exits + 1)]
    depths = (*own.after, own.depth)
    return Observed(sure, answers, rows.lengths, depths, own.said["criterion"], task, split.labels)


def choose(observed: Observed, wish: Wish) -> Point:
    """The threshold that comes nearest to a wish; for a loss, the fastest that keeps to it.

    Raises ``ValueError`` with what can be reached, for a speed or a depth that no threshold gives.
    """
    curve = observed.curve()
    full = curve[-1].score
    if wish.goal == "loss":
        kept = [point for point in curve if point.score >= full - wish.amount]
        return max(kept, key=lambda point: point.speed)
    values = [getattr(point, wish.goal) for point in curve]
    _check_reached(wish.goal, wish.amount, values)
    return min(curve, key=lambda point: abs(getattr(point, wish.goal) - wish.amount))


def _check_reached(goal: str, amount: float, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if not 0.95 * low <= amount <= 1.05 * high:
        reach = f"these exits give {low:.2f} to {high:.2f}"
        raise ValueError(f"no threshold gives a {goal} of {amount:g}: {reach}, choose within it")


def calibrate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TaskData,
              wish: Wish, length: int = 128, keep: bool = False) -> Point:  # fmt: skip
    """Sets the threshold for a wish by the rows that ``data`` holds out, in place.

    ``config.exits`` then knows the speed of every threshold, for :func:`set_speed`, and on which
    rows it was seen. ``keep``: the threshold stays. Raises ``ValueError`` without such rows, and
    for a wish out of reach.
    """
    if data.held_out is None:
        lacks = f"{data.task.name} holds no rows out"
        raise ValueError(f"{lacks}, and thresholds may not be chosen on those reported")
    observed = observe(model, tokenizer, data.task, data.held_out, length)
    said = model.config.exits
    said["speeds"] = [[p.threshold, round(p.speed, 4)] for p in observed.curve()]
    said["calibrated_on"] = f"{len(data.held_out)} held-out rows"
    point = observed.at(said["threshold"]) if keep else choose(observed, wish)
    said["threshold"] = point.threshold
    return point


def set_speed(model: PreTrainedModel, speed: Positive) -> float:
    """Moves a model's threshold to a wanted speed, in place, and returns the nearest there is.

    A speed is how many times fewer operations its layers do in the mean than all of them, as seen
    on the rows that the thresholds were calibrated on. Raises ``ValueError`` with the reachable
    range, and for a model without exits.
    """
    said = getattr(model.config, "exits", None)
    if not said:
        lacks = f"{type(model).__name__} has no exits"
        raise ValueError(f"{lacks}: a recipe such as deebert or pabee gives it some")
    if not said["speeds"]:
        raise ValueError("the exits are not calibrated: run dynamic.calibration.calibrate first")
    speeds = [value for _, value in said["speeds"]]
    _check_reached("speed", speed, speeds)
    nearest = reversed(said["speeds"])  # of equals the last: at 1 nothing leaves
    threshold, found = min(nearest, key=lambda each: abs(each[1] - speed))
    check_threshold(said["criterion"], threshold, len(said["after"]))
    said["threshold"] = threshold
    return found


def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: TaskData,
             length: int, points: int = 6) -> dict:  # fmt: skip
    """The curve on the first reported split, and ``points`` of it timed alone and by eight.

    ``never`` is the model with its exits off. Without points nothing is timed.
    """
    name, split = next(iter(data.evaluation.items()))
    observed, said = observe(model, tokenizer, data.task, split, length), model.config.exits
    chosen, here = said["threshold"], observed.at(said["threshold"])
    curve = [observed.at(threshold) for threshold, _ in said["speeds"]]
    wanted = np.linspace(max(p.speed for p in curve), 1, points)
    timed = [min(curve, key=lambda p: abs(p.speed - speed)).threshold for speed in wanted]
    timed = list(dict.fromkeys([*timed, chosen, "never"]))
    ways = {str(t): partial(said.update, threshold=t) for t in timed}
    times = milliseconds(model, ways, data, tokenizer, length) if points else {}
    said["threshold"] = chosen
    points_ = [_rounded(p) | {n: t[str(p.threshold)] for n, t in times.items()
                              if str(p.threshold) in t} for p in curve]  # fmt: skip
    return {"criterion": said["criterion"], "calibrated_on": said.get("calibrated_on", ""),
            "split": name, "chosen": _rounded(here), "curve": points_}  # fmt: skip


@torch.inference_mode()
def milliseconds(
    model: PreTrainedModel, ways: Mapping[str, Callable[[], object]], data: TaskData,
    tokenizer: PreTrainedTokenizerBase, length: int,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """A row's milliseconds in the mean of 128 real ones, ``ms_1`` alone and ``ms_8`` by eight.

    For each of the ``ways`` that a model runs, which it is told by a call before all rows.
    """

    def run(tell: Callable[[], object], given: list[dict[str, Tensor]]) -> None:
        tell()
        for batch in given:
            model(**batch)

    found = {}
    for size in (1, 8):
        given = batched(data, tokenizer, length, size)
        rows = sum(len(batch["input_ids"]) for batch in given)
        taken = in_turns({n: partial(run, tell, given) for n, tell in ways.items()}, 3, 1)
        found[f"ms_{size}"] = {n: round(t["median"] / rows, 4) for n, t in taken.items()}
    return found


def _rounded(point: Point) -> dict:
    return {n: round(v, 4) if isinstance(v, float) else v for n, v in asdict(point).items()}
