"""Files of one's own: read alike however they are written, scored as by libraries, or refused."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoTokenizer, BertConfig, BertForPreTraining, pipeline

import xtclib as xtc
from xtclib import cli
from xtclib.cache import ROOT
from xtclib.figures import records as drawn
from xtclib.study import profiles, sweep
from xtclib.study.design import Wanted
from xtclib.tasks import asked, own, reviews
from xtclib.tasks.classification import MultiLabel
from xtclib.tasks.rows import Split, widened
from xtclib.training.budget import Budget

EXAMPLE = ROOT / "data" / "own" / "example.csv"
BACKBONE = ROOT / "data" / "mini" / "backbone"
HEAD = "text,label\n"
ROWS = "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(20))


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns its path."""

    def to(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `xtc …`: its output, and the error if it was refused."""

    def xtc_(*arguments):
        monkeypatch.setattr(sys, "argv", ["xtc", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            assert end.code in (0, None, 2)
        return "".join(capsys.readouterr())

    return xtc_


@pytest.fixture
def loaded(write):
    """The rows of a file that is written first."""
    return lambda name, content, **told: own.own(write(name, content), **told).load()


# Files

JSON = "".join(json.dumps({"text": t, "label": n}) + "\n"
               for t, n in (row.split(",") for row in ROWS.splitlines()))  # fmt: skip
WAYS = {
    "a.csv": HEAD + ROWS,
    "b.csv": (HEAD + ROWS).replace(",", ";"),
    "c.csv": (HEAD + ROWS).replace(",", "\t"),
    "d.tsv": (HEAD + ROWS).replace(",", "\t"),
    "e.csv": b"\xef\xbb\xbf" + (HEAD + ROWS).encode(),
    "f.csv": (HEAD + ROWS).replace("\n", "\r\n"),
    "g.csv": (HEAD + ROWS).replace("\n", "\r"),
    "h.csv": (HEAD + ROWS).encode("utf-16"),
    "i.csv": (HEAD + ROWS).replace("\n", "\n\n").rstrip(),
    "j.jsonl": JSON,
    "k.json": JSON.replace("\n", "\n\n"),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_file_is_the_same_however_it_is_written(loaded, name):
    data = loaded(name, WAYS[name])
    assert data.task.labels == ("a", "b") and len(data.train) == 18
    assert data.fingerprint == loaded("a.csv", WAYS["a.csv"]).fingerprint
    assert data.train.first[0] == "word 0" and data.train.labels[:3] == [0, 1, 0]


def test_cells_hold_commas_quotes_and_line_breaks(loaded):
    text = 'text,label\n"one, ""two""\nthree",a\nfour,b\nfive,a\nsix,b\n'
    split = loaded("a.csv", text).task.parts["train"]
    assert split.first == ['one, "two"\nthree', "four", "five", "six"]
    tabs = 'text\tlabel\n"one ""two"""\ta\n"Yes" and "no"\tb\n5" wide\ta\n"\tb\n'
    split = loaded("a.tsv", tabs).task.parts["train"]
    assert split.first == ['one "two"', '"Yes" and "no"', '5" wide', '"']


def test_a_folder_has_parts(write, tmp_path):
    for name in ("train.csv", "validation.tsv", "test.csv"):
        content = HEAD + (ROWS if name == "train.csv" else "x,a\ny,b\n")
        write(f"mine/{name}", content.replace(",", "\t") if name.endswith("tsv") else content)
    data = own.own(tmp_path / "mine").load()
    assert data.task.name == "mine" and list(data.evaluation) == ["test"]
    assert len(data.train) == 20 and len(data.held_out) == len(data.evaluation["test"]) == 2
    (tmp_path / "mine" / "test.csv").unlink()
    data = own.own(tmp_path / "mine").load()
    assert list(data.evaluation) == ["dev"] and data.held_out is None
    write("mine/train.tsv", "")
    with pytest.raises(ValueError, match="mine' holds two parts called train"):
        own.own(tmp_path / "mine")


@pytest.mark.slow
def test_what_datasets_saved_and_the_hub_are_read(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names,
                                  "tags": datasets.List(names)})  # fmt: skip
    rows = {"text": ["x", "y"] * 4, "label": [1, 0] * 4, "tags": [[0, 1], []] * 4}
    part = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=part, validation=part).save_to_disk(tmp_path / "saved")
    data = own.own(tmp_path / "saved").load()
    assert data.task.labels == ("no", "yes") and data.evaluation["dev"].labels[:2] == [1, 0]
    data = own.own(tmp_path / "saved", label="tags").load()
    assert data.train.labels[:2] == [[1, 1], [0, 0]]

    part.save_to_disk(tmp_path / "alone")
    assert list(own.own(tmp_path / "alone").load().evaluation) == ["dev"]
    unlabelled = part.map(lambda row: {"label": -1})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: {
        "train": part, "test": unlabelled, "extra": unlabelled})  # fmt: skip
    with pytest.raises(ValueError, match=r"me/mine:all, part test, row 1: 8 of 8 rows have no lab"):
        own.own("me/mine:all")

    def offline(name, config):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(FileNotFoundError, match="no file or folder at 'me/mine', and the Hub did"):
        own.own("me/mine")


