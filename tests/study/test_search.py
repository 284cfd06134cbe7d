"""Searches: what is scored, what is resumed, who works on what, what is best."""

import ast
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from made import made

from xtclib import cache
from xtclib.recipes import recipe as recipes
from xtclib.records import Record
from xtclib.study import compress as study
from xtclib.study import journal, profiles
from xtclib.study import search as searches
from xtclib.study.compress import compress
from xtclib.study.search import Design, best, front, search
from xtclib.study.space import Space
from xtclib.tasks.base import CUT
from xtclib.tasks.glue import TASKS
from xtclib.training.budget import Budget

optuna = pytest.importorskip("optuna")
BACKBONE = cache.ROOT / "data" / "mini" / "backbone" / "tokenizer.json"
pytestmark = pytest.mark.skipif(not BACKBONE.is_file(), reason="the built-in backbone is missing")
SPACE = {
    "quantize.weights": ["binary", "int4-row", "int8-row"],
    "budget.steps": {"low": 1, "high": 9},
}
DESIGN = {
    "recipe": "finetune-1bit",
    "profile": "smoke",
    "task": "sst2",
    "space": SPACE,
    "trials": 4,
}


def measured(recipe, budget, **how):
    """In place of a run: a score by the number of steps, a size by the number of bits."""
    bits = recipe.techniques[0].weights.bits
    took = {"teacher": {"median": 9.0}, "student": {"median": 0.5 + (7 * budget.steps) % 5}}
    times = {"batch": 8, "length": 32, "milliseconds": took}
    found = made(recipe.name, 60.0 + 4 * budget.steps, 1000 * bits, profile="smoke", latency=times)
    return SimpleNamespace(record=found)


def milliseconds(record):
    return record.latency["milliseconds"]["student"]["median"]


@pytest.fixture
def quick(monkeypatch):
    """Runs that take no time; a function in its place is told of each."""
    monkeypatch.setattr(searches, "compress", measured)
    return lambda run: monkeypatch.setattr(searches, "compress", run)


def run(folder, say=lambda _: None, **other):
    return search({**DESIGN, **other}, folder, progress=False, say=say)


def drawn(found):
    """What was tried in each place in line."""
    ended = (t for t in found.study.trials if t.state.name in ("COMPLETE", "PRUNED"))
    return {t.user_attrs["slot"]: t.params for t in ended}


def states(found):
    return [t.state.name for t in found.study.trials]


def test_each_trial_is_a_record_with_what_was_chosen(quick, tmp_path):
    said = []
    found = run(tmp_path / "s", said.append, objectives=["score", "bytes", "milliseconds"])
    assert states(found) == ["COMPLETE"] * 4 and len(said) == 5
    for number, record in found.records.items():
        trial = found.study.trials[number]
        assert record == Record.read(tmp_path / "s" / trial.user_attrs["record"])
        assert record.recipe == f"finetune-1bit-t{number}"
        assert record.measures["search"]["chosen"] == trial.params
        assert trial.values == [record.score, record.bytes, milliseconds(record)]
        recipe, _ = searches.again(replace(record, training_budget={"steps": 3}))
        assert str(recipe.techniques[0].weights).startswith(trial.params["quantize.weights"])


@pytest.mark.parametrize(
    "objectives", [("score",), ("bytes", "score"), ("score", "bytes", "milliseconds")]
)
def test_the_front_is_what_brute_force_finds(quick, tmp_path, objectives):
    draw = random.Random(7)

    def chance(recipe, budget, **how):
        record = made(recipe.name, float(draw.randint(40, 90)), draw.randint(1, 6) * 100)
        record.latency["milliseconds"]["student"] = {"median": float(draw.randint(1, 6))}
        return SimpleNamespace(record=replace(record, profile="smoke"))

    quick(chance)
    found = run(tmp_path, objectives=objectives, trials=24)
    floor = 50.0 + study.two_errors(50.0, 12)

    def losses(record):
        every = {
            "score": -record.score,
            "bytes": record.bytes,
            "milliseconds": milliseconds(record),
        }
        return [every[name] for name in objectives]

    fit = [r for r in found.records.values() if r.score > floor]
    beaten = {
        a.recipe
        for a, b in itertools.permutations(fit, 2)
        if losses(a) != losses(b) and all(x >= y for x, y in zip(losses(a), losses(b), strict=True))
    }
    assert 0 < len(fit) < 24
    assert {r.recipe for r in front(found)} == {r.recipe for r in fit} - beaten
    assert losses(best(found))[0] == min(losses(r)[0] for r in fit)
    assert best(found).recipe in searches.table(found).splitlines()[0]


