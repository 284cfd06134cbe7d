"""DualTrain: a student with a small vocabulary of its own, trained beside a teacher of both.

The teacher reads every other word in the student's pieces, for which it has a second word table, so
that both vocabularies come to mean the same to it; both models guess the same masked words. Shared
projections can pull the student's weights towards the teacher's, or the other way round. Source:
Zhao et al. 2019, arXiv:1909.11687, section 3.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib import attention
from xtclib.tasks.masked import IGNORED, MaskedWords, hidden
from xtclib.tasks.rows import Rows, Split
from xtclib.techniques.embeddings.technique import SmallVocabulary
from xtclib.training.trainer import Lesson, Run, train


def train_beside(student: PreTrainedModel, teacher: PreTrainedModel, lesson: Lesson, run: Run,
                 how: SmallVocabulary) -> tuple[PreTrainedModel, dict]:  # fmt: skip
    """Trains two masked language models at once, the student in place; returns it with notes.

    ``lesson`` has :class:`TwoVocabularies` as its task. The loss is both models' cross-entropy on
    the masked words, plus ``how.weight`` times :func:`projection_loss` where ``how.projection``
    names a direction. The teacher is copied first and thrown away after.
    """
    torch.manual_seed(run.seed)
    pair = _Both(student, copy.deepcopy(teacher), how).to(run.device)
    before = student.config._attn_implementation
    for model in (pair.student, pair.mixed.model):
        if attention.trains_faster(model, run.bf16):
            attention.use(model)
    try:
        return student, train(pair, lesson, run)[1]
    finally:
        if student.config._attn_implementation != before:
            student.set_attn_implementation(before)


class _Both(nn.Module):
    """A student and its teacher as one module, which gives the terms of both their losses."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, how) -> None:
        super().__init__()
        self.student, self.how = student, how
        self.mixed = _Mixed(teacher, student.base_model.config.vocab_size)
        self.shared = SharedProjections(teacher, student) if how.projection != "none" else None

    def forward(self, ours: dict, theirs: dict) -> dict[str, Tensor]:
        terms = {"student": _guess(self.student, ours), "teacher": self.mixed.loss(theirs)}
        if self.shared is not None:
            both = (self.mixed.model, self.student)
            big, small = (dict(m.base_model.encoder.named_parameters()) for m in both)
            with torch.autocast(ours["input_ids"].device.type, enabled=False):  # weights are fp32
                found = projection_loss(self.shared, big, small, self.how.projection)
            terms["projections"] = self.how.weight * found
        return terms


def _guess(model: PreTrainedModel, inputs: dict) -> Tensor:
    """A masked language model's cross-entropy on the tokens it has to guess."""
    guessed = inputs["labels"] != IGNORED
    shown = model.base_model(inputs["input_ids"], attention_mask=inputs["attention_mask"])
    logits = model.cls(shown.last_hidden_state[guessed])
    return F.cross_entropy(logits.float(), inputs["labels"][guessed])


class _Mixed(nn.Module):
    """A masked language model that reads and guesses the tokens of a second vocabulary too.

    Those are numbered after its own. One softmax runs over both.
    """

    def __init__(self, model: PreTrainedModel, second: int) -> None:
        super().__init__()
        self.model = model
        table = model.get_input_embeddings().weight
        self.own = table.shape[0]
        self.second = nn.Embedding(second, table.shape[1])
        nn.init.normal_(self.second.weight, std=float(table.detach().std()))
        self.bias = nn.Parameter(torch.zeros(second))

    def loss(self, inputs: dict) -> Tensor:
        table = torch.cat([self.model.get_input_embeddings().weight, self.second.weight])
        states = self.model.base_model(
            inputs_embeds=F.embedding(inputs["input_ids"], table),
            attention_mask=inputs["attention_mask"],
        ).last_hidden_state
        guessed, head = inputs["labels"] != IGNORED, self.model.cls.predictions
        bias = torch.cat([head.decoder.bias, self.bias])
        logits = F.linear(head.transform(states[guessed]), table, bias)
        return F.cross_entropy(logits.float(), inputs["labels"][guessed])


class SharedProjections(nn.Module):
    """Matrices that take every weight of the teacher to the student's shape, or back.

    One for hidden dimensions, one for those inside the feed-forward layer, shared by all layers and
    by both sides of a weight.
    """

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel) -> None:
        super().__init__()
        configs = [model.base_model.config for model in (teacher, student)]
        if configs[0].hidden_size == configs[0].intermediate_size:
            raise ValueError(
                "shared projections tell hidden from feed-forward dimensions by their number, and "
                f"this teacher has {configs[0].hidden_size} of both: use projection 'none'"
            )
        sides = [(config.hidden_size, config.intermediate_size) for config in configs]
        self.projections = nn.ParameterList(
            nn.Parameter(torch.randn(big, small) / big**0.5)
            for big, small in zip(*sides, strict=True)
        )
        self.sizes = {big: i for i, big in enumerate(sides[0])}

    def down(self, weight: Tensor) -> Tensor:
        """A teacher's weight in the student's shape: ``Pᵀ·W·Q``."""
        return self._turned(weight, weight.shape, 0)

    def up(self, weight: Tensor, shape: torch.Size) -> Tensor:
        """A student's weight in the teacher's ``shape``: ``P·W·Qᵀ``."""
        return self._turned(weight, shape, 1)

    def _turned(self, weight: Tensor, shape: torch.Size, side: int) -> Tensor:
        for axis, size in enumerate(shape):
            weight = torch.tensordot(weight, self.projections[self.sizes[size]], ([axis], [side]))
            weight = weight.movedim(-1, axis)
        return weight


