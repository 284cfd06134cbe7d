import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from xtclib import cache
from xtclib import records as results
from xtclib.artefact import format
from xtclib.costs import latency
from xtclib.distillation.objective import Objective
from xtclib.recipes import recipe as recipes
from xtclib.recipes.recipe import Recipe, Stage
from xtclib.records import Record, record_path
from xtclib.study import compress as study
from xtclib.study import profiles, stages
from xtclib.study import sweep as study_sweep
from xtclib.study.compress import compress
from xtclib.study.design import Grid
from xtclib.study.sweep import sweep
from xtclib.tasks import evaluation
from xtclib.techniques.embeddings.technique import PruneVocabulary
from xtclib.techniques.pruning.layers import SparseLinear
from xtclib.techniques.pruning.unstructured import ReweightedProximal, Sparsify
from xtclib.techniques.quantization.technique import Quantize
from xtclib.training import budget as training_budget

BACKBONE = cache.ROOT / "data" / "mini" / "backbone" / "tokenizer.json"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BACKBONE.is_file(), reason="the built-in backbone is missing"),
]


def silent(*args):
    pass


def run_smoke(recipe, cache, **kwargs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTC_CACHE", str(cache))
        patch.delenv("XTC_GLUE_DIR", raising=False)
        patch.setattr(latency, "enough", lambda *_: 3)  # no test reads the times
        kwargs = {"task": "sst2", "profile": "smoke", "budget": "2steps", **kwargs}
        return compress(recipe, progress=False, say=silent, device="cpu", **kwargs)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


class Runs(dict):
    """Runs of recipes by name, each made when a test first asks for it."""

    def __init__(self, cache):
        super().__init__()
        self.cache = cache

    def __missing__(self, name):
        self[name] = run_smoke(name, self.cache, task=task_of(name))
        return self[name]


def task_of(name):
    """A task that a recipe takes: some read two texts."""
    return "rte" if recipes.load(name).family == "apart" else "sst2"


@pytest.fixture(scope="module")
def runs(cache):
    return Runs(cache)


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_runs_and_its_record_and_its_artefact_hold_what_was_run(runs, name):
    run = runs[name]
    record, recipe = run.record, recipes.load(name)
    assert record.bytes == (run.folder / "model.safetensors").stat().st_size
    assert record.folder_bytes == sum(f.stat().st_size for f in run.folder.rglob("*"))
    assert record.recipe_hash == recipe.hash and record.left_out == recipe.left_out
    assert record.data_fingerprint == run.data.fingerprint
    assert record.commit == results.circumstances()["commit"]
    named = record.profile, record.task, record.budget, record.seed
    assert named == ("smoke", task_of(name), "2steps", 0)
    assert record.training_budget["steps"] == 2
    assert len(record.stages) == sum(s.trains for s in recipe.stages)
    assert record.versions["torch"] == torch.__version__
    assert record.ratio == record.teacher_bytes / record.bytes
    assert set(record.metrics) == {"dev"} and 0 <= record.score <= 100
    assert set(record.latency["milliseconds"]) == {"teacher", "student"}
    assert record.selected_on == ("last" if recipe.trains else "nothing is trained")
    model, tokenizer = format.load(run.folder)
    found = evaluation.evaluate(model, tokenizer, run.data, 48)
    assert found == run.record.metrics
    logits = [evaluation.predict(m, tokenizer, run.data.evaluation["dev"], 48)
              for m in (model, run.student)]  # fmt: skip
    assert (logits[0] == logits[1]).all()


def test_bits_show_in_bytes(runs):
    names = "xtc-1bit-half", "finetune-1bit", "ternarybert", "ptq-8bit"
    size = {name: runs[name].record.bytes for name in names}
    assert size["xtc-1bit-half"] < size["finetune-1bit"] < size["ternarybert"] < size["ptq-8bit"]
    half, whole = runs["cut-half"].record, runs["ptq-8bit"].record
    assert half.parameters < whole.parameters == whole.teacher_parameters
    assert half.flops < whole.flops == whole.teacher_flops


def test_without_training_the_untrained_counterpart_is_the_result(runs):
    record = runs["ptq-8bit"].record
    assert record.untrained == record.metrics and record.stages == [] and record.seconds == 0


def test_what_looks_at_rows_without_training_says_how_many_and_how_long(runs, cache):
    assert runs["ptq-8bit"].record.measures["applied"]["rows"] == 0
    found = compress("gptq-2bit", profile="smoke", progress=False).record
    assert found.measures["applied"]["rows"] == 512 and found.seconds == 0
    assert 0 < found.measures["applied"]["seconds"] < 60
    assert found.untrained == found.metrics


def test_the_same_command_gives_the_same_record_and_file(runs, tmp_path):
    again = run_smoke("xtc-1bit-half", tmp_path / "fresh")
    assert again.record.lasting() == runs["xtc-1bit-half"].record.lasting()
    ours, theirs = (r.student.state_dict() for r in (again, runs["xtc-1bit-half"]))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    files = [run.folder / "model.safetensors" for run in (again, runs["xtc-1bit-half"])]
    assert files[0] != files[1] and files[0].read_bytes() == files[1].read_bytes()


def test_a_repeated_run_is_read_from_the_cache(runs, cache, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("trained again")

    kept = runs["xtc-1bit-half"].record.lasting()
    monkeypatch.setattr(stages, "train", never)
    assert run_smoke("xtc-1bit-half", cache).record.lasting() == kept


@pytest.mark.parametrize(
    "name, steps, at, resumed",
    [
        ("xtc-1bit-half", 8, 11, [False, True]),  # in the third step of the second stage
        ("theseus-6l", 8, 3, [True, False]),  # chance decides which modules work
        ("tinybert-6l", 8, 3, [True, False]),  # rows are augmented
        ("movement", 8, 4, [True]),  # scores and masks
        ("magnitude-pretrain", 8, 4, [True, False]),  # on texts, pruning meanwhile
        ("mobilebert", 2, 10, [True, False]),  # on texts, one layer after the other
        ("dualtrain-sharedup", 2, 10, [True, False]),  # two models at once
    ],
)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    cache, tmp_path, monkeypatch, name, steps, at, resumed
):
    budget = f"{steps}steps"
    whole = run_smoke(name, cache, budget=budget, seed=1)
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def killed(*args, **kwargs):  # once in every step
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return clip(*args, **kwargs)

    # Another cache with the same teacher: a copy.
    for part in ("teachers", "backbones"):
        shutil.copytree(cache / part, tmp_path / "cut" / part)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.nn.utils, "clip_grad_norm_", killed)
        run_smoke(name, tmp_path / "cut", budget=budget, seed=1)
    again = run_smoke(name, tmp_path / "cut", budget=budget, seed=1)
    assert [s["resumed"] for s in again.record.stages] == resumed
    assert again.record.lasting() == whole.record.lasting()
    theirs = whole.student.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in again.student.state_dict().items())


