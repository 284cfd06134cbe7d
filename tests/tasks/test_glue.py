import re
import sys
from pathlib import Path

import numpy as np
import pytest

from xtclib.tasks.glue import FILES, TASKS, Split, find_task, load

REAL = Path(__file__).resolve().parents[3] / "shared" / "glue"

# GLUE's own header lines (CoLA has none) and two rows of each file.
LAYOUT = {
    "cola": ["gj04\t1\t\tThey sang.", "gj04\t0\t*\tSang they the."],
    "sst2": ["sentence\tlabel", 'a "fine film \t1', "dull \x85 and\u2028long \t0"],
    "mrpc": [
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t1\t2\tHe "left.\tHe went.',
        "0\t3\t4\tA.\tB.",
    ],
    "stsb": [
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tg\tf\t2012\t1\tnone\tnone\tA plane.\tA plane lands.\t3.800",
        "1\tg\tf\t2012\t2\tnone\tnone\tA dog.\tA cat.\t0.000",
    ],
    "qqp": [
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "0\t1\t2\tWhy?\tHow?\t0",
        "1\t3\t4\tWho?\tWho?\t1",
    ],
    "mnli": [
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
        "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t1\t1n\tg\t(\t)\t(\t)\tIt rained.\tIt was wet.\tneutral\tentailment",
        "1\t2\t2n\tg\t(\t)\t(\t)\tIt rained.\tIt was dry.\tneutral\tcontradiction",
    ],
    "qnli": [
        "index\tquestion\tsentence\tlabel",
        "0\tWhen?\tIn 1990.\tentailment",
        "1\tWho?\tIt is.\tnot_entailment",
    ],
    "rte": [
        "index\tsentence1\tsentence2\tlabel",
        "0\tA.\tA.\tentailment",
        "1\tA.\tB.\tnot_entailment",
    ],
}
EXPECTED = {
    "cola": (["They sang.", "Sang they the."], None, [1, 0]),
    "sst2": (['a "fine film ', "dull \x85 and\u2028long "], None, [1, 0]),
    "mrpc": (['He "left.', "A."], ["He went.", "B."], [1, 0]),
    "stsb": (["A plane.", "A dog."], ["A plane lands.", "A cat."], [3.8, 0.0]),
    "qqp": (["Why?", "Who?"], ["How?", "Who?"], [0, 1]),
    "mnli": (["It rained.", "It rained."], ["It was wet.", "It was dry."], [0, 2]),
    "qnli": (["When?", "Who?"], ["In 1990.", "It is."], [0, 1]),
    "rte": (["A.", "A."], ["A.", "B."], [0, 1]),
}


def write_task(folder, task, lines=None, end="\n", bom=b"", only=None):
    """GLUE's files of a task; `only` names the one file that gets other lines."""
    names = ["train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"] if task == "mnli" else None
    for name in names or ["train.tsv", "dev.tsv"]:
        rows = lines if lines is not None and only in (None, name) else LAYOUT[task]
        path = folder / TASKS[task].title / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bom + (end.join(rows) + end).encode())
    return folder


# Tasks and splits


def test_the_eight_tasks():
    assert list(TASKS) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]
    assert {task.num_labels for task in TASKS.values()} == {1, 2, 3}
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert [name for name, files in FILES.items() if files.file_labels is None] == ["stsb"]
    assert [name for name, files in FILES.items() if not files.is_pair] == ["cola", "sst2"]
    for name, task in TASKS.items():
        files = FILES[name]
        assert task.primary in task.metrics
        assert len(files.file_columns) == len(files.columns) + 1
        assert files.file_labels is None or len(files.file_labels) == task.num_labels


def test_find_task():
    for spelling in ("SST-2", "sst-2", "sst_2", "sst2", TASKS["sst2"]):
        assert find_task(spelling) is TASKS["sst2"]
    assert find_task("STS-B").name == "stsb" and find_task("CoLA").name == "cola"
    with pytest.raises(ValueError, match="unknown task 'sst3': did you mean 'sst2'"):
        find_task("sst3")
    with pytest.raises(TypeError, match="received 2 as a task"):
        find_task(2)