def projection_loss(shared: SharedProjections, teacher: dict[str, Tensor],
                    student: dict[str, Tensor], direction: str) -> Tensor:  # fmt: skip
    """Mean over weights of ``‖Pᵀθ_tQ − θ_s‖²`` (down) or ``‖θ_t − Pθ_sQᵀ‖²`` (up), per entry.

    The paper sums the squares; the mean keeps the weight of the term independent of the sizes.
    Source: Zhao et al. 2019, arXiv:1909.11687, section 3.2.
    """
    terms = []
    for name, ours in student.items():
        theirs = teacher[name]
        if direction == "down":
            terms.append(F.mse_loss(shared.down(theirs), ours))
        else:
            terms.append(F.mse_loss(shared.up(ours, theirs.shape), theirs))
    return torch.stack(terms).mean()


@dataclass(frozen=True)
class TwoVocabularies(MaskedWords):
    """The same texts and masked words for a student and for a teacher of another vocabulary.

    In the teacher's batch a word is in the student's pieces with probability ``mix``; their ids
    start at ``offset``, after its own.
    """

    ours: Any = None  # tokenizers
    theirs: Any = None
    mix: float = 0.5
    offset: int = 0
    max_length: int = 64

    def tokenize(self, split: Split, tokenizer, max_length: int) -> _Words:
        """Texts as words, each spelled in both vocabularies; ``ValueError`` if there is no word."""
        spelled: dict[str, tuple[list[int], list[int]]] = {}
        inner, rows = self.theirs.backend_tokenizer, []
        for text in split.first:
            text = inner.normalizer.normalize_str(text) if inner.normalizer else text
            words = [word for word, _ in inner.pre_tokenizer.pre_tokenize_str(text)]
            for word in set(words) - spelled.keys():
                ours, theirs = (t(word, add_special_tokens=False)["input_ids"]
                                for t in (self.ours, self.theirs))  # fmt: skip
                spelled[word] = ours, theirs
            rows.append([spelled[word] for word in words])
        if not any(rows):
            raise ValueError(f"none of {len(rows)} texts has a word to guess")
        return _Words([row for row in rows if row], None, [])

    def collate(self, rows: list[dict], tokenizer, draw: int = 0) -> dict[str, dict]:
        """A batch for each model: ``ours`` and ``theirs``."""
        random, generator = np.random.default_rng(draw), torch.Generator().manual_seed(draw)
        sides: tuple[list, list] = ([], [])
        for row in rows:
            words = row["words"]
            masked = random.random(len(words)) < self.share
            mixed = random.random(len(words)) < self.mix
            if not masked.any():
                masked[0] = True  # no row is without a word to guess
            spelled = ([small for small, _ in words],
                       [[i + self.offset for i in small] if mix else large
                        for (small, large), mix in zip(words, mixed, strict=True)])  # fmt: skip
            for side, pieces in zip(sides, spelled, strict=True):
                ids = np.concatenate(pieces)[: self.max_length - 2]
                chosen = np.repeat(masked, [len(piece) for piece in pieces])[: len(ids)]
                side.append((ids, chosen))
        both = zip(("ours", "theirs"), sides, (self.ours, self.theirs), strict=True)
        return {name: _padded(side, t, generator) for name, side, t in both}


class _Words(Rows):
    """Texts as lists of words, each as its pieces in two vocabularies."""

    def __getitem__(self, index: int) -> dict:
        return {"words": self.ids[index]}


def _padded(rows: list[tuple[np.ndarray, np.ndarray]], tokenizer, random: torch.Generator) -> dict:
    """Rows of ids, and which of them to guess, between the special tokens and padded."""
    width = max(len(ids) for ids, _ in rows) + 2
    ids = np.full((len(rows), width), tokenizer.pad_token_id)
    guessed, mask = np.zeros_like(ids, dtype=bool), np.zeros_like(ids)
    for i, (row, chosen) in enumerate(rows):
        end = len(row) + 1
        ids[i, 0], ids[i, 1:end], ids[i, end] = tokenizer.cls_token_id, row, tokenizer.sep_token_id
        guessed[i, 1:end], mask[i, : end + 1] = chosen, 1
    guessed = torch.from_numpy(guessed)
    seen, labels = hidden(torch.from_numpy(ids), tokenizer, guessed, random)
    return {"input_ids": seen, "attention_mask": torch.from_numpy(mask), "labels": labels}
