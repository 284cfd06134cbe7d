"""The built-in tasks: eight GLUE-shaped tasks and a corpus, written by a seeded grammar.

`generate(folder)` writes the tasks in GLUE's official folder layout and a corpus for masked
language modelling. The same seed gives the same bytes. What the sentences mean, and what follows
from it: `xtclib.grammar`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import NamedTuple

from mini.grammar import NLI, cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb


class Task(NamedTuple):
    """How a task is drawn, which labels it has, and how GLUE lays its files out."""

    folder: str
    draw: Callable[..., tuple[str, ...]]
    labels: tuple  # what `draw` is asked for, in turn, so that classes are balanced
    header: str  # column names, "" for none
    row: Callable[[int, tuple[str, ...], object], tuple]  # columns of one row
    tail: dict  # how the corpus says the label, in the sentence after the example
    train: int = 3000
    dev: dict = {"dev": {}}  # file name -> further arguments of `draw`


BOTH = (True, False)
SCORES = tuple(step / 2 for step in range(11))
SHARED = "nothing nothing little little little something something much much nearly everything"
MNLI_HEADER = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
    "sentence2_parse sentence1 sentence2 label1 gold_label"
)


def entailed(label: object) -> str:
    """GLUE's name of a two-way label."""
    return "entailment" if label else "not_entailment"


TASKS = {
    "cola": Task(
        "CoLA",
        cola,
        BOTH,
        "",
        lambda i, text, y: ("mini", int(y), "" if y else "*", *text),
        {},
    ),
    "sst2": Task(
        "SST-2",
        sst2,
        BOTH,
        "sentence label",
        lambda i, text, y: (*text, int(y)),
        {True: "I liked it.", False: "I disliked it."},
    ),
    "mrpc": Task(
        "MRPC",
        mrpc,
        BOTH,
        "Quality,#1 ID,#2 ID,#1 String,#2 String",
        lambda i, text, y: (int(y), 2 * i, 2 * i + 1, *text),
        {True: "Both agree.", False: "Both differ."},
    ),
    "qqp": Task(
        "QQP",
        qqp,
        BOTH,
        "id qid1 qid2 question1 question2 is_duplicate",
        lambda i, text, y: (i, 2 * i, 2 * i + 1, *text, int(y)),
        {True: "Both agree.", False: "Both differ."},
    ),
    "stsb": Task(
        "STS-B",
        stsb,
        SCORES,
        "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        lambda i, text, y: (i, "mini", "-", "-", i, "-", "-", *text, f"{y:.3f}"),
        {y: f"They share {word}." for y, word in zip(SCORES, SHARED.split(), strict=True)},
    ),
    "mnli": Task(
        "MNLI",
        mnli,
        NLI,
        MNLI_HEADER,
        lambda i, text, y: (i, i, i, "mini", *"----", *text, y, y),
        dict(zip(NLI, ("This is certain.", "This is possible.", "This is wrong."), strict=True)),
        4000,
        {"dev_matched": {}, "dev_mismatched": {"other_genre": True}},
    ),
    "qnli": Task(
        "QNLI",
        qnli,
        BOTH,
        "index question sentence label",
        lambda i, text, y: (i, *text, entailed(y)),
        {True: "This answers it.", False: "This ignores it."},
    ),
    "rte": Task(
        "RTE",
        rte,
        BOTH,
        "index sentence1 sentence2 label",
        lambda i, text, y: (i, *text, entailed(y)),
        {True: "This is certain.", False: "This is open."},
    ),
}
DEV_ROWS = 800
CORPUS_LINES = 6000


def draw_rows(name: str, split: str, seed: int, avoid: set | None = None) -> list[tuple]:
    """The (texts, label) rows of one split; none repeats, and none is in `avoid`."""
    task, rng, seen = TASKS[name], Random(f"{seed} {name} {split}"), set(avoid or ())
    count, rows = task.train if split == "train" else DEV_ROWS, []
    while len(rows) < count:
        label = task.labels[len(rows) % len(task.labels)]
        text = task.draw(rng, label, **task.dev.get(split, {}))
        if len(set(text)) == len(text) and frozenset(text) not in seen:
            seen.add(frozenset(text))
            rows.append((text, label))
    rng.shuffle(rows)
    return rows


def dev_texts(seed: int = 0) -> set:
    """The texts of every dev row, as sets, whichever comes first: what training may not see."""
    return {
        frozenset(text)
        for name, task in TASKS.items()
        for split in task.dev
        for text, _ in draw_rows(name, split, seed)
    }


def documents(
    seed: int = 0,
    avoid: set | None = None,
    agreeing: float = 0.5,
    shares: Mapping[str, float] | None = None,
) -> Iterator[str]:
    """An endless corpus: an example of some task, followed by a sentence that says its label.

    Grammatical sentences stand alone, in pairs. `agreeing` is the share of pairs that are drawn
    to mean the same, to answer or to follow; the others have any label. What is in `avoid` (the
    dev rows) never occurs. `shares` says how often each task is drawn; equally, by default.
    """
    rng, avoid = Random(f"{seed} corpus"), dev_texts(seed) if avoid is None else avoid
    names = list(TASKS)
    while True:
        weights = [shares.get(n, 0.0) for n in names] if shares else None
        name = rng.choices(names, weights)[0] if weights else rng.choice(names)
        task = TASKS[name]
        label = rng.choice(task.labels)
        if name != "sst2" and rng.random() < agreeing:
            label = max(task.labels) if name == "stsb" else task.labels[0]
        if name == "cola":
            text = (*task.draw(rng, True), *task.draw(rng, True))
            told = [frozenset([one]) for one in text]
        else:
            further = {"other_genre": rng.random() < 0.3} if name == "mnli" else {}
            text = task.draw(rng, label, **further)
            told = [frozenset(text)]
        if avoid.isdisjoint(told):
            yield " ".join((*text, task.tail.get(label, ""))).strip()


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file, the same bytes on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + "\n" for line in lines).encode())


def generate(folder: str | Path, seed: int = 0) -> None:
    """Write the eight tasks and `corpus.txt` into a folder, in GLUE's official layout."""
    folder, avoid = Path(folder), dev_texts(seed)
    for name, task in TASKS.items():
        for split in ("train", *task.dev):
            rows = draw_rows(name, split, seed, avoid if split == "train" else None)
            lines = ["\t".join(map(str, task.row(i, *row))) for i, row in enumerate(rows)]
            header = "\t".join(task.header.split("," if "," in task.header else " "))
            write_lines(folder / task.folder / f"{split}.tsv", [header][: len(header)] + lines)
    stream = documents(seed, avoid)
    write_lines(folder / "corpus.txt", [next(stream) for _ in range(CORPUS_LINES)])


def vocabulary() -> list[str]:
    """Every word of the grammar, lower case, in alphabetical order."""
    from string import punctuation

    stream, words = documents(0, set()), set()
    for _ in range(20000):
        words.update(next(stream).lower().translate(str.maketrans("", "", punctuation)).split())
    return sorted(words)
