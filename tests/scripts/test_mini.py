"""The built-in tasks: the same bytes from the same seed, clean splits, labels that follow."""

import re
from pathlib import Path
from random import Random

import pytest
from mini import english, grammar, tasks

DATA = Path(__file__).parents[2] / "data" / "mini"
COLUMNS = {"cola": 4, "sst2": 2, "mrpc": 5, "qqp": 6, "stsb": 10, "mnli": 12, "qnli": 4, "rte": 4}
TEXTS = {
    "cola": [3],
    "sst2": [0],
    "mrpc": [3, 4],
    "qqp": [3, 4],
    "stsb": [7, 8],
    "mnli": [8, 9],
    "qnli": [1, 2],
    "rte": [1, 2],
}
SPLITS = [(name, split) for name, task in tasks.TASKS.items() for split in ("train", *task.dev)]


def rows(name, split):
    """The rows of a committed file, without its header."""
    text = (DATA / tasks.TASKS[name].folder / f"{split}.tsv").read_text("utf-8")
    return [line.split("\t") for line in text.splitlines()][bool(tasks.TASKS[name].header) :]


def texts(name, split):
    """The texts of every row, in no order within a row."""
    return [frozenset(row[column] for column in TEXTS[name]) for row in rows(name, split)]


@pytest.mark.slow
def test_same_seed_same_bytes_as_committed(tmp_path):
    tasks.generate(tmp_path)
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")}
    assert len(written) == 8 * 2 + 1 + 1
    for path in written:
        assert (tmp_path / path).read_bytes() == (DATA / path).read_bytes(), path
    assert sum((DATA / path).stat().st_size for path in written) < 4e6


def test_another_seed_gives_other_rows():
    assert tasks.draw_rows("rte", "dev", 0) != tasks.draw_rows("rte", "dev", 1)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_columns_and_header(name, split):
    path = DATA / tasks.TASKS[name].folder / f"{split}.tsv"
    header = path.read_text("utf-8").splitlines()[0]
    assert {len(row) for row in rows(name, split)} == {COLUMNS[name]}
    assert name == "cola" or len(header.split("\t")) == COLUMNS[name]
    assert len(rows(name, split)) == (tasks.TASKS[name].train if split == "train" else 800)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_no_dev_row_is_trained_on_and_none_repeats(name, split):
    found = texts(name, split)
    assert len(set(found)) == len(found)
    assert split == "train" or set(found).isdisjoint(texts(name, "train"))


@pytest.mark.slow
def test_no_dev_row_is_in_the_corpus():
    corpus = (DATA / "corpus.txt").read_text("utf-8").splitlines()
    for name, task in tasks.TASKS.items():
        for split in task.dev:
            for row in texts(name, split):
                first, last = min(row), max(row)
                assert len(row) == 1 or not {f"{first} {last}", f"{last} {first}"} & set(corpus)
    told = [tuple(re.split(r"(?<=[.?])\s", line)) for line in corpus]
    dev = {row for name, task in tasks.TASKS.items() for s in task.dev for row in texts(name, s)}
    assert all(frozenset(sentences[:2]) not in dev for sentences in told)
    assert all(frozenset([sentence]) not in dev for line in told for sentence in line)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_classes_are_balanced(name, split):
    column = {"cola": 1, "mrpc": 0}.get(name, -1)
    labels = [row[column] for row in rows(name, split)]
    assert max(map(labels.count, set(labels))) <= 0.65 * len(labels)


@pytest.mark.slow
def test_length_and_vocabulary():
    known = set(tasks.vocabulary())
    for name, split in SPLITS:
        for row in rows(name, split):
            words = [re.findall(r"[a-z]+", row[column].lower()) for column in TEXTS[name]]
            assert known.issuperset(word for side in words for word in side)
            assert sum(map(len, words)) + 2 * len(words) + 1 <= 40


@pytest.mark.slow
def test_the_backbone_knows_every_word():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATA / "backbone")
    assert all(len(tokenizer.tokenize(word)) == 1 for word in tasks.vocabulary())
    lines = (DATA / "corpus.txt").read_text("utf-8").splitlines()[:500]
    strange = "Quantization, 1-bit weights & zebras: 99 %!"
    for ids in tokenizer([*lines, strange])["input_ids"]:
        assert tokenizer.unk_token_id not in ids


