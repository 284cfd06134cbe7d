"""A journal of trials: processes take turns to draw one or to tell what came of it.

Optuna keeps the trials, in one file; who works on which is known by locks that the system frees
when a process ends, however it ends. All of them see one disk.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from xtclib import cache
from xtclib.files import first_line

TRIES = 3  # of a trial whose process is killed
FILE = "journal.log"


def load_optuna() -> Any:
    """Optuna, which says nothing of what goes well; ``ImportError`` where it is not installed."""
    try:
        import optuna as found
    except ImportError:
        raise ImportError("a search needs optuna: pip install 'xtclib[study]'") from None
    found.logging.set_verbosity(found.logging.WARNING)
    return found


class Journal:
    """A folder's study, opened or begun.

    ``made_of``: sums by name of what a study is made of, which stay what they were, or it is a
    ``ValueError``. ``directions``: ``maximize`` or ``minimize`` for each objective.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, str], directions: list[str]) -> None:
        self.folder, path = folder, folder / FILE
        (folder / "workers").mkdir(parents=True, exist_ok=True)
        self.turn = FileLock(folder / "turn.lock")
        kinds = load_optuna().storages.journal
        with self.turn:
            _mend(path)
            try:
                lock = kinds.JournalFileOpenLock(str(path))
                storage = kinds.JournalStorage(kinds.JournalFileBackend(str(path), lock))
                self.study = load_optuna().create_study(
                    study_name="search", storage=storage, directions=directions,
                    load_if_exists=True,
                )  # fmt: skip
            except (ValueError, LookupError) as error:
                why = f"{path} is no journal of a search ({first_line(error)})"
                raise ValueError(f"{why}: name another folder") from None
            there = self.study.user_attrs.get("made_of")
            if there is None:
                self.study.set_user_attr("made_of", dict(made_of))
            elif differ := [name for name in made_of if there.get(name) != made_of[name]]:
                told = f"{folder} holds a search with another {', another '.join(differ)}"
                raise ValueError(f"{told}: name another folder, or take what began it")

    @contextlib.contextmanager
    def worker(self) -> Iterator[str]:
        """A name for this process, and a lock on it."""
        name = secrets.token_hex(8)
        with FileLock(self._lock(name)):
            yield name
        self._lock(name).unlink(missing_ok=True)

    def _lock(self, worker: str) -> Path:
        return self.folder / "workers" / f"{worker}.lock"

    def _works(self, worker: str | None) -> bool:
        """Whether a process is there still; one without a name was cut off in its turn."""
        if worker is None:
            return False
        try:
            with FileLock(self._lock(worker), timeout=0):
                self._lock(worker).unlink(missing_ok=True)
                return False
        except Timeout:
            return True

    def next(self, worker: str, space: Mapping[str, Any], trials: int, seed: int) -> Any:
        """The next of ``trials``, with values from ``space``; ``None`` where all are taken.

        A trial whose process is gone has failed, and comes first: as another trial with the same
        values and the same ``slot``, its place in line. What is drawn depends on the seed and the
        slot, not on how often the search was begun.
        """
        states = load_optuna().trial.TrialState
        with self.turn:
            known = self.study.get_trials(deepcopy=False)
            newest = {t.user_attrs["slot"]: t.number for t in known if "slot" in t.user_attrs}
            for t in known:
                told = t.user_attrs
                if t.state != states.RUNNING or self._works(told.get("worker")):
                    continue
                slot, tried = told.get("slot"), told.get("try", 1)
                if newest.get(slot) == t.number and tried < TRIES:
                    self.study.enqueue_trial(t.params, {"slot": slot, "try": tried + 1})
                self.study.tell(t.number, state=states.FAIL)
            waiting = self.study.get_trials(deepcopy=False, states=(states.WAITING,))
            slot = waiting[0].user_attrs["slot"] if waiting else len(newest)
            if slot >= trials and not waiting:
                return None
            drawn = int(cache.key(seed, slot), 16) % 2**32
            self.study.sampler = load_optuna().samplers.TPESampler(seed=drawn)
            trial = self.study.ask(dict(space))
            trial.set_user_attr("slot", slot)
            trial.set_user_attr("worker", worker)
            return trial

    def refuse(self, trial: Any, why: str) -> None:
        """Ends a trial that cannot be run."""
        with self.turn:
            trial.set_user_attr("refused", why)
            trial.set_constraint("can be run", 100.0)  # else it counts for more than a bad score
            self.study.tell(trial, state=load_optuna().trial.TrialState.PRUNED)

    def accept(self, trial: Any, record: Path, values: Sequence[float], short: float) -> None:
        """Ends a trial that was measured; ``short``: of what it has to be, none where at most 0."""
        with self.turn:
            trial.set_user_attr("record", record.relative_to(self.folder).as_posix())
            trial.set_constraint("beats the majority class", short)
            self.study.tell(trial, list(values))


def _mend(journal: Path) -> None:
    """Cuts off a last line that was half written when its process was killed."""
    held = journal.read_bytes() if journal.is_file() else b""
    whole = held.rfind(b"\n") + 1
    if whole < len(held):
        with journal.open("r+b") as file:
            file.truncate(whole)