@pytest.mark.parametrize("task", ["stsb", "mnli"])
def test_other_kinds_of_task_run_end_to_end(task, cache):
    record = run_smoke("xtc-1bit-half", cache, task=task, budget="1step").record
    names = {"stsb": {"dev"}, "mnli": {"matched", "mismatched"}}[task]
    assert set(record.metrics) == set(record.majority) == set(record.teacher_metrics) == names


def test_an_out_that_holds_files_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    monkeypatch.setattr(profiles, "data_for", lambda *a: pytest.fail("went on"))
    with pytest.raises(FileExistsError, match="already a folder that is not empty"):
        compress("ptq-8bit", profile="smoke", out=tmp_path / "out")


def test_an_out_that_is_a_file_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "out").write_text("")
    monkeypatch.setattr(profiles, "data_for", lambda *a: pytest.fail("went on"))
    with pytest.raises(FileExistsError, match="already"):
        compress("ptq-8bit", profile="smoke", out=tmp_path / "out")


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"recipe": "xtc-1bt"}, "unknown recipe 'xtc-1bt': did you mean 'xtc-1bit'"),
        ({"task": "sst3"}, "unknown task 'sst3': did you mean 'sst2'"),
        ({"profile": "smok"}, "unknown profile 'smok': did you mean 'smoke'"),
        ({"budget": "5step_s"}, "unknown budget '5step_s'"),
        ({"budget": "a"}, "unknown budget 'a': did you mean 'A'"),
        ({"report_to": "tensorbord"}, "unknown integration 'tensorbord': did you mean 'tensorbo"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(kwargs, message):
    with pytest.raises(ValueError, match=message):
        compress(**{"recipe": "ptq-8bit", "profile": "smoke", "say": silent, **kwargs})


def test_a_record_reads_back_as_written(runs, tmp_path):
    record = runs["xtc-1bit-half"].record
    path = record.save(tmp_path)
    assert path == tmp_path / "smoke" / "sst2" / "xtc-1bit-half-2steps-s0.json"
    assert Record.read(path) == record
    assert results.read("smoke", tmp_path, recipe="xtc-1bit-half") == [record]
    assert results.read("smoke", tmp_path, seed=1) == []


def test_records_of_an_older_and_of_a_newer_field_set_are_read(runs, tmp_path):
    record = runs["ptq-8bit"].record
    values = json.loads((path := record.save(tmp_path)).read_text())
    for name in ("measures", "training_budget", "note"):
        del values[name]
    path.write_text(json.dumps({**values, "energy": {"joules": 3}}))
    read = Record.read(path)
    assert (read.measures, read.note, read.extra) == ({}, "", {"energy": {"joules": 3}})
    assert read.metrics == record.metrics
    again = json.loads(read.save(tmp_path / "again").read_text())
    assert again["energy"] == {"joules": 3} and "extra" not in again
    curve = replace(record, measures={"exits": [0.1, 0.9]})
    assert Record.read(curve.save(tmp_path)).measures == {"exits": [0.1, 0.9]}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": "0"}, "is no record: seed of record ptq-8bit must be a valid integer, rec"),
        ({"metrics": {"dev": {"score": "high"}}}, "is no record: metrics of record ptq-8bit must"),
        ({"bytes": ...}, "is no record: record ptq-8bit lacks `bytes`"),
    ],
)
def test_a_record_that_cannot_be_read_names_its_file_and_field(runs, tmp_path, change, message):
    path = runs["ptq-8bit"].record.save(tmp_path)
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    with pytest.raises(ValueError, match=f"ptq-8bit-2steps-s0.json {message}"):
        results.read("smoke", tmp_path)
    path.write_text("[")
    with pytest.raises(ValueError, match="ptq-8bit-2steps-s0.json is no record: Expecting value"):
        Record.read(path)


