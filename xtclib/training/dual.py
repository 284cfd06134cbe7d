"""DualTrain: a student with a small vocabulary of its own, trained beside a teacher of both.

The teacher reads every other word in the student's pieces, for which it has a second word table, so
that both vocabularies come to mean the same to it; both models guess the same masked words. Shared
projections can pull the student's weights towards the teacher's, or the other way round. Source:
Zhao et al. 2019, arXiv:1909.11687, section 3.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib import attention
from xtclib.techniques.embeddings.technique import SmallVocabulary
from xtclib.training.mlm import IGNORED, Resumable, optimizer_of

MASKED = 0.15  # of the words


def train(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    texts: Sequence[str],
    steps: int,
    how: SmallVocabulary,
    batch: int = 32,
    lr: float = 5e-4,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    seed: int = 0,
    bf16: bool = False,
    max_length: int = 64,
    progress: bool = True,
    file: str | Path | None = None,
) -> list[float]:
    """Trains two masked language models in place, and returns the loss of each step.

    ``tokenizers``: the student's and the teacher's. The loss is both models' cross-entropy on the
    masked words, plus ``how.weight`` times :func:`projection_loss` where ``how.projection`` names
    a direction. The teacher is copied first and thrown away after. A killed run goes on from
    ``file``, to the same result (:class:`xtclib.training.mlm.Resumable`).
    """
    if steps < 1 or not texts:
        raise ValueError(f"nothing to train on: {steps} steps, {len(texts)} texts")
    torch.manual_seed(seed)
    device = next(student.parameters()).device
    teacher = copy.deepcopy(teacher).to(device).train()
    mixed = _Mixed(teacher, student.base_model.config.vocab_size).to(device)
    shared = SharedProjections(teacher, student).to(device) if how.projection != "none" else None
    learning = [
        *student.parameters(),
        *mixed.parameters(),
        *(shared.parameters() if shared else ()),
    ]
    optimizer, schedule = optimizer_of(learning, lr, weight_decay, warmup, steps)
    rows = mixed_batches(texts, *tokenizers, batch, how.mix, seed, max_length, mixed.own)
    student.train()
    before = student.config._attn_implementation
    for model in (student, teacher):
        if attention.trains_faster(model, bf16):
            attention.use(model)
    parts = {"student": student, "mixed": mixed, "optimizer": optimizer, "schedule": schedule}
    kept = Resumable(file, steps, **parts, **({"shared": shared} if shared else {}))
    bar = tqdm(kept.left(), desc="dual training", disable=not progress, mininterval=5)
    try:
        for _, (ours, theirs) in zip(bar, kept.rest(rows), strict=False):
            ours, theirs = ({k: v.to(device) for k, v in part.items()} for part in (ours, theirs))
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = _guess(student, ours) + mixed.loss(theirs)
            if shared is not None:
                loss = loss + how.weight * shared.loss(teacher, student, how.projection)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            kept.after_step(loss.item())
    finally:
        if student.config._attn_implementation != before:
            student.set_attn_implementation(before)
    return kept.losses


def _guess(model: PreTrainedModel, inputs: dict) -> Tensor:
    """A masked language model's cross-entropy on the tokens it has to guess."""
    labels = inputs["labels"]
    guessed = labels != IGNORED
    hidden = model.base_model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
    ).last_hidden_state
    return F.cross_entropy(model.cls(hidden[guessed]).float(), labels[guessed])


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
        hidden = self.model.base_model(
            inputs_embeds=F.embedding(inputs["input_ids"], table),
            attention_mask=inputs["attention_mask"],
        ).last_hidden_state
        labels = inputs["labels"]
        guessed = labels != IGNORED
        head = self.model.cls.predictions
        bias = torch.cat([head.decoder.bias, self.bias])
        logits = F.linear(head.transform(hidden[guessed]), table, bias)
        return F.cross_entropy(logits.float(), labels[guessed])


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
        for axis, size in enumerate(weight.shape):
            weight = torch.tensordot(weight, self.projections[self.sizes[size]], ([axis], [0]))
            weight = weight.movedim(-1, axis)
        return weight

    def up(self, weight: Tensor, shape: torch.Size) -> Tensor:
        """A student's weight in the teacher's shape: ``P·W·Qᵀ``."""
        for axis, size in enumerate(shape):
            weight = torch.tensordot(weight, self.projections[self.sizes[size]], ([axis], [1]))
            weight = weight.movedim(-1, axis)
        return weight

    def loss(self, teacher: PreTrainedModel, student: PreTrainedModel, direction: str) -> Tensor:
        """:func:`projection_loss` of the two encoders."""
        ours = dict(student.base_model.encoder.named_parameters())
        theirs = dict(teacher.base_model.encoder.named_parameters())
        return projection_loss(self, theirs, ours, direction)


