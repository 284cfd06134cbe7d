"""A tag for every word: names, parts of speech.

A row is a sentence, as a list of words and a list of tags: from a ``.conll`` file, JSON lines, or a
dataset (:mod:`.tables`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForTokenClassification
from transformers import PreTrainedTokenizerBase as Tokenizer

from xtclib.config import short
from xtclib.files import cut
from xtclib.tasks.base import TaskData, file_name, own_name
from xtclib.tasks.own import Own
from xtclib.tasks.rows import Rows, Split
from xtclib.tasks.tables import Table, read_parts

IGNORED = -100  # the label of a token that begins no word
OUTSIDE = "O"
WORDS, TAGS = ("words", "tokens"), ("tags", "ner_tags", "pos_tags")
MOST = 1000  # tags


@dataclass(frozen=True)
class Tags(Own):
    """A tag for every word, scored by the spans that the tags name.

    A word's tag is learned and read at its first token (Devlin et al. 2019, arXiv:1810.04805,
    section 5.3). ``f1``, ``precision`` and ``recall`` are over whole spans, as ``seqeval`` counts
    them: a span with one wrong word is wrong. Words past the longest length count as outside.
    """

    name: str = ""
    title: str = ""
    labels: tuple[str, ...] = ()
    primary: str = "f1"
    metrics: tuple[str, ...] = ("f1", "precision", "recall", "accuracy")
    model_class: ClassVar[Any] = AutoModelForTokenClassification
    heads: ClassVar[tuple[str, ...]] = ("classifier.weight",)
    augments: ClassVar[bool] = False

    def texts(self, data: TaskData) -> list[str]:
        return [" ".join(words) for words in data.train.first]

    def tokenize(self, split: Split, tokenizer: Tokenizer, max_length: int) -> Rows:
        """Token ids; the label of a word at its first token, elsewhere ``IGNORED``."""
        texts = [" ".join(words) for words in split.first]
        out = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True,
                        return_token_type_ids=False, return_attention_mask=False)  # fmt: skip
        labels = []
        for words, tags, ends in zip(split.first, split.labels, out["offset_mapping"], strict=True):
            word_at = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])
            row, last = [], -1
            for start, end in ends:
                word = int(word_at[end - 1]) if end > start else -1
                row.append(tags[word] if word > last else IGNORED)
                last = max(last, word)
            labels.append(row)
        return Rows(out["input_ids"], None, labels)

    def collate(self, rows: list[dict], tokenizer: Tokenizer, draw: int = 0) -> dict[str, Any]:
        """A padded batch with ``labels`` (batch, length)."""
        batch = super().collate([row | {"labels": 0} for row in rows], tokenizer)
        labels = torch.full(batch["input_ids"].shape, IGNORED)
        for i, row in enumerate(rows):
            labels[i, : len(row["labels"])] = torch.tensor(row["labels"])
        return batch | {"labels": labels}

    def answers(self, output, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        tagged = labels != IGNORED
        return output.logits[tagged], labels[tagged]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    def decide(self, logits: np.ndarray, batch: dict[str, Tensor]) -> list[list[int]]:
        """For each row the tag ids of the words that were read."""
        tagged = (batch["labels"] != IGNORED).numpy()
        return [row[here].tolist() for row, here in zip(logits.argmax(-1), tagged, strict=True)]

    def score(self, answers: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Span F1, precision and recall, and the share of right tags, in percent.

        Raises ``ImportError`` without ``seqeval``, ``ValueError`` for other numbers of rows.
        """
        try:
            from seqeval import metrics
        except ImportError:
            raise ImportError("scoring tags needs seqeval: pip install 'xtclib[tags]'") from None
        if len(answers) != len(references):
            received = f"received {len(answers)} rows of tags and {len(references)} references"
            raise ValueError(f"{received}, expected as many of each")
        wanted = [self.named(row) for row in references]
        found = [(self.named(row) + [OUTSIDE] * len(w))[: len(w)]
                 for row, w in zip(answers, wanted, strict=True)]  # fmt: skip
        how: dict[str, Any] = {"zero_division": 0}
        precision, recall, f1 = (
            100 * float(by(wanted, found, **how))
            for by in (metrics.precision_score, metrics.recall_score, metrics.f1_score)
        )
        accuracy = 100 * float(metrics.accuracy_score(wanted, found))
        return {"f1": f1, "precision": precision, "recall": recall, "accuracy": accuracy,
                "score": f1}  # fmt: skip

    def named(self, row: Sequence[int]) -> list[str]:
        """Tag ids as tags."""
        return [self.labels[tag] for tag in row]

    def majority(self, split: Split, train: Split | None = None) -> dict[str, float]:
        """The score of the most common tag everywhere: of *outside*, which has no span, 0."""
        tags = np.concatenate([row for row in (train or split).labels])
        common = int(np.bincount(tags).argmax())
        return self.score([[common] * len(row) for row in split.labels], split.labels)


