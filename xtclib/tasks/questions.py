"""Questions on passages, answered by a span of the passage: SQuAD's task.

A passage longer than a row is read in windows that overlap. A model scores every token as the
first and as the last of the answer; the answer is the best span over all windows, or none
(Devlin et al. 2019, arXiv:1810.04805, sections 4.2 and 4.3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForQuestionAnswering
from transformers import PreTrainedTokenizerBase as Tokenizer

from xtclib.bert import logits_of
from xtclib.tasks import squad
from xtclib.tasks.base import TaskData, file_name, own_name
from xtclib.tasks.own import Own
from xtclib.tasks.rows import Rows, Split

QUESTION = 64  # tokens of a question, at most
NEVER = -1e4  # the score of a token that is padding


class Span(NamedTuple):
    """A candidate answer: letters ``begin`` to ``end`` of the passage, and what it scored."""

    score: float
    begin: int
    end: int


class Window(NamedTuple):
    """What a window says of its question: the best spans in it, and what no answer scored."""

    question: int
    spans: list[Span]
    none: float


@dataclass(frozen=True)
class Questions(Own):
    """Questions whose answers stand in their passages, or that have none.

    Scored by SQuAD's rules: ``exact`` and ``f1``, in percent, and both apart for questions with and
    without an answer where there are both. ``stride``: tokens that two windows of a passage share;
    ``longest``: of an answer, in tokens; ``best``: spans kept of a window; ``threshold``: by how
    much no answer has to beat the best span, where some questions have none.
    """

    name: str = ""
    title: str = ""
    labels: tuple[str, ...] = ("start", "end")
    primary: str = "f1"
    metrics: tuple[str, ...] = ("f1", "exact")
    stride: int = 128
    longest: int = 30
    best: int = 20
    threshold: float = 0.0
    model_class: ClassVar[Any] = AutoModelForQuestionAnswering
    heads: ClassVar[tuple[str, ...]] = ("qa_outputs.weight",)
    augments: ClassVar[bool] = False
    length: ClassVar[int | None] = 384
    cuts: ClassVar[bool] = False

    def texts(self, data: TaskData) -> list[str]:
        return list(dict.fromkeys(data.train.second or ()))

    def cut_off(self, rows: Split) -> tuple[dict[str, Split], str]:
        """A tenth of the articles, so that no passage is on both sides."""
        article = [label["article"] for label in rows.labels]
        names = list(dict.fromkeys(article))
        if len(names) < 2:
            raise ValueError(
                f"{file_name(self.source)} has one article, and a tenth of them is scored on: add "
                "a dev….json, in a folder with train….json"
            )
        order = np.random.default_rng(0).permutation(len(names))
        apart = {names[i] for i in order[: max(round(len(names) / 10), 1)]}
        sides = {"train": [i for i, a in enumerate(article) if a not in apart],
                 "dev": [i for i, a in enumerate(article) if a in apart]}  # fmt: skip
        kept = {part: rows.select(chosen) for part, chosen in sides.items()}
        return kept, f"the dev rows are {len(apart)} of {len(names)} articles, cut off by seed 0"

    def tokenize(self, split: Split, tokenizer: Tokenizer, max_length: int) -> Rows:
        """Windows: ids, types, and as label of each token (mark, begin, end, question).

        ``mark`` is 1 at the answer's first token, 2 at its last, 3 at both; of a window without the
        answer at its first token, ``[CLS]``. ``begin`` and ``end`` are letters of the passage, -1
        outside it.
        """
        room = max_length - 3
        questions = _cut(tokenizer, split.first, min(QUESTION, max(room // 2, 1)))
        passages = split.second or [""] * len(split)
        types = "token_type_ids" in tokenizer.model_input_names
        out = tokenizer(
            questions, passages, truncation="only_second", max_length=max_length,
            stride=min(self.stride, max(room // 4, 0)), return_overflowing_tokens=True,
            return_offsets_mapping=True, return_attention_mask=False, return_token_type_ids=types,
        )  # fmt: skip
        labels = []
        for window, question in enumerate(out["overflow_to_sample_mapping"]):
            inside = np.array([part == 1 for part in out.sequence_ids(window)])
            letters = np.where(inside[:, None], np.array(out["offset_mapping"][window]), -1)
            mark = _mark(letters, split.labels[question])
            numbers = np.full(len(mark), question)
            labels.append(np.column_stack([mark, letters, numbers]))
        return Rows(out["input_ids"], out.get("token_type_ids"), labels)

    def collate(self, rows: list[dict], tokenizer: Tokenizer, draw: int = 0) -> dict[str, Any]:
        """A padded batch with ``labels`` (batch, length, 4)."""
        batch = super().collate([row | {"labels": 0} for row in rows], tokenizer)
        labels = torch.full((*batch["input_ids"].shape, 4), -1)
        labels[..., 0] = 0
        for i, row in enumerate(rows):
            labels[i, : len(row["labels"])] = torch.from_numpy(row["labels"])
        return batch | {"labels": labels}

    def logits(self, output, mask: Tensor) -> Tensor:
        """Scores as first and as last token, (batch, length, 2); padding never is."""
        return logits_of(output).masked_fill(~mask.bool()[..., None], NEVER)

    def answers(self, output, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Two rows a window: scores (2·batch, length) of starts, then ends; where they are."""
        starts, ends = self.logits(output, mask).unbind(-1)
        marks = labels[..., 0]
        wanted = [(marks & bit).bool().int().argmax(-1) for bit in (1, 2)]
        return torch.cat([starts, ends]), torch.cat(wanted)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean of both ends' cross-entropies over the tokens of a window."""
        return F.cross_entropy(logits, labels)

    def decide(self, logits: np.ndarray, batch: dict[str, Tensor]) -> list[Window]:
        """The best spans of every window."""
        labels = batch["labels"].numpy()
        return [self.window(scores, own) for scores, own in zip(logits, labels, strict=True)]

    def window(self, scores: np.ndarray, label: np.ndarray) -> Window:
        """The best spans of one window: scores (length, 2), labels (length, 4)."""
        question, none = int(label[0, 3]), float(scores[0].sum())
        tokens = np.flatnonzero(label[:, 1] >= 0)
        if not len(tokens):
            return Window(question, [], none)
        starts, ends = scores[tokens].T
        both = starts[:, None] + ends[None, :]
        both[np.tril_indices(len(tokens), -1)] = -np.inf
        both[np.triu_indices(len(tokens), self.longest)] = -np.inf
        flat = both.ravel()
        count = min(self.best, int(np.isfinite(flat).sum()))
        chosen = np.argpartition(-flat, count - 1)[:count]
        chosen = chosen[np.argsort(-flat[chosen], kind="stable")]
        first, last = np.unravel_index(chosen, both.shape)
        begin, end = label[tokens[first], 1], label[tokens[last], 2]
        found = zip(flat[chosen].tolist(), begin.tolist(), end.tolist(), strict=True)
        return Window(question, [Span(*each) for each in found], none)

    def told(self, answers: Sequence[Window], references: Sequence[dict]) -> list[str]:
        """The answer to each question, empty for none, from the answers of all its windows."""
        windows: dict[int, list[Window]] = defaultdict(list)
        for window in answers:
            windows[window.question].append(window)
        may_lack = not all(reference["texts"] for reference in references)
        found = []
        for i, reference in enumerate(references):
            spans = [span for window in windows[i] for span in window.spans]
            best = max(spans, default=Span(-np.inf, 0, 0))
            none = min((window.none for window in windows[i]), default=0.0)
            empty = may_lack and none - best.score > self.threshold
            found.append("" if empty else reference["passage"][best.begin : best.end])
        return found

    def score(self, answers: Sequence[Window], references: Sequence[dict]) -> dict[str, float]:
        wanted = [reference["texts"] for reference in references]
        found = squad.scores(self.told(answers, references), wanted)
        return {**found, "score": found[self.primary]}

    def majority(self, split: Split, train: Split | None = None) -> dict[str, float]:
        """The score of no answer to any question."""
        found = squad.scores([""] * len(split), [label["texts"] for label in split.labels])
        return {**found, "score": found[self.primary]}