def projection_loss(
    shared: SharedProjections,
    teacher: dict[str, Tensor],
    student: dict[str, Tensor],
    direction: str,
) -> Tensor:
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


def mixed_batches(
    texts: Sequence[str],
    ours: PreTrainedTokenizerBase,
    theirs: PreTrainedTokenizerBase,
    batch: int,
    mix: float,
    seed: int,
    max_length: int,
    offset: int | None = None,
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Endless pairs of batches of the same texts and masked words, the student's and the teacher's.

    In the teacher's a word is in the student's pieces with probability ``mix``; their ids start at
    ``offset``, by default after its own. Of a masked word's tokens 80 % are shown as [MASK], 10 %
    as another, 10 % as they are.
    """
    random = np.random.default_rng(seed)
    spelled: dict[str, tuple[list[int], list[int]]] = {}
    offset = len(theirs) if offset is None else offset

    def pieces(word: str) -> tuple[list[int], list[int]]:
        if word not in spelled:
            ids = [t(word, add_special_tokens=False)["input_ids"] for t in (ours, theirs)]
            spelled[word] = tuple(ids)
        return spelled[word]

    split = theirs.backend_tokenizer
    words = []
    for text in texts:
        text = split.normalizer.normalize_str(text) if split.normalizer else text
        words.append([word for word, _ in split.pre_tokenizer.pre_tokenize_str(text)])
    if not any(words):
        raise ValueError(f"none of {len(texts)} texts has a word to guess")
    while True:
        order = random.permutation(len(texts))
        for start in range(0, len(order) - batch + 1 if len(order) >= batch else 1, batch):
            rows = ([], [])
            for row in order[start : start + batch]:
                sides = _row(words[row], pieces, ours, theirs, mix, random, max_length, offset)
                for side, found in zip(rows, sides, strict=True):
                    side.append(found)
            if all(
                any(label != IGNORED for _, labels in side for label in labels) for side in rows
            ):
                yield tuple(
                    _padded(side, t.pad_token_id)
                    for side, t in zip(rows, (ours, theirs), strict=True)
                )


def _row(words, pieces, ours, theirs, mix, random, max_length, offset) -> list[tuple]:
    """Ids and labels of one text, for the student and for the teacher."""
    sides = [([t.cls_token_id], [IGNORED]) for t in (ours, theirs)]
    for word in words:
        small, large = pieces(word)
        masked = random.random() < MASKED
        mixed = [i + offset for i in small] if random.random() < mix else large
        for (ids, labels), tokens, t, extra in (
            (sides[0], small, ours, 0),
            (sides[1], mixed, theirs, offset),
        ):
            for token in tokens:
                labels.append(token if masked else IGNORED)
                ids.append(
                    _shown(token, t.mask_token_id, len(ours) + extra, random) if masked else token
                )
    return [
        ([*ids[: max_length - 1], t.sep_token_id], [*labels[: max_length - 1], IGNORED])
        for (ids, labels), t in zip(sides, (ours, theirs), strict=True)
    ]


def _shown(token: int, mask: int, size: int, random: np.random.Generator) -> int:
    fate = random.random()
    return mask if fate < 0.8 else int(random.integers(size)) if fate < 0.9 else token


def _padded(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    width = max(len(ids) for ids, _ in rows)
    filled = {
        "input_ids": [ids + [pad] * (width - len(ids)) for ids, _ in rows],
        "attention_mask": [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows],
        "labels": [labels + [IGNORED] * (width - len(ids)) for ids, labels in rows],
    }
    return {name: torch.tensor(values) for name, values in filled.items()}
