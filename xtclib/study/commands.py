"""``xtc study``: from a question to an answer, on one machine or on many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

app = typer.Typer(help="Studies: many runs, planned, measured and concluded from.",
                  no_args_is_help=True)  # fmt: skip


def as_path(text: str) -> Path:
    """A path as the shell would read it: it leaves `--out=~/a` as it is."""
    return Path(text).expanduser()


File = Annotated[Path, Argument(parser=as_path, help="A study's YAML.")]
Records = Annotated[
    Path | None, Option("--folder", parser=as_path, help="Of the records; else the file's own.")
]
GlueDir = Annotated[Path | None, Option(parser=as_path, help="A folder in GLUE's official layout.")]
Data = Annotated[
    str | None, Option(help="Your own rows: a .csv, .tsv or .jsonl file, a folder, a Hub dataset.")
]
Text = Annotated[str | None, Option(help="Their column of texts; else text, sentence, sentence1.")]
TextPair = Annotated[str | None, Option(help="Their column of second texts.")]
Label = Annotated[str | None, Option(help="Their column of labels; else label, class, score, …")]
Kind = Annotated[str | None, Option(help="classes, labels, number, tags, vectors or questions.")]
Quiet = Annotated[bool, Option(help="No progress bars.")]
TaskName = Annotated[
    str | None, Option(help="reviews, ratings, or one of GLUE's: sst2, cola, mrpc, …; by profile.")
]
ProfileName = Annotated[
    str | None, Option(help="reviews, mini, minilm, bert-base or smoke; by task: reviews' own.")
]
RecordsIn = Annotated[
    Path | None, Option("--folder", parser=as_path, help="Of records; else the committed ones.")
]


@app.command()
def plan(file: File, folder: Records = None, glue_dir: GlueDir = None) -> None:
    """Say how many runs a study has, what is measured already, and how long the rest will take."""
    from xtclib.study import design, sweep

    study, where = design.load(file), folder or file.parent
    found = list(sweep.planned(study.runs(), where, glue_dir))
    left = [one for one in found if one.record is None]
    if study.question:
        typer.echo(f"question {study.question}")
    for one in left:
        typer.echo(f"missing  {one.run.profile} · {one}")
    spent = sweep.seconds_of(left, where)
    hours = sum(each or 0 for each in spent.values()) / 3600
    blind = sum(
        each is None and one.recipe.trains for each, one in zip(spent.values(), left, strict=True)
    )
    unknown = f", and {blind} runs whose pace no record of this machine tells" if blind else ""
    typer.echo(f"runs     {len(found)}, of which {len(found) - len(left)} are measured")
    typer.echo(f"left     {hours:.1f} hours of one worker's training{unknown}")


@app.command()
def run(
    file: File,
    folder: Records = None,
    glue_dir: GlueDir = None,
    scheduler: Annotated[
        str | None, Option(help="A dask scheduler, tcp://HOST:8786; else this machine's cores.")
    ] = None,
    workers: Annotated[int | None, Option(min=1, help="On this machine; else all cores.")] = None,
    threads: Annotated[int, Option(min=1, help="Of each worker.")] = 1,
    memory: Annotated[str, Option(help="Of each worker on this machine, such as 8GB.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure what is missing, on workers; resumable, and safe to start twice.

    Times are not taken beside other runs: xtc study time FILE does that afterwards.
    """
    from xtclib.study import cluster, design, sweep

    runs, where = design.load(file).runs(), folder or file.parent
    if all(one.record for one in sweep.planned(runs, where, glue_dir)):
        typer.echo("nothing is missing")
        return
    with cluster.client_of(scheduler, workers, threads, memory, typer.echo) as client:
        ended = cluster.run(runs, where, glue_dir, client, threads, not quiet, typer.echo)
    bad = [f"{each.key}: {each.reason}" for each in ended if each.reason]
    typer.echo(f"measured {len(ended) - len(bad)} of {len(ended)} runs that were missing")
    if bad:
        raise ValueError(f"{len(bad)} runs did not end, the first: {bad[0]}")