def test_what_is_refused_is_pruned_with_its_reason(quick, tmp_path):
    def picky(recipe, budget, **how):
        if budget.steps % 2:
            raise [ValueError, FloatingPointError][budget.steps % 4 // 2]("odd steps\nand more")
        return measured(recipe, budget)

    quick(picky)
    said = []
    found = run(tmp_path, said.append, trials=12)
    assert set(states(found)) == {"COMPLETE", "PRUNED"} and len(states(found)) == 12
    assert set(found.refused.values()) == {"odd steps"} and not {*found.refused} & {*found.records}
    assert all(found.study.trials[n].params["budget.steps"] % 2 for n in found.refused)
    assert sum(line.startswith("refused  finetune-1bit-t") for line in said) == len(found.refused)


def test_what_no_trial_is_worth_is_said(quick, tmp_path):
    quick(lambda recipe, budget, **how: SimpleNamespace(record=made(recipe.name, 78.0)))
    found = run(tmp_path / "poor")  # 50 and two errors of 12 rows, 28.9
    assert front(found) == [] and len(found.records) == 4
    with pytest.raises(
        ValueError, match="no trial beats the majority class, of 4 .* 0 refused: wid"
    ):
        best(found)
    quick(lambda recipe, budget, **how: SimpleNamespace(record=made(recipe.name, float("nan"))))
    with pytest.raises(ValueError, match=r"4 refused \(metrics of .* received nan\): widen"):
        best(run(tmp_path / "none"))


def test_a_search_goes_on_and_takes_more_trials(quick, tmp_path):
    first = run(tmp_path, trials=3)
    three = drawn(first)  # the study sees what follows
    quick(lambda *args, **kwargs: pytest.fail("ran again"))
    again = run(tmp_path, trials=3)
    assert drawn(again) == three and again.records == first.records
    quick(measured)
    more = run(tmp_path, trials=14)
    assert {k: drawn(more)[k] for k in range(3)} == three and len(more.records) == 14
    assert drawn(more) == drawn(run(tmp_path / "whole", trials=14))  # in one go
    assert drawn(run(tmp_path / "other", trials=3, seed=1)) != three


@pytest.mark.parametrize("at", [0, 2, 11])
def test_one_that_was_cut_off_ends_as_one_that_was_not(quick, tmp_path, at):
    whole, calls = run(tmp_path / "whole", trials=13), []

    def cut(recipe, budget, **how):
        calls.append(recipe.name)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return measured(recipe, budget)

    quick(cut)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", trials=13)
    found = run(tmp_path / "cut", trials=13)
    assert states(found).count("FAIL") == 1 and states(found).count("COMPLETE") == 13
    assert drawn(found) == drawn(whole)
    assert {r.recipe: r.score for r in found.records.values()} == {
        r.recipe: r.score for r in whole.records.values()
    }


def test_what_ends_its_process_each_time_is_given_up(quick, tmp_path):
    def broken(recipe, budget, **how):
        if recipe.name.endswith("-t1"):
            raise RuntimeError("out of memory")
        return measured(recipe, budget)

    quick(broken)
    for _ in range(journal.TRIES):
        with pytest.raises(RuntimeError, match="out of memory"):
            run(tmp_path)
    found = run(tmp_path)
    assert states(found).count("FAIL") == 3 and set(drawn(found)) == {0, 2, 3}


@pytest.mark.parametrize(
    "change, differs",
    [
        ({"space": {**SPACE, "budget.warmup": [0.0, 0.1]}}, "space"),
        ({"seed": 1}, "seed"),
        ({"objectives": ["score", "milliseconds"]}, "objectives"),
        ({"recipe": "ternarybert"}, "recipe"),
        ({"task": "cola", "budget": {"batch_size": 4}}, "budget, another data"),
    ],
)
def test_a_journal_is_of_one_design(quick, tmp_path, change, differs):
    run(tmp_path, trials=1)
    with pytest.raises(ValueError, match=f"holds a search with another {differs}: name another"):
        run(tmp_path, **change)


def test_a_half_written_line_is_cut_off_and_what_is_no_journal_refused(quick, tmp_path):
    two = drawn(run(tmp_path, trials=2))
    path = tmp_path / journal.FILE
    path.write_bytes(path.read_bytes() + b'{"op_code":4,"wor')
    assert drawn(run(tmp_path, trials=2)) == two
    assert len(drawn(run(tmp_path, trials=3))) == 3
    path.write_text("not a journal\n")
    with pytest.raises(ValueError, match="journal.log is no journal of a search"):
        run(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"trials": 0}, "trials of design finetune-1bit must be a whole number from 1, received 0"),
        ({"trails": 5}, "of design finetune-1bit 'trails': did you mean 'trials'"),
        ({"objectives": ["scor"]}, "objectives of design .* 'scor': did you mean 'score'"),
        ({"objectives": []}, r"received the objectives \[\], expected some of score, bytes, mill"),
        ({"objectives": ["score", "score"]}, "expected some of .* each once"),
        ({"space": {}}, "the space is empty"),
        ({"budget": "4steps"}, "received the budget '4steps', and budget.steps in the space: both"),
        (
            {"budget": {"epochs": 2}},
            "received the budget .*epochs.*, and budget.steps in the space",
        ),
        ({"recipe": "xtc-1bti"}, "unknown recipe 'xtc-1bti': did you mean 'xtc-1bit'"),
        ({"recipe": {"stages": []}}, "recipe 'own' has no stages"),
        ({"recipe": 3}, "recipe of design must be"),
        ({"profile": "smok"}, "unknown profile 'smok'"),
        ({"space": {"a.b": [1, 2]}}, "unknown place 'a.b' in finetune-1bit"),
        (
            {"profile": "reviews", "task": "reviews-few"},
            "takes the teacher of reviews, which learned",
        ),
    ],
)
def test_a_wrong_design_is_one_line_before_anything_runs(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path / "new", **change)
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


