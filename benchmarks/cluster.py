"""What a cluster of this machine's workers brings, and what handing out runs costs.

    python benchmarks/cluster.py [--runs 12] [--steps 40] [--stubs 10000] [--workers 64]
                                 [--out FILE]

First so many equal runs (profile `reviews`, half the layers, a seed each) by one worker and by two,
a thread each, from equal caches: the ratio of their times, and of the time of one worker what was
not spent in runs. Then so many stubs of half a second over threads that only sleep: how busy the
idlest thread was, and how long it took to plan them. Not a timed test.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import common

from xtclib.study import cluster, design, profiles, sweep
from xtclib.tasks import reviews

NAP = 0.5  # seconds
SEEN: list[tuple[int, float, float]] = []  # of each stub: its thread, when it began and ended


def seen(*stub: float) -> None:
    """Notes a stub where this process keeps them, which pickled functions have no hold of."""
    sys.modules["__main__"].SEEN.append(stub)


def stub(run: design.Wanted, wait: bool) -> cluster.Outcome:
    """A run that does nothing for a while."""
    began = time.perf_counter()
    time.sleep(NAP)
    seen(threading.get_ident(), began, time.perf_counter())
    return cluster.Outcome(run.key, "measured", NAP)


def timed(study: design.Study, workers: int) -> tuple[float, float]:
    """Seconds of a study by so many workers from a fresh folder, and those spent in its runs."""
    kept, had = os.environ.get("XTC_CACHE"), reviews.folder()
    with tempfile.TemporaryDirectory() as place:
        os.environ["XTC_CACHE"] = f"{place}/cache"
        shutil.copytree(had, reviews.folder())
        with cluster.client_of(workers=workers, say=lambda line: None) as client:
            client.run(profiles.profile, "reviews")  # imports are not what is measured
            started = time.perf_counter()
            ended = cluster.run(study.runs(), Path(place, "records"), client=client, progress=False)
            spent = time.perf_counter() - started
    os.environ.pop("XTC_CACHE") if kept is None else os.environ.update(XTC_CACHE=kept)
    return spent, sum(each.seconds for each in ended)


def simulated(count: int, workers: int) -> tuple[float, float]:
    """Seconds to plan so many runs, and the share of the time that the idlest worker was busy."""
    import dask
    from distributed import Client, LocalCluster

    grid = design.Grid(["xtc-1bit"], "smoke", ["sst2"], seeds=range(count))
    started = time.perf_counter()
    runs = design.Study([grid]).runs()
    with tempfile.TemporaryDirectory() as place:
        list(sweep.planned(runs, place))
        planning = time.perf_counter() - started
        with (
            # A run waits beside each that is under way, as on workers of one thread.
            dask.config.set({"distributed.scheduler.worker-saturation": 2.0}),
            LocalCluster(n_workers=8, threads_per_worker=workers // 8, processes=False,
                         dashboard_address=None, silence_logs=50) as local,
            Client(local) as client,
        ):  # fmt: skip
            cluster.hand_out(client, stub, runs, place, progress=False)
    first, last = min(began for _, began, _ in SEEN), max(ended for *_, ended in SEEN)
    busy: dict[int, float] = {}
    for worker, began, ended in SEEN:
        busy[worker] = busy.get(worker, 0.0) + ended - began
    return planning, min(busy.values()) / (last - first)


def main() -> None:
    options = common.options(__doc__, runs=12, steps=40, stubs=10_000, workers=64, out="")
    found: dict = {"runs": options.runs, "steps": options.steps}
    if options.runs:
        grid = design.Grid(["xtc-half"], budgets=[f"{options.steps}steps"],
                           seeds=range(options.runs))  # fmt: skip
        study = design.Study([grid])
        one, inside = timed(study, 1)
        two, _ = timed(study, 2)
        found |= {"one": one, "two": two, "ratio": two / one, "around": 1 - inside / one}
        print(f"{options.runs} runs of {inside / options.runs:.0f} s, one thread a worker: "
              f"one worker {one:.0f} s, two {two:.0f} s, {two / one:.2f} ×; "
              f"{found['around']:.1%} of one worker's time was not spent in runs")  # fmt: skip
    if options.stubs:
        planning, busy = simulated(options.stubs, options.workers)
        found |= {"stubs": options.stubs, "workers": options.workers, "nap": NAP,
                  "planning": planning, "busy": busy}  # fmt: skip
        print(f"{options.stubs} stubs of {NAP} s over {options.workers} threads: planned in "
              f"{planning:.1f} s, the idlest busy for {busy:.1%} of the time")  # fmt: skip
    common.write(options.out, found, "distributed")


if __name__ == "__main__":
    main()