def test_the_table_shows_both_models(runs):
    record = runs["xtc-1bit-half"].record
    table = record.table()
    assert table.startswith("xtc-1bit-half · smoke · budget 2steps · seed 0")
    assert f"{record.ratio:.1f}" in table and f"{record.bytes / 1e6:.2f}" in table


@pytest.mark.parametrize(
    "recipe, found, untrained, missed, why",
    [
        ("xtc-1bit", 50.0, 40.0, "the majority class (50.0 ± 3.5)", "too few to make up"),
        ("xtc-1bit", 53.5, 40.0, "the majority class (50.0 ± 3.5)", "too few to make up"),
        ("xtc-1bit", 60.0, 60.0, "its untrained counterpart (60.0)", "their rate too high"),
        ("nip", 51.0, 52.0, "the majority class (50.0 ± 3.5) or its untrained counterpart (52.0)",
         "200 steps in all"),
        ("ptq-1bit", 40.0, 40.0, "the majority class (50.0 ± 3.5)", "nothing was trained"),
        ("cnn-kd", 50.0, 40.0, "the majority class (50.0 ± 3.5)", "few for new weights"),
    ],
)  # fmt: skip
def test_a_verdict_tells_what_was_not_beaten_and_why(recipe, found, untrained, missed, why):
    text = study.verdict(recipes.load(recipe), found, 50.0, untrained, steps=200, rows=800)
    assert text.startswith(f"does not beat {missed}: ") and why in text


def test_a_correlation_beats_zero_by_more_than_chance():
    """CoLA: always one answer is 0; of 1,043 rows two standard errors are 6.2 points."""
    recipe = recipes.load("xtc-1bit")
    assert "(0.0 ± 6.2)" in study.verdict(recipe, 6.0, 0.0, -5.0, steps=200, rows=1043)
    assert study.verdict(recipe, 6.3, 0.0, -5.0, steps=200, rows=1043) == ""


def test_a_verdict_is_empty_where_all_is_beaten():
    assert study.verdict(recipes.load("xtc-1bit"), 53.6, 50.0, 53.5, steps=200, rows=800) == ""


def test_a_verdict_asks_nothing_of_a_perfect_start_and_tells_of_a_bad_teacher():
    recipe = recipes.load("xtc-1bit")
    assert study.verdict(recipe, 99.8, 50.0, 100.0, steps=200, rows=800) == ""
    told = study.verdict(recipe, 50.0, 50.0, 40.0, steps=200, rows=800, taught=51.0)
    assert told.endswith(": nor does its teacher (51.0), from which there is nothing to learn")


