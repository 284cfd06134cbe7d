"""Smaller vocabularies: rows of the word table removed, or a student with pieces of its own."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from xtclib.config import NotNegative, Ratio, Share, Size, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import (
    Technique,
    copied,
    count_of,
    needs,
    register,
    word_table,
)
from xtclib.techniques.embeddings import vocabulary
from xtclib.techniques.students.technique import Compact, _Student


@register
@config
class PruneVocabulary(Technique):
    """Removes tokens that the task's training rows use least, from word table and tokenizer.

    ``keep``: the share of the vocabulary that stays; ``None`` keeps what is used at all. Special
    tokens and the characters in use stay, so rarer words are spelled in pieces. ``scripts: used``
    also keeps, before all else that is not used, every token of the writing systems that the rows
    use, digits and punctuation: of a multilingual model what the task's languages need, so that
    new words are read as before. A teacher that is compared with reads the same pieces. Source:
    Zhao et al. 2019, arXiv:1909.11687, for how much of a small model its vocabulary is.
    """

    name: ClassVar[str] = "prune_vocabulary"
    prunes: ClassVar[bool] = True
    keep: Share | None = None
    scripts: Literal["used"] | None = None

    @property
    def stored(self) -> bool:
        return self.keep != 1  # as fp16, like everything else that is pruned

    def ids(self, data: Calibration) -> list[int]:
        """Rising ids of the tokens that stay."""
        counts, by_script = data.token_counts(), self.scripts is not None
        return vocabulary.tokens_to_keep(data.tokenizer, counts, self.keep, by_script)

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        model = copied(model)
        word_table(model, self.name)
        vocabulary.keep_rows_(model, self.ids(needs(data, self.name)))
        return model

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.keep is None:
            raise ValueError("how many tokens are used is in the rows: plan with a share to keep")
        vocabulary.keep_rows_(model, range(round(self.keep * model.config.vocab_size)))
        return model

    def reads(self, model, tokenizer, data):
        ids, model = self.ids(data), copy.deepcopy(model)
        if model is not None:  # none reads what the student does
            vocabulary.keep_rows_(model, ids)
        return model, vocabulary.cut_tokenizer(tokenizer, ids)


@register
@config
class SmallVocabulary(_Student):
    """DualTrain's student: as deep as its teacher, narrower, with a vocabulary of its own.

    ``vocabulary``: how many word pieces, those the task's rows use most and all characters; as a
    count (two fifths of the teacher's where that has no more) or a share. ``hidden`` and
    ``intermediate`` as in :class:`Compact`. Put it into a stage whose task is ``dual``: there the
    teacher reads a share ``mix`` of the words in the student's pieces, for which it learns vectors
    of their own, and ``projection`` (``none``, ``down`` or ``up``) of ``weight`` ties the weights
    of both. The paper learns the pieces from its corpus; these can be chosen without chance.
    Source: Zhao et al. 2019, arXiv:1909.11687, sections 3 and 4.
    """

    name: ClassVar[str] = "small_vocabulary"
    needs_task: ClassVar[str | None] = "dual"
    vocabulary: Size = 4928
    hidden: Size = 0.25
    intermediate: Size = 0.25
    projection: Literal["none", "down", "up"] = "none"
    mix: Ratio = 0.5
    weight: NotNegative = 1.0

    def check(self, stage) -> None:
        super().check(stage)
        if stage.task != "dual" or stage.objective:
            own = f"stage {stage.name!r}: small_vocabulary learns by a loss of its own"
            raise ValueError(f"{own}: write `task: dual`, and no objective")

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        return Compact(hidden=self.hidden, intermediate=self.intermediate).config(teacher)

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        data = needs(data, self.name)
        tokenizer = self.tokenizer(data)
        model = super().apply(model, data)
        torch.manual_seed(data.initial)
        table = nn.Embedding(len(tokenizer), model.config.hidden_size, tokenizer.pad_token_id)
        nn.init.normal_(table.weight, std=model.config.initializer_range)
        model.set_input_embeddings(table.to(model.device))
        model.config.vocab_size = len(tokenizer)
        model.config.pad_token_id = tokenizer.pad_token_id
        return model

    def count(self, full: int) -> int:
        """How many tokens the student has where its teacher has ``full``."""
        if self.vocabulary >= full:
            return round(0.4 * full)
        return count_of(self.vocabulary, full, "tokens")

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        count = self.count(model.config.vocab_size)
        model = super().plan(model)
        model.set_input_embeddings(nn.Embedding(count, model.config.hidden_size, device="meta"))
        model.config.vocab_size = count
        return model

    def tokenizer(self, data: Calibration) -> PreTrainedTokenizerBase:
        """The student's tokenizer."""
        keep = self.count(len(data.tokenizer)) / len(data.tokenizer)
        ids = vocabulary.tokens_to_keep(data.tokenizer, data.token_counts(), keep)
        return vocabulary.cut_tokenizer(data.tokenizer, ids)

    def reads(self, model, tokenizer, data):
        """No teacher: what it reads is not what the student does."""
        return None, self.tokenizer(data)
