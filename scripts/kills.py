"""Kill runs at random moments: each must end, by the same command, as if nothing had happened.

`python scripts/kills.py --count 500 --seed 0` kills that often, over recipes of four kinds, and
says of every chain of kills what differs from an undisturbed run: the artefact's files, the record,
what lies in the cache or beside `--out`. Exit code 1 if anything does. Runs are forked from this
process, which has imported everything, and take the smoke profile.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from transformers import (  # noqa: F401 - imported once, here
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    Trainer,
)

from xtclib import cli, files
from xtclib.artefact import format, ledger  # noqa: F401
from xtclib.costs import latency
from xtclib.records import Record
from xtclib.study import compress  # noqa: F401

RECIPES = (
    "xtc-1bit-half",
    "movement",
    "theseus-6l",
    "binarybert-twn",
)  # plain, pruned, replaced, split


def started(place: Path, recipe: str) -> int:
    """A child process that runs `xtc compress` into a place of its own; its id."""
    child = os.fork()
    if child:
        return child
    os.environ |= {"XTC_CACHE": str(place / "cache")}
    latency.enough = lambda *_: 3  # nobody reads the times
    format.check_reopens = lambda *_, **__: None  # a process of its own, which leaves nothing
    with (place / "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = ["xtc", "compress", recipe, "--profile", "smoke", "--budget", "4steps", "--quiet",
                "--out", str(place / "out" / "a"), "--record", str(place / "records")]  # fmt: skip
    code = 1
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def finished(place: Path, recipe: str) -> int:
    """The exit code of a run that nothing disturbs."""
    return os.waitstatus_to_exitcode(os.waitpid(started(place, recipe), 0)[1])


def killed(place: Path, recipe: str, after: float) -> bool:
    """Starts a run and kills it after some seconds; whether it was still running."""
    child, end = started(place, recipe), time.monotonic() + after
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def outcome(place: Path) -> dict[str, object]:
    """What a run left: sums of the artefact, the record without times, the names of all files."""
    found: dict[str, object] = {}
    for file in sorted(place.rglob("*")):
        name = file.relative_to(place).as_posix()
        if file.is_dir() and any(file.iterdir()) or name == "log" or "/locks/" in name:
            continue
        if "/outs/" in name:  # named after the place itself
            continue
        found[name] = files.sha256(file) if name.startswith("out/") and file.is_file() else ""
    for file in (place / "records").rglob("*.json"):
        found["record"] = Record.read(file).lasting()
    return found


def new_place(folder: Path, number: int, random_: random.Random, full: Path) -> Path:
    """An empty place; for half of them with backbone and teacher, some with an empty `--out`."""
    place = folder / str(number)
    (place / "out" / "a" if random_.random() < 0.3 else place / "out").mkdir(parents=True)
    if random_.random() < 0.5:
        for part in ("backbones", "teachers"):
            shutil.copytree(full / "cache" / part, place / "cache" / part)
    return place


def main(count: int, seed: int) -> int:
    torch.set_num_threads(1)
    random_, faults, kills, chains = random.Random(seed), 0, 0, 0
    wanted, seconds = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for recipe in RECIPES:
            place = folder / recipe
            (place / "out").mkdir(parents=True)
            start = time.monotonic()
            if finished(place, recipe):
                raise SystemExit((place / "log").read_text())
            seconds[recipe], wanted[recipe] = time.monotonic() - start, outcome(place)
        print({name: round(value, 1) for name, value in seconds.items()}, flush=True)
        while kills < count:
            recipe = RECIPES[chains % len(RECIPES)]
            place = new_place(folder, chains, random_, folder / recipe)
            chains, moments = chains + 1, []
            while kills < count and (not moments or random_.random() < 0.6):
                moments.append(round(random_.uniform(0, 1.1 * seconds[recipe]), 3))
                kills += killed(place, recipe, moments[-1])
            code, found = finished(place, recipe), outcome(place)
            told = [k for k in {**wanted[recipe], **found} if wanted[recipe].get(k) != found.get(k)]
            if code or told:
                faults += 1
                print(f"{recipe}, killed after {moments} s: exit code {code}, differs {told[:6]}")
                lines = (place / "log").read_text().splitlines()
                print(
                    "\n".join(n for n in lines if "damaged" in n or n.startswith("xtc:")),
                    flush=True,
                )
            shutil.rmtree(place)
            if chains % 50 == 0:
                print(f"… {kills} kills in {chains} chains, {faults} faults", flush=True)
    print(f"{kills} kills in {chains} chains of seed {seed}: {faults} did not end as undisturbed")
    return 1 if faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(**vars(parser.parse_args())))
