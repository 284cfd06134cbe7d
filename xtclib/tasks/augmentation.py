"""More rows for a task, made of its own: words exchanged for others that fit there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib.config import Count, Share, config
from xtclib.files import write_json
from xtclib.tasks.rows import Split

# Words that carry the sentence's form: exchanging them breaks it more often than not.
FUNCTION_WORDS = frozenset(
    "a an and are as at be been but by did do does for from had has have he her him his i if in is "
    "it its me my no nor not of on or our she so than that the their them then they this to was we "
    "were what when where which who whom why will with you your".split()
)


@config
class Augmentation:
    """How training rows are multiplied: ``copies`` of each beside itself.

    In a copy every content word is exchanged with ``probability``, for one of ``candidates`` that
    the masked language model would put there, if the word is one token, else for one of its nearest
    words by the encoder's word vectors. Of a pair one sentence changes, the other stays, in turns.
    The label is kept. Source: TinyBERT, arXiv:1909.10351, algorithm 1, with GloVe replaced.
    """

    copies: Count = 10
    probability: Share = 0.4
    candidates: Count = 15


def augment(rows: Split, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel,
            how: Augmentation, seed: int = 0, progress: bool = True) -> Split:  # fmt: skip
    """The rows followed by their copies; those that came out as they went in are left out.

    ``model`` is a masked language model; one whose head is fresh has nothing to say of words, so
    that its word vectors choose all of them. ``tokenizer`` must be a fast one.
    """
    texts = list(dict.fromkeys([*rows.first, *(rows.second or ())]))
    found = candidates(texts, tokenizer, model, how.candidates, progress)
    random = np.random.default_rng(seed)
    columns = [rows.first, rows.second] if rows.second else [rows.first]
    kept = list(zip(zip(*columns, strict=True), rows.labels, strict=True))
    for texts, label in list(kept):
        copies = {texts: None}  # an ordered set
        for copy in range(how.copies):
            side = copy % len(columns)
            new = _exchanged(texts[side], found[texts[side]], how.probability, random)
            copies[(*texts[:side], new, *texts[side + 1 :])] = None
        kept += [(each, label) for each in list(copies)[1:]]
    first, *second = ([texts[side] for texts, _ in kept] for side in range(len(columns)))
    return Split(first, second[0] if second else None, [label for _, label in kept])


def _exchanged(text: str, words: list, probability: float, random: np.random.Generator) -> str:
    for start, end, others in reversed(words):  # from the end, so that positions stay right
        if others and random.random() < probability:
            text = text[:start] + others[random.integers(len(others))] + text[end:]
    return text


def candidates(texts: list[str], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel,
               count: int, progress: bool = True,
               ) -> dict[str, list[tuple[int, int, list[str]]]]:  # fmt: skip
    """For each text its content words as (start, end, words that may stand there)."""
    words = _words(tokenizer)
    near = _Neighbours(model, words, count)
    guesses = not getattr(model, "fresh_head", False)
    found, waiting = {}, []
    for text in texts:
        encoded = tokenizer(text, truncation=True, max_length=64, return_offsets_mapping=True)
        places = []
        for tokens in _whole_words(encoded.word_ids()):
            spans = encoded["offset_mapping"]
            start, end = spans[tokens[0]][0], spans[tokens[-1]][1]
            word = text[start:end].lower()
            if not word.isalpha() or word in FUNCTION_WORDS:
                continue
            places.append([start, end, []])
            if guesses and len(tokens) == 1:
                waiting.append((places[-1], word, encoded["input_ids"], tokens[0]))
            else:
                ids = tuple(encoded["input_ids"][i] for i in tokens)
                places[-1][2] = [w for w in near(ids) if w != word][:count]
        found[text] = places
    waiting.sort(key=lambda item: len(item[2]))
    bar = tqdm(total=len(waiting), desc="augmentation", disable=not progress, mininterval=5)
    for at in range(0, len(waiting), 256):
        batch = waiting[at : at + 256]
        logits = _masked(model, tokenizer, [(ids, place) for _, _, ids, place in batch])
        best = logits[:, list(words)].topk(min(count + 1, len(words))).indices.tolist()
        names = list(words.values())
        for (place, word, _, _), row in zip(batch, best, strict=True):
            place[2] = [names[i] for i in row if names[i] != word][:count]
        bar.update(len(batch))
    return {text: [tuple(place) for place in places] for text, places in found.items()}


def _words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Tokens that are whole words of letters."""
    return {
        i: word
        for word, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if word.isalpha() and len(word) > 1 and word not in FUNCTION_WORDS
    }


def _whole_words(word_ids: list[int | None]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for token, word in enumerate(word_ids):
        if word is not None:
            groups.setdefault(word, []).append(token)
    return list(groups.values())


@torch.inference_mode()
def _masked(model, tokenizer, places: list[tuple[list[int], int]]) -> Tensor:
    """Logits over the vocabulary, (places, vocabulary), of one masked token in each row."""
    mask = tokenizer.mask_token_id
    rows = [{"input_ids": [*ids[:place], mask, *ids[place + 1 :]]} for ids, place in places]
    inputs = {k: v.to(model.device) for k, v in tokenizer.pad(rows, return_tensors="pt").items()}
    hidden = model.eval().base_model(**inputs).last_hidden_state
    at = torch.tensor([place for _, place in places], device=hidden.device)
    return model.cls(hidden[torch.arange(len(rows), device=hidden.device), at]).float().cpu()


class _Neighbours:
    """The nearest words by cosine of word vectors, each looked up once."""

    def __init__(self, model: PreTrainedModel, words: dict[int, str], count: int) -> None:
        self.table = model.get_input_embeddings().weight.detach().float().cpu()
        self.ids, self.names, self.count = list(words), list(words.values()), count
        self.words = torch.nn.functional.normalize(self.table[self.ids], dim=-1)
        self._known: dict[tuple[int, ...], list[str]] = {}

    def __call__(self, ids: tuple[int, ...]) -> list[str]:
        """Words near the mean vector of some tokens."""
        if ids not in self._known:
            vector = torch.nn.functional.normalize(self.table[list(ids)].mean(0), dim=-1)
            best = (self.words @ vector).topk(min(self.count + 1, len(self.ids))).indices.tolist()
            self._known[ids] = [self.names[i] for i in best]
        return self._known[ids]


def save(rows: Split, path: Path) -> None:
    """Writes rows as JSON."""
    write_json(path, {"first": rows.first, "second": rows.second, "labels": list(rows.labels)})


def load(path: Path) -> Split:
    """Reads rows that :func:`save` wrote."""
    return Split(**json.loads(path.read_text(encoding="utf-8")))
