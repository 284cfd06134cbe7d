"""The table of effectiveness: its numbers are the records', its lines the published ones."""

import csv
import json
from statistics import fmean

import pytest

from xtclib import records
from xtclib.cache import ROOT
from xtclib.costs.published import table
from xtclib.recipes import recipe as recipes
from xtclib.study import effectiveness


@pytest.fixture(scope="module")
def lines():
    return effectiveness.lines()


def test_every_published_line_but_the_whole_model_has_a_recipe_beside_it(lines):
    published = {row["row"] for row in table("effectiveness")}
    assert {line.row for line in lines} == published - {1}
    assert len({line.family for line in lines}) == 12
    assert all(recipes.load(line.recipe) for line in lines)


def test_scores_are_those_of_the_records(lines):
    every = {t: records.read(place, task=t) for t, place in effectiveness.PLACES.items()}
    for line in lines:
        for task, (budget, seeds, score, low, high, teacher) in line.scores.items():
            own = [r for r in every[task] if (r.recipe, r.budget) == (line.recipe, budget)]
            assert len(own) == seeds and low <= score <= high
            assert score == pytest.approx(fmean(r.score for r in own))
            assert teacher == pytest.approx(fmean(r.teacher_score for r in own))
        apart = [score - teacher for *_, score, _, _, teacher in line.scores.values()]
        assert line.difference == pytest.approx(sum(apart) / len(apart))


def test_sizes_are_those_on_disk_and_planned(lines):
    by_recipe = {line.recipe: line for line in lines}
    half = by_recipe["logits-half"]
    assert half.size == pytest.approx(69.569 / 90.868, abs=1e-4)
    assert half.size_inside == pytest.approx(0.5, abs=0.02)  # three layers of six, and a pooler
    assert by_recipe["xtc-2bit"].size_inside == pytest.approx(2 / 32, abs=0.01)


def test_verdicts_follow_from_the_numbers(lines):
    for line in lines:
        apart = line.difference - line.published["difference"]
        loss = "as much" if abs(apart) <= 1 else "more" if apart < 0 else "less"
        assert line.verdict.startswith(f"loses {loss}")
        then, now = line.published["CPU"], line.faster.get(1)
        if then and now:
            assert ("agrees" in line.verdict) == ((then >= 1.1) == (now >= 1.1))


def test_the_committed_table_is_what_the_records_give(lines):
    with (ROOT / "data" / "results" / "effectiveness.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [list(effectiveness.HEAD), *map(effectiveness.cells, lines)]


def test_a_machine_with_a_gpu_fills_its_columns(monkeypatch, tmp_path):
    times = {"faster": {"xtc-2bit": {"1": 1.25, "8": 2.5}}, "commit": "a"}
    (tmp_path / "cuda.json").write_text(json.dumps(times))
    monkeypatch.setattr(effectiveness, "TIMES_GPU", tmp_path / "cuda.json")
    found = {line.recipe: effectiveness.cells(line) for line in effectiveness.lines()}
    columns = [n for n, name in enumerate(effectiveness.HEAD) if "on a GPU" in name]
    assert [found["xtc-2bit"][n] for n in columns] == ["1.25", "2.50"]
    assert [found["dualtrain"][n] for n in columns] == 2 * [""]
