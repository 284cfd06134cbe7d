"""Studies on workers: every run once, whatever is killed; teachers once; refusals before hours."""

import os
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from xtclib import cache as caches
from xtclib.records import read
from xtclib.study import cluster, profiles, sweep
from xtclib.study.cluster import Outcome, Place
from xtclib.study.design import Grid, Study, Wanted

distributed = pytest.importorskip("distributed")
RUNS = Study([Grid(["xtc-1bit", "ptq-8bit"], "smoke", ["sst2"], seeds=[0, 1, 2])]).runs()


def silent(line):
    pass


@pytest.fixture(scope="module")
def threads():
    """A cluster of four threads in this process."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, processes=False,
                                 dashboard_address=None, silence_logs=50) as local,
        distributed.Client(local) as client,
    ):  # fmt: skip
        yield client


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def noted(run, wait, folder):
    """A run that only notes that it was run."""
    with cluster.claimed(run, folder, wait) as mine:
        if not mine:
            return Outcome(run.key, "taken")
        with Path(folder, "log").open("a") as file:
            file.write(run.key + "\n")
        return Outcome(run.key, "measured")


def test_every_run_is_handed_out_once(threads, tmp_path):
    runs = Study([Grid(["xtc-1bit"], "smoke", ["sst2"], seeds=range(300))]).runs()
    given = [(str(tmp_path),)] * len(runs)
    ended = cluster.hand_out(threads, noted, runs, tmp_path, given, progress=False)
    assert [each.how for each in ended] == ["measured"] * 300
    assert Counter((tmp_path / "log").read_text().split()) == {run.key: 1 for run in runs}
    assert [each.key for each in ended] == [run.key for run in runs]


TRIED: Counter = Counter()


def troubled(run, wait):
    TRIED[run.seed] += 1
    if run.seed == 1:
        raise ValueError("this backbone has no head")
    if run.seed == 2 or (run.seed == 3 and TRIED[3] < 3):
        raise RuntimeError("out of memory")
    return Outcome(run.key, "measured")


def test_what_fails_is_tried_again_and_what_is_refused_is_not(threads, tmp_path):
    TRIED.clear()
    told = []
    runs = Study([Grid(["xtc-1bit"], "smoke", ["sst2"], seeds=range(5))]).runs()
    ended = cluster.hand_out(threads, troubled, runs, tmp_path, progress=False, say=told.append)
    assert [each.how for each in ended] == ["measured", "refused", "failed", "measured", "measured"]
    assert TRIED == {0: 1, 1: 1, 2: 3, 3: 3, 4: 1}
    assert ended[2].reason == "3 times, at last: out of memory" and len(told) == 2
    kept = sorted(p.name for p in (tmp_path / cluster.CLAIMS).glob("*.txt"))
    assert [name[-8:] for name in kept] == [
        f"s{seed}.{n}.txt" for seed, n in ((2, 1), (2, 2), (2, 3), (3, 1), (3, 2))
    ]
    assert "RuntimeError: out of memory" in (tmp_path / cluster.CLAIMS / kept[0]).read_text()


def held(run, wait, folder):
    with cluster.claimed(run, folder, wait) as mine:
        TRIED[run.seed] += 1
        return Outcome(run.key, "measured" if mine else "taken")


def test_a_run_that_another_cluster_is_at_is_waited_for(threads, tmp_path):
    first, *_ = runs = Study([Grid(["xtc-1bit"], "smoke", ["sst2"], seeds=range(6))]).runs()
    TRIED.clear()
    holding, let_go = threading.Event(), threading.Event()

    def other():
        with cluster.claimed(first, tmp_path):
            holding.set()
            let_go.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    holding.wait(5)
    threading.Timer(1.0, let_go.set).start()
    given = [(str(tmp_path),)] * len(runs)
    ended = cluster.hand_out(threads, held, runs, tmp_path, given, progress=False)
    thread.join()
    assert [each.how for each in ended] == ["measured"] * 6 and TRIED[0] == 2


def test_a_lock_goes_once_its_record_is_there(tmp_path):
    run = Wanted("smoke", "sst2", "xtc-1bit")
    with cluster.claimed(run, tmp_path) as mine:
        assert mine
        with cluster.claimed(run, tmp_path) as again:
            assert not again
    assert (tmp_path / cluster.CLAIMS / f"{run.key}.lock").is_file()
    with cluster.claimed(run, tmp_path):
        run.path(tmp_path).parent.mkdir(parents=True)
        run.path(tmp_path).write_text("{}")
    assert not (tmp_path / cluster.CLAIMS / f"{run.key}.lock").exists()


@pytest.fixture
def place(tmp_path):
    return Place(str(tmp_path), None, cluster.sources(), 1)


def test_workers_of_other_versions_are_refused(threads, place, monkeypatch):
    survey = cluster.survey

    def other(place, needs):
        found = survey(place, needs)
        mine = threading.current_thread() is threading.main_thread()
        return found if mine else found | {"versions": found["versions"] | {"torch": "1.0"}}

    monkeypatch.setattr(cluster, "survey", other)
    with pytest.raises(ValueError, match=r"has torch 1.0, the client 2.*install the same versions"):
        cluster.checked(threads, place, RUNS)


def test_workers_that_cannot_write_are_refused(threads, place, tmp_path):
    (tmp_path / "file").write_text("")
    where = replace(place, folder=str(tmp_path / "file"))
    with pytest.raises(OSError, match="cannot write .*name a folder that all machines share"):
        cluster.checked(threads, where, RUNS)


def test_a_worker_of_other_sources_measures_nothing(place):
    with pytest.raises(RuntimeError, match="differs from the client's"):
        cluster.measure(RUNS[0], False, replace(place, sources="other"))


def test_what_a_worker_lacks_is_shipped(threads, place, tmp_path, monkeypatch):
    glue = tmp_path / "GLUE"
    (glue / "MRPC").mkdir(parents=True)
    (glue / "MRPC" / "train.tsv").write_text("rows")
    survey = cluster.survey
    monkeypatch.setattr(cluster, "survey", lambda *a: survey(*a) | {"glue": False})
    found, data = cluster.checked(threads, replace(place, glue_dir=str(glue)), RUNS)
    assert not found.ships and list(data) == ["shipped/GLUE"]
    monkeypatch.setenv("XTC_CACHE", str(tmp_path / "elsewhere"))
    cluster.unpack(data)
    monkeypatch.setattr(Path, "is_dir", lambda self: False)
    there = cluster._glue_dir(str(glue))
    assert (there / "MRPC" / "train.tsv").read_text() == "rows"
    assert there.is_relative_to(tmp_path / "elsewhere")


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_told():
    with (
        pytest.raises(OSError, match="no scheduler with workers at tcp://127.0.0.1:1 .*start both"),
        cluster.client_of("tcp://127.0.0.1:1", say=silent),
    ):
        pass


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same runs, one after the other in this process."""
    place = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTC_CACHE", str(place / "cache"))
        found = {}
        for run in RUNS[:4]:
            found[run.key] = sweep.measured(run, place, progress=False, say=silent, timed=False)
        return found


