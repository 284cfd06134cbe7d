"""The committed records: readable, current, honest about their floors; and one measured again."""

import re

import pytest

from xtclib import records
from xtclib.recipes import recipe
from xtclib.study import compress, profiles

RECORDS = [r for profile in profiles.PROFILES for r in records.read(profile)]


def mean_score(metrics):
    return sum(m["score"] for m in metrics.values()) / len(metrics)


def name(record):
    return f"{record.profile}-{record.task}-{record.recipe}-{record.budget}-s{record.seed}"


def test_there_are_records_of_every_built_in_recipe():
    measured = {r.recipe for r in RECORDS if r.profile == "mini"}
    assert set(recipe.names()) <= measured
    assert all(recipe.load(name).name == name for name in measured)  # nip-90 and the like


@pytest.mark.parametrize("record", RECORDS, ids=name)
def test_a_record_belongs_to_the_recipe_as_it_is_now(record):
    assert record.recipe_hash == recipe.load(record.recipe).hash


@pytest.mark.parametrize("record", RECORDS, ids=name)
def test_a_student_beats_its_floors_or_its_record_says_that_it_does_not(record):
    rows = int(re.search(r"(\d+) (dev|test) rows", record.data).group(1))
    scores = (record.score, mean_score(record.majority), mean_score(record.untrained))
    steps = sum(stage["steps"] for stage in record.stages)
    assert record.note == compress.verdict(recipe.load(record.recipe), *scores, steps, rows)


def test_the_built_in_records_were_measured_on_the_committed_rows():
    fingerprints = {t: profiles.data_for(t, "mini").fingerprint for t in ("sst2", "mnli")}
    for record in RECORDS:
        if record.profile == "mini":
            assert record.data_fingerprint == fingerprints[record.task], name(record)


@pytest.mark.slow
def test_a_committed_record_is_found_again_when_measured_again():
    (old,) = records.read("mini", recipe="ptq-8bit", task="sst2")
    new = compress.compress(
        "ptq-8bit", "sst2", "mini", progress=False, say=lambda line: None
    ).record
    for same in ("bytes", "parameters", "flops", "teacher_bytes", "data_fingerprint", "majority"):
        assert getattr(new, same) == getattr(old, same), same
    # Bits agree on one machine; another processor sums in another order, through 120 steps.
    assert new.teacher_score == pytest.approx(old.teacher_score, abs=3.0)
    assert new.score == pytest.approx(old.score, abs=4.0)
