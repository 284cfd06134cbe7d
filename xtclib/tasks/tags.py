"""A tag for every word: names, parts of speech.

Files hold one word a line with its tag in the last column and a blank line between sentences, as
CoNLL's do, or, as ``.jsonl``, ``{"words": […], "tags": […]}`` a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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
from xtclib.tasks.base import Task, TaskData, own_name
from xtclib.tasks.rows import Rows, Split

IGNORED = -100  # the label of a token that begins no word
OUTSIDE = "O"
KINDS = ".conll", ".txt", ".tsv", ".jsonl"
MOST_TAGS = 1000


@dataclass(frozen=True)
class Tags(Task):
    """A tag for every word, scored by the spans that the tags name.

    A word's tag is learned and read at its first token (Devlin et al. 2019, arXiv:1810.04805,
    section 5.3). ``f1``, ``precision`` and ``recall`` are over whole spans, as ``seqeval`` counts
    them: a span with one wrong word is wrong. Words past the longest length count as outside.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    source: str  # a file, or a folder with train, and dev or test
    primary: str = "f1"
    model_class: ClassVar[Any] = AutoModelForTokenClassification
    heads: ClassVar[tuple[str, ...]] = ("classifier.weight",)
    augments: ClassVar[bool] = False

    def load(self, source: str, limit: int | None = None) -> TaskData:
        """The rows of a file, a tenth of them kept apart to score on, or of a folder's files."""
        return _load(self, Path(source), limit)

    @property
    def details(self) -> dict[str, Any]:
        return {"own": {"kind": "tags"}}

    def whole(self) -> TaskData:
        return _load(self, Path(self.source), None, whole=True)

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


def tags(source: str | Path, labels: Sequence[str] = ()) -> Tags:
    """The task of a tagged file or folder; its ``labels`` are the tags of the training rows.

    Raises ``FileNotFoundError`` where there is none, ``ValueError``, with file and line, for
    rows that are not words with tags.
    """
    path = Path(source).expanduser()
    train = _read(_parts(path)["train"])
    found = list(labels) or sorted(
        {tag for _, row in train for tag in row}, key=lambda tag: (tag != OUTSIDE, tag)
    )
    if len(found) < 2 or len(found) > MOST_TAGS:
        raise ValueError(
            f"{path} has {len(found)} tags ({short(', '.join(found))}), expected 2 to {MOST_TAGS}: "
            "the tag is the last column"
        )
    return Tags(own_name(path), path.stem, tuple(found), str(path))


def _parts(path: Path) -> dict[str, Path]:
    """A file as ``train``; of a folder ``train`` and what is scored, ``dev`` or ``test``."""
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise FileNotFoundError(f"received '{path}', which is not there: expected a tagged file")
    files = {f.stem: f for f in sorted(path.iterdir()) if f.suffix in KINDS}
    if "train" not in files:
        raise FileNotFoundError(
            f"no train{', train'.join(KINDS)} in '{path}': expected it, and dev or test beside it"
        )
    names = {"dev": "dev", "valid": "dev", "validation": "dev", "test": "test"}
    scored = {names[stem]: file for stem, file in files.items() if stem in names}
    return {"train": files["train"], **dict(list(sorted(scored.items()))[:1])}


def _load(task: Tags, path: Path, limit: int | None, whole: bool = False) -> TaskData:
    parts = {name: _read(file) for name, file in _parts(path).items()}
    if len(parts) == 1 and whole:
        parts["rows"] = parts["train"]
    if len(parts) == 1:
        rows = parts["train"]
        order = np.random.default_rng(0).permutation(len(rows)).tolist()
        apart = set(order[: max(len(rows) // 10, 1)])
        parts = {"train": [row for i, row in enumerate(rows) if i not in apart],
                 "dev": [rows[i] for i in sorted(apart)]}  # fmt: skip
    ids, splits = {tag: i for i, tag in enumerate(task.labels)}, {}
    for name, rows in parts.items():
        new = sorted({tag for _, row in rows for tag in row} - ids.keys())
        if new:
            raise ValueError(f"{name} of {path} has the tag {short(new[0])}, which training lacks")
        words, labels = zip(*((w, [ids[t] for t in row]) for w, row in rows[:limit]), strict=True)
        splits[name] = Split(list(words), None, list(labels))
    train = splits.pop("train")
    counts = ", ".join(f"{len(s)} {name}" for name, s in splits.items())
    said = f"{path.name}: {len(train)} train, {counts} sentences, {task.num_labels} tags, span F1"
    return TaskData(task, train, splits, said, f"{task.title} {' and '.join(splits)}")


def _read(path: Path) -> list[tuple[list[str], list[str]]]:
    """Sentences as words and tags."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at offset {error.start}: save it as UTF-8") from None
    lines = enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1)
    rows = list(_json_rows(path, lines) if path.suffix == ".jsonl" else _columns(path, lines))
    if len(rows) < 2:
        raise ValueError(f"{path} has {len(rows)} tagged sentences, expected two or more")
    return rows


Lines = Iterator[tuple[int, str]]


def _columns(path: Path, lines: Lines) -> Iterator[tuple[list[str], list[str]]]:
    words, tags = list[str](), list[str]()
    for number, line in [*lines, (0, "")]:
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or cells[0] == "-DOCSTART-":
            if words:
                yield words, tags
                words, tags = [], []
            continue
        if len(cells) < 2 or not cells[0].strip() or not cells[-1].strip():
            raise ValueError(
                f"{path}, line {number}: received {short(line)}, expected a word and its tag"
            )
        words.append(cells[0].strip().replace(" ", "_"))
        tags.append(cells[-1].strip())


def _json_rows(path: Path, lines: Lines) -> Iterator[tuple[list[str], list[str]]]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            words, tags = row["words"], row["tags"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f'{where}: expected {{"words": […], "tags": […]}}') from None
        told = [w for part in (words, tags) for w in (part if isinstance(part, list) else [None])]
        if not all(isinstance(w, str) and w.strip() for w in told):
            raise ValueError(f"{where}: words and tags are lists of strings that are not empty")
        if len(words) != len(tags):
            raise ValueError(
                f"{where}: received {len(words)} words and {len(tags)} tags, expected one a word"
            )
        if words:
            yield ["_".join(word.split()) for word in words], tags
