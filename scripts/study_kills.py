"""Kill a study's workers, all of them, or its scheduler at random moments, then end it.

`python scripts/study_kills.py --count 10 --seed 0` does each of the three so often and says of
every study what differs from an undisturbed one: runs lost, or records that are not the same to
the last digit, but for what a clock or a calendar says. Exit code 1 if anything does. Studies take
the smoke profile; after a kill the same command is started again until it ends well.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from xtclib.records import Record

STUDY = "grids: [{recipes: [xtc-1bit, xtc-half], profile: smoke, tasks: [sst2], seeds: [0, 1]}]\n"


def started(place: Path) -> subprocess.Popen:
    """`xtc study run`, with a cache and records of its own."""
    (place / "study.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "xtclib.cli", "study", "run", place / "study.yaml", "--quiet"]
    log = (place / "log").open("a")
    return subprocess.Popen(command, stdout=log, stderr=log,
                            env=os.environ | {"XTC_CACHE": str(place / "cache")})  # fmt: skip


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """The worker processes of a study's command."""
    try:
        found = psutil.Process(process.pid).children(recursive=True)
        return [child for child in found if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def records(place: Path) -> dict[str, dict]:
    """What was measured, by file, without what a clock says."""
    paths = sorted(place.glob("smoke/*/*.json"))
    return {path.name: Record.read(path).lasting() for path in paths}


def disturbed(place: Path, whom: str, after: float, chance: random.Random) -> str:
    """Kills once, ends the study, and says how often its command was started."""
    place.mkdir()
    process = started(place)
    began = time.monotonic()
    while not workers(process) or time.monotonic() - began < after:
        time.sleep(0.05)
    victims = workers(process)
    victims = [chance.choice(victims)] if whom == "worker" and victims else victims
    for victim in victims if whom != "scheduler" else []:
        victim.send_signal(signal.SIGKILL)
    if whom == "scheduler":
        process.kill()
    starts = 1
    while process.wait(timeout=600):
        process, starts = started(place), starts + 1
        if starts > 4:
            return "never ends"
    return f"ends after {starts} start{'s' * (starts > 1)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, wrong = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "undisturbed")
        place.mkdir()
        began = time.monotonic()
        if started(place).wait():
            sys.exit((place / "log").read_text())
        whole, right = time.monotonic() - began, records(place)
        for whom in ("worker", "all workers", "scheduler"):
            for turn in range(options.count):
                after = chance.uniform(0, whole)
                place = Path(folder, f"{whom}-{turn}")
                how = disturbed(place, whom, after, chance)
                same = records(place) == right
                wrong += not same
                told = "the same records" if same else f"other records, see {place}"
                print(f"{whom:<12} killed after {after:5.1f} s: {how}, {told}", flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