# What columns hold


def test_kinds_are_told_by_the_column(loaded):
    def kind(*labels, **told):
        lines = "".join(f"t{i},{each}\n" for i, each in enumerate(labels * 3))
        return loaded("a.csv", HEAD + lines, **told).task

    assert kind("10", "9", "-1").labels == ("-1", "9", "10")
    assert kind("yes", "no", "No").labels == ("No", "no", "yes")
    assert type(kind("1", "2.5")) is own.OwnNumber and kind("1", "2.5").labels == ("label",)
    assert type(kind(*map(str, range(-10, 11)))) is own.OwnNumber  # 21 of them
    assert kind("1", "2", kind="number").settings == {"problem_type": "regression"}
    assert kind("1", "b", kind="classes").labels == ("1", "b")
    tags = kind("a;b", "b | c", "", kind="labels")
    assert tags.labels == ("a", "b", "c")
    assert tags.parts["train"].labels[:3] == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert loaded("a.jsonl", '{"text":"x","label":true}\n{"text":"x","label":false}\n' * 3
                  ).task.labels == ("false", "true")  # fmt: skip


def test_columns_are_found_or_named(loaded):
    pairs = "sentence1,sentence2,id,score\n" + "".join(f"a{i},b{i},{i},{i}.5\n" for i in range(9))
    data = loaded("a.csv", pairs)
    assert data.train.second[0][0] == "b" and "'sentence1' and 'sentence2'" in data.source
    told = {"text": "id", "text_pair": "sentence2", "label": "sentence1"}
    assert loaded("a.csv", pairs.replace("a1", "a0").replace("a2", "a0").replace("a3", "a4")
                  .replace("a5", "a4").replace("a6", "a4").replace("a7", "a4").replace("a8", "a4"),
                  **told).task.labels == ("a0", "a4")  # fmt: skip
    only = "body,class\n" + ROWS
    assert "texts in 'body'; 2 classes in 'class' (a, b)" in loaded("a.csv", only).source


ERRORS = {
    "one class, 'a', expected two or more: is it": HEAD + ROWS.replace(",b", ",a"),
    "a.csv has no column called label, .* name one of its columns .text, foo": "text,foo\n" + ROWS,
    "a.csv has no column called text, .* .a, b, label. as the text": "a,b,label\nx,y,z\n",
    "a.csv, line 2: 1 of 21 rows have no text, this is the first": HEAD + " ,a\n" + ROWS,
    "a.csv, line 4: 1 of 23 rows have no label": HEAD + "t,a\nt,b\nt,\n" + ROWS,
    r"line 22: .*|'7' .a.csv, line 22. is a number": HEAD + ROWS + "x,7\n",
    "a.csv, line 3: ragged quotes .*write the quote twice": HEAD + 'x,a\n"a" b,a\n' + ROWS,
    "a.csv, line 2: ragged quotes .unexpected end": HEAD + '"text,b\n' + ROWS,
    "a.csv, line 2: received 3 columns, expected 2 .text, label.": HEAD + "one, two,a\n" + ROWS,
    "a.csv, line 22: the label 'a|b' looks like several": HEAD + ROWS + "x,a|b\n",
    "a.csv has no rows": HEAD,
    "a.csv, line 1: two columns are called 'text'": "text,text\n" + ROWS,
    "a.csv, line 1: holds zero bytes": (HEAD + ROWS).encode("utf-16-le"),
    "a.csv, line 22: received byte 0xe9, which is no UTF-8": (HEAD + ROWS + "é,a").encode("latin1"),
    "holds 1,200 classes in 2,400 rows": HEAD + "".join(f"t,x{i % 1200}\n" for i in range(2400)),
    "holds 20 classes in 30 rows, such as": HEAD + "".join(f"t,x{i % 20}\n" for i in range(30)),
    "the class 'yyy.*' of 9,000 letters": HEAD + ROWS + f"x,{'y' * 9000}\n",
    "line 3: received the label '-70.5', expected a number from -20 to": HEAD + "a,0.5\nb,-70.5\n",
    "'label' holds one number in all rows": HEAD + "a,0.5\n" * 4,
}  # fmt: skip


