"""The gate: an artefact is measured against limits, and its teacher, before it ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xtclib import bert, teachers
from xtclib.artefact.checks import WEIGHTS
from xtclib.cache import opened
from xtclib.costs import latency
from xtclib.deployment import saturation
from xtclib.files import SUMS
from xtclib.records import mean_score
from xtclib.study import profiles, saved
from xtclib.study.judged import agreement, judge, standard_error
from xtclib.study.limits import Limits, Timing, option
from xtclib.study.verdicts import Report, Row, row
from xtclib.tasks import reviews
from xtclib.tasks.base import Task, TaskData, batched
from xtclib.tasks.classification import Regression
from xtclib.tasks.vectors import Vectors
from xtclib.techniques.base import held, technique

OWN = "profile"  # in the teacher's place: the one that the artefact's profile has
_PAUSE = 0.05  # seconds: threads of one runtime spin for a while and slow the other down


def check(
    path: str | Path, limits: Limits, against: str | Path | None = None,
    timing: Timing | None = None, tokenizer: Path | None = None, **rows: Any,
) -> Report:  # fmt: skip
    """Measures what ``limits`` ask for of a saved model, an artefact, a classifier or ``.onnx``.

    ``against``: its teacher, a folder or Hub id, or ``"profile"``, the one of its profile, where
    the cache has it. ``tokenizer``: the folder of an ``.onnx`` file's. ``rows``: ``task``,
    ``data``, … as for :func:`.saved.rows_for`; by default the artefact's own.

    Raises ``ValueError`` and ``FileNotFoundError`` for what cannot be measured: nothing is there,
    it is damaged, a teacher is missing or for another task, a length is past the positions.
    """
    path, timing = Path(path).expanduser(), timing or Timing()
    if limits.against and against is None:
        raise ValueError(
            f"{option(limits.against[0])} compares with a teacher: name its folder or Hub id by "
            f"--against, or write `--against {OWN}` for that of the artefact's profile"
        )
    if against is not None and Path(against).expanduser().resolve() == path.resolve():
        raise ValueError(f"received {path} and --against {against}, the same: name its teacher")
    found = saved.opened(path, tokenizer)
    seen = _saturates(path, limits.scored) if found.is_onnx else None
    kinds = [] if found.is_onnx else [technique(item) for item in held(found.model.config)]
    by_row = any(kind.by_row for kind in kinds)  # then random ids would not tell its time
    if limits.timed:
        _check_length(path, found.longest, timing)
    asked = teacher = None
    if limits.against or (limits.timed and by_row):
        named = None if against in (None, OWN) else against
        asked = saved.rows_for(found, teacher=named, **rows)
    if asked and limits.min_agreement is not None:
        _check_answers(asked.data.task)
    if asked and against is not None and limits.against:
        teacher = _teacher(str(against), asked, limits.scored)
        if limits.max_speed_ratio is not None:
            _check_length(against, bert.longest(teacher.model), timing)
    report = Report(str(path), None, [_opens(found)], limits.named)
    if asked and teacher:
        own = f"the teacher of the profile {asked.profile.name}"
        report.against, report.teacher = own if against == OWN else str(against), teacher.key
    if limits.max_mb is not None:
        report.rows.append(row("max_mb", "file, MB", found.bytes / 1e6, limits.max_mb))
    if limits.timed:
        _time(report, limits, found, teacher, timing, asked.data if asked and by_row else None)
    if limits.scored and asked and teacher:
        _score(report, limits, found, teacher, asked)
    report.rows += [seen] if seen else []
    return report


def _check_length(path: str | Path, longest: int | None, timing: Timing) -> None:
    if longest and timing.length > longest:
        has = f"{path} has positions for {longest}"
        raise ValueError(f"received --length {timing.length}, but {has}: choose fewer")


def _check_answers(task: Task) -> None:
    if isinstance(task, (Regression, Vectors)):
        what = "a vector" if isinstance(task, Vectors) else "a number"
        raise ValueError(
            f"--min-agreement counts equal answers, and {task.name} is answered by {what}, which "
            "is never quite the same: take --max-drop"
        )


def _teacher(against: str, asked: saved.Asked, scored: bool) -> teachers.Teacher:
    """The teacher; refused if it is none for these rows, before hours are spent on them."""
    data, task = asked.data, asked.data.task
    if against == OWN:
        chosen = profiles.with_length(asked.profile, asked.length)
        if not len(data.train) or profiles.stand_in(data, chosen) is not None:
            raise ValueError(
                f"the cache holds no teacher of the profile {chosen.name} for these rows of "
                f"{task.name}: name its folder by --against"
            )
        return profiles.teacher_for(task, chosen, data, progress=False)
    if against.endswith(".onnx"):
        raise ValueError(f"received --against {against}, expected a folder or a Hub id")
    teacher = teachers.load_teacher(against, task, data if scored and len(data.train) else None)
    reviews.check_apart(getattr(teacher.model.config, "trained_on", None) or {}, data)
    return teacher


def _opens(found: saved.Saved) -> Row:
    """That it was opened is the check: what is damaged raises."""
    summed = found.is_onnx or (found.path / SUMS).is_file()
    if not summed and (found.path / WEIGHTS).is_file():
        with opened(found.path / WEIGHTS) as file:
            summed = "xtc" in (file.metadata() or {})
    says = "it opens, sums match" if summed else "it opens, has no sums"
    return Row("integrity", "integrity", None, None, True, says)


def _with_threads(found: saved.Saved) -> Any:
    """The model on PyTorch's threads of this moment: a session keeps those it was opened with."""
    if not found.is_onnx:
        return found.model
    from xtclib.deployment import runtimes

    return runtimes.OnnxModel(found.path)


