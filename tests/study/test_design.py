"""Studies as data: grids against hand counts, keys, and what is refused."""

import subprocess
import sys

import pytest

from xtclib.study import design, profiles, sweep
from xtclib.study.design import Grid, Study, Wanted

PLAN = """
question: Is one stage as good as three?
grids:
  - profile: smoke
    tasks: [sst2, mrpc]
    recipes: [xtc-1bit, xtc-2bit]
    stages: [1, 2, 3]
    budgets: [A, B]
    rates: [0.0001, 0.0002]
    augmented: [false, true]
    seeds: [0, 1, 2]
    without: [{stages: [2, 3], budgets: B}, {tasks: mrpc, augmented: true}]
compare:
  three over one: [{recipe: xtc-1bit-three-stage}, {recipe: xtc-1bit}]
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return path

    return write


def test_a_grid_is_every_combination_without_what_is_left_out(written):
    study = design.load(written(PLAN))
    runs = study.runs()
    # Of 2 tasks × 2 recipes × 3 stages × 2 budgets × 2 rates × 2 × 3 seeds: of the six of stages
    # and budgets two go, of the four of tasks and augmentation one.
    assert len(runs) == 2 * (6 - 2) * 2 * (4 - 1) * 3 == len({run.key for run in runs})
    assert study.question == "Is one stage as good as three?" and list(study.compare) == [
        "three over one"
    ]
    names = {run.recipe for run in runs if run.task == "sst2"}
    assert "xtc-2bit-two-stage-augmented" in names and len(names) == 12
    assert {run.budget for run in runs} == {f"{b}@{r}" for b in "AB" for r in ("0.0001", "0.0002")}
    assert not any("augmented" in run.recipe for run in runs if run.task == "mrpc")


def test_a_run_of_two_grids_is_one_run():
    grids = [Grid(["xtc-1bit"], seeds=[0, 1]), Grid(["xtc-1bit", "xtc-2bit"], seeds=[1, 2])]
    assert len(Study(grids).runs()) == 5
    assert len(Study(grids).runs("minilm")) == 0


@pytest.mark.slow
def test_keys_agree_between_processes():
    told = "from xtclib.study.design import *; print(Grid(['xtc-1bit'], rates=[2e-4]).runs()"
    found = subprocess.run([sys.executable, "-c", f"{told}.__next__().key)"], check=True,
                           capture_output=True, text=True).stdout  # fmt: skip
    assert found.strip() == next(Grid(["xtc-1bit"], rates=[2e-4]).runs()).key
    assert found.strip() == "reviews_reviews_xtc-1bit-A_0.0002-s0"


def test_a_rate_behind_a_budget_wins_over_the_profiles_own():
    recipe = design.recipes.load("mobilebert")  # the profile has a rate for it
    chosen = profiles.profile("reviews")
    assert chosen.budget("A", recipe).learning_rate == 1e-3
    found = chosen.budget("400steps@0.0005", recipe)
    assert (found.steps, found.learning_rate) == (400, 5e-4)


def test_more_rows_change_the_recipe_and_not_the_steps(tmp_path):
    runs = list(sweep.planned(Grid(["xtc-1bit"], "smoke", ["sst2"], augmented=[False, True]).runs(),
                              tmp_path))  # fmt: skip
    assert runs[0].recipe.hash != runs[1].recipe.hash and runs[0].steps == runs[1].steps == 4


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"recipes": ["xtc-1bitt"]}, "did you mean 'xtc-1bit"),
        ({"recipes": ["xtc-1bit"], "tasks": ["sst"]}, "did you mean 'sst2'"),
        ({"recipes": ["xtc-1bit"], "budgets": ["D"]}, "unknown budget 'D'"),
        ({"recipes": ["xtc-1bit"], "budgets": ["A@fast"]}, "'fast' behind its @"),
        ({"recipes": ["xtc-1bit"], "budgets": ["A@0"]}, "must be a number above 0"),
        ({"recipes": ["xtc-1bit"], "profile": "review"}, "did you mean 'reviews'"),
        ({"recipes": ["ternarybert"], "stages": [3]}, "unknown recipe 'ternarybert-three-stage'"),
        ({"recipes": ["ptq-8bit"], "augmented": [True]}, "trains on no rows of the task"),
        ({"recipes": []}, "an empty grid: recipes lists nothing"),
        ({"recipes": ["xtc-1bit"], "seeds": []}, "an empty grid: seeds lists nothing"),
        ({"recipes": ["xtc-1bit"], "seed": [1]}, "did you mean 'seeds'"),
        ({"recipes": ["xtc-1bit"], "budgets": ["A@1e-4"], "rates": [1e-3]}, "in one place"),
        ({"recipes": ["xtc-1bit"], "without": [{"budget": "A"}]}, "did you mean 'budgets'"),
        ({"recipes": ["xtc-1bit"], "without": [{"budgets": "B"}]}, r"budgets 'B', but .*\['A'\]"),
        ({"recipes": ["xtc-1bit"], "without": [{"budgets": "A"}]}, "without leaves nothing"),
    ],
)
def test_a_grid_that_cannot_be_is_one_clear_line(values, told):
    with pytest.raises(ValueError, match=told) as error:
        Grid(**values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grids: []", "an empty study"),
        ("grids: [{recipes: [xtc-1bit]}]\ncompare: {a: [{recipe: xtc-1bit}]}", "takes two"),
        ("grid: []", "did you mean 'grids'"),
        ("a: [", "is no valid YAML"),
        ("just words", "should be `name: value` pairs"),
        ("[" * 3000, "is no valid YAML"),
    ],
)
def test_a_file_that_is_no_study_is_named(written, text, told):
    path = written(text)
    with pytest.raises(ValueError, match=told) as error:
        design.load(path)
    assert str(path) in str(error.value)


def test_what_is_not_there_or_too_long_is_told(tmp_path, written):
    with pytest.raises(FileNotFoundError, match="no study at"):
        design.load(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="at most 1048576"):
        design.load(written("#" * 2**21))


@pytest.mark.slow
def test_ten_thousand_runs_are_planned_at_once(tmp_path):
    runs = Study([Grid(["xtc-1bit"], "smoke", ["sst2"], seeds=range(10_000))]).runs()
    found = list(sweep.planned(runs, tmp_path))
    assert len(found) == len({one.run.key for one in found}) == 10_000


@pytest.mark.slow
def test_hours_are_told_from_this_machines_records(tmp_path):
    run = Wanted("smoke", "sst2", "xtc-1bit", "B")
    (one,) = sweep.planned([run], tmp_path)
    assert sweep.seconds_of([one], tmp_path) == {run.key: None}
    made = sweep.measured(Wanted("smoke", "sst2", "xtc-1bit"), tmp_path, progress=False,
                          say=lambda line: None, timed=False)  # fmt: skip
    assert not made.latency
    assert sweep.seconds_of([one], tmp_path)[run.key] == pytest.approx(made.seconds * 6 / 4)
