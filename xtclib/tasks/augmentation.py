"""More rows for a task, made of its own: words exchanged for others that fit there."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
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
    for row, label in list(kept):
        copies = {row: None}  # an ordered set
        for copy in range(how.copies):
            side = copy % len(columns)
            new = _exchanged(row[side], found[row[side]], how.probability, random)
            copies[(*row[:side], new, *row[side + 1 :])] = None
        kept += [(each, label) for each in list(copies)[1:]]
    first, *second = ([row[side] for row, _ in kept] for side in range(len(columns)))
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
    words = {  # tokens that are whole words of letters
        i: word
        for word, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if word.isalpha() and len(word) > 1 and word not in FUNCTION_WORDS
    }
    near, names = _neighbours(model, words, count), list(words.values())
    guesses = not getattr(model, "fresh_head", False)
    found, waiting = {}, []
    for text in texts:
        encoded = tokenizer(text, truncation=True, max_length=64, return_offsets_mapping=True)
        spans, places = encoded["offset_mapping"], list[list]()
        groups = itertools.groupby(enumerate(encoded.word_ids()), key=lambda pair: pair[1])
        for tokens in ([token for token, _ in group] for i, group in groups if i is not None):
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
        for (place, word, _, _), row in zip(batch, best, strict=True):
            place[2] = [names[i] for i in row if names[i] != word][:count]
        bar.update(len(batch))
    return {text: [tuple(place) for place in places] for text, places in found.items()}


@torch.inference_mode()
def _masked(model, tokenizer, places: list[tuple[list[int], int]]) -> Tensor:
    """Logits over the vocabulary, (places, vocabulary), of one masked token in each row."""
    mask = tokenizer.mask_token_id
    rows = [{"input_ids": [*ids[:place], mask, *ids[place + 1 :]]} for ids, place in places]
    inputs = {k: v.to(model.device) for k, v in tokenizer.pad(rows, return_tensors="pt").items()}
    hidden = model.eval().base_model(**inputs).last_hidden_state
    at = torch.tensor([place for _, place in places], device=hidden.device)
    return model.cls(hidden[torch.arange(len(rows), device=hidden.device), at]).float().cpu()


def _neighbours(model: PreTrainedModel, words: dict[int, str], count: int) -> Callable:
    """From some tokens to the words nearest to their mean vector, by cosine."""
    table, names = model.get_input_embeddings().weight.detach().float().cpu(), list(words.values())
    vectors = F.normalize(table[list(words)], dim=-1)

    @functools.cache
    def near(ids: tuple[int, ...]) -> list[str]:
        vector = F.normalize(table[list(ids)].mean(0), dim=-1)
        best = (vectors @ vector).topk(min(count + 1, len(names))).indices.tolist()
        return [names[i] for i in best]

    return near


def write_rows(rows: Split, path: Path) -> None:
    """Writes rows as JSON."""
    write_json(path, asdict(rows))


def read_rows(path: Path) -> Split:
    """Reads rows that :func:`save` wrote."""
    return Split(**json.loads(path.read_text(encoding="utf-8")))
