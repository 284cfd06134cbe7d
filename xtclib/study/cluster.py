"""Studies on many workers: ``dask.distributed`` says who runs what, files say what is done.

A run is measured by whoever holds the lock beside its record, which is written whole or not at all:
a worker, all of them or the scheduler may be killed, and two clusters may share a folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import platform
import queue
import time
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

import xtclib
from xtclib import cache, teachers
from xtclib.files import check_new_file, first_line, write_text
from xtclib.study import profiles, sweep
from xtclib.study.design import Wanted
from xtclib.tasks import reviews

TRIES = 3  # of a run that fails, or whose worker dies, before it is set aside
CLAIMS = ".claims"  # in a study's folder: locks, and why runs failed


@dataclass(frozen=True)
class Place:
    """What every worker of a cluster is told: where records go, and what must be the same there."""

    folder: str
    glue_dir: str | None
    sources: str
    threads: int
    ships: bool = False  # whether caches differ, so that teachers travel with their runs


@dataclass(frozen=True)
class Outcome:
    """How a run ended: ``measured``, ``read``, ``refused``, ``failed``, or ``taken`` by another."""

    key: str
    how: str
    seconds: float = 0.0
    reason: str = ""


Payload = dict[str, bytes]  # folders as archives, by where they belong in the cache


@functools.cache
def sources() -> str:
    """What the package's files hold: machines with the same answer run the same code."""
    here = Path(xtclib.__file__).parent
    found = hashlib.sha256()
    for path in sorted(p for p in here.rglob("*") if p.suffix in (".py", ".yaml")):
        found.update(path.relative_to(here).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]