def tags(source: str | Path, text: str | None = None, label: str | None = None,
         labels: Sequence[str] | None = None) -> Tags:  # fmt: skip
    """The task of a tagged file, folder or dataset; :func:`.tables.read_parts` says which.

    ``text``, ``label``: the columns, unless they are called as in ``WORDS`` and ``TAGS``.
    ``labels``: the tags in the order of a model's outputs; else those of the training rows.
    Raises ``FileNotFoundError`` where there is none, ``ValueError``, with file and line, for rows
    that are not words with tags.
    """
    tables = read_parts(source)
    columns = _column(tables["train"], text, WORDS), _column(tables["train"], label, TAGS)
    rows = {part: _sentences(table, *columns) for part, table in tables.items()}
    where = file_name(source)
    if len(rows["train"]) < 2 and not labels:
        raise ValueError(f"{where} has {len(rows['train'])} tagged sentence, expected two or more")
    found = labels or sorted({tag for *_, row in rows["train"] for tag in row}, key=_order)
    if not 2 <= len(found) <= MOST:
        listed = cut(", ".join(map(str, found)), 80)
        raise ValueError(f"{where} has {len(found)} tags ({listed}), expected 2 to {MOST}")
    who = "the model" if labels else "training"
    parts = {part: _split(sentences, found, who) for part, sentences in rows.items()}
    about = {"kind": "tags", "text": columns[0], "label": columns[1]}
    said = (f"words in '{columns[0]}'", f"{len(found)} tags in '{columns[1]}'")
    return Tags(name=own_name(source), title=own_name(source), labels=tuple(found),
                source=str(source), parts=parts, about=about, said=said)  # fmt: skip


def _order(tag: str) -> tuple[bool, str]:
    return tag != OUTSIDE, tag


def _column(table: Table, told: str | None, usual: Sequence[str]) -> str:
    """The column told, else the one with a usual name; ``ValueError`` where there is none."""
    name = told or next((name for name in usual if name in table.columns), usual[0])
    table.column(name)
    return name


def _sentences(table: Table, text: str, label: str) -> list[tuple[str, list[str], list[str]]]:
    """Where each sentence stands, its words and its tags."""
    found = []
    for row, (words, tags) in enumerate(zip(table.column(text), table.column(label), strict=True)):
        where = table.at(row)
        for name, cell in ((text, words), (label, tags)):
            listed = isinstance(cell, list) and all(isinstance(x, str) and x.strip() for x in cell)
            if not listed or not cell:
                received = f"received {short(cell)} in column '{name}'"
                raise ValueError(f"{where}: {received}, expected a list of words that has some")
        if len(words) != len(tags):
            received = f"received {len(words)} words and {len(tags)} tags"
            raise ValueError(f"{where}: {received}, expected one a word")
        found.append((where, ["_".join(word.split()) for word in words], tags))
    return found


def _split(sentences: list[tuple[str, list[str], list[str]]], known: Sequence[str], who: str
           ) -> Split:  # fmt: skip
    ids, labels = {tag: i for i, tag in enumerate(known)}, []
    for where, _, tags in sentences:
        if new := [tag for tag in tags if tag not in ids]:
            raise ValueError(f"{where}: received the tag {short(new[0])}, which {who} lacks")
        labels.append([ids[tag] for tag in tags])
    return Split([words for _, words, _ in sentences], None, labels)  # type: ignore[misc]
