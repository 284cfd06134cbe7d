import json
import random

import pytest
import torch
from made import one_layer
from names import write
from transformers import AutoTokenizer, RobertaTokenizer, pipeline

from xtclib.artefact import format
from xtclib.cache import ROOT
from xtclib.deployment import onnx, runtimes
from xtclib.study.compress import compress
from xtclib.tasks.evaluation import evaluate
from xtclib.tasks.tags import IGNORED, tags

WORDS = ROOT / "data" / "mini" / "backbone"
GOOD = "Anna B-PER\nsleeps O\n\nBen B-PER\nLee I-PER\nruns O\n\nIt O\nrains O\n"


def test_words_get_their_tag_at_their_first_token(tmp_path):
    (tmp_path / "a.conll").write_text("unknowable B-X\nok O\n\nno O\n")
    task = tags(tmp_path / "a.conll")
    split = task.load(task.source).train
    tokenizer = AutoTokenizer.from_pretrained(WORDS)
    rows = task.tokenize(split, tokenizer, 48)
    for i, words in enumerate(split.first):
        named = [r for r in rows.labels[i] if r != IGNORED]
        assert named == split.labels[i] and len(rows.ids[i]) == len(rows.labels[i])
        pieces = [len(tokenizer.tokenize(word)) for word in words]
        at = [j for j, label in enumerate(rows.labels[i]) if label != IGNORED]
        assert at == [1 + sum(pieces[:k]) for k in range(len(words))]
    cut = task.tokenize(split, tokenizer, 3)
    assert all(len(row) == 3 for row in cut.ids)


def test_byte_level_tokens_are_matched_to_words_by_their_place(tmp_path):
    letters = {c: i for i, c in enumerate(["<s>", "<pad>", "</s>", "<unk>", *"Ġabcdo"])}
    tokenizer = RobertaTokenizer(vocab=letters, merges=[])
    (tmp_path / "a.conll").write_text("ab B-X\ncd O\n\ndo O\nab B-X\n")
    task = tags(tmp_path / "a.conll")
    split = task.load(task.source).train
    rows = task.tokenize(split, tokenizer, 20)
    for i, row in enumerate(rows.labels):
        assert [label for label in row if label != IGNORED] == split.labels[i]