@pytest.mark.slow
def test_workers_may_be_killed_at_any_moment(undisturbed, tmp_path, monkeypatch):
    """One while the other works on, then all."""
    monkeypatch.setenv("XTC_CACHE", str(tmp_path / "cache"))
    runs, records, killed, over = RUNS[:4], tmp_path / "records", [], threading.Event()
    with cluster.client_of(workers=2, say=silent) as client, ThreadPoolExecutor(1) as killer:

        def kill(most, measured):
            """So many workers, while a run is at work after so many were measured."""
            while True:
                there = sum(run.path(records).is_file() for run in runs)
                claims = [records / cluster.CLAIMS / f"{run.key}.lock" for run in runs]
                if there >= measured and any(claim.is_file() for claim in claims):
                    break
                if over.wait(0.05):
                    return
            found = [*client.run(os.getpid).values()][:most]
            for pid in found:
                os.kill(pid, signal.SIGKILL)
            killed.append(len(found))

        def kill_twice():
            kill(1, 0)
            kill(2, 1)

        kills = killer.submit(kill_twice)
        try:
            ended = cluster.run(runs, records, client=client, progress=False, say=silent)
        finally:
            over.set()
        kills.result()
    assert killed[0] == 1 and len(killed) == 2
    assert {each.how for each in ended} <= {"measured", "read"} and len(ended) == 4
    found = read("smoke", records)
    assert len(found) == 4
    for run in runs:
        (record,) = [r for r in found if run.path("").name == _name(r)]
        assert record.lasting() == undisturbed[run.key].lasting()
        assert not record.latency  # a busy worker's clock says nothing


def _name(record):
    return f"{record.recipe}-{record.budget}-s{record.seed}.json"


@pytest.mark.slow
def test_teachers_travel_where_caches_differ(tmp_path, monkeypatch):
    monkeypatch.setenv("XTC_CACHE", str(tmp_path / "ours"))
    run = RUNS[0]
    rows = sweep.rows_of(run)
    place = Place(str(tmp_path / "records"), None, cluster.sources(), 1, ships=True)
    payload = cluster.teach(run, place)
    made = profiles.teacher_key(rows, profiles.profile("smoke"))
    assert [Path(name).name for name in payload] == [f"sst2-{made}"]
    monkeypatch.setenv("XTC_CACHE", str(tmp_path / "theirs"))
    cluster.unpack(payload)
    teacher = profiles.teacher_for("sst2", "smoke", rows, progress=False)
    assert teacher.cached and teacher.key == made
    assert (caches.cache_dir() / next(iter(payload)) / "model.safetensors").is_file()
    assert cluster.teach(run, replace(place, ships=False)) is None
