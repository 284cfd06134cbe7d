"""The gate: each limit passes and fails, numbers are those of another way, faults are one line."""

import copy
import json
import math
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from xtclib import cli, teachers
from xtclib.artefact import format
from xtclib.cache import ROOT
from xtclib.costs import latency
from xtclib.deployment import runtimes, saturation
from xtclib.study import gate, judged
from xtclib.study.gate import Limits, Timing, check
from xtclib.study.verdicts import Report, row
from xtclib.tasks.base import TaskData, find_task
from xtclib.tasks.evaluation import predict
from xtclib.tasks.rows import Split
from xtclib.techniques.dynamic.technique import EarlyExit
from xtclib.techniques.quantization.technique import Quantize

ROWS = 40  # of each class


@pytest.fixture(scope="module")
def made(make_bert, tokenizer, tmp_path_factory):
    """A teacher that is right on every row of a file, and its 1-bit artefact, which is not."""
    folder, teacher, item = tmp_path_factory.mktemp("gate"), make_bert(2), Quantize()
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in random.integers(0, 190, 6)) for _ in range(800)]
    logits = predict(teacher, tokenizer, Split(texts, None, [0] * len(texts)))
    logits[:, 0] -= (middle := float(np.median(logits[:, 0] - logits[:, 1])))
    teacher.classifier.bias.data[0] -= middle  # else one class has them all
    says = logits.argmax(-1)
    chosen = sorted(np.concatenate([np.flatnonzero(says == k)[:ROWS] for k in (0, 1)]).tolist())
    rows = [(texts[i], ("negative", "positive")[says[i]]) for i in chosen]
    file = folder / "rows.csv"
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    teacher.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    student = format.finalize(item.apply(copy.deepcopy(teacher)), [item])
    format.save(student, tokenizer, folder / "artefact")
    return folder


@pytest.fixture(scope="module")
def by_hand(made):
    """Logits of both and the labels, without the gate."""
    lines = [line.rsplit(",", 1) for line in (made / "rows.csv").read_text().splitlines()[1:]]
    labels = [int(label == "positive") for _, label in lines]
    split = Split([text for text, _ in lines], None, labels)
    both = [predict(*format.load(made / name), split) for name in ("teacher", "artefact")]
    return *both, np.array(labels)


@pytest.fixture
def times(monkeypatch):
    """Medians that are known, and what was timed: models, rows, threads."""
    seen = {}

    def of_models(models, batch, length, given=(), pause=0.0):
        seen.update(models=models, given=given, threads=torch.get_num_threads(), pause=pause)
        medians = {"teacher": 5.0, "artefact": 2.0}
        return {"batch": batch, "length": length, "repeats": 7, "device": "cpu",
                "threads": torch.get_num_threads(),
                "milliseconds": {name: {"median": medians[name]} for name in models}}  # fmt: skip

    monkeypatch.setattr(latency, "of_models", of_models)
    return seen