@pytest.mark.parametrize("message", ERRORS)
def test_a_bad_file_is_one_error(write, message):
    with pytest.raises(ValueError, match=message) as error:
        own.own(write("a.csv", ERRORS[message]))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "content, message",
    [
        (
            '{"text":"x","label":["a"]}\n{"text":"x","label":"b"}',
            r"line 1: the label \['a'\] is a l",
        ),
        ('{"text":"x","label":"b"}\n[1]', r"a.jsonl, line 2: received \[1\]; expected one object"),
        ('{"text":"x","label":"b"}\n' + "[" * 10**5, "line 2: maximum recursion"),
        ('{"text":5,"label":"b"}', "line 1: received 5 in column 'text', expected a text"),
        (
            '{"text":"x","label":{"a":1}}',
            r"line 1: received {'a': 1} in column 'label', expected a",
        ),
        ('{"text":"x","label":1' + "0" * 400 + "}\n", "a.jsonl: 'label' holds one number"),
        ('{"text":"x","label":["a","b"]}', "a.jsonl has one row, expected two at least"),
        ('{"text":"x","label":NaN}\n{"text":"x","label":0.5}', "line 1: received the label nan"),
    ],
)
def test_bad_json_is_one_error(write, content, message):
    with pytest.raises(ValueError, match=message):
        own.own(write("a.jsonl", content))


def test_what_is_told_must_fit(write):
    path = write("a.csv", HEAD + ROWS)
    for told, message in (
        ({"label": "lable"}, "unknown column of a.csv 'lable': did you mean 'label'"),
        ({"text": "label", "label": "label"}, "'label' cannot be two of text"),
        ({"kind": "class"}, "unknown kind 'class': did you mean 'classes'"),
        ({"metrics": ["acuracy"]}, "unknown metric 'acuracy': did you mean 'accuracy'"),
        ({"kind": "number"}, "a.csv, line 2: received the label 'a', expected a number"),
        ({"labels": ["b", "c"]}, r"line 2: received the class 'a', which the model lacks \(b, c\)"),
    ):
        with pytest.raises(ValueError, match=message):
            own.own(path, **told)
    several = write("b.jsonl", '{"text":"x","label":["a"]}\n')
    with pytest.raises(ValueError, match=r"b.jsonl, line 1: received the labels \['a'\], expected"):
        own.own(several, kind="classes")
    for path in ("nowhere.csv", "nowhere", "./a/b", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=f"no file or folder at '{path}'"):
            own.own(path)
    with pytest.raises(ValueError, match="c.parquet is no file of rows"):
        own.own(write("c.parquet", "PAR1"))


def test_a_class_that_training_lacks_and_a_folder_without_training(write, tmp_path):
    write("mine/train.csv", HEAD + ROWS)
    write("mine/dev.csv", HEAD + "x,a\ny,c\n")
    with pytest.raises(ValueError, match="dev.csv, line 3: received the class 'c', which training"):
        own.own(tmp_path / "mine")
    write("mine/dev.csv", "texts,label\nx,a\n")
    with pytest.raises(ValueError, match="unknown column of dev.csv 'text': did you mean 'texts'"):
        own.own(tmp_path / "mine")
    (tmp_path / "mine" / "train.csv").unlink()
    with pytest.raises(ValueError, match="mine' holds no training rows: expected train.csv"):
        own.own(tmp_path / "mine")


def test_a_few_empty_texts_are_left_out_and_said(loaded):
    data = loaded("a.csv", HEAD + "  ,a\n" + ROWS * 10)
    assert "1 of 201 rows have no text (a.csv, line 2, …), left out" in data.source
    assert len(data.train) + len(data.evaluation["dev"]) == 200


# Parts and scores