def test_a_design_is_read_from_yaml(tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text(json.dumps(DESIGN))  # which is YAML too
    assert searches.load(path) == Design(**DESIGN) == searches.load(Design(**DESIGN))
    for text, message in (
        ("a: [", "is no valid YAML"),
        ("", "received None"),
        ("trials: 3", "lacks"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            searches.load(path)
    with pytest.raises(FileNotFoundError):
        searches.load(tmp_path / "none.yaml")


def test_the_example_is_a_design():
    text = textwrap.dedent(searches.__doc__.split("yaml\n")[1])
    design = Design(**yaml.safe_load(text))
    recipe = recipes.from_dict("own", design.recipe)
    found = Space.of(recipe, Budget(steps=1), design.space)
    assert len(found.dimensions) == 5 and design.trials == 40


def test_where_it_cannot_work_it_says_why(quick, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to .*file.*; name another place"):
        run(tmp_path / "file" / "s")
    monkeypatch.setattr(searches.processes, "count", lambda: 2)
    with pytest.raises(ValueError, match="a search is one process: start it several times"):
        run(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"needs optuna: pip install 'xtclib\[study\]'"):
        run(tmp_path)


def test_nothing_imports_optuna_before_a_search():
    for path in Path(searches.__file__).parents[1].rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in getattr(node, "names", ())] + [getattr(node, "module", "")]
            assert not any(str(name).startswith("optuna") for name in names), path


@pytest.mark.parametrize("objectives", [["score", "bytes"], ["score", "bytes", "milliseconds"]])
def test_optunas_own_picture_of_the_front_is_drawn(quick, tmp_path, objectives):
    pytest.importorskip("plotly")
    found = run(tmp_path, objectives=objectives, trials=8)
    figure = optuna.visualization.plot_pareto_front(found.study, target_names=objectives)
    assert figure.data[0].type == ("scatter" if len(objectives) == 2 else "scatter3d")
    assert sum(len(trace.x) for trace in figure.data) == 8
    assert len(figure.data[-1].x) == len(front(found))


class Unseen(Mapping):
    """A task's splits to evaluate on, which nobody may ask for."""

    def fail(self, *_):
        raise AssertionError("the reported split was looked at")

    __getitem__ = __iter__ = __len__ = __contains__ = __eq__ = keys = values = items = get = fail
    __hash__ = None


@pytest.fixture
def hidden(monkeypatch):
    """The rows of a task, whose reported split cannot be touched."""
    real = profiles.data_for
    monkeypatch.setattr(profiles, "data_for", lambda *a: replace(real(*a), evaluation=Unseen()))
    return real("sst2", "smoke")


@pytest.mark.slow
def test_the_reported_split_is_never_looked_at(hidden, tmp_path):
    with pytest.raises(AssertionError, match="was looked at"):
        compress("finetune-1bit", "sst2", "smoke", "2steps", progress=False, say=lambda _: None)
    space = {"layer_reduction.layers": [2, 3], "quantize.by_layer.*": ["binary", "int8-row"],
             "budget.max_length": [24, 48]}  # fmt: skip
    techniques = [
        {"layer_reduction": {"layers": 2}},
        {"quantize": {"by_layer": ["binary", "binary"]}},
    ]
    recipe = {"stages": [{"one": {"techniques": techniques, "objective": {"logits": 1}}}]}
    said = []
    found = run(tmp_path, said.append, recipe=recipe, space=space, budget={"steps": 4}, trials=3,
                objectives=["score", "bytes", "milliseconds"])  # fmt: skip
    apart = hidden.within_training().evaluation[CUT]
    assert len(apart) == 12 and {*apart.first} <= {*hidden.train.first}
    assert not {*apart.first} & {*hidden.within_training().train.first}
    assert len(found.records) == 3 and said[0].endswith(
        "12 of the training rows, cut from training"
    )
    for record in found.records.values():
        assert [*record.metrics] == [*record.majority] == [*record.teacher_metrics] == [CUT]
        assert record.data.endswith("scored on 12 of the training rows, cut from training")
        recipe, budget = searches.again(record)
        assert recipe.hash == record.recipe_hash and budget.steps == 4
        chosen = record.measures["search"]["chosen"]
        assert budget.max_length == chosen["budget.max_length"]
        assert recipe.techniques[0].layers == chosen["layer_reduction.layers"]
    assert len({record.teacher_key for record in found.records.values()}) == 1


@pytest.mark.slow
def test_rows_that_calibrate_are_others_than_those_that_score(hidden, tmp_path, monkeypatch):
    given = []

    def kept(*args, **how):
        given.append(compress(*args, **how))
        return given[-1]

    monkeypatch.setattr(searches, "compress", kept)
    run(tmp_path, recipe="deebert", space={"budget.learning_rate": [1e-4, 1e-3]}, trials=1,
        budget="4steps")  # fmt: skip
    data = given[0].data
    parts = [{*split.first} for split in (data.train, data.held_out, data.evaluation[CUT])]
    assert [len(part) for part in parts] == [50, 2, 12]
    assert len(set.union(*parts)) == 64


@pytest.mark.slow
def test_a_run_takes_rows_that_it_is_handed(tmp_path):
    data = profiles.data_for("sst2", "smoke").within_training()
    train = replace(data.train, first=[f"{text} good" * 20 for text in data.train.first])
    data = replace(data, train=train, evaluation={CUT: train.select(range(8))})
    budget = Budget(steps=2, max_length=100)  # more than the teacher has positions for
    found = compress("cut-half", profile="smoke", budget=budget, data=data, progress=False,
                     say=lambda _: None)  # fmt: skip
    assert found.data is data and found.record.data_fingerprint == data.fingerprint
    assert found.record.task == TASKS["sst2"].name and [*found.record.metrics] == [CUT]


WORKER = """
import os, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1].split(os.pathsep)
from test_search import measured, run
from xtclib.study import search as searches
folder = Path(sys.argv[2])
def slow(recipe, budget, **how):
    (folder / f"{recipe.name}.child").touch()
    time.sleep(100 if len(list(folder.glob("*.child"))) == 3 else 0.1)
    return measured(recipe, budget)
searches.compress = slow
run(folder, trials=9)
"""


@pytest.mark.slow
def test_workers_share_a_journal_and_take_over_from_a_killed_one(quick, tmp_path):
    folders = os.pathsep.join(map(str, Path(__file__).parents[:2]))
    child = subprocess.Popen([sys.executable, "-c", WORKER, folders, str(tmp_path)])
    until = time.monotonic() + 120

    def wait(count):
        while len(list(tmp_path.glob("*.child"))) < count and time.monotonic() < until:
            time.sleep(0.01)

    def beside(recipe, budget, **how):
        """The fifth run here kills the child in its third."""
        (tmp_path / f"{recipe.name}.parent").touch()
        if len(list(tmp_path.glob("*.parent"))) == 5:
            wait(3)
            child.send_signal(signal.SIGKILL)
            child.wait()
        time.sleep(0.1)
        return measured(recipe, budget)

    wait(1)
    quick(beside)
    found = run(tmp_path, trials=9)
    assert sorted(states(found)) == ["COMPLETE"] * 9 + ["FAIL"]
    assert set(drawn(found)) == set(range(9))
    slots = Counter(path.stem for path in tmp_path.glob("finetune-1bit-t*.*"))
    lost = next(t for t in found.study.trials if t.state.name == "FAIL").user_attrs["slot"]
    assert slots == {f"finetune-1bit-t{i}": 1 + (i == lost) for i in range(9)}
    assert drawn(found) == drawn(run(tmp_path / "alone", trials=9))
    assert not list((tmp_path / "workers").iterdir())