def questions(source: str | Path, **how: Any) -> Questions:
    """The task of SQuAD's files or a Hub dataset of its form; :func:`.squad.read_questions` reads.

    ``how``: fields of :class:`Questions`, such as ``stride`` or ``threshold``.
    """
    parts = squad.read_questions(source)
    rows = parts["train"]
    passages = len({label["passage"] for label in rows.labels})
    without = sum(not label["texts"] for split in parts.values() for label in split.labels)
    what = f"questions on {passages} passages" + f", {without} without an answer" * bool(without)
    return Questions(name=own_name(source), title=own_name(source), source=str(source),
                     parts=parts, about={"kind": "questions"}, said=(what,), **how)  # fmt: skip


def _cut(tokenizer: Tokenizer, texts: Sequence[str], most: int) -> list[str]:
    """Texts of ``most`` tokens at most."""
    out = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    ends = [letters[most - 1][1] if len(letters) > most else None
            for letters in out["offset_mapping"]]  # fmt: skip
    return [text[:end] for text, end in zip(texts, ends, strict=True)]


def _mark(letters: np.ndarray, label: dict) -> np.ndarray:
    """Where a window's answer begins and ends: the first one given, if all of it is in here."""
    mark = np.zeros(len(letters), dtype=np.int64)
    if label["texts"]:
        begin = label["starts"][0]
        end = begin + len(label["texts"][0])
        first = np.flatnonzero((letters[:, 0] <= begin) & (begin < letters[:, 1]))
        last = np.flatnonzero((letters[:, 0] < end) & (end <= letters[:, 1]))
        if len(first) and len(last):
            mark[first[0]] |= 1
            mark[last[0]] |= 2
            return mark
    mark[0] = 3
    return mark