def test_what_a_run_does_not_train_is_scored_once(runs, cache, monkeypatch):
    scored = []
    found = study.evaluate
    monkeypatch.setattr(
        study, "evaluate", lambda model, *a: scored.append(model) or found(model, *a)
    )
    again = run_smoke("xtc-1bit-half", cache)
    assert len(scored) == 1 and scored[0] is again.student
    assert again.record.lasting() == runs["xtc-1bit-half"].record.lasting()


def test_chance_falls_anew_for_every_seed(runs, cache):
    """Masks drawn by lot differ between seeds; those by magnitude do not."""

    def zeros(name, seed):
        run = run_smoke(name, cache, seed=seed)
        return torch.cat([layer.present().flatten() for layer in run.student.modules()
                          if isinstance(layer, SparseLinear)])  # fmt: skip

    assert not torch.equal(zeros("random-pruning", 0), zeros("random-pruning", 1))
    assert torch.equal(zeros("magnitude-cut", 0), zeros("magnitude-cut", 1))


@pytest.fixture
def counted(runs, monkeypatch):
    """`sweep` without the work: every run gives a record of the asked kind."""
    calls, template = [], runs["ptq-8bit"].record

    def pretend(recipe, task, chosen, budget, seed, glue_dir, **kwargs):
        calls.append((recipe.name, budget, seed))
        data = profiles.data_for(task, chosen)
        record = replace(
            template,
            recipe=recipe.name,
            recipe_hash=recipe.hash,
            budget=budget,
            seed=seed,
            training_budget=asdict(training_budget.budget(budget, chosen.budgets)),
            data_fingerprint=data.fingerprint,
        )
        return study.Result(record, None, None, None, data, Path())

    monkeypatch.setattr(study_sweep, "compress", pretend)
    return calls


def go(folder, names=("xtc-1bit", "ptq-8bit"), **kwargs):
    kwargs = {"budgets": ("A", "B"), "seeds": (0, 1), **kwargs}
    grid = Grid([*names], "smoke", ["sst2"], **{k: [*v] for k, v in kwargs.items()})
    return sweep(grid.runs(), folder, say=silent)


def test_a_sweep_runs_every_combination_and_skips_what_is_current(counted, tmp_path):
    found = go(tmp_path)
    wanted = [("xtc-1bit", b, s) for b in "AB" for s in (0, 1)] + [("ptq-8bit", "A", 0)]
    assert counted == wanted and [(r.recipe, r.budget, r.seed) for r in found] == wanted
    assert go(tmp_path) == found and len(counted) == 5


@pytest.mark.parametrize(
    "key", ["recipe_hash", "data_fingerprint", "training_budget", "bytes", "teacher_key"]
)
def test_a_sweep_measures_again_what_is_out_of_date(counted, tmp_path, key):
    go(tmp_path)
    path = record_path(tmp_path, "smoke", "sst2", "xtc-1bit", "B", 1)
    values = json.loads(path.read_text())
    if key == "teacher_key":
        values[key] = "of another teacher"
    else:
        del values[key]  # 'bytes': a record of an older version of this project
    path.write_text(json.dumps(values))
    assert len(go(tmp_path)) == 5 and counted[5:] == [("xtc-1bit", "B", 1)]


def test_what_is_missing_is_told_without_a_run(counted, tmp_path):
    go(tmp_path, ["ptq-8bit"])
    grid = Grid(["xtc-1bit", "ptq-8bit"], "smoke", ["sst2"], seeds=[1, 2])
    runs = list(study_sweep.planned(grid.runs(), tmp_path))
    assert [str(run) for run in runs] == [
        "sst2 · xtc-1bit · budget A · seed 1", "sst2 · xtc-1bit · budget A · seed 2",
        "sst2 · ptq-8bit · budget A · seed 1",
    ]  # fmt: skip
    assert all(run.record is None for run in runs) and len(counted) == 1
    (run,) = study_sweep.planned(Grid(["ptq-8bit"], "smoke", ["sst2"]).runs(), tmp_path)
    assert run.record.recipe == "ptq-8bit"