def test_a_tenth_of_each_class_is_cut_off(loaded):
    rare = HEAD + "".join(f"t{i},{'c' if i in (3, 50) else 'd' if i == 9 else 'ab'[i % 2]}\n"
                          for i in range(100))  # fmt: skip
    data = loaded("a.csv", rare)
    counts = np.bincount(data.evaluation["dev"].labels, minlength=4).tolist()
    assert counts == [5, 5, 1, 0] and set(data.train.labels) == {0, 1, 2, 3}
    assert not set(data.train.first) & set(data.evaluation["dev"].first)
    assert loaded("a.csv", rare).fingerprint == data.fingerprint
    large = HEAD + "".join(f"t{i},{'ab'[i % 2]}\n" for i in range(30_000))
    assert len(loaded("a.csv", large).evaluation["dev"]) == 2000
    some = own.own(EXAMPLE).load(limit=5)
    assert len(some.train) == 5 and len(set(some.train.labels)) > 1  # though sorted by class


def test_metrics_are_chosen_by_the_labels_and_scikit_learns(loaded):
    def score(lines, **told):
        task = loaded("a.csv", HEAD + lines, **told).task
        random = np.random.default_rng(0)
        found, true = random.integers(0, 2, (2, 40))
        return task, task.score(found, true), true, found

    task, found, *given = score("a,no\nb,yes\n" * 5)
    assert found == {"accuracy": 100 * accuracy_score(*given), "f1": 100 * f1_score(*given),
                     "score": 100 * accuracy_score(*given)}  # fmt: skip
    assert "f1 is that of 'yes'" in task.load().source
    task, found, *given = score("a,no\n" * 17 + "b,yes\n" * 3)
    assert found["score"] == found["matthews"] == pytest.approx(100 * matthews_corrcoef(*given))
    assert task.primary == "matthews" and task.metrics == ("accuracy", "f1", "matthews")
    task = loaded("b.csv", HEAD + "a,x\nb,y\nc,z\n" * 3).task
    assert task.metrics == ("accuracy",)
    task = loaded("b.csv", HEAD + "a,1.5\nb,2\nc,-0.5\n").task
    assert task.metrics == ("pearson", "spearman") and task.primary == "pearson"


TAGS = MultiLabel("tags", "Tags", ("a", "b", "c"))


def test_several_labels_are_scored_as_by_scikit_learn():
    random = np.random.default_rng(1)
    found, true = (random.random((2, 50, 3)) < [[[0.3]], [[0.6]]]).astype(int)
    scores = TAGS.score(list(found), true.tolist())
    for name, average in (("micro_f1", "micro"), ("macro_f1", "macro")):
        assert scores[name] == pytest.approx(100 * f1_score(true, found, average=average))
    assert scores["exact_match"] == pytest.approx(100 * accuracy_score(true, found))
    assert scores["score"] == scores["micro_f1"]
    for bad, message in (
        ([[1, 0]], r"shape \(1, 2\), expected a 0 or 1 for each of 3"),
        ([[1, 0, 2]], "received 2 among the predictions, expected 0 or 1"),
    ):
        with pytest.raises(ValueError, match=message):
            TAGS.score(bad, [[0, 0, 0]])


def test_no_constant_set_of_labels_beats_the_majority():
    labels = (np.random.default_rng(2).random((30, 3)) < [0.2, 0.5, 0.4]).astype(int).tolist()
    best = max(TAGS.score([list(one)] * 30, labels)["score"]
               for one in itertools.product((0, 1), repeat=3))  # fmt: skip
    assert TAGS.majority(Split(["x"] * 30, None, labels))["score"] == pytest.approx(best)


def test_several_labels_are_decided_and_learned_one_by_one():
    logits, labels = torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert TAGS.decide(logits.numpy()).tolist() == [[1, 0, 0]]
    chances = logits.sigmoid()
    by_hand = -(labels * chances.log() + (1 - labels) * (1 - chances).log()).mean()
    assert TAGS.loss(logits, labels) == pytest.approx(by_hand.item())
    teacher = torch.tensor([[0.5, -3.0, 1.0]])
    for loss in ("soft_cross_entropy", "kl_divergence", "mse"):
        objective = xtc.Objective(logits=1, logits_loss=loss, temperature=2.0)
        found = TAGS.compare(logits, teacher, objective.compare)
        if loss == "mse":
            assert found == objective.compare(logits, teacher)
            continue
        p, q = (teacher / 2).sigmoid(), (logits / 2).sigmoid()
        cross = -(p * q.log() + (1 - p) * (1 - q).log()).sum()
        entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
        wanted = cross if loss == "soft_cross_entropy" else 4 * (cross - entropy)
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
        mean = replace(objective, per_class=True).compare(logits, teacher, independent=True)
        assert mean.item() == pytest.approx(wanted.item() / 3, rel=1e-5)