def test_scores_are_seqevals(tmp_path):
    from seqeval.metrics import accuracy_score, f1_score

    (tmp_path / "a.conll").write_text(GOOD)
    task, draw = tags(tmp_path / "a.conll"), random.Random(0)
    wanted = [[draw.randrange(3) for _ in range(draw.randrange(1, 9))] for _ in range(40)]
    found = [[draw.choice([tag, draw.randrange(3)]) for tag in row] for row in wanted]
    named = [[task.named(row) for row in rows] for rows in (wanted, found)]
    score = task.score(found, wanted)
    assert score["f1"] == score["score"] == pytest.approx(100 * f1_score(*named))
    assert score["accuracy"] == pytest.approx(100 * accuracy_score(*named))
    short = task.score([row[:1] for row in found], wanted)  # what was cut off counts as outside
    assert short["recall"] < score["recall"]
    with pytest.raises(ValueError, match="39 rows of tags and 40 references"):
        task.score(found[:-1], wanted)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.conll", "Anna B-PER\nsleeps\n", "a.conll, line 2: received 'sleeps', expected a word"),
        ("a.conll", "Anna O\n\nBen O\n", "has 1 tags"),
        ("a.conll", "Anna B-PER\nsleeps O\n", "has 1 tagged sentence, expected two"),
        ("a.jsonl", '{"words": ["a", "b"], "tags": ["O"]}', "line 1: received 2 words and 1 tags"),
        ("a.jsonl", '{"words": "ab", "tags": ["O"]}', "line 1: received 'ab' in column 'words'"),
        ("a.jsonl", '{"text": ["a"], "tags": ["O"]}', "unknown column of a.jsonl 'words'"),
        ("a.jsonl", "no json", "line 1: .*expected one object a line"),
        ("a.conll", b"A\xff O\n", "line 1: received byte 0xff, which is no UTF-8: save the file"),
    ],
)
def test_bad_files_are_told_by_line(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        tags(tmp_path / name)


def test_files_of_other_systems_and_folders_are_read(tmp_path):
    (tmp_path / "plain.conll").write_text(GOOD)
    plain = tags(tmp_path / "plain.conll")
    rows = plain.load(plain.source)
    (tmp_path / "other.conll").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    other = tags(tmp_path / "other.conll")
    assert other.load(other.source).fingerprint == rows.fingerprint
    parts = rows.train, rows.evaluation["dev"]
    lines = [{"words": w, "tags": plain.named(t)} for part in parts
             for w, t in zip(part.first, part.labels, strict=True)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert tags(tmp_path / "rows.jsonl").labels == plain.labels == ("O", "B-PER", "I-PER")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no training rows"):
        tags(folder)
    (folder / "train.conll").write_text(GOOD)
    (folder / "test.conll").write_text("Anna B-DOG\nsits O\n\nBen O\n")
    with pytest.raises(ValueError, match="line 1: received the tag 'B-DOG', which training lacks"):
        tags(folder)
    with pytest.raises(FileNotFoundError, match="no file or folder at"):
        tags(tmp_path / "nothing")


def test_a_dataset_with_named_tags_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["O", "B-PER"])
    features = {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(names)}
    rows = {"tokens": [["Anna", "sleeps"], ["It", "rains"]], "ner_tags": [[1, 0], [0, 0]]}
    found = datasets.Dataset.from_dict(rows, datasets.Features(features))
    datasets.DatasetDict({"train": found, "test": found}).save_to_disk(tmp_path / "saved")
    task = tags(tmp_path / "saved")
    assert task.labels == ("O", "B-PER") and task.details["own"]["label"] == "ner_tags"
    data = task.load()
    assert data.evaluation["test"].labels == [[1, 0], [0, 0]]
    assert data.evaluation["test"].first == rows["tokens"]


def test_a_file_that_the_model_never_saw_is_scored_whole(tmp_path):
    (tmp_path / "a.conll").write_text(GOOD)
    task = tags(tmp_path / "a.conll", labels=["B-PER", "O", "I-PER"])
    assert task.labels == ("B-PER", "O", "I-PER")
    assert len(task.whole(task.load()).evaluation["test"]) == 3
    with pytest.raises(ValueError, match="received the tag 'B-PER', which the model lacks"):
        tags(tmp_path / "a.conll", labels=["O", "I-PER"])


def test_the_generated_set_is_the_same_everywhere(tmp_path):
    write(tmp_path, 200, 100)
    task = tags(tmp_path)
    data = task.load(task.source)
    assert (len(data.train), len(data.evaluation["test"]), task.num_labels) == (200, 100, 8)
    assert data.fingerprint == "91c8a9dd81efda3a"


@pytest.mark.slow
def test_a_tagger_goes_from_file_to_artefact_and_runs_in_a_pipeline(tmp_path):
    write(tmp_path / "names", 120, 40)
    out = tmp_path / "out"
    run = compress(one_layer(), tags(tmp_path / "names"), "smoke", "3steps", out=out,
                   progress=False, say=lambda _: None, device="cpu")  # fmt: skip
    assert set(run.record.metrics["test"]) == {"f1", "precision", "recall", "accuracy", "score"}
    assert run.record.task == "names" and run.record.ratio > 3
    model, tokenizer = format.load(out)
    assert evaluate(model, tokenizer, run.data, 48) == run.record.metrics
    found = pipeline("token-classification", model=str(out))("The road to Norham is closed .")
    assert {row["entity"] for row in found} <= set(run.data.task.labels)
    exported = runtimes.OnnxModel(onnx.export_onnx(model, tmp_path / "m.onnx", "trained"))
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        apart = exported(ids).logits - model(ids).logits
    assert apart.shape == (2, 10, 8) and float(apart.abs().max()) < 0.02  # a rounding apart
    assert float(apart.abs().median()) < 1e-5
    with pytest.raises(ValueError, match="augments its rows, and a changed sentence"):
        compress("tinybert-6l", tags(tmp_path / "names"), "smoke", "3steps", progress=False,
                 say=lambda _: None, device="cpu")  # fmt: skip