@pytest.fixture
def xtc(monkeypatch, capsys):
    """Runs `xtc check …`: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["xtc", "check", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


def found(report, name):
    (one,) = [each for each in report.rows if each.name == name]
    return one


def test_the_score_lost_and_equal_answers_are_those_of_another_way(made, by_hand):
    theirs, ours, labels = by_hand
    right = [100 * accuracy_score(labels, each.argmax(-1)) for each in (theirs, ours)]
    lost, same = right[0] - right[1], runtimes.agreement(theirs, ours)["labels"]
    assert right[0] == 100 and 0 < lost < 60  # so that limits on both sides can be tried
    how = {"against": made / "teacher", "data": str(made / "rows.csv")}
    report = check(made / "artefact", Limits(max_drop=lost, min_agreement=same), **how)
    assert report.passed and report.answered == 2 * ROWS  # at its limit a value holds
    assert found(report, "max_drop").measured == pytest.approx(lost)
    assert found(report, "min_agreement").measured == pytest.approx(same)
    only = np.sum((theirs.argmax(-1) == labels) & (ours.argmax(-1) != labels))
    n = len(labels)  # the teacher is right everywhere: b rows are lost, none is won
    assert report.error == pytest.approx(100 * math.sqrt((only - only**2 / n) / n**2))
    assert f"{lost:.2f} ± {report.error:.2f}" in report.table()
    assert "80 rows are few for this limit" in report.table()
    report = check(made / "artefact", Limits(max_drop=lost - 0.01, min_agreement=99.9), **how)
    assert not report.passed
    assert report.failed == ["score lost, points", "same answers, %"]
    assert "FAILED   2 of 2: score lost, points; same answers, %" in report.table()
    assert report.latency == {}  # which nobody asked for


def test_of_wins_and_losses_the_standard_error_is_mcnemars():
    labels = [0] * 10 + [1] * 10
    theirs, ours = labels.copy(), labels.copy()
    theirs[0] = 1  # c = 1 row is won
    ours[5], ours[12], ours[13] = 1, 0, 0  # b = 3 are lost
    task = find_task("sst2")
    data = TaskData(task, Split([], None, []), {"dev": Split(["a"] * 20, None, labels)}, "", "")
    both = [judged.Judged({"dev": a}, {"dev": task.score(a, labels)}, True) for a in (theirs, ours)]
    wanted = 100 * math.sqrt((3 + 1 - (3 - 1) ** 2 / 20) / 20**2)
    assert judged.standard_error(data, *both) == pytest.approx(wanted)
    assert judged.agreement(*both) == 80
    assert judged.standard_error(data, both[0], both[0]) is None  # 0 would be too sure
    both[0].scores["dev"]["score"] = 50.0  # another metric's: no share of right answers
    assert judged.standard_error(data, *both) is None


def test_the_file_is_weighed_and_no_teacher_is_opened_for_it(made, monkeypatch):
    monkeypatch.setattr(latency, "of_models", lambda *a, **k: pytest.fail("was timed"))
    monkeypatch.setattr(gate, "judge", lambda *a: pytest.fail("was scored"))
    monkeypatch.setattr(teachers, "load_teacher", lambda *a: pytest.fail("was opened"))
    megabytes = (made / "artefact" / format.WEIGHTS).stat().st_size / 1e6
    report = check(made / "artefact", Limits(max_mb=megabytes))
    assert report.passed and found(report, "max_mb").measured == megabytes
    assert found(report, "integrity").says == "it opens, sums match"
    report = check(made / "artefact", Limits(max_mb=megabytes - 1e-6))
    assert report.failed == ["file, MB"]
    assert float(found(report, "max_mb").says) > megabytes - 1e-6  # digits that show why
    plain = check(made / "teacher", Limits(max_mb=megabytes))
    assert plain.failed == ["file, MB"] and found(plain, "integrity").says.endswith("no sums")


def test_both_are_timed_on_the_threads_that_were_asked_for(made, times):
    how = {"against": made / "teacher", "data": str(made / "rows.csv")}
    before = torch.get_num_threads()
    timing = Timing(batch=3, length=9, threads=2)
    report = check(made / "artefact", Limits(max_speed_ratio=0.4, max_ms=2), timing=timing, **how)
    assert report.passed and [*times["models"]] == ["teacher", "artefact"]
    assert times["threads"] == 2 and torch.get_num_threads() == before
    assert times["given"][0]["input_ids"].shape == (3, 9)
    line = "teacher 5.00 ms, artefact 2.00 ms: batch 3 × 9 tokens, 2 threads, median of 7 in turns"
    assert line in report.table() and report.scores == {}
    report = check(made / "artefact", Limits(max_speed_ratio=0.399, max_ms=1.99), **how)
    assert report.failed == ["time / teacher's", "ms of a batch"]
    report = check(made / "artefact", Limits(max_ms=2))  # alone: no teacher, and no rows
    assert report.passed and [*times["models"]] == ["artefact"]


def test_time_is_really_measured(made):
    report = check(made / "artefact", Limits(max_ms=1e4, max_speed_ratio=1e3),
                   made / "teacher", data=str(made / "rows.csv"))  # fmt: skip
    took = report.latency["milliseconds"]
    ratio = took["artefact"]["median"] / took["teacher"]["median"]
    assert report.passed and found(report, "max_speed_ratio").measured == pytest.approx(ratio)
    assert report.latency["threads"] == 1 and report.latency["repeats"] >= 3


def test_rows_that_leave_early_are_timed_on_real_rows(make_bert, tokenizer, made, times, tmp_path):
    item = EarlyExit(after=[1])
    model = format.finalize(item.apply(make_bert(2)), [item])
    format.save(model, tokenizer, tmp_path / "exits")
    check(tmp_path / "exits", Limits(max_ms=100), timing=Timing(batch=4, length=16),
          data=str(made / "rows.csv"))  # fmt: skip
    rows = sum(len(batch["input_ids"]) for batch in times["given"])
    assert len(times["given"]) == 8 and rows == 32


def test_nan_fails_and_is_null_in_json(make_bert, tokenizer, data):
    model = make_bert(1)
    whole = judged.judge(model, tokenizer, data, 32)
    model.classifier.register_forward_hook(lambda *given: given[-1] * math.nan)
    broken = judged.judge(model, tokenizer, data, 32)
    assert whole.whole and not broken.whole and math.isnan(broken.scores["dev"]["score"])
    assert math.isnan(judged.agreement(whole, broken))
    assert judged.standard_error(data, whole, broken) is None
    rows = [row(name, "t", math.nan, 1) for name in ("max_drop", "min_agreement")]
    report = Report("a", None, rows, ["max_drop", "min_agreement"])
    assert not report.passed and len(report.failed) == 2 and "nan" in report.table()
    assert [each["measured"] for each in report.json()["checks"]] == [None, None]


def test_a_point_is_a_point_in_floating_numbers():
    assert 80.0 - 77.1 > 2.9 and row("max_drop", "t", 80.0 - 77.1, 2.9).passed
    assert not row("max_drop", "t", 1.001, 1).passed and row("min_agreement", "t", 99, 99).passed


@pytest.mark.parametrize(
    "limits, message",
    [
        ({}, "received no limit, expected one at least of --max-drop, --max-mb"),
        ({"max_drop": -1}, "max_drop of limits must be points from 0 to 100, received -1"),
        ({"max_mb": 0}, "max_mb of limits must be a number above 0, received 0"),
        ({"max_ms": math.nan}, "max_ms of limits must be a number above 0, received nan"),
        ({"min_agreement": 101}, "min_agreement of limits must be a percentage above 0 and at"),
    ],
)
def test_limits_that_are_none(limits, message):
    with pytest.raises(ValueError, match=message):
        Limits(**limits)


def test_exit_codes_table_and_json(xtc, made, tmp_path):
    how = ("--against", made / "teacher", "--data", made / "rows.csv")
    code, out, _ = xtc(made / "artefact", "--max-mb", 10)
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["check", "measured", "limit", "result"]
    assert lines[2].endswith("at most 10  + passed") and lines[-1] == "passed   the limit holds"
    code, out, _ = xtc(made / "artefact", "--max-mb", 10, "--max-drop", 0, *how)
    assert code == 1 and "× FAILED" in out and "FAILED   1 of 2: score lost, points" in out
    code, out, err = xtc(made / "artefact", "--max-mb", 10, "--max-drop", 0, *how, "--json", "-")
    told = json.loads(out)
    assert code == 1 and not told["passed"] and err == ""
    checks = {each["name"]: each for each in told["checks"]}
    assert checks["max_mb"]["passed"] and not checks["max_drop"]["passed"]
    assert checks["max_drop"]["limit"] == 0 and told["rows"] == 2 * ROWS
    assert len(told["data_fingerprint"]) == 16 and told["standard_error"] > 0
    assert {"machine", "versions", "commit", "date"} <= told.keys()
    path = tmp_path / "new" / "report.json"
    code, out, _ = xtc(made / "artefact", "--max-ms", 1e4, "--threads", 1, "--json", path)
    told = json.loads(path.read_text())
    assert code == 0 and "+ passed" in out and told["passed"]
    assert {"batch": 8, "length": 32, "threads": 1}.items() <= told["latency"].items()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "received no limit"),
        (("--max-drop", 1), "--max-drop compares with a teacher: name its folder or Hub id"),
        (("--max-speed-ratio", 1), "--max-speed-ratio compares with a teacher"),
        (("--max-ms", 1, "--threads", 0), "threads of timing must be a whole number from 1"),
        (("--max-ms", 1, "--length", 65), "received --length 65, but .*artefact has positions f"),
        (("--max-mb", 1, "--json", "/proc/nowhere/a"), "cannot write to '/proc/nowhere'"),
        (("--max-drop", 1, "--against", "{made}/artefact"), "the same: name its teacher"),
        (("--max-drop", 1, "--against", "{made}/none"), "none"),
        (("--max-drop", 1, "--against", "{made}/a.onnx"), "expected a folder or a Hub id"),
        (("--max-drop", 1, "--against", "profile"), "the cache holds no teacher of the profile"),
    ],
)
def test_a_bad_input_is_one_line_and_exit_code_2(xtc, made, arguments, message):
    given = [str(each).format(made=made) for each in arguments]
    code, out, err = xtc(made / "artefact", *given, "--data", made / "rows.csv")
    assert code == 2 and out == "" and err.count("\n") == 1 and re.search(message, err), err


def test_a_teacher_of_something_else_is_refused_before_it_answers(
    xtc, made, make_bert, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(gate, "judge", lambda *a: pytest.fail("was scored"))
    three, turned, bare = tmp_path / "three", tmp_path / "turned", tmp_path / "bare"
    make_bert(1, labels=3).save_pretrained(three)
    model = make_bert(1)
    model.base_model.save_pretrained(bare)
    model.config.id2label = {0: "positive", 1: "negative"}
    model.save_pretrained(turned)
    (tmp_path / "empty").mkdir()
    for folder, message in ((three, "has 3 labels"), (turned, "orders its labels"),
                            (bare, "holds no classifier"), (tmp_path / "empty", "")):  # fmt: skip
        tokenizer.save_pretrained(folder)
        code, _, err = xtc(made / "artefact", "--max-drop", 1, "--against", folder, "--data",
                           made / "rows.csv")  # fmt: skip
        assert code == 2 and message in err and err.count("\n") == 1, err
    code, _, err = xtc(bare, "--max-mb", 1)
    assert code == 2 and "it is no classifier" in err
    file = tmp_path / "other.csv"
    file.write_text("text,label\n" + "w1 w2,cat\nw3 w4,dog\n" * 9)
    code, _, err = xtc(made / "artefact", "--max-drop", 1, "--against", made / "teacher", "--data",
                       file)  # fmt: skip
    assert code == 2 and "received the class 'cat'" in err


def test_a_teacher_no_better_than_the_majority_is_refused(
    xtc, made, make_bert, tokenizer, tmp_path
):
    rows = tmp_path / "rows"
    rows.mkdir()
    for name in ("train.csv", "test.csv"):
        shutil.copy(made / "rows.csv", rows / name)
    model = make_bert(2)
    model.classifier.weight.data.neg_()
    model.classifier.bias.data.neg_()  # all answers turned
    model.save_pretrained(tmp_path / "turned")
    tokenizer.save_pretrained(tmp_path / "turned")
    code, _, err = xtc(made / "artefact", "--max-drop", 1, "--against", tmp_path / "turned",
                       "--data", rows)  # fmt: skip
    assert code == 2 and "no better than the majority class" in err


def test_equal_numbers_are_not_counted(make_bert, tokenizer, tmp_path):
    model = make_bert(1, labels=1)
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "n.csv").write_text("text,score\n" + "".join(f"w{i},{i / 10}\n" for i in range(30)))
    how = {"against": tmp_path / "b", "data": str(tmp_path / "n.csv")}
    with pytest.raises(ValueError, match="--min-agreement counts equal answers.* by a number"):
        check(tmp_path / "a", Limits(min_agreement=99), **how)
    report = check(tmp_path / "a", Limits(max_drop=0), **how)
    assert report.passed and report.error is None and "±" not in report.table()


def test_a_damaged_artefact_does_not_pass(xtc, made, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(made / "artefact", folder)
    path = folder / format.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    code, out, err = xtc(folder, "--max-mb", 10)
    assert code == 2 and out == "" and "sha256" in err
    path.write_bytes(content[:-9])
    assert xtc(folder, "--max-mb", 10)[0] == 2


@pytest.mark.slow
def test_an_onnx_file_is_checked_as_its_folder_is(xtc, made, make_bert, tokenizer, monkeypatch):
    pytest.importorskip("onnxruntime")
    from xtclib.deployment import onnx

    wide = Quantize(weights="int8", embeddings="int8")
    model = format.finalize(wide.apply(make_bert(1)), [wide])
    eight, one = made / "eight.onnx", made / "artefact" / "model.onnx"
    onnx.export_onnx(model, eight)
    onnx.export_onnx(format.load(made / "artefact")[0], one, "trained")
    assert saturation.largest_weight(eight) > saturation.EXACT >= saturation.largest_weight(one)
    how = ("--data", made / "rows.csv", "--against")
    code, out, err = xtc(one, "--min-agreement", 95, "--max-mb", one.stat().st_size / 1e6,
                         "--max-speed-ratio", 1e3, *how, made / "artefact")  # fmt: skip
    assert code == 0 and "weights" not in out, out + err
    limits = ("--max-drop", 100, "--max-ms", 1e4, "--tokenizer", made / "teacher")
    for exact, says in ((True, "8-bit, exact here"), (False, "8-bit, saturating"),
                        (None, "8-bit, unknown")):  # fmt: skip
        monkeypatch.setattr(saturation, "adds_exactly", lambda exact=exact: exact)
        code, out, err = xtc(eight, *limits, *how, made / "teacher")
        assert code == 0 and says in out and "! note" in out, out + err
    code, out, _ = xtc(eight, "--max-mb", 10, "--tokenizer", made / "teacher")
    assert code == 0 and "--max-drop or --min-agreement tells whether" in out
    code, _, err = xtc(eight, "--max-mb", 10)
    assert code == 2 and "no tokenizer.json in" in err
    content = bytearray(one.read_bytes())
    content[len(content) // 2] ^= 1
    one.write_bytes(content)
    code, _, err = xtc(one, "--max-mb", 10)
    assert code == 2 and "does not match its sha256" in err


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "data/mini/backbone").is_dir(), reason="no built-in backbone")
def test_the_teacher_of_the_profile(xtc, made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv", f"xtc compress ptq-8bit --profile smoke --quiet --out {out}".split()
    )
    with pytest.raises(SystemExit):
        cli.main()
    code, said, err = xtc(out, "--against", "profile", "--max-drop", 100, "--min-agreement", 1)
    assert code == 0 and "against  the teacher of the profile smoke" in said, err
    monkeypatch.setenv("XTC_CACHE", str(tmp_path / "another"))
    code, _, err = xtc(out, "--against", "profile", "--max-drop", 100)
    assert code == 2 and "the cache holds no teacher of the profile smoke" in err