def test_a_table_of_labels_as_wide_as_the_tokens_is_not_padded():
    batch = {"input_ids": torch.ones(2, 3).long(), "labels": torch.ones(2, 3)}
    found = widened(batch, 5, 0)
    assert found["input_ids"].shape == (2, 5) and found["labels"].shape == (2, 3)


# Names, keys and models


def test_data_of_other_class_names_is_other_data(loaded):
    one = loaded("a.csv", HEAD + ROWS)
    two = loaded("b.csv", HEAD + ROWS.replace(",a", ",A"))
    assert one.train == two.train and one.fingerprint != two.fingerprint
    named = loaded("c.csv", "body,label\n" + ROWS)
    assert named.fingerprint == one.fingerprint


def test_a_file_that_is_called_as_a_task_is_another_one(loaded):
    assert loaded("reviews.csv", HEAD + ROWS).task.name == "own-reviews"
    assert loaded("SST 2.csv", HEAD + ROWS).task.name == "own-sst_2"
    data = loaded("reviews-2026.csv", HEAD + ROWS)
    assert data.task.name == "reviews-2026"
    reviews.check_apart({"task": "sst2", "source": "GLUE folder"}, data)


def test_a_teachers_order_of_classes_is_taken(write):
    path = write("a.csv", HEAD + ROWS)
    task = asked.asked(None, str(path), ["b", "a"])
    assert task.labels == ("b", "a") and task.parts["train"].labels[:2] == [1, 0]
    assert asked.asked(None, str(path), ["LABEL_0", "LABEL_1"]).labels == ("a", "b")
    with pytest.raises(ValueError, match="a.csv, line 2: received the class 'a', which the model"):
        asked.asked(None, str(path), ["spam", "ham"])
    stars = write("b.csv", HEAD + "x,1\ny,2\n" * 3)
    assert type(asked.asked(None, str(stars), ["LABEL_0"])) is own.OwnNumber


def test_a_teacher_of_few_rows_learns_for_some_steps(loaded):
    chosen = replace(profiles.profile("smoke"), teacher=Budget(epochs=4))
    assert profiles._teaching(loaded("a.csv", HEAD + ROWS), chosen)[2].steps == 100


def test_commands_refuse_what_does_not_fit(run, write, tmp_path):
    path, smoke = write("a.csv", HEAD + ROWS), ("--profile", "smoke", "--quiet")
    assert "--text-pair is of --data: name that too" in run(
        "compress", "ptq-8bit", "--text-pair", "x"
    )
    both = run("compress", "ptq-8bit", "--task", "sst2", "--data", path)
    assert "received --task and --data, expected one of them" in both
    long = run("compress", "ptq-8bit", "--data", path, "--length", 65, *smoke)
    assert "received a length of 65 tokens, but the teacher has positions for 64" in long
    short = run("compress", "ptq-8bit", "--data", path, "--length", 2, *smoke)
    assert "a length is 3 tokens or more, received 2" in short
    bad = run("compress", "ptq-8bit", "--data", write("b.csv", HEAD + '"x,a\n'), *smoke)
    assert bad.startswith("xtc: b.csv, line 2: ragged quotes") and bad.count("\n") == 1