def _time(report: Report, limits: Limits, found: saved.Saved, teacher: teachers.Teacher | None,
          timing: Timing, data: TaskData | None) -> None:  # fmt: skip
    """Milliseconds of the artefact and, for a ratio, of its teacher in turns with it."""
    beside = teacher if limits.max_speed_ratio is not None else None
    models: dict[str, Any] = {"teacher": beside.model} if beside else {}
    words = [found.tokenizer, *([beside.tokenizer] if beside else [])]
    before = torch.get_num_threads()
    torch.set_num_threads(timing.threads)
    try:
        models["artefact"] = _with_threads(found)
        sizes = [m.config.vocab_size for m in models.values() if hasattr(m, "config")]
        ids = latency.random_ids(min([*sizes, *map(len, words)]), timing.batch, timing.length)
        given: Sequence[Mapping] = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
        if data is not None:
            given = batched(data, found.tokenizer, timing.length, timing.batch, 8 * timing.batch)
        pause = _PAUSE if found.is_onnx and beside else 0.0
        times = latency.of_models(models, timing.batch, timing.length, given=given, pause=pause)
    finally:
        torch.set_num_threads(before)
    report.latency = times
    took = {name: each["median"] for name, each in times["milliseconds"].items()}
    if limits.max_speed_ratio is not None:
        ratio = took["artefact"] / took["teacher"] if took["teacher"] else np.nan
        report.rows.append(
            row("max_speed_ratio", "time / teacher's", ratio, limits.max_speed_ratio)
        )
    if limits.max_ms is not None:
        report.rows.append(row("max_ms", "ms of a batch", took["artefact"], limits.max_ms))


def _score(report: Report, limits: Limits, found: saved.Saved, teacher: teachers.Teacher,
           asked: saved.Asked) -> None:  # fmt: skip
    """Both answer every row: the score that is lost, and the share of equal answers."""
    data, most = asked.data, bert.longest(teacher.model) or asked.length
    theirs = judge(teacher.model, teacher.tokenizer, data, min(asked.length, most))
    ours = judge(found.model, found.tokenizer, data, asked.length)
    report.asked, report.error = asked, standard_error(data, theirs, ours)
    report.scores = {"teacher": theirs.scores, "artefact": ours.scores}
    if limits.max_drop is not None:
        lost = mean_score(theirs.scores) - mean_score(ours.scores)
        report.rows.append(
            row("max_drop", "score lost, points", lost, limits.max_drop, error=report.error)
        )
    if limits.min_agreement is not None:
        share = agreement(theirs, ours)
        report.rows.append(row("min_agreement", "same answers, %", share, limits.min_agreement))


def _saturates(path: Path, scored: bool) -> Row | None:
    """A remark on 8-bit weights. It fails nothing: what is measured here has it in it already."""
    if saturation.largest_weight(path) <= saturation.EXACT:
        return None
    says, note = {
        True: ("8-bit, exact here", "on x86 without VNNI sums of 8-bit products saturate and "
               "answers may change: check it there too if it goes there"),
        False: ("8-bit, saturating", "this processor lacks VNNI, so that sums of 8-bit products "
                "saturate; what is measured here is measured so"),
        None: ("8-bit, unknown", "whether this processor has VNNI cannot be told; without it sums "
               "of 8-bit products saturate on x86"),
    }[exact := saturation.adds_exactly()]  # fmt: skip
    if exact is not True and not scored:
        note += "; --max-drop or --min-agreement tells whether answers change"
    return Row("weights", "weights", None, None, None, says, note)