def test_a_sweep_goes_on_past_a_run_that_is_refused(counted, tmp_path, monkeypatch):
    measure = study_sweep.compress

    def refuse(recipe, *args, **kwargs):
        if recipe.name == "xtc-1bit":
            raise ValueError("this backbone has no head")
        return measure(recipe, *args, **kwargs)

    monkeypatch.setattr(study_sweep, "compress", refuse)
    with pytest.raises(ValueError, match=r"refused: .*xtc-1bit.* this backbone has no head$"):
        go(tmp_path, budgets="A", seeds=(0,))
    assert counted == [("ptq-8bit", "A", 0)]


def test_a_sweep_takes_any_iterable(counted, tmp_path):
    go(tmp_path, iter(("xtc-1bit", "xtc-2bit")), budgets=iter("AB"), seeds=iter((0, 1)))
    assert len(counted) == 8


def test_a_sweep_finds_the_record_of_a_recipe_from_a_file(counted, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("stages:\n- cut: {techniques: [layer_reduction]}\n")
    go(tmp_path / "results", [str(path)])
    go(tmp_path / "results", [str(path)])
    assert counted == [("mine", "A", 0)]


def test_a_cut_vocabulary_is_the_students_own(runs):
    run = runs["vocab-pruning"]
    assert len(run.tokenizer) == run.student.config.vocab_size < len(run.teacher.tokenizer)
    saved = json.loads((run.folder / "config.json").read_text())
    assert saved["vocab_size"] == len(run.tokenizer)


def test_masked_words_are_a_stage(runs):
    stages = runs["magnitude-pretrain"].record.stages
    assert [s.get("task") for s in stages] == ["mlm", None] and stages[0]["steps"] == 2


def test_a_recipe_may_start_from_the_backbone(cache):
    recipe = Recipe("as it is", "", "", (Stage("nothing"),), start="backbone")
    found = run_smoke(recipe, cache).student.base_model.state_dict()
    backbone = AutoModel.from_pretrained(profiles.backbone_for("smoke")).state_dict()
    assert torch.equal(found["encoder.layer.3.output.dense.weight"],
                       backbone["encoder.layer.3.output.dense.weight"])  # fmt: skip


@pytest.mark.parametrize(
    "techniques, message",
    [
        ((Sparsify(0.5, "movement", {"end": 0.5}), Quantize("int8", None, None)),
         "scores learn on full-precision weights"),
        ((ReweightedProximal(0.5), Quantize()), "reweighted_proximal comes last"),
    ],
)  # fmt: skip
def test_a_wrong_order_shows_before_any_stage_trains(cache, monkeypatch, techniques, message):
    def trained(*args, **kwargs):
        raise AssertionError("training began")

    monkeypatch.setattr(stages, "train", trained)
    two = (Stage("first", (), Objective(labels=1)), Stage("s", techniques, Objective(labels=1)))
    with pytest.raises(ValueError, match=message):
        run_smoke(Recipe("x", "", "", two), cache)


@pytest.mark.parametrize(
    "recipe, message",
    [
        (Recipe("x", "", "", (Stage("s", (Sparsify(pattern="3:5"),)),)), "3:5 does not divide"),
        (Recipe("x", "", "", (Stage("s", (PruneVocabulary(0.001),)),)), "drops special tokens"),
    ],
)
def test_what_the_teachers_shape_cannot_do_shows_before_it_is_made(tmp_path, monkeypatch, recipe,
                                                                   message):  # fmt: skip
    monkeypatch.setattr(profiles, "teacher_for", lambda *a: pytest.fail("a teacher was made"))
    with pytest.raises(ValueError, match=message):
        run_smoke(recipe, tmp_path)


def test_a_backbone_that_reads_other_words_than_the_teacher_is_refused(cache, runs, tokenizer):
    teacher = replace(runs["rpp"].teacher, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="vocabulary of 623 tokens is not its teacher's of 200"):
        run_smoke("nip", cache, teacher=teacher)


@pytest.mark.slow
def test_a_student_with_fewer_positions_reads_fewer_tokens(cache, tmp_path):
    stages = [{"short": {"techniques": [{"storage": {"length": 12}}], "objective": {"logits": 1}}}]
    said = []
    short = recipes.from_dict("short", {"stages": stages})
    run = compress(short, profile="smoke", budget="2steps", progress=False, say=said.append,
                   out=tmp_path / "a")  # fmt: skip
    assert "length   12 tokens, not 48: the student has no more positions" in said
    assert run.record.latency["length"] == 12 and run.record.training_budget["max_length"] == 12
    model, _ = format.load(tmp_path / "a")
    assert model.config.max_position_embeddings == 12
    assert model.config.trained_on["max_length"] == 12


@pytest.mark.slow
def test_two_processes_end_as_one_does(tmp_path):
    """Also where the teacher has to be made first: they train it together, and one writes it."""
    torchrun = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    chosen = ("xtc-1bit-half", "--profile", "smoke", "--budget", "4steps", "--quiet")
    found = []
    for name, start in (("one", ()), ("two", torchrun)):
        own = {
            "XTC_CACHE": str(tmp_path / name),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        done = subprocess.run(
            [sys.executable, "-m", *start, "xtclib.cli", "compress", *chosen, "--out",
             str(tmp_path / f"{name}-out")],
            capture_output=True, text=True, timeout=500, env={**os.environ, **own},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("artefact ") == 1  # one of them speaks
        found.append(format.load(tmp_path / f"{name}-out")[0])
        assert not list(tmp_path.rglob("*partial*"))
    ids = torch.arange(40).reshape(4, 10)
    with torch.no_grad():
        answers = [model(ids).logits for model in found]
    # 0.006 apart where it was measured, by the order of sums; a step fewer is 0.06 away.
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=0.02)


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    """A folder of a narrower encoder that reads the backbone's words: two layers, 16 wide."""
    folder = tmp_path_factory.mktemp("compact") / "small"
    config = BertConfig.from_pretrained(BACKBONE.parent)
    config.num_hidden_layers, config.hidden_size = 2, 16
    config.num_attention_heads, config.intermediate_size = 2, 32
    torch.manual_seed(3)
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BACKBONE.parent).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("objective", [
    {"logits": 1}, {"logits": 1, "hidden_states": {"weight": 1, "projection": True}},
])  # fmt: skip
def test_a_student_starts_from_a_compact_checkpoint(compact, cache, objective):
    stage = {"learn": {"objective": objective}}
    recipe = recipes.from_dict("small", {"student": str(compact), "stages": [stage]})
    run = run_smoke(recipe, cache)
    own, theirs = run.student.config, run.teacher.model.config
    assert (own.num_hidden_layers, own.hidden_size) == (2, 16) != (theirs.num_hidden_layers, 32)
    words = AutoModel.from_pretrained(compact).embeddings.word_embeddings.weight
    moved = (run.student.get_input_embeddings().weight - words).abs().max()
    assert 0 < moved < 0.02  # it began there, and learned
    assert run.record.recipe_hash == recipe.hash != replace(recipe, student="").hash


def test_a_built_in_recipe_works_on_the_encoder_it_is_given(compact, cache):
    run = run_smoke(recipes.load("finetune-1bit").starting_from(str(compact)), cache)
    assert run.record.recipe == "finetune-1bit-from-small"
    assert (run.student.config.num_hidden_layers, run.student.config.hidden_size) == (2, 16)
    halved = run_smoke(recipes.load("logits-half").starting_from(str(compact)), cache)
    assert halved.student.config.num_hidden_layers == 1


def test_a_student_with_other_words_or_two_beginnings_is_refused(compact, cache, tmp_path):
    shutil.copytree(compact, tmp_path / "other")
    words = AutoTokenizer.from_pretrained(compact)
    words.add_tokens(["zyzzyva"])
    words.save_pretrained(tmp_path / "other")
    recipe = recipes.load("tinybert-6l-plain").starting_from(str(tmp_path / "other"))
    assert recipe.name == "tinybert-6l-plain-from-other"
    with pytest.raises(ValueError, match="is not its teacher's of 623: choose a student that has"):
        run_smoke(recipe, cache)
    with pytest.raises(ValueError, match="starts from the backbone and from x: choose start or"):
        Recipe("two", stages=(Stage("s"),), start="backbone", student="x")


@pytest.mark.parametrize("change", ["seed", "teacher"])
def test_pre_training_is_the_same_for_every_seed_and_teacher(runs, cache, change):
    first = runs["wellread-pf"].record
    other = replace(runs["wellread-pf"].teacher, key="another")
    second = run_smoke("wellread-pf", cache, **{change: {"seed": 1, "teacher": other}[change]})
    pre, tuned = zip(first.stages, second.record.stages, strict=True)
    assert pre[0]["key"] == pre[1]["key"] and tuned[0]["key"] != tuned[1]["key"]