WORDS = {"fast": "quick", "cheap": "bargain", "kind": "friendly"}
KINDS = {
    "classes": HEAD + "".join(f"{w} {i},{c}\n" for i in range(12) for c, w in WORDS.items()),
    "labels": HEAD + "".join(f"{' '.join(s)} {i},{'|'.join(s)}\n" for i in range(8)
                             for s in ((), ("fast",), ("fast", "kind"), ("cheap",))),
    "number": HEAD + "".join(f"{'very ' * (i % 5)}good,{i % 5}.5\n" for i in range(30)),
}  # fmt: skip
TINY = """
stages:
  - both:
      techniques: [{layer_reduction: {layers: 1}}, {quantize: {weights: binary}}]
      objective: {logits: 1, hidden_states: 1}
"""
ANSWER = """
import json, sys, xtclib
from transformers import pipeline
answer = pipeline("text-classification", model=sys.argv[1], top_k=None)
print(json.dumps(answer(["a quick bargain"])[0]))
"""
ASKED = ["a quick bargain"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_goes_from_a_file_to_artefact_onnx_and_score(run, write, tmp_path, kind):
    path, folder = write("mine.csv", KINDS[kind]), tmp_path / "out"
    records = tmp_path / "records"
    recipe = write("tiny.yaml", TINY)
    out = run("compress", recipe, "--data", path, "--kind", kind, "--out", folder,
              "--profile", "smoke", "--quiet", "--record", records, "--length", 40)  # fmt: skip
    assert "mine, score" in out and "length   40 tokens: 0 of " in out
    config = json.loads((folder / "config.json").read_text())
    names = ["cheap", "fast", "kind"] if kind != "number" else ["label"]
    assert list(config["id2label"].values()) == names
    assert config["trained_on"]["own"]["kind"] == kind

    if kind == "classes":
        command = [sys.executable, "-c", ANSWER, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        told = json.loads(done.stdout)
        assert sum(each["score"] for each in told) == pytest.approx(1, abs=1e-3)
    else:  # as a fresh process does
        told = pipeline("text-classification", model=str(folder), top_k=None)(ASKED)[0]
    assert sorted(each["label"] for each in told) == names

    scored = run("evaluate", folder, "--data", path)
    (record,) = xtc.records.read("smoke", records)
    assert f'"score": {record.score}' in scored and "another" not in scored
    assert record.task == "mine" and "mine" in record.table()
    assert xtc.records.grouped([record])[0].tasks == ("mine",)
    assert "onnx" in run("export", folder)
    assert '"score"' in run("evaluate", folder / "model.onnx", "--data", path)

    lines = KINDS[kind].splitlines()[:6]
    other = write("new.csv", "\n".join(["body,label", *lines[1:]]))
    assert "unknown column of new.csv 'text'" in run("evaluate", folder, "--data", other)
    scored = run("evaluate", folder, "--data", other, "--text", "body")
    assert "; 5 test rows, all of them scored; " in scored
    assert "was trained on rows of one's own: name their file" in run("evaluate", folder)


@pytest.mark.slow
def test_a_task_is_compressed_from_python_and_drawn(write):
    told = []
    path = write("mine.csv", KINDS["labels"])
    task = xtc.own(path, kind="labels")
    done = xtc.compress("ptq-8bit", task, "smoke", progress=False, say=told.append)
    assert done.data.task is task and set(done.record.metrics["dev"]) >= {"micro_f1", "exact_match"}
    assert any(line.startswith("length   48 tokens: 0 of 32 rows are cut") for line in told)
    (swept,) = sweep.sweep([Wanted("smoke", task, "ptq-8bit")], path.parent / "records",
                           progress=False, say=told.append)  # fmt: skip
    assert swept.metrics == done.record.metrics
    assert drawn.bars([done.record]).data and drawn.benchmark([done.record]).data


# The page

PAGE = (ROOT / "OWN_DATA.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(EXAMPLE.parent, tmp_path / "data" / "own")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XTC_PROFILE", "smoke")
    config = BertConfig.from_pretrained(BACKBONE)
    config.num_hidden_layers = 2  # twelve take long to export
    BertForPreTraining(config).save_pretrained(tmp_path / "backbone")
    AutoTokenizer.from_pretrained(BACKBONE).save_pretrained(tmp_path / "backbone")
    monkeypatch.setattr(profiles, "_random_backbone", lambda: tmp_path / "backbone")
    commands = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
    lines = "".join(commands).splitlines()
    assert len(lines) == 3
    for line in lines:
        program, *arguments = line.split()
        out = run(*arguments)
        assert program == "xtc" and "xtc: " not in out, out
    names = {}
    before = PAGE.partition("## An answer from a passage")[0]  # which test_questions.py runs
    for block in re.findall(r"^```python\n(.*?)^```", before, re.M | re.S):
        exec(block, names)
    out = capsys.readouterr().out
    assert re.search(r"'label': '(billing|bug|praise)'", out) and "example, score" in out


def test_the_page_is_short_and_its_file_as_it_says():
    assert PAGE.count("\n") <= 140
    task = own.own(EXAMPLE)
    assert task.labels == ("billing", "bug", "praise") and len(task.parts["train"]) == 20
    for line in re.search(r"^```csv\n(.*?)^```", PAGE, re.M | re.S)[1].splitlines():
        assert line in EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert Path(EXAMPLE).stat().st_size < 4000