def test_split():
    split = Split(["a", "b", "c"], ["x", "y", "z"], [0, 1, 2])
    assert len(split) == 3
    assert split.select(np.array([2, 0])) == Split(["c", "a"], ["z", "x"], [2, 0])
    assert "'a'" not in repr(split)
    others = [
        Split(["a", "b", "c"], ["x", "y", "z"], [0, 1, 1]),
        Split(["a", "b", "c"], None, [0, 1, 2]),
        Split(["ab", "", "c"], ["x", "y", "z"], [0, 1, 2]),
        split.select([1, 0, 2]),
    ]
    prints = {each.fingerprint for each in [split, *others]}
    assert len(prints) == 5 and all(len(each) == 16 for each in prints)
    assert split.fingerprint == split.select(range(3)).fingerprint
    with pytest.raises(ValueError, match="2 first texts, 1 second texts and 2 labels"):
        Split(["a", "b"], ["x"], [0, 1])
    with pytest.raises(IndexError, match="received row 3, expected one of 0 … 2"):
        split.select([0, 3])
    with pytest.raises(IndexError, match="received row -1"):
        split.select([-1])


# Loading from a folder


@pytest.mark.parametrize("end, bom", [("\n", b""), ("\r\n", b"\xef\xbb\xbf")])
@pytest.mark.parametrize("task", TASKS)
def test_official_layouts(tmp_path, task, end, bom):
    folder = tmp_path / "GLUE"
    folder.mkdir()
    data = load(task, write_task(folder, task, end=end, bom=bom))
    assert data.task is TASKS[task]
    assert data.train == Split(*EXPECTED[task])
    keys = ["matched", "mismatched"] if task == "mnli" else ["dev"]
    assert list(data.evaluation) == keys
    assert all(split == data.train for split in data.evaluation.values())
    assert data.source == f"GLUE folder GLUE: {TASKS[task].title}, 2 train, " + (
        "2 matched, 2 mismatched rows" if task == "mnli" else "2 dev rows"
    )
    assert data.evaluation_name == (
        "MNLI matched and mismatched" if task == "mnli" else f"{TASKS[task].title} dev"
    )
    assert str(tmp_path) not in data.source


def test_extra_columns_and_other_orders_are_fine(tmp_path):
    write_task(tmp_path, "sst2", ["note\tlabel\tsentence", "x\t1\tgood"])
    assert load("sst2", tmp_path).train == Split(["good"], None, [1])


def test_limit_and_fingerprints(tmp_path):
    write_task(tmp_path, "sst2")
    whole, first = load("SST-2", tmp_path), load("sst2", str(tmp_path), limit=1)
    assert first.train == whole.train.select([0]) and len(first.evaluation["dev"]) == 1
    assert first.source.endswith("SST-2, 1 of 2 train, 1 of 2 dev rows")
    assert load("sst2", tmp_path, limit=9).fingerprint == whole.fingerprint != first.fingerprint
    for limit in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="received limit="):
            load("sst2", tmp_path, limit=limit)


def test_the_labelled_mrpc_test_set_is_called_so(tmp_path):
    lines = [LAYOUT["mrpc"][0], *[LAYOUT["mrpc"][1]] * 1725]
    write_task(tmp_path, "mrpc", lines, only="dev.tsv")
    data = load("mrpc", tmp_path, limit=3)
    assert list(data.evaluation) == ["test"] and data.evaluation_name == "MRPC test"
    assert data.source.endswith("MRPC, 2 train, 3 of 1725 test rows")


