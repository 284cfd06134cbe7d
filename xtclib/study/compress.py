"""Runs: one call compresses a teacher, measures it, writes it down."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

import xtclib
from xtclib import bert, cache, processes
from xtclib.artefact import format
from xtclib.costs import breakdown, latency
from xtclib.files import (
    check_new_folder,
    fault,
    first_line,
    folder_bytes,
    slug,
    sweep,
    write_json,
    write_text,
)
from xtclib.recipes import recipe as recipes
from xtclib.records import Record, circumstances, mean_score
from xtclib.study import profiles
from xtclib.study.stages import Job, Pair, applied, begun, check_applies, steps_of, trained
from xtclib.tasks.base import Task, TaskData, batched, find_task
from xtclib.tasks.evaluation import evaluate
from xtclib.teachers import Teacher
from xtclib.techniques.base import Technique
from xtclib.training import budget as training_budget
from xtclib.training.callbacks import check_report_to
from xtclib.training.device import in_bf16


@dataclass(frozen=True)
class Result:
    """A compressed model with everything that was measured of it."""

    record: Record
    student: PreTrainedModel
    tokenizer: object
    teacher: Teacher
    data: TaskData
    folder: Path


def compress(
    recipe: str | recipes.Recipe, task: str | Task | None = None,
    profile: str | profiles.Profile | None = None, budget: str | training_budget.Budget = "A",
    seed: int = 0, glue_dir: str | Path | None = None, teacher: str | Path | Teacher | None = None,
    out: str | Path | None = None, progress: bool = True, say: Callable[[str], object] = print,
    device: str | None = None, report_to: str = "none", length: int | None = None,
    data: TaskData | None = None, timed: bool = True,
) -> Result:  # fmt: skip
    """Runs a recipe on a task and measures the result against its teacher.

    ``task``: a name, or a task, such as :func:`xtclib.own` makes of a file. ``length``: how many
    tokens of a row are read; by the profile unless told. ``data``: rows of a task in place of those
    that the profile has, such as a part of them; the teacher learns from them too.

    Resumes: finished stages and checkpoints lie in the cache under a key of everything that
    determines them, so a killed run goes on and a repeated one is read. What the recipe asks for
    and no model of this shape has is an error before anything trains, the teacher too. ``out``
    takes the artefact; it must not exist or be empty, which is checked before training.
    ``teacher``: a folder or Hub id of a model fine-tuned for the task; by default the profile's
    own. ``say`` prints what is done. Started again after it was cut off, the same call ends as it
    would have, where ``out`` was reached too. ``report_to``: an integration of transformers that
    gets the logs (``tensorboard``, ``mlflow``, ``wandb``, ``trackio``). ``timed``: whether student
    and teacher run against the clock, which says something on a machine that does nothing else.

    Raises ``ValueError`` for unknown names, ``ImportError`` for an integration to install,
    ``FileExistsError`` if ``out`` holds something, ``OSError`` where it cannot be written.
    """
    processes.join()
    if not processes.leads():
        progress, say = False, lambda _: None
    recipe, chosen = recipes.load(recipe), profiles.profile(profile, task, glue_dir)
    task = data.task if data else find_task(task or chosen.task)
    chosen = profiles.with_length(chosen, length or profiles.length_for(task, chosen))
    if isinstance(teacher, (str, Path)):
        task = task.taught_by(teacher)
    check_report_to(report_to)
    spent = chosen.budget(budget, recipe)
    budget_name = budget if isinstance(budget, str) else "custom"
    # Several files may have one name; what is in them was read when the task was made.
    data = profiles.data_for(task, chosen, glue_dir) if task.details and not data else data
    target = None
    if out is not None:
        out = Path(out).expanduser()
        by = teacher.key if isinstance(teacher, Teacher) else teacher
        which = [data.fingerprint] if data else []
        claim = _claim(out, recipe.hash, task.name, chosen.name, asdict(spent), seed, by, glue_dir,
                       *which)  # fmt: skip
        target = out, claim
        if not claim.is_file():
            processes.agreed(lambda: check_new_folder(out))
    data = data or profiles.data_for(task, chosen, glue_dir)
    if recipe.calibrates:
        data = data.holding_out()  # before the teacher too: it is surer of what it learned
    say(f"data     {data.source}")
    arguments = recipe, chosen, spent, budget_name, seed, data
    if teacher is None and (bare := profiles.stand_in(data, chosen)):
        # What the recipe asks for that no model of this shape has shows before hours of training.
        check_applies(Job(*arguments, bare, progress, device))
        _check_length(bare, length)
    if not isinstance(teacher, Teacher):
        teacher = profiles.teacher_for(task, chosen, data, teacher, progress, device)
    say(
        f"teacher  {teacher.model.config.num_hidden_layers} layers, "
        f"{'from the cache' if teacher.cached else 'fine-tuned now'} ({teacher.key})"
    )
    _check_length(teacher, length)
    if task.details:
        _say_cut(data, teacher, spent.max_length, say)
    job = Job(*arguments, teacher, progress, device, report_to)
    started = time.perf_counter()
    untrained, pair = check_applies(job), begun(job.during(0))
    applying = round(time.perf_counter() - started, 1)
    job = _fitted(job, untrained, say)
    processes.agreed(lambda: _check_reopens(untrained))
    teacher.model.to("cpu").eval()
    reads = min(spent.max_length, bert.longest(teacher.model) or spent.max_length)
    taught = processes.agreed(lambda: _scores(teacher.model, teacher.tokenizer, data, reads))
    floors = {n: data.task.majority(s, data.train) for n, s in data.evaluation.items()}
    if mean_score(taught) <= mean_score(floors):
        majority = f"the majority class {mean_score(floors):.1f}"
        say(f"         scores {mean_score(taught):.1f}, {majority}: nothing to learn from")
    done, stages = list[Technique](), list[dict]()
    for index, stage in enumerate(job.stages):
        now = job.during(index)
        pair = applied(now, pair, stage.techniques) if recipe.trains else pair
        done += stage.techniques
        if not stage.trains:
            continue
        say(
            f"stage    {index + 1}/{len(recipe.stages)} {stage.name}: "
            f"{steps_of(job, stage)} steps, learning rate {stage.budget(spent).learning_rate:g}"
        )
        pair, notes = trained(now, pair, stage, done, stages)
        stages.append(notes)
    student = format.finalize(pair.student, done) if recipe.trains else untrained.student
    processes.agreed(lambda: _calibrate(job, student, untrained, done))
    measured = taught, floors, applying
    record, folder = processes.agreed(
        lambda: _measure(job, student, stages, untrained, measured, target, timed, say)
    )
    return Result(record, student, untrained.tokenizer, teacher, data, folder)


def _claim(out: Path, *run: object) -> Path:
    """What the cache holds once a run writes to ``out``: from then on what is there is its own."""
    return cache.cache_dir() / "outs" / cache.key(str(out.resolve()), *run)


def _fitted(job: Job, untrained: Pair, say: Callable[[str], object]) -> Job:
    """The job with rows no longer than its student has positions for."""
    longest, wanted = bert.longest(untrained.student), job.budget.max_length
    if longest is None or wanted <= longest:
        return job
    say(f"length   {longest} tokens, not {wanted}: the student has no more positions")
    return replace(job, budget=replace(job.budget, max_length=longest))


def _check_length(teacher: Teacher, length: int | None) -> None:
    """Raises ``ValueError`` for a length that was asked for and that the teacher cannot read."""
    longest = bert.longest(teacher.model)
    if length and longest and length > longest:
        has = f"the teacher has positions for {longest}"
        raise ValueError(f"received a length of {length} tokens, but {has}: choose fewer")


def _say_cut(data: TaskData, teacher: Teacher, length: int, say: Callable[[str], object]) -> None:
    """Says how many rows are longer than what is read of them."""
    if not data.task.cuts:
        say(f"length   {length} tokens: what is longer is read in windows")
        return
    splits = [data.train, *data.evaluation.values()]
    rows = [data.task.tokenize(split, teacher.tokenizer, length + 1).lengths for split in splits]
    longer, every = (sum(int((n > most).sum()) for n in rows) for most in (length, 0))
    more = "--length takes more" if longer else "none is longer"
    say(f"length   {length} tokens: {longer} of {every} rows are cut, {more}")


def _check_reopens(pair: Pair) -> None:
    """Raises ``ValueError`` before anything trains for a student whose file would not open."""
    with tempfile.TemporaryDirectory() as folder:
        format.save(pair.student, pair.tokenizer, Path(folder, "untrained"))
        try:
            format.check_reopens(pair.student, Path(folder, "untrained"))
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            kind = f"a {type(pair.student).__name__} of this recipe does not open once it is saved"
            raise ValueError(f"{kind} ({first_line(error)}): choose other techniques") from None


def _calibrate(job: Job, student: PreTrainedModel, untrained: Pair, done: list[Technique]) -> None:
    student.to("cpu").eval()
    for technique in done:
        technique.calibrate(student, untrained.tokenizer, job.data, job.budget.max_length)


def _measure(job: Job, student: PreTrainedModel, stages: list[dict], untrained: Pair,
             measured: tuple[dict, dict, float], out: tuple[Path, Path] | None, timed: bool,
             say: Callable[[str], object]) -> tuple[Record, Path]:  # fmt: skip
    recipe, chosen, data, teacher = job.recipe, job.profile, job.data, job.teacher
    length, tokenizer = job.budget.max_length, untrained.tokenizer
    student = student.to("cpu").eval()
    teacher_model = teacher.model.to("cpu").eval()
    metrics = evaluate(student, tokenizer, data, length)
    taught, floor, applying = measured
    start = metrics
    if recipe.trains:
        start = _scores(untrained.student, tokenizer, data, length, recipe.hash, chosen.precision)
    student.config.trained_on = {
        "task": data.task.name, "data": data.fingerprint, "source": data.source,
        "max_length": length, "profile": chosen.name, **data.task.details,
    }  # fmt: skip
    made_from = cache.key(teacher.key, recipe.hash, [s["key"] for s in stages])
    target, sizes = _save(student, tokenizer, f"{chosen.name}-{slug(recipe.name)}-{made_from}", out)
    batch, width = chosen.latency[0], min(chosen.latency[1], bert.longest(student) or 10**9)
    layer_flops = [breakdown.flops(m.config, 1, width) for m in (student, teacher_model)]
    rows = max((t.looks_at for t in recipe.techniques), default=0)
    own: dict = {"applied": {"rows": rows, "seconds": applying}}  # beside what was trained
    for technique in recipe.techniques:
        own |= technique.measure(student, tokenizer, data, length, timed)
    by_row = any(t.by_row for t in recipe.techniques)
    read = batched(data, tokenizer, width, batch, 8 * batch) if by_row else ()
    models = {"teacher": teacher_model, "student": student}
    times = latency.of_models(models, batch, width, given=read) if timed else {}
    steps, rows = sum(s["steps"] for s in stages), sum(map(len, data.evaluation.values()))
    scores = [mean_score(found) for found in (metrics, floor, start)]
    record = Record(
        recipe=recipe.name, recipe_hash=recipe.hash, task=data.task.name, profile=chosen.name,
        budget=job.budget_name, seed=job.seed, metrics=metrics, teacher_metrics=taught,
        majority=floor, untrained=start, bytes=sizes[0], folder_bytes=sizes[1],
        teacher_bytes=_saved_bytes(teacher_model),
        parameters=breakdown.parameters(student),
        teacher_parameters=breakdown.parameters(teacher_model),
        flops=layer_flops[0], teacher_flops=layer_flops[1], latency=times,
        seconds=round(sum(s["seconds"] for s in stages), 1), stages=stages, data=data.source,
        data_fingerprint=data.fingerprint, teacher_key=teacher.key, left_out=recipe.left_out,
        selected_on=job.budget.keep if recipe.trains else "nothing is trained",
        note=verdict(recipe, scores[0], scores[1], scores[2], steps, rows, mean_score(taught)),
        **circumstances(), training_budget=asdict(job.budget), measures=own,
    )  # fmt: skip
    say(f"artefact {target} ({record.bytes / 1e6:.2f} MB, {record.ratio:.1f} × smaller)")
    return record, target


def _scores(model: PreTrainedModel, tokenizer, data: TaskData, length: int, made_by: str = "",
            precision: str = "fp32"):  # fmt: skip
    """The metrics of a model that this run did not train, from the cache if it was scored before.

    Runs that differ in seed or recipe share their teacher, and often the untrained student, which
    answers in the precision that it will train in.
    """
    bf16 = in_bf16(precision)
    held = {name: cache.digest(t.detach().cpu()) for name, t in model.state_dict().items()}
    config = {n: v for n, v in model.config.to_dict().items() if n != "_name_or_path"}
    parts = type(model).__name__, config, made_by, held, tokenizer.get_vocab(), data.fingerprint
    versions = xtclib.__version__, torch.__version__, transformers.__version__
    name = cache.key(*parts, length, *versions, torch.backends.cpu.get_cpu_capability(), bf16)
    folder = cache.cache_dir() / "scores" / name

    def make(partial: Path) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            write_json(partial / "scores.json", evaluate(model, tokenizer, data, length))

    cache.keep(folder, make)
    return json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def verdict(recipe: recipes.Recipe, found: float, floor: float, untrained: float, steps: int,
            rows: int, taught: float = 100.0) -> str:  # fmt: skip
    """What a student's score ``found`` does not beat, and why; empty where it beats all.

    The majority class's score ``floor`` counts as beaten by more than :func:`two_errors` of
    ``rows`` answers; ``untrained`` is the score of the same student before its ``steps``, of which
    nothing is asked where it is 100. ``taught`` is the teacher's score.

    >>> verdict(recipes.load("cnn-kd"), 51.0, 50.0, 49.0, steps=200, rows=800)
    'does not beat the majority class (50.0 ± 3.5): 200 steps in all are few for new weights'
    """
    if any(t.by_row for t in recipe.techniques):  # untrained it computes all, as its teacher
        untrained = 100.0
    noise, missed = two_errors(floor, rows), []
    if found <= floor + noise:
        missed.append(f"the majority class ({floor:.1f} ± {noise:.1f})")
    if recipe.trains and found <= untrained < 100:
        missed.append(f"its untrained counterpart ({untrained:.1f})")
    if not missed:
        return ""
    if taught <= floor + noise:
        why = f"nor does its teacher ({taught:.1f}), from which there is nothing to learn"
    elif not recipe.trains:
        why = "nothing was trained"
    elif recipe.starts_anew:
        why = f"{steps} steps in all are few for new weights"
    elif found > floor + noise:
        why = f"{steps} steps are likely few, or their rate too high for so small a change"
    else:
        why = f"{steps} steps in all are likely too few to make up for what was taken"
    return f"does not beat {' or '.join(missed)}: {why}"


def two_errors(score: float, rows: int) -> float:
    """Two standard errors, in points, of a share of ``rows`` answers, ``2·√(s·(100 − s) / rows)``.

    Of a correlation, whose floor is 0, ``2·100/√rows``.

    >>> two_errors(50.0, 400), two_errors(0.0, 400)
    (5.0, 10.0)
    """
    variance = score * (100 - score) if score > 0 else 100**2
    return 2 * (variance / rows) ** 0.5


def _saved_bytes(model: PreTrainedModel) -> int:
    """The size of a model's fp32 ``model.safetensors``, written and read off the disk, once."""
    shapes = {name: (str(t.dtype), t.shape) for name, t in model.state_dict().items()}
    folder = cache.cache_dir() / "sizes" / cache.key(type(model).__name__, shapes)

    def make(partial: Path) -> None:
        model.save_pretrained(partial / "model")
        size = (partial / "model" / format.WEIGHTS).stat().st_size
        shutil.rmtree(partial / "model")
        write_json(partial / "size.json", size)

    cache.keep(folder, make)
    return json.loads((folder / "size.json").read_text())


def _save(student: PreTrainedModel, tokenizer, name: str, out: tuple[Path, Path] | None
          ) -> tuple[Path, tuple[int, int]]:  # fmt: skip
    """Writes the artefact to ``out``, else to the cache; with the bytes of its file and of all.

    A cache that cannot be written to may hold it already: its name is made of all it depends on.
    """
    kept = cache.cache_dir() / "artefacts" / name
    target, claim = out or (kept, None)
    with cache.locked(cache.key("out", str(target.resolve()))):
        sweep(target)
        if claim is not None:
            with contextlib.suppress(PermissionError):  # a cache that is only read
                sweep(claim)
                write_text(claim, f"{target}\n")
            format.save(student, tokenizer, target, again=True, reopen=True)
        elif os.access(cache.cache_dir(), os.W_OK) or fault(kept):
            with cache.writing(kept):
                format.save(student, tokenizer, kept, replace=True)
        return target, ((target / format.WEIGHTS).stat().st_size, folder_bytes(target))
