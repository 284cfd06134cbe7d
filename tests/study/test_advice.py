"""The advisor on made-up records: what fits, what fell out and why, and what it refuses."""

import math
import subprocess
import sys

import pytest
from made import made

from xtclib import bert
from xtclib.artefact import ledger
from xtclib.recipes import recipe as recipes
from xtclib.study import advice, profiles
from xtclib.study.advice import Wishes


def known(recipe, drop, size, seconds=60.0, **other):
    """A record on the smoke profile's sst2, saved where the advisor reads."""
    return made(recipe, 94.0 - drop, size, profile="smoke", seconds=seconds, **other)


RECORDS = [
    known("xtc-1bit", 5.0, 200_000), known("xtc-1bit", 6.0, 200_000, seed=1),
    known("xtc-2bit", 2.0, 400_000, seconds=7200.0), known("ptq-8bit", 0.5, 900_000, seconds=0.0),
    known("xtc-half", 1.5, 3_000_000), known("xtc-half", 1.0, 3_000_000, task="cola"),
    known("rpp-50", 3.0, 2_000_000, task="cola"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for record in RECORDS:
        record.save(tmp_path)
    return tmp_path


def ask(folder, task="sst2", **wishes):
    return advice.advise(Wishes(**wishes), task, "smoke", folder)


def test_what_fits_loses_least_or_is_smallest(folder):
    found = ask(folder, mb=1.0, drop=6.0)
    assert [(why, c.recipe) for why, c in found.fits] == [
        ("loses least", "ptq-8bit"), ("is smallest", "xtc-1bit")
    ]  # fmt: skip
    assert found.best.expected.drop == 0.5 and found.best.bytes == 900_000
    assert {name: [c.recipe for c in out] for name, out in found.out.items()} == {
        "mb": ["xtc-half"]
    }
    assert "--budget A --out FOLDER" in found.command()


def test_each_falls_out_by_the_first_wish_that_it_misses(folder):
    found = ask(folder, mb=2.5, drop=2.5, hours=1.0)
    assert [c.recipe for _, c in found.fits] == ["ptq-8bit"]
    out = {name: {c.recipe for c in some} for name, some in found.out.items()}
    assert out == {"mb": {"xtc-half"}, "drop": {"xtc-1bit", "rpp-50"}, "hours": {"xtc-2bit"}}


def test_other_tasks_stand_in_and_say_so_and_their_bytes_are_planned(folder):
    found = {c.recipe: c for _, c in ask(folder, task="cola", drop=5.5).fits}
    assert found["ptq-8bit"].expected.elsewhere == ("sst2",)
    assert math.isnan(found["ptq-8bit"].hours)
    config = bert.read_config(profiles.backbone_for("smoke"))
    planned = ledger.plan(config, recipes.load("ptq-8bit").techniques)
    assert found["ptq-8bit"].bytes == sum(entry.bytes for entry in planned)


def test_nothing_fits_and_the_nearest_is_named(folder):
    found = ask(folder, mb=0.1, drop=0.2)
    assert found.best is None and found.fits == ()
    # rpp-50 loses 3 points of cola, (3 + 1) / (0.2 + 1); xtc-2bit is four times too large
    assert found.nearest.recipe == "rpp-50" and found.nearest.bytes < 330_000
    assert found.nearest.excess(found.wishes.limits) == pytest.approx(4 / 1.2)
    assert "nothing; nearest" in found.table() and "3 points lost for 0.2" in found.table()


def test_milliseconds_are_told_for_what_is_left_alone(folder, monkeypatch):
    asked = []

    def told(model, batch, length, device):
        asked.append((batch, length, device))
        return float(len(asked))

    monkeypatch.setattr(advice.layer_times, "predicted", told)
    found = ask(folder, mb=1.0, ms=2.5, batch=2, length=16)
    assert len(asked) == 5 and {*asked} == {(2, 16, "cpu")}  # four are within 1 MB, and the teacher
    assert sorted(c.ms for c in found.out["ms"]) == [3.0, 4.0] and found.teacher_ms == 5.0
    assert {c.ms for _, c in found.fits} <= {1.0, 2.0}


def test_what_depends_on_the_row_is_told_by_its_records(tmp_path, monkeypatch):
    times = {"teacher": {"median": 10.0}, "student": {"median": 4.0}}
    known("fastbert", 1.0, 10, latency={"batch": 8, "length": 32, "milliseconds": times}).save(
        tmp_path
    )
    monkeypatch.setattr(advice.layer_times, "predicted", lambda *_, **__: 50.0)
    assert ask(tmp_path, ms=100.0).best.ms == pytest.approx(20.0)


@pytest.mark.parametrize(
    "wishes, message",
    [
        ({}, "nothing is wished for: give at least one of mb, ms, drop, hours"),
        ({"mb": 0}, "mb of wishes must be a number above 0"),
        ({"drop": -1}, "drop of wishes must be a number of at least 0"),
        ({"ms": "5ms"}, "ms of wishes must be a number above 0"),
        ({"mb": 1, "batch": 0}, "batch of wishes must be a whole number from 1"),
    ],
)
def test_wishes_that_are_none_are_refused(wishes, message):
    with pytest.raises(ValueError, match=message):
        Wishes(**wishes)


def test_a_device_that_is_not_there_and_records_that_are_not(tmp_path):
    with pytest.raises(ValueError, match="unknown device 'tpu': expected cpu or cuda"):
        advice.advise(Wishes(mb=1), "sst2", "smoke", tmp_path, device="tpu")
    with pytest.raises(ValueError, match="no record of the profile smoke .*`xtc compress xtc-1bit"):
        advice.advise(Wishes(mb=1), "sst2", "smoke", tmp_path)


def test_a_folder_of_another_version_names_its_file(tmp_path):
    path = RECORDS[0].save(tmp_path)
    path.write_text('{"recipe": "xtc-1bit"}')
    with pytest.raises(ValueError, match=f"{path.name} is no record"):
        ask(tmp_path, mb=1)


@pytest.mark.slow
def test_a_run_ends_with_expected_beside_measured(folder, tmp_path):
    found = advice.advise(Wishes(drop=1.0, ms=1000.0), "sst2", "smoke", folder)
    assert found.best.recipe == "ptq-8bit"
    result = advice.run(found, progress=False, say=lambda _: None)
    told = advice.against(found.best, result, found.wishes)
    drop = result.record.teacher_score - result.record.score
    assert f"{drop:.1f}" in told.splitlines()[1] and "expected" in told
    assert f"{result.record.bytes / 1e6:.3f}" in told.splitlines()[2]


@pytest.mark.slow
def test_advice_imports_nothing_that_trains():
    code = "import sys, xtclib.study.advice; print('xtclib.training.trainer' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