@app.command()
def time(file: File, folder: Records = None, glue_dir: GlueDir = None) -> None:
    """Run every measured student against the clock, alone: nothing else should run meanwhile."""
    from xtclib.study import design, sweep

    where = folder or file.parent
    found = [one for one in sweep.planned(design.load(file).runs(), where, glue_dir) if one.record]
    left = [one for one in found if one.record and not one.record.latency]
    for one in left:
        typer.echo(f"\n{one}")
        record = sweep.measured(one.run, where, glue_dir, progress=False, say=lambda _: None,
                                before=one.record)  # fmt: skip
        typer.echo(record.table())
    typer.echo(f"timed    {len(left)} of {len(found)} runs, {len(found) - len(left)} were before")


@app.command()
def conclude(file: File, folder: Records = None) -> None:
    """Compare what a study's file names, over its records: intervals, not single numbers.

    Where a study has several of GLUE's tasks, their mean by recipe and budget comes first.
    """
    from xtclib.records import common
    from xtclib.study import conclusions, design, sweep
    from xtclib.tasks.glue import TASKS

    study = design.load(file)
    if not study.compare:
        raise ValueError(f"{file} compares nothing: name selections of records under `compare`")
    records = sweep.records_of(study.runs(), folder or file.parent)
    found = conclusions.compare(records, study.compare)
    if study.question:
        typer.echo(f"{study.question}\n")
    several = common(r for r in records if r.task in TASKS)
    if len({r.task for r in several}) > 1:
        for recipe, budget in dict.fromkeys((r.recipe, r.budget) for r in several):
            alike = [r for r in several if (r.recipe, r.budget) == (recipe, budget)]
            glue = conclusions.glue_score(alike)
            spread = f"{glue.low:.1f} to {glue.high:.1f}, seeds: {glue.n}"
            typer.echo(f"{', '.join(glue.tasks)}: {recipe} {budget} {glue.mean:.1f} ({spread})")
    typer.echo(conclusions.table(found))
    for each in found:
        typer.echo(f"{each.name}: {each.verdict}")


@app.command()
def search(
    file: Annotated[Path, Argument(parser=as_path, help="A search's YAML.")],
    out: Annotated[Path, Option(parser=as_path, help="Folder of its journal and records.")],
    glue_dir: GlueDir = None,
    quiet: Quiet = False,
) -> None:
    """Search a recipe's settings on rows cut off from training; resumable, by several at once."""
    from xtclib.study import search as searches

    found = searches.search(file, out, glue_dir, progress=not quiet, say=typer.echo)
    typer.echo(searches.table(found))