def test_missing_folder_and_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder: .*--glue-dir .*XTC_GLUE_DIR"):
        load("sst2", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="'SST-2/train.tsv' is missing .*XTC_GLUE_DIR"):
        load("sst2", tmp_path)
    write_task(tmp_path, "mnli")
    (tmp_path / "MNLI" / "dev_mismatched.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="'MNLI/dev_mismatched.tsv' is missing"):
        load("mnli", tmp_path)
    with pytest.raises(TypeError, match="received None as source"):
        load("sst2", None)


@pytest.mark.parametrize(
    "task, lines, message",
    [
        ("sst2", ["sentence\tlabel", "good\t1", "bad"],
         r"SST-2/dev.tsv, line 3: received 1 columns, expected 2 .*, in 1 of 2 rows"),
        ("sst2", ["sentence\tlabel", "good\t1\t"], "line 2: received 3 columns, expected 2"),
        ("sst2", ["sentence\tlabel", "", "good\t1"], "line 2: received 1 columns"),
        ("sst2", ["sentence\tlabel", "good\t2"],
         "SST-2/dev.tsv, line 2: received the label '2', expected 0 or 1"),
        ("sst2", ["sentence label", "good\t1"],
         "line 1: received the columns sentence label; expected sentence, label too"),
        ("sst2", ["sentence\tlabel"], "SST-2/dev.tsv: received no rows"),
        ("sst2", [], "line 1: received the columns ; expected sentence, label"),
        ("cola", ["label\tsentence", "1\tgood"], "CoLA/dev.tsv, line 1: received 2 columns"),
        ("cola", ["s\tlabel\tm\tt"], "line 1: received the label 'label', expected 0 or 1"),
        ("cola", [], "CoLA/dev.tsv: received no rows"),
        ("stsb", [LAYOUT["stsb"][0], "0\t\t\t\t\t\t\tA\tB\tn/a"],
         "STS-B/dev.tsv, line 2: received the score 'n/a', expected a number from 0 to 5"),
        ("stsb", [LAYOUT["stsb"][0], "0\t\t\t\t\t\t\tA\tB\tnan"], "received the score 'nan'"),
        ("stsb", [LAYOUT["stsb"][0], "0\t\t\t\t\t\t\tA\tB\t5.1"], "received the score '5.1'"),
        ("rte", [LAYOUT["rte"][0], "0\tA\tB\t1"],
         "received the label '1', expected entailment or not_entailment"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path, task, lines, message):
    write_task(tmp_path, task, lines, only="dev.tsv")
    with pytest.raises(ValueError, match=message):
        load(task, tmp_path)


def test_not_utf8(tmp_path):
    write_task(tmp_path, "sst2")
    (tmp_path / "SST-2" / "dev.tsv").write_bytes(b"sentence\tlabel\nr\xe9\t1\n")
    with pytest.raises(ValueError, match="SST-2/dev.tsv: received byte 0xe9 at offset 16"):
        load("sst2", tmp_path)


def test_a_few_broken_rows_are_left_out_and_counted(tmp_path):
    write_task(tmp_path, "qqp", [*LAYOUT["qqp"], "2\t5\t6\tWhat", "is this?\t0"], only="train.tsv")
    with pytest.raises(ValueError, match="QQP/train.tsv, line 4: received 4 columns, expected 6"):
        load("qqp", tmp_path)
    header, *rows = LAYOUT["qqp"]
    write_task(tmp_path, "qqp", [header, *(rows * 1000), "2\t5\t6\tWhat"], only="train.tsv")
    data = load("qqp", tmp_path)
    assert len(data.train) == 1000 * len(rows)
    assert data.source.endswith(f"{1000 * len(rows)} train, 2 dev rows, 1 broken rows skipped")
    write_task(tmp_path, "qqp", [header, "2\t5\t6\tWhat"], only="train.tsv")
    with pytest.raises(ValueError, match="line 2: received 4 columns, .* in 1 of 1 rows: mend"):
        load("qqp", tmp_path)


def test_texts_in_quotes_are_read_as_they_stand_and_told(tmp_path):
    write_task(tmp_path, "sst2", ["sentence\tlabel", '"a good film"\t1', '"a bad film"\t0'])
    data = load("sst2", tmp_path)
    assert data.train.first == ['"a good film"', '"a bad film"']
    assert "train.tsv has its texts in quotes, which are read as they stand" in data.source


@pytest.mark.skipif(not REAL.is_dir(), reason="no GLUE files beside the project")
@pytest.mark.parametrize(
    "task, train, name, rows",
    [("sst2", 67349, "dev", 872), ("cola", 8551, "dev", 1043), ("mrpc", 4076, "test", 1725)],
)
def test_real_files(task, train, name, rows):
    data = load(task, REAL)
    assert len(data.train) == train and {name: rows} == {
        key: len(split) for key, split in data.evaluation.items()
    }
    shares = TASKS[task].majority(data.evaluation[name], data.train)
    if task == "sst2":
        assert data.source == "GLUE folder glue: SST-2, 67349 train, 872 dev rows"
        assert shares["accuracy"] == pytest.approx(100 * 444 / 872)
    if task == "mrpc":
        assert shares["accuracy"] == pytest.approx(100 * 1147 / 1725)


# Loading from the Hub, without the Hub


def fake_hub(monkeypatch, task, change=lambda columns: columns, names=None, splits=None):
    datasets = pytest.importorskip("datasets")
    spec = FILES[task]
    first, second, labels = EXPECTED[task]
    columns = {spec.columns[0]: first, "label": labels, "idx": list(range(len(first)))}
    if second is not None:
        columns[spec.columns[1]] = second
    columns = change(columns)
    kinds = {name: datasets.Value("string") for name in columns}
    kinds["idx"] = datasets.Value("int32")
    if "label" in columns:
        kinds["label"] = (
            datasets.Value("float32") if spec.file_labels is None
            else datasets.ClassLabel(names=list(names or TASKS[task].labels))
        )  # fmt: skip
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    default = ["train", "validation", "test"]
    if task == "mnli":
        default = ["train", "validation_matched", "validation_mismatched"]
    calls = []

    def load_dataset(*args):
        calls.append(args)
        return datasets.DatasetDict({name: rows for name in splits or default})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("task", TASKS)
def test_hub_gives_the_same_data_as_the_folder(tmp_path, monkeypatch, task):
    calls = fake_hub(monkeypatch, task)
    data = load(task, "hub")
    assert calls == [("nyu-mll/glue", task)]
    assert data.fingerprint == load(task, write_task(tmp_path, task)).fingerprint
    assert data.source.startswith(f"Hub nyu-mll/glue: {TASKS[task].title}, 2 train, 2 ")
    assert len(load(task, "hub", limit=1).train) == 1


@pytest.mark.parametrize(
    "task, kwargs, message",
    [
        ("sst2", {"splits": ["train"]}, "split validation is missing, received train"),
        ("sst2", {"names": ["positive", "negative"]}, "received the labels .*'positive'"),
        ("sst2", {"change": lambda c: {**c, "label": [-1, 0]}}, "row 0: received the label -1"),
        ("stsb", {"change": lambda c: {**c, "label": [9.0, 0]}}, "received the score 9.0"),
        ("sst2", {"change": lambda c: {k: [] for k in c}}, "received no rows"),
        ("sst2", {"change": lambda c: {"idx": [0], "label": [0]}}, "expected sentence too"),
    ],
)
def test_hub_errors(monkeypatch, task, kwargs, message):
    fake_hub(monkeypatch, task, **kwargs)
    with pytest.raises(ValueError, match=message):
        load(task, "hub")


def test_hub_out_of_reach(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError, match="did not load .*check the connection.*XTC_GLUE_DIR"):
        load("sst2", "hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets, or name GLUE's folder"):
        load("sst2", "hub")


@pytest.mark.parametrize("score", ["0_3", "٣", "inf", " 3", "3e0", "0x1", "-0"])
def test_scores_are_read_as_files_write_them(tmp_path, score):
    write_task(
        tmp_path, "stsb", [LAYOUT["stsb"][0], f"0\t\t\t\t\t\t\tA\tB\t{score}"], only="dev.tsv"
    )
    with pytest.raises(ValueError, match=f"line 2: received the score '{re.escape(score)}', exp"):
        load("stsb", tmp_path)


def test_a_file_of_carriage_returns_is_one_short_error(tmp_path):
    write_task(tmp_path, "sst2", ["sentence\tlabel\r" + "a good film\t1\r" * 5000], only="dev.tsv")
    with pytest.raises(ValueError, match="SST-2/dev.tsv: ends its lines by carriage") as error:
        load("sst2", tmp_path)
    assert len(str(error.value)) < 120


def test_a_file_that_was_cut_says_so(tmp_path):
    write_task(tmp_path, "sst2", LAYOUT["sst2"])
    whole = load("sst2", tmp_path).source
    assert "no end" not in whole
    path = tmp_path / "SST-2" / "train.tsv"
    path.write_text(path.read_text().rstrip("\n"))
    assert load("sst2", tmp_path).source == (
        f"{whole}, the last line of train.tsv has no end: it may be cut"
    )
