"""Masked language modelling: the words of any text, guessed from those around them.

Fifteen of a hundred tokens are to be guessed; of these 80 % are shown as [MASK], 10 % as another
token and 10 % as they are (Devlin et al. 2019, arXiv:1810.04805, section 3.1).
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from xtclib.bert import read_config
from xtclib.files import first_line
from xtclib.tasks.base import Task, TaskData
from xtclib.tasks.rows import Rows, Split

IGNORED = -100  # the label of a token that is not guessed


@dataclass(frozen=True)
class MaskedWords(Task):
    """A ``share`` of the tokens of a text is to be guessed; its labels are its own words.

    The tokens ``always`` are guessed wherever they stand: then the loss is the mean over these plus
    ``others`` times the mean over the rest, among which a label word, one token of twenty, would
    hardly be heard.
    """

    name, title, primary = "mlm", "masked words", "accuracy"
    model_class = AutoModelForMaskedLM
    share: float = 0.15
    always: tuple[int, ...] = ()
    others: float = 1.0

    def data(self, texts: Sequence[str], held_out: Sequence[str] = ()) -> TaskData:
        """Texts to train on, and some kept apart to judge by; ``ValueError`` if there are none.

        >>> len(MaskedWords().data(["One text.", "Another."]).train)
        2
        """
        if not texts:
            raise ValueError("nothing to train on: received no texts")
        train, apart = (Split(list(rows), None, list(rows)) for rows in (texts, held_out))
        return TaskData(self, train, {"held out": apart} if held_out else {}, "texts", "held out")

    def load_model(self, path: str | Path, seed: int = 0, **options: Any) -> PreTrainedModel:
        """A masked language model from a folder or Hub id.

        A checkpoint without that head, such as a sentence encoder or a classifier, gets a fresh one
        whose output layer is the word embeddings; ``fresh_head`` says so. Raises ``TypeError`` for
        models without BERT's head.
        """
        read_config(path)  # or an error, before anything is built
        torch.manual_seed(seed)
        before = logging.get_verbosity()
        logging.set_verbosity_error()  # that the head is new is expected here
        try:
            model, about = self.model_class.from_pretrained(
                path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True,
                output_loading_info=True, **options,
            )  # fmt: skip
        except OSError as error:
            raise FileNotFoundError(
                f"no model at {str(path)!r}: expected a folder with a model, or the id of one on "
                f"the Hub if it can be reached ({first_line(error)})"
            ) from None
        finally:
            logging.set_verbosity(before)
        if not hasattr(model, "cls"):
            kind = type(model).__name__
            raise TypeError(f"{kind} has no head at `cls`: expected BERT's masked language model")
        new = "cls.predictions.transform"
        model.fresh_head = any(new in name for name in about["missing_keys"])
        return model

    def tokenize(self, split: Split, tokenizer: Tokenizer, max_length: int) -> Rows:
        """Documents as token ids: the first sentence is segment A, the rest segment B."""
        ids, types = [], []
        for text in split.first:
            parts = re.split(r"(?<=[.?!])\s+", text, maxsplit=1)
            found = tokenizer(*parts, truncation=True, max_length=max_length)
            ids.append(found["input_ids"])
            types.append(found.get("token_type_ids") or [0] * len(ids[-1]))
        return Rows(ids, types, [0] * len(ids))

    def collate(self, rows: list[dict], tokenizer: Tokenizer, draw: int = 0) -> dict[str, Any]:
        """A padded batch whose ``labels`` are the tokens to guess, and elsewhere ``IGNORED``."""
        batch = super().collate(rows, tokenizer)
        ids, random = batch["input_ids"], torch.Generator().manual_seed(draw)
        special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
        guessed = (torch.rand(ids.shape, generator=random) < self.share) & ~special
        guessed |= torch.isin(ids, torch.tensor(self.always, dtype=ids.dtype))
        if not guessed.any():  # no batch is without a word, or its loss would be of nothing
            guessed[0, min(1, ids.shape[1] - 1)] = True
        batch["input_ids"], batch["labels"] = hidden(ids, tokenizer, guessed, random)
        return batch

    def answering(self, model: PreTrainedModel, labels: Tensor) -> AbstractContextManager:
        """The head reads the tokens to guess alone: over a whole vocabulary that is faster."""
        head = getattr(getattr(model, "module", model), "cls", None)
        if head is None:  # a student that is compared by its layers alone
            return nullcontext()
        chosen = labels != IGNORED
        return head.register_forward_pre_hook(lambda _, given: (given[0][chosen],))

    def answers(self, output, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits(output, mask), labels[labels != IGNORED]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels, reduction="none")
        first = torch.isin(labels, labels.new_tensor(self.always))
        if not first.any() or first.all():
            return loss.mean()
        return loss[first].mean() + self.others * loss[~first].mean()

    def decide(self, logits: np.ndarray, batch: dict[str, Tensor]) -> list[np.ndarray]:
        """For each row, of each token that it hides: whether it is guessed, and its loss."""
        guessed = batch["labels"] != IGNORED
        labels, logits = batch["labels"][guessed], torch.from_numpy(logits)
        loss = F.cross_entropy(logits, labels, reduction="none")
        found = torch.stack([(logits.argmax(-1) == labels).float(), loss], 1)
        return [row.numpy() for row in found.split(guessed.sum(1).tolist())]

    def score(self, answers: Sequence[np.ndarray], references: Sequence) -> dict[str, float]:
        """The share of the hidden tokens that are guessed, in percent, and the perplexity."""
        right, loss = np.concatenate(answers).astype(float).mean(0).tolist()
        return {"accuracy": 100 * right, "perplexity": math.exp(min(loss, 700)),
                "score": 100 * right}  # fmt: skip

    def majority(self, split: Split, train: Split | None = None) -> dict[str, float]:
        raise NotImplementedError("masked words have no answer that is right most often")

    def check(self, objective, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        # Their labels are words; what a classifier's labels are called says nothing here.
        objective.check(student.base_model, teacher.base_model, answers=False)
        if objective.logits and getattr(teacher, "fresh_head", False):
            why = "logits of the mlm task come from the head of the backbone, which has none"
            raise ValueError(f"{why}: leave `logits` out of this stage")


MASKED = MaskedWords()


def hidden(ids: Tensor, tokenizer: Tokenizer, guessed: Tensor, random: torch.Generator
           ) -> tuple[Tensor, Tensor]:  # fmt: skip
    """ids (batch, length) → (what the model sees, what it has to guess), of the same shape.

    ``guessed`` says where; everywhere else a label is ``IGNORED``.
    """
    masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=1.0)
    masking.generator = random  # a resumed run draws for a batch what an uninterrupted one does
    return masking.torch_mask_tokens(ids.clone(), special_tokens_mask=~guessed)


def under_head(model: PreTrainedModel, path: str | Path, seed: int = 0) -> PreTrainedModel:
    """A masked language model around a classifier's own encoder, which it goes on sharing.

    The head is that of the checkpoint at ``path`` where it fits, else a fresh one; it is tied to
    the word embeddings. Raises ``ValueError`` where these are not as wide as the encoder.
    """
    found = MASKED.load_model(path, seed)
    table, wanted = model.get_input_embeddings().weight, found.get_input_embeddings().weight
    if table.shape != wanted.shape:  # another width or vocabulary
        if table.shape[1] != model.config.hidden_size:
            raise ValueError(
                f"a word table {table.shape[1]} wide cannot guess words for an encoder of "
                f"{model.config.hidden_size}: give the mlm stage an objective without labels and "
                "logits"
            )
        config = copy.deepcopy(found.config)
        config.vocab_size, config.hidden_size = table.shape
        torch.manual_seed(seed)
        found.cls, found.fresh_head = type(found.cls)(config), True
        for part in found.cls.modules():
            found._init_weights(part)
    setattr(found, found.base_model_prefix, model.base_model)
    found.config = model.base_model.config  # by which its attention is chosen
    found.cls.predictions.decoder.weight = table
    return found


def split_texts(texts: Sequence[str], share: float = 0.05, seed: int = 0) -> tuple[list, list]:
    """Texts to train on, and a share kept apart to judge by: at least one, at most 1000.

    >>> train, held_out = split_texts(["a", "b", "c"])
    >>> len(train), len(held_out)
    (2, 1)
    """
    if len(texts) < 2:
        raise ValueError(f"received {len(texts)} texts, expected two or more: one to judge by")
    order = np.random.default_rng(seed).permutation(len(texts)).tolist()
    count = min(max(round(share * len(texts)), 1), 1000)
    return [texts[i] for i in order[count:]], [texts[i] for i in order[:count]]


def unlabelled(source: str | os.PathLike[str]) -> list[str]:
    """The texts of a .txt file, or of all .txt files below a folder: one a line, blanks left out.

    Raises `FileNotFoundError` where there is no such file, `ValueError` where there is no text.

    >>> import tempfile
    >>> from xtclib.files import write_text
    >>> unlabelled(write_text(tempfile.mkdtemp() + "/a.txt", "One line.\\n\\nAnother.\\n"))
    ['One line.', 'Another.']
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(
            f"received '{source}', which does not exist; expected a .txt file or a folder of them"
        )
    files = sorted(f for f in source.rglob("*.txt") if f.is_file()) if source.is_dir() else [source]
    if not files:
        raise FileNotFoundError(f"received the folder '{source}', expected .txt files in it")
    if files[0].suffix != ".txt":
        raise ValueError(f"received '{source.name}', expected a .txt file: save it as plain text")
    texts = []
    for file in files:
        try:
            lines = file.read_bytes().decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            at = f"'{file.name}' is not UTF-8 at offset {error.start}"
            raise ValueError(f"{at}: save it as UTF-8") from None
        texts += [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ValueError(f"received '{source}', which holds only blank lines; expected text")
    return texts