def test_the_backbone_loads_in_single_precision():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(DATA / "backbone")
    assert model.dtype == torch.float32
    assert model.config.num_hidden_layers == 12
    assert sum(p.stat().st_size for p in (DATA / "backbone").iterdir()) < 8e6
    assert not [p for p in (DATA / "backbone").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


# ------------------------------------------------- labels, derived again from the text alone

NOUN = r"((?:[Tt]he )?\w+)"
PAST = {english.past(verb): index for index, pair in enumerate(english.VERBS) for verb in pair}


def facts(text):
    """(agent, verb, patient) of every event that a sentence of RTE tells."""
    text = text.rstrip(".")
    text = text[0].lower() + text[1:] if text.startswith("The") else text
    shapes = [  # roles of each verb: the participants are numbered as they come
        (rf"{NOUN} who (\w+) {NOUN} (\w+) {NOUN}", "acb", "ade"),
        (rf"{NOUN} whom {NOUN} (\w+) (\w+) {NOUN}", "bca", "ade"),
        (rf"{NOUN} was (\w+) by {NOUN} and (\w+) {NOUN}", "cba", "ade"),
        (rf"{NOUN} (\w+) {NOUN} and (\w+) {NOUN}", "abc", "ade"),
        (rf"{NOUN} was (\w+) by {NOUN} who (\w+) {NOUN}", "cba", "cde"),
        (rf"{NOUN} (\w+) {NOUN} who was (\w+) by {NOUN}", "abc", "edc"),
        (rf"{NOUN} was (\w+) by {NOUN}", "cba"),
        (rf"{NOUN} (\w+) {NOUN}", "abc"),
    ]
    for shape, *events in shapes:
        match = re.fullmatch(shape, text)
        if match:
            parts = dict(zip("abcde", match.groups(), strict=False))
            if shape.startswith(rf"{NOUN} who (\w+)"):
                events = ["abc", "ade"]
            told = [tuple(parts[role] for role in event) for event in events]
            return {(agent, PAST[verb], patient) for agent, verb, patient in told}
    raise ValueError(text)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_rte_labels_follow_from_the_text(split):
    for _, premise, hypothesis, label in rows("rte", split):
        assert (facts(hypothesis) <= facts(premise)) == (label == "entailment"), premise


@pytest.mark.parametrize("split", ["train", "dev"])
def test_sst2_labels_follow_from_the_main_clause(split):
    turns = r"\b(is not|hardly|far from|never|anything but|did not find|can say that)\b"
    for text, label in rows("sst2", split):
        clause = re.sub(r"\bnever less than\b|\bnothing but\b", "very", text.lower().rstrip("."))
        clause = re.sub("anything but", "far from", clause)
        if clause.startswith(("although", "despite")):
            clause = clause.split(", ")[1]
        clause = re.split(r",? (?:although|despite) |, and ", clause)[0].split(", but ")[-1]
        good, bad = (
            any(word in clause.split() for word in words) for words in (english.GOOD, english.BAD)
        )
        assert good != bad, text
        assert (good != bool(re.search(turns, clause))) == (label == "1"), text


# -------------------------------------------------------------------------------- the rules


def test_similarity():
    event = english.Event("the dog", 0, "the nurse", "in the park")
    assert grammar.similarity(event, event) == 5
    assert grammar.similarity(event, event.swapped()) == 2.5
    assert grammar.similarity(event, event._replace(agent="the animal")) == 4.5
    assert grammar.similarity(event, event._replace(place="")) == 4.5
    assert grammar.similarity(event, event._replace(place="near the river", verb=1)) == 2.5
    assert grammar.similarity(event, english.Event("Anna", 1, "Ben", "")) == 0


@pytest.mark.parametrize(
    ("premise", "hypothesis", "relation"),
    [
        ("all", "some", "entailment"),
        ("all", "no", "contradiction"),
        ("some", "all", "neutral"),
        ("no", "not all", "entailment"),
        ("not all", "some", "neutral"),
        ("not all", "all", "contradiction"),
        ("some", "no", "contradiction"),
    ],
)
def test_quantifiers(premise, hypothesis, relation):
    assert grammar.quantifier_relation(premise, hypothesis) == relation


@pytest.mark.parametrize(
    ("premise", "hypothesis", "detail", "relation"),
    [
        (True, True, "less", "entailment"),
        (True, True, "more", "neutral"),
        (False, False, "more", "entailment"),
        (False, False, "less", "neutral"),
        (True, False, "less", "contradiction"),
        (False, True, "more", "contradiction"),
        (True, False, "other", "neutral"),
        (False, True, "less", "neutral"),
    ],
)
def test_event_relation(premise, hypothesis, detail, relation):
    assert grammar.event_relation(premise, hypothesis, detail) == relation


def test_sayings_of_an_event():
    event = english.Event("the dog", 0, "Anna", holds=False)
    assert english.clause(event) == "the dog did not help Anna"
    assert english.clause(event, passive=True, word=1) == "Anna was not assisted by the dog"
    assert grammar.question(english.Event("Anna", 0, "Ben"), "agent", Random(0)).startswith(
        ("who ", "by whom ")
    )