def advise(
    task: TaskName = None,
    mb: Annotated[float | None, Option(help="The file, at most, in MB of 10⁶ bytes.")] = None,
    ms: Annotated[float | None, Option(help="A forward pass on this machine, at most.")] = None,
    drop: Annotated[float | None, Option(help="Points below the teacher, at most.")] = None,
    hours: Annotated[float | None, Option(help="Of training, at most.")] = None,
    batch: Annotated[int, Option(help="Rows at once, for --ms.")] = 1,
    length: Annotated[int | None, Option(help="Tokens in each, for --ms; by profile.")] = None,
    threads: Annotated[int | None, Option(min=1, help="For --ms; else PyTorch's own.")] = None,
    device: Annotated[str, Option(help="Whose time --ms is: cpu or cuda.")] = "cpu",
    profile: ProfileName = None,
    folder: RecordsIn = None,
    glue_dir: GlueDir = None,
    run: Annotated[bool, Option("--run", help="Compress by what fits best, and compare.")] = False,
    out: Annotated[
        Path | None, Option(parser=as_path, help="With --run: folder for the artefact.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Name up to three recipes that meet a wish, by records and this machine's layer times.

    For example: xtc advise --mb 10 --drop 1
    """
    import torch

    from xtclib.records import RESULTS
    from xtclib.study import advice

    if threads:
        torch.set_num_threads(threads)
    wishes = advice.Wishes(mb, ms, drop, hours, batch, length)
    if out is not None and not run:
        raise ValueError(f"--out {out} takes what --run makes: give both")
    found = advice.advise(wishes, task, profile, folder or RESULTS, glue_dir, device)
    typer.echo(found.table())
    if found.best is None and run:
        raise ValueError("nothing fits, so nothing is run: wish for less")
    if found.best is not None:
        typer.echo(f"make it  {found.command()}")
        if run:
            typer.echo("")
            result = advice.run(found, glue_dir, out, not quiet, typer.echo)
            typer.echo("\n" + advice.against(found.best, result, found.wishes))


def pareto(
    task: TaskName = None,
    profile: ProfileName = None,
    budget: Annotated[str | None, Option(help="Only this budget's records, such as A.")] = None,
    by: Annotated[str, Option(help="What counts: score,bytes,time, or two of them.")] = (
        "score,bytes,time"
    ),
    folder: RecordsIn = None,
    glue_dir: GlueDir = None,
) -> None:
    """List the recipes that no other beats in score, size and time at once, by their records."""
    from xtclib import records
    from xtclib.study import pareto as fronts
    from xtclib.study import profiles
    from xtclib.tasks.base import find_task

    axes, folder = fronts.axes_of(by), folder or records.RESULTS
    chosen = profiles.recorded(profile, task, glue_dir, folder)
    name = find_task(task or chosen.task).name
    found = [r for r in records.read(chosen.name, folder, task=name) if budget in (None, r.budget)]
    if not found:
        where = f"{chosen.name}/{name}" + (f", budget {budget}" if budget else "")
        raise ValueError(f"no record of {where} in {folder}: `xtc compress --record` makes some")
    every = fronts.points(found)
    typer.echo(fronts.table(fronts.front(every, axes), len(every)))


def check(
    folder: Annotated[
        Path, Argument(parser=as_path, help="A saved artefact or classifier, or an .onnx file.")
    ],
    against: Annotated[
        str | None,
        Option(help="Its teacher: a folder, a Hub id, or `profile` for its profile's own."),
    ] = None,
    max_drop: Annotated[float | None, Option(help="Points of score that it may lose.")] = None,
    max_mb: Annotated[float | None, Option(help="MB (10^6 bytes) of its weights' file.")] = None,
    max_speed_ratio: Annotated[
        float | None, Option(help="Its time over its teacher's, both measured here.")
    ] = None,
    max_ms: Annotated[
        float | None, Option(help="Milliseconds of a batch, on a machine of your own.")
    ] = None,
    min_agreement: Annotated[
        float | None, Option(help="Percent of rows that both answer alike.")
    ] = None,
    batch: Annotated[int, Option(help="Rows at once, where time is measured.")] = 8,
    length: Annotated[int, Option(help="Tokens in each of them.")] = 32,
    threads: Annotated[int, Option(help="Of both models, where time is measured.")] = 1,
    task: Annotated[str | None, Option(help="One of GLUE's; else the artefact's own.")] = None,
    data: Data = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    kind: Kind = None,
    profile: Annotated[
        str | None, Option(help="Whose data and length; else the artefact's own.")
    ] = None,
    glue_dir: GlueDir = None,
    tokenizer: Annotated[
        Path | None, Option(parser=as_path, help="An .onnx file's tokenizer's folder.")
    ] = None,
    to_json: Annotated[
        str | None, Option("--json", help="A file for all of it; - prints it alone.")
    ] = None,
) -> None:
    """Hold a saved model to limits, for CI: 0 if all hold, 1 if one fails, 2 for a bad input.

    xtc check FOLDER --against TEACHER --max-drop 1 --max-mb 10 --max-speed-ratio 0.4

    What no limit asks for is not measured: --max-mb and --max-ms need no teacher.
    """
    from xtclib import files
    from xtclib.study import gate

    limits = gate.Limits(max_drop, max_mb, max_speed_ratio, max_ms, min_agreement)
    timing = gate.Timing(batch, length, threads)
    if to_json not in (None, "-"):
        files.check_new_file(as_path(to_json))
    report = gate.check(
        folder, limits, against, timing, tokenizer, task=task, data=data, profile=profile,
        glue_dir=glue_dir, text=text, text_pair=text_pair, label=label, kind=kind,
    )  # fmt: skip
    if to_json not in (None, "-"):
        files.write_json(as_path(to_json), report.json())
    typer.echo(json.dumps(report.json(), indent=2) if to_json == "-" else report.table())
    if not report.passed:
        raise typer.Exit(1)
