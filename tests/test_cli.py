import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from made import made
from typer.testing import CliRunner

from xtclib import cli, records, teachers
from xtclib.artefact import format
from xtclib.cache import ROOT
from xtclib.recipes import recipe
from xtclib.records import Record
from xtclib.study import compress as study
from xtclib.study import profiles, sweep
from xtclib.techniques.quantization.technique import Quantize

BUILT_IN = ROOT / "data" / "mini"
BACKBONE = ROOT / "data" / "mini" / "backbone" / "tokenizer.json"


@pytest.fixture
def xtc(monkeypatch, capsys):
    """Runs `xtc …` as the shell would: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["xtc", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_recipes_are_all_listed(xtc):
    code, out, _ = xtc("recipes")
    assert code == 0
    for name in recipe.names():
        assert any(line.startswith(f"{name} ") for line in out.splitlines()), name
        assert recipe.load(name).summary in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("compress", "xtc-1bt"), "unknown recipe 'xtc-1bt': did you mean 'xtc-1bit'"),
        (("compress", "ptq-8bit", "--task", "sst3"), "unknown task 'sst3': did you mean 'sst2'"),
        (("compress", "ptq-8bit", "--profile", "smok"), "unknown profile 'smok': did you mean"),
        (("compress", "ptq-8bit", "--report-to", "wanddb"), "unknown integration .* mean 'wandb'"),
        (("compress", "ptq-8bit", "--budget", "a"), "unknown budget 'a': did you mean 'A'"),
        (("compress", "nowhere.yaml"), "no recipe file at nowhere.yaml"),
        (("evaluate", "nowhere"), "no config.json in nowhere: expected a folder"),
        (("compress", "ptq-8bit", "--glue-dir", "nowhere"), "nowhere.*--glue-dir"),
        (("results", "nowhere.yaml"), "nowhere.yaml"),
        (
            ("compress", "ptq-8bit", "--student", "nowhere"),
            "no config.json in 'nowhere': expected a",
        ),
        (("pretrain", "mini", "--text", "nowhere.txt"), "nowhere.txt.*does not exist"),
        (("pretrain", "no/where", "--steps", "1"), "no/where"),
        (("pretrain", "mini", "--batch", "-1"), "batch_size of .* must be .* from 1, received -1"),
        (("pretrain", "mini", "--steps", "0"), "steps of .* must be .* from 1, received 0"),
        (("pretrain", "mini", "--max-length", "0"), "--max-length must be at least 3, received 0"),
        (("pretrain", "mini", "--learning-rate", "0"), "learning_rate of .* must be .* above 0"),
        (
            ("breakdown", "bert-base", "--deformer", "9"),
            "LOWER,QUESTION such as 9,32; received '9'",
        ),
        (("breakdown", "./nowhere"), "no folder at './nowhere'"),
        (("breakdown", "berd-base"), "unknown architecture 'berd-base': did you mean 'bert-base'"),
        (("breakdown", "bert-base", "--length", "0"), "length must be .* received 0"),
        (("breakdown", "bert-base", "--batch", "-2"), "batch must be .* received -2"),
        (("breakdown", "bert-base", "--length", "513"), "past the model's 512 positions.*--extend"),
        (("breakdown", "bert-2-128", "--bits", "0"), "over 0 and at most 64 bits, received 0"),
        (("breakdown", "bert-2-128", "--by", "part"), "unknown key 'part'.*component, layer"),
        (("breakdown", "bert-2-128", "--counting", "macs"), "did you mean 'MACs'"),
        (("compress", "ptq-8bit", "--profile", "smoke", "--teacher", "no/where"), "no/where"),
    ],
)
def test_a_bad_input_is_one_line_and_exit_code_2(xtc, arguments, message):
    code, _, err = xtc(*arguments)
    assert code == 2 and err.startswith("xtc: ") and re.search(message, err)
    assert "Traceback" not in err


def test_the_message_is_a_single_line(xtc):
    _, _, err = xtc("compress", "xtc-1bt")
    assert err.count("\n") == 1


def test_a_broken_recipe_file_is_one_line(xtc, tmp_path):
    (tmp_path / "bad.yaml").write_text("stages: [")
    code, _, err = xtc("compress", tmp_path / "bad.yaml")
    assert code == 2 and "bad.yaml" in err


def test_an_out_that_holds_files_is_refused(xtc, tmp_path):
    (tmp_path / "mine").write_text("")
    code, _, err = xtc("compress", "ptq-8bit", "--profile", "smoke", "--out", tmp_path)
    assert code == 2 and "already a folder that is not empty" in err


def test_unknown_commands_and_options_exit_2():
    for arguments in (["compres"], ["compress", "ptq-8bit", "--tsk", "sst2"]):
        assert CliRunner().invoke(cli.app, arguments).exit_code == 2


def test_missing_results_are_listed_and_not_run(xtc, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "compress", lambda *a, **k: pytest.fail("something was run"))
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "grids:\n- {profile: smoke, tasks: [sst2], recipes: [xtc-1bit, cut-half]}\n"
        "- {profile: mini, tasks: [sst2], recipes: [ptq-8bit]}\n"
    )
    code, out, _ = xtc("results", plan, "--profile", "smoke", "--missing")
    assert code == 0 and out.splitlines() == [
        "smoke · sst2 · xtc-1bit · budget A · seed 0",
        "smoke · sst2 · cut-half · budget A · seed 0",
        "2 of 2 runs are missing",
    ]


def test_built_in_profiles_of_a_plan_read_their_own_tasks(xtc, tmp_path, monkeypatch):
    asked = []

    def data_for(task, profile, glue_dir):
        asked.append((task, glue_dir))
        raise ValueError("enough")

    monkeypatch.setattr(sweep.profiles, "data_for", data_for)
    plan = tmp_path / "plan.yaml"
    for profile, task in ("mini", "sst2"), ("minilm", "mrpc"):
        plan.write_text(f"grids:\n- {{profile: {profile}, tasks: [{task}], recipes: [ptq-8bit]}}")
        assert xtc("results", plan, "--glue-dir", tmp_path)[0] == 2
    assert asked == [("sst2", ROOT / "data" / "mini"), ("mrpc", tmp_path)]


def test_help_names_every_command():
    out = CliRunner().invoke(cli.app, ["--help"]).output
    assert all(name in out for name in ("compress", "evaluate", "recipes", "results"))


@pytest.mark.parametrize("asked", [["--help"], ["advise", "--help"], []])
def test_help_comes_without_the_seconds_that_torch_takes_to_import(asked):
    told = subprocess.run([sys.executable, "-X", "importtime", "-m", "xtclib.cli", *asked],
                          capture_output=True, text=True)  # fmt: skip
    assert "Usage:" in told.stdout + told.stderr
    imported = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    assert "xtclib.study.commands" in imported and not imported & {"torch", "transformers"}


@pytest.mark.slow
@pytest.mark.skipif(not BACKBONE.is_file(), reason="the built-in backbone is missing")
def test_compress_then_evaluate(xtc, tmp_path):
    out = tmp_path / "out"
    code, text, err = xtc(
        "compress", "ptq-8bit", "--profile", "smoke", "--out", out, "--record", tmp_path / "r",
        "--quiet",
    )  # fmt: skip
    assert code == 0, err
    record = Record.read(tmp_path / "r" / "smoke" / "sst2" / "ptq-8bit-A-s0.json")
    assert "above the minimum of its widths" in text  # the ledger
    assert record.table() in text and record.bytes == (out / format.WEIGHTS).stat().st_size
    code, text, err = xtc("evaluate", out, "--profile", "smoke")
    assert code == 0, err
    shown = text[text.index("{") : text.rindex("}") + 1]
    assert json.loads(shown) == record.metrics
    assert f"file     {record.bytes / 1e6:.2f} MB" in text
    assert "length   48 tokens" in text and "note" not in text
    code, own, err = xtc("evaluate", out)  # task, data and length are the artefact's
    assert code == 0 and own == text, err
    code, other, err = xtc("evaluate", out, "--profile", "minilm", "--glue-dir", BUILT_IN)
    assert code == 0 and "note     it was trained on another max_length: 48 (GLUE folder" in other
    assert "another data: " in other
    code, _, err = xtc("evaluate", out, "--task", "mnli", "--profile", "smoke")
    assert code == 2 and "has 2 labels, but mnli has 3" in err


def test_evaluating_a_damaged_artefact_is_one_line(xtc, bert, tokenizer, tmp_path):
    item = Quantize()
    model = format.finalize(item.apply(bert), [item])
    path = format.save(model, tokenizer, tmp_path / "a") / format.WEIGHTS
    path.write_bytes(path.read_bytes()[:-9])
    code, _, err = xtc("evaluate", tmp_path / "a", "--profile", "smoke")
    assert code == 2 and "truncated" in err


@pytest.mark.slow
def test_export_then_evaluate_the_onnx_file(xtc, make_bert, tmp_path):
    pytest.importorskip("onnxruntime")
    tokenizer = teachers.load_tokenizer(BACKBONE.parent, 48)
    model = make_bert(1)
    model.resize_token_embeddings(len(tokenizer))
    model = format.finalize(Quantize(activations="uint8").apply(model), [Quantize()])
    folder = format.save(model, tokenizer, tmp_path / "a")
    code, out, err = xtc("export", folder)
    assert code == 0 and f"onnx     {folder / 'model.onnx'} (" in out, err
    scores = []
    for path in (folder, folder / "model.onnx"):
        code, text, err = xtc("evaluate", path, "--profile", "smoke")
        assert code == 0, err
        scores.append(json.loads(text[text.index("{") : text.rindex("}") + 1]))
    assert abs(scores[0]["dev"]["accuracy"] - scores[1]["dev"]["accuracy"]) < 2
    code, _, err = xtc("export", folder, "--activations", "int4")
    assert code == 2 and "activations must be one of dynamic, trained, received 'int4'" in err
    make_bert(1).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    code, out, err = xtc("export", tmp_path / "plain")
    assert code == 0 and "MB, not quantized)" in out, err
    code, out, err = xtc("export", folder, "--out", tmp_path / "far" / "m.onnx")
    assert code == 0, err
    far = ("evaluate", tmp_path / "far" / "m.onnx", "--profile", "smoke")
    code, _, err = xtc(*far)
    assert code == 2 and "no tokenizer.json in" in err and "--tokenizer" in err
    code, _, err = xtc(*far, "--tokenizer", folder)
    assert code == 0, err
    model.config.id2label = {0: "positive", 1: "negative"}
    format.save(model, tokenizer, folder, replace=True)
    code, _, err = xtc("evaluate", folder, "--profile", "smoke")
    assert code == 2 and "orders its labels ['positive', 'negative'], but" in err
    code, _, err = xtc("evaluate", folder / "none.onnx")
    assert code == 2 and "no ONNX file at" in err


def test_ledger_prints_every_tensor(xtc, bert, tokenizer, tmp_path):
    item = Quantize()
    folder = format.save(format.finalize(item.apply(bert), [item]), tokenizer, tmp_path / "a")
    code, out, err = xtc("ledger", folder, "--rows", "2")
    assert code == 0 and "above the minimum of its widths" in out, err
    assert out.splitlines()[1].startswith("bert.embeddings.position_embeddings.weight")
    code, _, err = xtc("ledger", tmp_path)
    assert code == 2 and "no model.safetensors" in err


def test_breakdown_prints_the_parts(xtc):
    code, out, _ = xtc("breakdown", "bert-base", "--bits", "1")
    lines = {line.split("  ")[0]: line.split() for line in out.splitlines()[1:]}
    assert code == 0 and lines["all"][1:6] == ["109,483,778", "100.0", "13.69", "22.348", "100.0"]
    assert lines["feed-forward"][1] == "56,669,184"
    code, out, _ = xtc("breakdown", "bert-2-128", "--by", "layer", "--length", "600", "--extend")
    assert code == 0 and len(out.splitlines()) == 2 + 3 + 1


@pytest.mark.slow
def test_breakdown_of_a_split_model(xtc):
    code, out, _ = xtc("breakdown", "bert-base", "--length", "320", "--deformer", "9,32")
    cached = float(out.splitlines()[-1].split()[4])
    assert code == 0 and "bert-base, 9 + 3" in out and 18 < cached < 19
    _, out, _ = xtc("breakdown", "bert-base", "--length", "320", "--deformer", "9,32", "--uncached")
    assert 57 < float(out.splitlines()[-1].split()[4]) < 58.13


def test_breakdown_times_components_and_lists_names(xtc):
    code, out, _ = xtc("breakdown", "bert-2-128", "--length", "16", "--latency")
    assert code == 0 and "% of the whole" in out
    code, out, _ = xtc("breakdown", "--list")
    assert code == 0 and any(line.startswith("mobilebert-tiny ") for line in out.splitlines())


def test_breakdown_refuses_an_image_model(xtc, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    code, _, err = xtc("breakdown", tmp_path)
    assert code == 2 and "the structure of ViTConfig" in err and "known are albert, bert" in err


@pytest.mark.slow
def test_pretraining_says_before_and_after_and_keeps_the_model(xtc, tmp_path):
    out, text = tmp_path / "model", tmp_path / "a.txt"
    text.write_text("The cook saw the nurse. Both agree.\n" * 40)
    code, said, _ = xtc("pretrain", "mini", "--text", text, "--steps", "3", "--batch", "8",
                        "--quiet", "--out", out)  # fmt: skip
    lines = said.splitlines()
    assert code == 0 and lines[0] == "data     a.txt: 38 documents, 2 kept apart"
    assert lines[1].startswith("before ") and lines[2].startswith("after ")
    assert (out / "model.safetensors").is_file() and (out / "tokenizer.json").is_file()
    code, _, err = xtc("pretrain", "mini", "--steps", "1", "--out", out)
    assert code == 2 and "already a folder that is not empty" in err


INTERRUPTED = "xtc: interrupted; the same command goes on where it was\n"


def test_ctrl_c_is_one_line_and_exit_code_130(xtc, monkeypatch):
    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("what a library made of it")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(study, "compress", interrupted)
    try:
        code, _, err = xtc("compress", "ptq-8bit", "--profile", "smoke")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, err) == (130, INTERRUPTED)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.3, 1.0, 2.5])
def test_ctrl_c_while_it_imports_is_one_line_too(tmp_path, after):
    command = [sys.executable, "-m", "xtclib.cli", "compress", "xtc-1bit", "--profile", "smoke"]
    with subprocess.Popen(
        command, env={**os.environ, "XTC_CACHE": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as run:  # fmt: skip
        time.sleep(after)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=120)
    assert (run.returncode, err) == (130, INTERRUPTED)


@pytest.mark.parametrize("option", ["--out", "--record"])
@pytest.mark.parametrize(
    "place, message",
    [
        ("file/below", "cannot write to '.*file/below.*': Not a directory; name another place"),
        ("x" * 300, "File name too long"),
        ("/proc/nowhere/a", "cannot write to '/proc/nowhere/.*': No such file or directory"),
    ],
)
def test_a_place_that_cannot_be_written_shows_before_anything_is_read(
    xtc, tmp_path, monkeypatch, option, place, message
):
    monkeypatch.setattr(profiles, "data_for", lambda *a: pytest.fail("went on"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    code, _, err = xtc("compress", "ptq-8bit", "--profile", "smoke", option, place)
    assert code == 2 and re.search(message, err), err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_places_are_taken_as_they_are(xtc, tmp_path, monkeypatch):
    """A name of 245 letters, the folder one stands in, `~` that the shell did not expand."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (here := tmp_path / "here").mkdir(mode=0o750)
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    for out in (".", "../" + "x" * 245, "~/a/b"):
        code, text, err = xtc(
            "compress", "ptq-8bit", "--profile", "smoke", f"--out={out}", "--quiet"
        )
        assert code == 0, err
    for out in (here, tmp_path / ("x" * 245), tmp_path / "a" / "b"):
        names = sorted(file.name for file in out.iterdir())
        assert names == ["SHA256SUMS", "config.json", "model.safetensors", "tokenizer.json",
                         "tokenizer_config.json"]  # fmt: skip
        assert len({file.stat().st_mode for file in out.iterdir()}) == 1  # weights as the rest
        format.load(out)
    assert here.stat().st_mode & 0o777 == 0o750 and here.stat().st_ino == inode
    # The same command again ends alike; another one is refused.
    code, text, err = xtc("compress", "ptq-8bit", "--profile", "smoke", "--out=.", "--quiet")
    assert code == 0, err
    code, _, err = xtc("compress", "cut-half", "--profile", "smoke", "--out=.", "--quiet")
    assert code == 2 and "already a folder that is not empty" in err


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(xtc, own_cache):
    arguments = "compress", "xtc-1bit-half", "--profile", "smoke", "--quiet"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (40_000, 300_000, 600_000):  # of a file; the model has 530 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            code, _, err = xtc(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert code == 2, err
        line = "xtc: cannot write to the cache at .*XTC_CACHE; the same command then goes on\n"
        assert re.fullmatch(line, err), err
    found = subprocess.run(
        [sys.executable, "-m", "xtclib.cli", *arguments], capture_output=True, text=True,
        timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert not [p for p in own_cache.rglob("*partial*")]


@pytest.mark.slow
def test_a_study_is_planned_measured_timed_and_concluded_from(xtc, tmp_path):
    pytest.importorskip("distributed")
    path = tmp_path / "study.yaml"
    path.write_text(
        "question: does it help?\n"
        "grids: [{recipes: [xtc-1bit, cut-half], profile: smoke, tasks: [sst2], seeds: [0, 1]}]\n"
        "compare: {one bit over a cut: [{recipe: xtc-1bit}, {recipe: cut-half}]}\n"
    )
    code, out, _ = xtc("study", "plan", path)
    assert code == 0 and "runs     3, of which 0 are measured" in out  # cut-half trains nothing
    assert "and 2 runs whose pace no record of this machine tells" in out
    code, out, _ = xtc("study", "run", path, "--workers", 1, "--quiet")
    assert code == 0 and "measured 3 of 3 runs that were missing" in out
    first, *_ = records.read("smoke", tmp_path)
    replace(first, metrics={"dev": {"score": 12.5}}).save(tmp_path)  # as no student scores
    code, out, _ = xtc("study", "time", path)
    assert code == 0 and "timed    3 of 3 runs, 0 were before" in out
    first, *others = records.read("smoke", tmp_path)
    assert first.score == 12.5 and all(record.latency for record in (first, *others))
    code, out, _ = xtc("study", "run", path, "--workers", 1, "--quiet")
    assert code == 0 and out.strip() == "nothing is missing"
    path.write_text(path.read_text().replace("seeds: [0, 1]", "seeds: [0]"))
    code, out, _ = xtc("study", "conclude", path)
    assert code == 0 and "one bit over a cut" in out


def test_what_a_study_lacks_is_one_line(xtc, tmp_path):
    path = tmp_path / "study.yaml"
    assert "no study at" in xtc("study", "plan", path)[2]
    path.write_text("grids: [{recipes: [xtc-1bitt]}]")
    assert "did you mean 'xtc-1bit'" in xtc("study", "plan", path)[2]
    path.write_text("grids: [{recipes: [xtc-1bit]}]")
    code, _, told = xtc("study", "conclude", path)
    assert code == 2 and "compares nothing: name selections of records under `compare`" in told
    code, _, told = xtc("study", "run", path, "--scheduler", "nowhere")
    assert code == 2 and len(told.splitlines()) == 1


@pytest.mark.slow
def test_advice_is_printed_and_can_be_run(xtc, tmp_path):
    for seed, score in enumerate((91.0, 92.0)):
        made("ptq-8bit", score, 900_000, profile="smoke", seed=seed).save(tmp_path)
    smoke = "--task", "sst2", "--profile", "smoke", "--folder", tmp_path
    code, out, err = xtc("advise", *smoke, "--mb", 1, "--drop", 3, "--run", "--quiet")
    assert (code, err) == (0, "") and "ptq-8bit, A loses least" in out
    assert "make it  xtc compress ptq-8bit --task sst2 --profile smoke" in out
    assert "expected" in out and "measured" in out
    assert xtc("advise", *smoke, "--mb", 0.5, "--run")[0] == 2
    code, _, err = xtc("advise", *smoke)
    assert code == 2 and "nothing is wished for" in err
    code, _, err = xtc("advise", *smoke, "--mb", 1, "--out", tmp_path / "x")
    assert code == 2 and "--run" in err


def test_a_front_is_printed(xtc, tmp_path):
    for name, score, size in (("xtc-1bit", 90.0, 5), ("xtc-half", 89.0, 9), ("rpp-50", 93.0, 9)):
        made(name, score, size, profile="smoke").save(tmp_path)
    smoke = "--task", "sst2", "--profile", "smoke", "--folder", tmp_path
    code, out, _ = xtc("pareto", *smoke)
    assert code == 0 and "2 of 3 are unbeaten" in out and "xtc-half" not in out
    code, _, err = xtc("pareto", *smoke, "--budget", "C")
    assert code == 2 and "no record of smoke/sst2, budget C" in err
    code, _, err = xtc("pareto", *smoke, "--by", "score,speed")
    assert code == 2 and "unknown measure 'speed'" in err