@contextlib.contextmanager
def claimed(run: Wanted, folder: str | Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process has a run for itself; not, while another has it, unless it can wait."""
    place = Path(folder).expanduser() / CLAIMS / f"{run.key}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place, timeout=-1 if wait else 0):
            yield True
            if run.path(folder).is_file():  # whoever waits for this lock reads the record then
                place.unlink(missing_ok=True)
    except Timeout:
        yield False


def measure(run: Wanted, wait: bool, place: Place, taught: Payload | None = None,
            data: Payload | None = None) -> Outcome:  # fmt: skip
    """One run on a worker, unless it was measured meanwhile or another cluster is at it."""
    if place.sources != sources():
        raise RuntimeError(f"this worker's xtclib differs from the client's: {_CURE}")
    started = time.perf_counter()
    _quiet(place)
    with claimed(run, place.folder, wait) as mine:
        if not mine:
            return Outcome(run.key, "taken")
        unpack({**(taught or {}), **(data or {})})
        glue_dir = _glue_dir(place.glue_dir)
        (one,) = sweep.planned([run], place.folder, glue_dir)
        if one.record is None:
            sweep.measured(run, place.folder, glue_dir, False, lambda line: None, timed=False)
        how = "read" if one.record else "measured"
        return Outcome(run.key, how, time.perf_counter() - started)


def teach(run: Wanted, place: Place, data: Payload | None = None) -> Payload | None:
    """A run's teacher, in the cache of the worker; packed where other workers have other caches."""
    _quiet(place)
    unpack(data or {})
    rows = sweep.rows_of(run, _glue_dir(place.glue_dir))
    teacher = profiles.teacher_for(run.task, run.profile, rows, progress=False)
    kept = teachers.folder_of(rows.task, teacher.key)
    return pack(kept) if place.ships and kept.is_dir() else None


def pack(folder: Path) -> Payload:
    """A folder as an archive, by its place in the cache."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(folder))
    base = cache.cache_dir()
    known = folder.is_relative_to(base)
    place = folder.relative_to(base).as_posix() if known else f"shipped/{folder.name}"
    return {place: content.getvalue()}


def unpack(payload: Payload) -> None:
    """Has this machine's cache hold what was packed on another."""
    for name, content in payload.items():

        def fill(partial: Path, content: bytes = content) -> None:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                archive.extractall(partial)

        cache.keep(cache.cache_dir() / name, fill)


def _glue_dir(wanted: str | None) -> Path | None:
    """A GLUE folder where this machine has it: at its path, or in the cache, shipped."""
    if wanted is None or Path(wanted).is_dir():
        return Path(wanted) if wanted else None
    return cache.cache_dir() / "shipped" / Path(wanted).name


def _quiet(place: Place) -> None:
    """What a worker's process is before its first run."""
    torch.set_num_threads(place.threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


_CURE = "install the same versions and commit on every machine, then start the workers anew"


@contextlib.contextmanager
def client_of(scheduler: str | None = None, workers: int | None = None, threads: int = 1,
              memory: str = "auto", say: Callable[[str], object] = print
              ) -> Iterator[Any]:  # fmt: skip
    """A client of the cluster at an address, or of one made of this machine's cores.

    Raises ``OSError`` where no scheduler answers or none has workers, ``ImportError`` without dask.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise ImportError("a cluster needs dask: pip install 'xtclib[study]'") from None
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            workers = workers or max((os.cpu_count() or 1) // threads, 1)
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 10**6}))
            scheduler = stack.enter_context(LocalCluster(
                n_workers=workers, threads_per_worker=1, memory_limit=memory, silence_logs=50,
                dashboard_address=":0", env={"OMP_NUM_THREADS": str(threads)},
            ))  # fmt: skip
        try:
            client = stack.enter_context(Client(scheduler, timeout=10))
            client.wait_for_workers(1, timeout=60)
        except (OSError, TimeoutError) as error:
            what = f"no scheduler with workers at {scheduler} ({first_line(error)})"
            raise OSError(f"{what}: start both, or leave --scheduler out") from None
        found = client.scheduler_info(n_workers=-1)["workers"]
        say(f"cluster  {len(found)} workers, {threads} threads each; {_dashboard(client)}")
        yield client


def _dashboard(client: Any) -> str:
    with contextlib.suppress(Exception):  # without bokeh there is none
        if client.scheduler_info()["services"].get("dashboard"):
            return f"watch it at {client.dashboard_link}"
    return "install bokeh for dask's dashboard"


def survey(place: Place, needs_reviews: bool) -> dict:
    """What a worker has of all that a study needs there."""
    versions = {
        "python": platform.python_version(), "torch": torch.__version__,
        "transformers": version("transformers"),  # the module loads lazily, not for threads
        "xtclib": f"{xtclib.__version__}, files {sources()}",
    }  # fmt: skip
    mark = cache.cache_dir() / "mark"
    with contextlib.suppress(OSError), cache.locked("mark"):
        if not mark.is_file():
            write_text(mark, os.urandom(8).hex())
    try:
        check_new_file(Path(place.folder) / CLAIMS / "any")
        refused = ""
    except OSError as error:
        refused = first_line(error)
    return {
        "versions": versions,
        "cache": mark.read_text() if mark.is_file() else "", "refused": refused,
        "glue": place.glue_dir is None or Path(place.glue_dir).is_dir(),
        "reviews": not needs_reviews or reviews.fetched(),
    }  # fmt: skip


def checked(client: Any, place: Place, runs: Iterable[Wanted]) -> tuple[Place, Payload]:
    """The place, and what must be shipped, once every worker was asked.

    Raises ``ValueError`` where a worker's versions are others, ``OSError`` where a worker cannot
    write to the folder.
    """
    needed = any(profiles.profile(run.profile).data == "reviews" for run in runs)
    here = survey(place, needed)
    try:
        found = client.run(survey, place, needed)
    except ModuleNotFoundError as error:
        raise ValueError(f"a worker lacks {error.name}: {_CURE}") from None
    for address, there in found.items():
        for name, ours in here["versions"].items():
            if there["versions"].get(name) != ours:
                told = f"{name} {there['versions'].get(name)}, the client {ours}"
                raise ValueError(f"the worker at {address} has {told}: {_CURE}")
        if there["refused"]:
            cure = "name a folder that all machines share"
            raise OSError(f"the worker at {address} cannot write ({there['refused']}): {cure}")
    ships = any(there["cache"] != here["cache"] for there in found.values())
    data: Payload = {}
    if not all(there["glue"] for there in found.values()) and place.glue_dir:
        data |= pack(Path(place.glue_dir))
    if not all(there["reviews"] for there in found.values()):
        data |= pack(reviews.folder())
    return replace(place, ships=ships), data


def run(runs: Iterable[Wanted], folder: str | Path, glue_dir: str | Path | None = None,
        client: Any = None, threads: int = 1, progress: bool = True,
        say: Callable[[str], object] = print) -> list[Outcome]:  # fmt: skip
    """Every run that ``folder`` has no record of, measured by a cluster; how each ended.

    ``client``: of :func:`client_of`. Teachers are made once, before the runs that need them.
    Raises what :func:`checked` and :func:`hand_out` do.
    """
    folder = Path(folder).expanduser().resolve()
    glue = str(Path(glue_dir).expanduser().resolve()) if glue_dir else None
    wanted = [one for one in sweep.planned(runs, folder, glue_dir) if not one.record]
    place = Place(str(folder), glue, sources(), threads)
    place, shipped = checked(client, place, [one.run for one in wanted])
    data = client.scatter(shipped, broadcast=True, hash=False) if shipped else None
    taught: dict[tuple, Any] = {}
    for one in wanted:
        what = one.run.profile, str(one.run.task), one.recipe.calibrates
        if what not in taught:
            name = f"teacher-{'-'.join(map(str, what))}"
            taught[what] = client.submit(teach, one.run, place, data, key=name, priority=10)
    given = [(place, taught[o.run.profile, str(o.run.task), o.recipe.calibrates], data)
             for o in wanted]  # fmt: skip
    return hand_out(client, measure, [one.run for one in wanted], folder, given, progress, say)


def hand_out(client: Any, work: Callable[..., Outcome], runs: Sequence[Wanted],
             folder: str | Path, given: Sequence[tuple] = (), progress: bool = True,
             say: Callable[[str], object] = print) -> list[Outcome]:  # fmt: skip
    """``work(run, wait, *given)`` on a cluster for every run, each with what it is given.

    What fails is tried thrice, with the reason kept beside the locks in ``folder``; what is refused
    (a ``ValueError``) is not. What another cluster has ``taken`` is asked for again at the end, and
    waited for. Raises ``OSError`` if the scheduler is gone: the same call goes on.
    """
    by_key = {run.key: run for run in runs}
    own = dict(zip(by_key, given or [()] * len(by_key), strict=True))
    desk = _Desk(client, work, Path(folder) / CLAIMS, by_key, own)
    return desk.run(tqdm(total=len(by_key), disable=not progress, unit="run"), say)


@dataclass
class _Desk:
    """Where runs are handed out and taken back."""

    client: Any
    work: Callable[..., Outcome]
    reasons: Path
    runs: dict[str, Wanted]
    given: dict[str, tuple]

    def __post_init__(self) -> None:
        self.back: queue.SimpleQueue = queue.SimpleQueue()
        self.out: dict[str, Any] = {}
        self.tries: dict[str, int] = {}
        self.ended: dict[str, Outcome] = {}

    def run(self, bar: tqdm, say: Callable[[str], object]) -> list[Outcome]:
        """Hands out all runs, and again what failed; at the end what others had."""
        waiting: list[str] = []
        if self.runs:
            self.submit(self.runs)
        with bar:
            while self.out:
                for key, outcome in self.ended_now(bar):
                    if outcome is None:
                        self.submit([key])
                    elif outcome.how == "taken":
                        waiting.append(key)
                    else:
                        self.end(outcome, bar, say)
                if not self.out and waiting:
                    self.submit(waiting, True)
                    waiting = []
        return [self.ended[key] for key in self.runs]

    def submit(self, keys: Iterable[str], wait: bool = False) -> None:
        """Hands out runs, all in one message."""
        names = [*keys]
        for key in names:
            self.tries[key] = self.tries.get(key, 0) + 1
        given = zip(*((self.runs[key], wait, *self.given[key]) for key in names), strict=True)
        tried = [f"{key}#{self.tries[key]}" for key in names]
        futures = self.client.map(self.work, *given, key=tried, pure=False)
        for key, future in zip(names, futures, strict=True):
            self.out[key] = future
            future.add_done_callback(self.back.put)

    def ended_now(self, bar: tqdm) -> list[tuple[str, Outcome | None]]:
        """What came back within a second; ``None`` for what is to be tried again."""
        try:
            found = [self.back.get(timeout=1)]
        except queue.Empty:
            self.look(bar)
            return []
        while not self.back.empty():
            found.append(self.back.get())
        by_key = {future.key.rpartition("#")[0]: future for future in found}
        by_key = {key: future for key, future in by_key.items() if self.out.pop(key, None)}
        well = {key: future for key, future in by_key.items() if future.status == "finished"}
        results = dict(zip(well, self.client.gather([*well.values()]), strict=True))
        return [(k, results[k] if k in well else self.failure(k, f)) for k, f in by_key.items()]

    def failure(self, key: str, future: Any) -> Outcome | None:
        """How a run failed; ``None`` where it is tried again."""
        if self.client.status != "running" or future.cancelled():
            raise OSError(f"the scheduler is gone with {len(self.out)} runs out: {_AGAIN}")
        error = future.exception()
        if isinstance(error, ValueError):
            return Outcome(key, "refused", reason=first_line(error))
        told = "".join(traceback.format_exception_only(type(error), error))
        write_text(self.reasons / f"{key}.{self.tries[key]}.txt", told)
        if self.tries[key] < TRIES:
            return None
        return Outcome(key, "failed", reason=f"{TRIES} times, at last: {first_line(error)}")

    def end(self, outcome: Outcome, bar: tqdm, say: Callable[[str], object]) -> None:
        self.ended[outcome.key] = outcome
        self.given.pop(outcome.key)  # its teacher may leave the workers' memory
        bar.update()
        if outcome.reason:
            say(f"{outcome.how:<8} {self.runs[outcome.key]}: {outcome.reason}")

    def look(self, bar: tqdm) -> None:
        """Shows what runs where."""
        if self.client.status != "running":
            raise OSError(f"the scheduler is gone with {len(self.out)} runs out: {_AGAIN}")
        failed = sum(1 for o in self.ended.values() if o.reason)
        first = [next(iter(keys), "") for keys in self.client.processing().values()]
        running = [str(self.runs.get(key.rpartition("#")[0], key)) for key in first if key]
        told = "; ".join(running[:3]) + (f" and {len(running) - 3} more" if running[3:] else "")
        bar.set_postfix_str(f"{failed} failed; {told}")


_AGAIN = "what was measured is kept, and the same command goes on"
