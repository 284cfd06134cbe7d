"""Run the notebooks, in order, and build their pages.

    python scripts/run_notebooks.py --out build
    python scripts/run_notebooks.py 02 05_xtc_pipeline --profile smoke --parameter SEED=3

For each notebook, OUT holds the executed copy, its widgets' state included, and an HTML page that
opens offline; index.html lists them with their times. A notebook that fails leaves
`NAME.failed.ipynb` and no page, the others still run, and the exit status is 1.
"""

import argparse
import ast
import os
import platform
import re
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat
from pathlib import Path

import nbformat
import papermill
import yaml
from nbclient import NotebookClient
from nbclient.output_widget import OutputWidget
from strip_notebooks import serialize, strip_, write

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
OFFLINE_PROFILES = ("smoke", "mini", "reviews")
QUIET = ["--IPKernelApp.log_level=50"]  # the kernel's own remarks about its transport
ANSI = re.compile(r"\x1b\[[0-9;]*m")

# nbclient plays an Output widget's front end and tells the kernel what it holds. It does so on the
# socket on which it waits for the cell's reply, which can lose the wake-up: the cell then hangs
# until its timeout (jupyter/nbclient#312). Nobody needs that message here.
OutputWidget.sync_state = lambda self: None  # type: ignore[method-assign]


@dataclass
class Run:
    """One notebook and how it went."""

    path: Path
    title: str
    status: str = "not run"
    seconds: float = 0.0
    error: str = ""
    told: float = 0.0  # seconds, by its own first cell


def find(names: list[str], folder: Path) -> list[Path]:
    """The notebooks called `names` (a path, a stem or its beginning), or all of them, in order."""
    known = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not names:
        if not known:
            raise ValueError(f"no NN_*.ipynb in {folder}: nothing to run")
        return known
    found = []
    for name in names:
        if name.endswith(".ipynb") and Path(name).is_file():
            found.append(Path(name).resolve())
            continue
        matches = [path for path in known if path.stem.startswith(Path(name).stem)]
        if not matches:
            stems = [path.stem for path in known]
            near = get_close_matches(name, stems, n=1, cutoff=0.3) or stems
            raise ValueError(f"no notebook {name!r} in {folder}; did you mean {', '.join(near)}?")
        found += matches
    return found


def parameters(notebook, name: str) -> dict:
    """Names and defaults in the cell tagged `parameters`; it may assign literals only."""
    tagged = [
        c for c in notebook.cells
        if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])
    ]  # fmt: skip
    if len(tagged) != 1:
        raise ValueError(f"{name}: {len(tagged)} cells are tagged 'parameters', expected one")
    values = {}
    for node in ast.parse(tagged[0].source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        try:
            values[target.id] = ast.literal_eval(node.value)
        except (ValueError, AttributeError):
            found = f"may only assign literals, found: {ast.unparse(node)}"
            raise ValueError(f"{name}: the parameters cell {found}") from None
    return values


def check(notebook, name: str, given: dict) -> None:
    """Raise if a given parameter is none of the notebook's; papermill would only warn."""
    known = parameters(notebook, name)
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"{name}: no parameter {key!r}; {hint}")


def title(notebook, default: str) -> str:
    """The first top heading."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            match = re.search(r"^#\s+(.+)$", cell.source, re.M)
            if match:
                return re.sub(r"[*`$]", "", match[1]).strip()
    return default


def told(notebook) -> float:
    """The seconds that a notebook's first cell says it takes, ``**Time** …: 90 s``; 0 for none."""
    match = re.search(r"\*\*Time[^*]*\*\*[^·\n]*?(\d+) s\b", notebook.cells[0].source)
    return float(match[1]) if match else 0.0


def execute(run: Run, out: Path, given: dict, timeout: int, cwd: Path) -> Run:
    """Run one notebook; what it leaves in `out` says by its name how it went."""
    name = run.path.stem
    done, failed, built = (out / f"{name}{end}" for end in (".ipynb", ".failed.ipynb", ".html"))
    partial = out / f".running-{name}" / f"{name}.ipynb"
    partial.parent.mkdir(parents=True, exist_ok=True)
    for stale in (done, failed, built, partial):
        stale.unlink(missing_ok=True)
    started = time.perf_counter()
    try:
        papermill.execute_notebook(
            run.path, partial, parameters=given, kernel_name="python3", cwd=cwd, progress_bar=False,
            execution_timeout=timeout, start_timeout=180, extra_arguments=QUIET,
        )  # fmt: skip
        notebook = nbformat.read(partial, as_version=4)
        notebook.metadata.pop("papermill", None)  # holds paths of this machine
        nbformat.write(notebook, partial)
        partial.replace(done)
        run.status = "ok"
    except Exception as error:  # whatever a notebook raises, the next one still runs
        run.status, run.error = "failed", describe(error)
        if partial.exists():
            partial.replace(failed)
    finally:
        run.seconds = time.perf_counter() - started
        shutil.rmtree(partial.parent, ignore_errors=True)
    return run


