"""Questions on passages: the official rules, windows that cover every token, spans, files."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import one_layer
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertForQuestionAnswering

from xtclib.artefact import format
from xtclib.cache import ROOT
from xtclib.deployment.onnx import export_onnx
from xtclib.deployment.runtimes import OnnxModel
from xtclib.distillation.objective import Objective
from xtclib.study.compress import compress
from xtclib.tasks import squad
from xtclib.tasks.asked import asked
from xtclib.tasks.evaluation import answers, evaluate
from xtclib.tasks.questions import Questions, Span, Window, questions
from xtclib.tasks.rows import Calibration, Split
from xtclib.techniques import Factorize, PruneHeads, Quantize

WORDS = ROOT / "data" / "mini" / "backbone"
TEXT = "Ada wrote the first program in 1843. She worked with Babbage, in London."


def qa(question, *texts, id_="q", passage=TEXT, **more):
    given = [{"text": t, "answer_start": passage.index(t)} for t in texts]
    return {"id": id_, "question": question, "answers": given, **more}


def article(title, qas, passage=TEXT):
    return {"title": title, "paragraphs": [{"context": passage, "qas": qas}]}


def write(path, *articles, version="1.1"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": version, "data": list(articles)}), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    asked_ = [qa("who wrote the program", "Ada", id_="1"), qa("when", "1843", id_="2")]
    none = qa("where is Paris", id_="3", is_impossible=True)
    write(tmp_path / "qa" / "train-v2.0.json", article("a", asked_), article("b", [*asked_, none]))
    write(tmp_path / "qa" / "dev-v2.0.json", article("c", [*asked_, none]))
    return tmp_path / "qa"


# The official rules, by hand: what evaluate-v1.1.py and evaluate-v2.0.py give.


@pytest.mark.parametrize(
    ("answer", "wanted", "exact", "f1"),
    [
        ("The Saxon Garden", ["saxon garden"], 1, 1),
        ("Saxon Garden in Warsaw", ["Saxon Garden"], 0, 2 / 3),
        ("a an the", ["x"], 0, 0),
        ("Saxon-Garden", ["SaxonGarden."], 1, 1),  # ASCII punctuation goes, nothing in its place
        ("Saxon–Garden", ["SaxonGarden"], 0, 0),  # a dash that is no ASCII stays
        ("Ogród  Saski", ["ogród saski"], 1, 1),
        ("«308»", ["308"], 0, 0),
        ("308", ["thirty", "308 points", "308"], 1, 1),
        ("308 points", ["308", "points scored"], 0, 2 / 3),
        ("to to be", ["to be"], 0, 4 / 5),  # words are counted, not a set
        ("to to be", ["to be to"], 0, 1),
        ("", [], 1, 1),
        ("Ada", [], 0, 0),
        ("", ["Ada"], 0, 0),
        ("the", ["an"], 1, 1),  # nothing is left of either: no answer, which is right
        ("Theatre", ["atre"], 0, 0),  # articles are whole words
    ],
)
def test_answers_are_scored_by_the_official_rules(answer, wanted, exact, f1):
    assert squad.exact(answer, wanted) == exact
    assert squad.f1(answer, wanted) == pytest.approx(f1)


def test_scores_are_means_and_apart_where_some_have_no_answer():
    assert squad.scores(["Ada", "in 1843"], [["Ada"], ["1843"]]) == {
        "exact": 50.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 2)}  # fmt: skip
    found = squad.scores(["Ada", "", "x"], [["Ada"], [], []])
    assert found["exact"] == found["f1"] == pytest.approx(200 / 3)
    assert (found["f1 (answered)"], found["f1 (unanswered)"]) == (100, 50)


# Windows.


@given(st.integers(3, 120), st.integers(1, 30), st.integers(16, 60), st.integers(0, 200))
def test_windows_cover_every_token_and_mark_the_answer(words, asked_for, length, at):
    tokenizer = AutoTokenizer.from_pretrained(WORDS)
    passage = " ".join(["the", "film", "was", "good"][i % 4] for i in range(words)) + " end"
    at = at % words
    start = len(" ".join(passage.split()[:at])) + bool(at)
    text = passage.split()[at]
    label = {"id": "", "article": "", "passage": passage, "texts": [text], "starts": [start]}
    split = Split(["what " * asked_for], [passage], [label])
    rows = Questions(stride=8).tokenize(split, tokenizer, length)
    assert max(rows.lengths) <= length
    seen, marked = set(), 0
    for row in rows.labels:
        assert len(row) <= length
        inside = row[row[:, 1] >= 0]
        seen |= {tuple(pair) for pair in inside[:, 1:3].tolist()}
        first, last = (np.flatnonzero(row[:, 0] & bit) for bit in (1, 2))
        assert len(first) == len(last) == 1  # of a window without it both are at [CLS]
        if first[0]:
            marked += 1
            assert passage[row[first[0], 1] : row[last[0], 2]] == text
        else:
            assert start not in inside[:, 1]
    whole = tokenizer(passage, add_special_tokens=False, return_offsets_mapping=True)
    assert seen == set(whole["offset_mapping"]) and marked >= 1


def test_losses_are_of_both_ends_and_batches_are_padded(folder):
    task = questions(folder)
    split = task.load().train
    tokenizer = AutoTokenizer.from_pretrained(WORDS)
    rows = task.tokenize(split, tokenizer, 48)
    batch = task.collate([rows[i] for i in range(len(rows))], tokenizer)
    count, length = batch["input_ids"].shape
    assert batch["labels"].shape == (count, length, 4) and batch["token_type_ids"].max() == 1

    class Output:
        start_logits, end_logits = torch.randn(2, count, length, generator=torch.manual_seed(0))

    logits, wanted = task.answers(Output, batch["labels"], batch["attention_mask"])
    assert logits.shape == (2 * count, length) and wanted[-1] == 0  # no answer: at [CLS]
    masked = Output.start_logits.masked_fill(batch["attention_mask"] == 0, -1e4)
    by_hand = torch.nn.functional.cross_entropy(masked, wanted[:count])
    ends = Output.end_logits.masked_fill(batch["attention_mask"] == 0, -1e4)
    by_hand = (by_hand + torch.nn.functional.cross_entropy(ends, wanted[count:])) / 2
    assert float(task.loss(logits, wanted)) == pytest.approx(float(by_hand), rel=1e-5)
    for loss, least in (("soft_cross_entropy", 0.1), ("kl_divergence", 0), ("mse", 0)):
        own = task.compare(logits, logits, Objective(logits=1, logits_loss=loss).compare)
        assert least - 1e-5 <= float(own) < 1e-5 + 100 * least  # padding adds nothing


# Spans.


def test_the_best_spans_are_those_of_a_search_by_hand():
    draw = np.random.default_rng(0)
    for longest in (3, 30):
        task = Questions(longest=longest, best=5)
        scores = draw.normal(size=(20, 2)).astype(np.float32)
        label = np.full((20, 4), -1)
        label[:, 3], letters = 7, np.arange(12) * 4
        label[5:17, 1], label[5:17, 2] = letters, letters + 3
        window = task.window(scores, label)
        by_hand = sorted(
            ((float(scores[a, 0] + scores[b, 1]), a, b) for a in range(5, 17)
             for b in range(a, min(a + longest, 17))), reverse=True)[:5]  # fmt: skip
        found = [(s.score, s.begin, s.end) for s in window.spans]
        assert found == [(pytest.approx(s), 4 * (a - 5), 4 * (b - 5) + 3) for s, a, b in by_hand]
        assert window.question == 7 and window.none == pytest.approx(float(scores[0].sum()))


def test_windows_join_and_no_answer_needs_a_margin():
    label = {"texts": ["Ada"], "passage": TEXT}
    windows = [Window(0, [Span(2.0, 4, 9)], 5.0), Window(0, [Span(3.0, 0, 3)], 1.0)]
    assert Questions().told(windows, [label]) == ["Ada"]  # every question has one
    none = {"texts": [], "passage": TEXT}
    both = [*windows, Window(1, [Span(0.0, 0, 3)], 1.0)]
    assert Questions().told(both, [label, none]) == ["Ada", ""]
    assert Questions(threshold=1.5).told(both, [label, none]) == ["Ada", "Ada"]
    assert Questions(threshold=-2.5).told(both, [label, none]) == ["", ""]
    assert Questions().told([Window(0, [], 1.0)], [label]) == [""]


# Files.


def test_a_folder_is_read_and_described(folder):
    data = questions(folder).load()
    assert (len(data.train), len(data.evaluation["dev"])) == (5, 3)
    assert data.train.labels[0]["texts"] == ["Ada"] and data.train.second[0] == TEXT
    assert "questions on 1 passages, 2 without an answer" in data.source
    assert data.task.majority(data.evaluation["dev"])["exact"] == pytest.approx(100 / 3)


def test_of_one_file_whole_articles_are_cut_off(tmp_path):
    qas = [qa("when", "1843"), qa("who", "Ada")]
    path = write(tmp_path / "all.json", *(article(f"t{i}", qas) for i in range(20)))
    data = questions(path).load()
    sides = [{label["article"] for label in split.labels}
             for split in (data.train, data.evaluation["dev"])]  # fmt: skip
    assert len(sides[1]) == 2 and len(sides[0]) == 18 and not sides[0] & sides[1]
    assert "2 of 20 articles, cut off by seed 0" in data.source
    assert len(data.task.whole(data).evaluation["test"]) == 40
    with pytest.raises(ValueError, match=r"one article, .* add a dev….json"):
        questions(write(tmp_path / "one.json", article("a", qas))).load()


def test_what_datasets_saved_is_read(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = {"id": ["1", "2"], "title": ["a", "b"], "context": [TEXT, TEXT],
            "question": ["who", "where is Paris"],
            "answers": [dict(text=["Ada"], answer_start=[0]), dict(text=[], answer_start=[])],
            }  # fmt: skip
    held = DatasetDict({"train": Dataset.from_dict(rows), "validation": Dataset.from_dict(rows)})
    held.save_to_disk(tmp_path / "saved")
    data = questions(tmp_path / "saved").load()
    assert [label["texts"] for label in data.evaluation["dev"].labels] == [["Ada"], []]
    held.remove_columns("context").save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="has no column 'context' as SQuAD has"):
        questions(tmp_path / "other")


BROKEN = {
    "no JSON": ("{", "is no JSON"),
    "no data": ({"rows": []}, "expected {\"data\""),
    "no paragraphs": ({"data": [{"title": "a"}]}, "received paragraphs=None, expected a list"),
    "no questions": ({"data": [{"paragraphs": []}]}, "has no questions"),
    "no answers": ([{"id": "7", "question": "who"}], "question '7': received answers=None"),
    "empty answers": ([qa("who")], "or is_impossible: true"),
    "no text": ([{**qa("who"), "answers": [{"answer_start": 0}]}], "expected {text, answer_start}"),
    "an offset": ([{**qa("who"), "answers": [{"text": "Ada", "answer_start": 4}]}],
                  "the context has 'wro' at 4, its answer is 'Ada': mend answer_start"),
    "a number": ([{**qa("who"), "answers": [{"text": "Ada", "answer_start": -1}]}], "answer_start"),
    "no question": ([{**qa("who", "Ada"), "question": " "}], "expected a question"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_clear_error(name, tmp_path):
    held, says = BROKEN[name]
    path = tmp_path / "train.json"
    if isinstance(held, list):
        held = {"data": [article("a", held)]}
    path.write_text(held if isinstance(held, str) else json.dumps(held))
    with pytest.raises(ValueError) as error:
        questions(path)
    assert says in str(error.value) and "train.json" in str(error.value)
    assert len(str(error.value)) < 400


def test_an_empty_context_and_missing_files_are_told(tmp_path):
    path = write(tmp_path / "a.json", article("a", [{**qa("who"), "is_impossible": True}], " "))
    with pytest.raises(ValueError, match="its context is ' ', expected a text"):
        questions(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no train….json in .*empty"):
        questions(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no file or folder at 'nowhere.json'"):
        questions("nowhere.json")


def test_the_command_asks_for_them_by_kind(folder):
    task = asked(None, str(folder), kind="questions")
    assert isinstance(task, Questions)
    with pytest.raises(ValueError, match="--text names a column, and rows of questions have none"):
        asked(None, str(folder), kind="questions", text="question")


# From file to file.


@pytest.mark.slow
def test_questions_go_from_file_to_artefact_and_onnx(folder, tmp_path):
    task = questions(folder)
    told: list[str] = []
    run = compress(one_layer(), task, "smoke", out=tmp_path / "out", progress=False,
                   say=told.append)  # fmt: skip
    assert "length   62 tokens: what is longer is read in windows" in told
    metrics = run.record.metrics["dev"]
    groups = {f"{rule}{group}" for rule in ("exact", "f1")
              for group in ("", " (answered)", " (unanswered)")}  # fmt: skip
    assert metrics.keys() == {*groups, "score"}
    model, tokenizer = format.load(tmp_path / "out")
    assert type(model).__name__ == "BertForQuestionAnswering"
    assert model.config.trained_on["own"]["kind"] == "questions"
    data = task.load()
    assert evaluate(model, tokenizer, data, 62)["dev"] == metrics
    plain = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    export_onnx(plain, tmp_path / "m.onnx", "trained")
    exported = answers(OnnxModel(tmp_path / "m.onnx"), tokenizer, task, data.train, 62)
    found = answers(plain, tokenizer, task, data.train, 62)
    told = [task.told(windows, data.train.labels) for windows in (exported, found)]
    assert told[0] == told[1]


def test_techniques_look_at_its_rows(folder, make_bert):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(WORDS)
    config = make_bert(2).config
    config.vocab_size = len(tokenizer)
    model = BertForQuestionAnswering(config).eval()
    rows = Calibration(questions(folder).load(), tokenizer, 48, rows=4)
    for technique in (PruneHeads(criterion="gradient"), Factorize("fisher"), Factorize("data"),
                      Factorize(allocate="sensitivity"), Quantize()):  # fmt: skip
        assert technique.apply(model, rows) is not model


@pytest.mark.slow
def test_the_pages_reader_answers_from_passages_it_read_before(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "OWN_DATA.md").read_text(encoding="utf-8")
    page = page[page.index("## An answer from a passage") :]
    command, code = re.findall(r"```(?:python)?\n(.*?)```", page, re.S)
    recipe, *_, out = command.split()[2:]
    compress(recipe, questions(folder), "smoke", out=out, progress=False)
    told: list[str] = []
    exec(code, {"print": told.append})
    assert len(told) == 1 and told[0] in code