def refresh(path: Path, timeout: int) -> None:
    """Run a notebook in place, no parameter injected, and keep of it what is committed."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook, kernel_name="python3", timeout=timeout, extra_arguments=QUIET, resources=where
    ).execute()
    for problem in strip_(notebook):
        raise ValueError(f"{path.name}: {problem}")
    write(path, serialize(notebook))


def describe(error: Exception, lines: int = 20) -> str:
    """What failed and where, without colours: the tail of the failing cell's traceback."""
    if isinstance(error, papermill.PapermillExecutionError):
        trace = ANSI.sub("", "\n".join(error.traceback)).splitlines()
        return "\n".join([f"cell {error.cell_index}:", *trace[-lines:]])
    return "\n".join([type(error).__name__ + ":", *ANSI.sub("", str(error)).splitlines()[-lines:]])


def index(runs: list[Run], profile: str) -> str:
    """The index page in Markdown: one row per notebook, with only finished ones as links."""
    rows, errors = [], []
    for run in runs:
        name = f"[{run.title}]({run.path.stem}.html)" if run.status == "ok" else run.title
        rows.append(f"| {run.path.stem[:2]} | {name} | {run.seconds:.1f} | {run.status} |")
        if run.error:
            errors.append(f"## {run.path.stem} failed\n\n````text\n{run.error}\n````\n")
    done, total = sum(run.status == "ok" for run in runs), sum(run.seconds for run in runs)
    return "\n".join([
        "# Notebooks\n",
        f"Profile `{profile}`: {done} of {len(runs)} notebooks ran, {total:.0f} s in all.\n",
        "|  | Notebook | Seconds | Status |\n|---|---|---|---|", *rows, "",
        f"{', '.join(versions())}. The executed notebooks lie beside these pages; `make lab` opens "
        "the ones to work in, where the sliders move.\n", *errors,
    ])  # fmt: skip


def versions() -> list[str]:
    """Python and the packages that decide the numbers."""
    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "transformers", "xtclib"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} (not installed)")
    return found


def key_value(text: str) -> tuple:
    key, separator, value = text.partition("=")
    if not separator or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, yaml.safe_load(value)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks (path, name or number); all if none")
    parser.add_argument("--profile", help="value for PROFILE (default: xtclib's own)")
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder for what is built")
    pairs = {"type": key_value, "metavar": "KEY=VALUE"}
    parser.add_argument("--parameter", action="append", default=[], **pairs)
    seconds = {"metavar": "S", "help": "per cell (default: 600)"}
    parser.add_argument("--execution-timeout", type=int, default=600, **seconds)
    in_place = "build nothing: run, strip and rewrite the notebooks themselves"
    parser.add_argument("--in-place", action="store_true", help=in_place)
    parser.add_argument("--jobs", type=int, default=1, help="how many at once (default: 1)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the notebooks are")
    args = parser.parse_args(argv)

    args.profile = args.profile or os.environ.get("XTC_PROFILE")
    given = {**({"PROFILE": args.profile} if args.profile else {}), **dict(args.parameter)}
    runs = []
    try:  # everything is checked before anything runs
        for path in find(args.names, args.folder):
            notebook = nbformat.read(path, as_version=4)
            check(notebook, path.name, given)
            runs.append(Run(path, title(notebook, path.stem), told=told(notebook)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    if args.profile:
        os.environ["XTC_PROFILE"] = args.profile
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    os.environ.update(TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.profile in (None, *OFFLINE_PROFILES):
        os.environ["HF_HUB_OFFLINE"] = "1"

    if args.in_place:
        for run in runs:
            print(run.path.name, flush=True)
            refresh(run.path, args.execution_timeout)
        return 0

    args.out.mkdir(parents=True, exist_ok=True)
    if args.jobs > 1:  # the longest first, so that none is left over at the end
        runs.sort(key=lambda run: -run.told)
    with ProcessPoolExecutor(args.jobs) as pool:
        rest = args.out, given, args.execution_timeout, args.folder.resolve()
        ended = pool.map(execute, runs, *map(repeat, rest))
        import pages  # torch and Sphinx take seconds: the notebooks run already

        from xtclib.study import profiles

        try:
            used = profiles.profile(args.profile).name
        except ValueError as error:
            pool.shutdown(cancel_futures=True)
            print(f"error: {error}", file=sys.stderr)
            return 1
        for i, run in enumerate(ended):
            runs[i] = run
            print(f"{run.path.stem:<32}{run.seconds:8.1f} s  {run.status}", flush=True)
    runs.sort(key=lambda run: run.path.name)
    ran = {run.path.stem: args.out / f"{run.path.stem}.ipynb" for run in runs if run.status == "ok"}
    read = {name: nbformat.read(path, as_version=4) for name, path in ran.items()}
    pages.build(read, index(runs, used), args.out, args.jobs)

    failed = [run for run in runs if run.status != "ok"]
    if failed:
        for run in failed:
            print(f"\n{run.path.name} failed in {run.error}", file=sys.stderr)
        names = ", ".join(run.path.stem for run in failed)
        print(f"\n{len(failed)} of {len(runs)} notebooks failed: {names}", file=sys.stderr)
        return 1
    print(f"{len(runs)} notebooks: {args.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
