"""A smaller vocabulary: tokens of a tokenizer and rows of a word table, removed together."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast


def tokens_to_keep(
    tokenizer: PreTrainedTokenizerBase, counts: np.ndarray, keep: float | None
) -> list[int]:
    """Rising ids of the tokens that stay; ``counts`` (vocabulary,) says how often each occurs.

    ``keep`` is their share; ``None`` keeps what occurs at all. First come the special tokens, then
    the single characters of tokens that occur, so that every word can still be spelled, then the
    most frequent, then those with the lowest ids. Raises ``ValueError`` where ``keep`` leaves too
    few for the special tokens or for the characters.
    """
    size = len(tokenizer)
    special = set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(list(range(size)))
    alphabet = {c for i in np.flatnonzero(counts) if i not in special for c in pieces[i]}
    rank = np.lexsort((np.arange(size), -counts))
    spells = [len(p.removeprefix("##")) == 1 and p[-1] in alphabet for p in pieces]
    kind = np.array([0 if i in special else 1 if spells[i] else 2 for i in range(size)])
    ordered = rank[np.argsort(kind[rank], kind="stable")]
    if keep is None:
        count = int(((kind < 2) | (counts > 0)).sum())
    else:
        count = round(keep * size)
        keeping = f"keeping {count} of {size} tokens"
        if count < len(special):
            stay = f"{len(special)} of them ({', '.join(tokenizer.all_special_tokens)})"
            raise ValueError(f"{keeping} drops special tokens: {stay} have to stay, keep more")
        if count < (kind < 2).sum():
            used = f"special tokens and the characters in use are {(kind < 2).sum()}"
            raise ValueError(f"{keeping} leaves words that cannot be spelled: {used}, keep more")
    return sorted(ordered[:count].tolist())


def cut_tokenizer(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]
) -> PreTrainedTokenizerFast:
    """A tokenizer with only these tokens, numbered from 0 in their old order.

    A word whose token went is spelled in smaller pieces. Raises ``ValueError`` if a special token
    would go, ``TypeError`` for a tokenizer without a list of words (WordPiece has one).
    """
    dropped = sorted(set(tokenizer.all_special_ids) - set(ids))
    if dropped:
        lost = tokenizer.convert_ids_to_tokens(dropped)
        raise ValueError(f"the cut drops the special tokens {lost}, which models need: keep them")
    held = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    ends = (held.get("post_processor") or {}).get("type", "TemplateProcessing")
    kind = held.get("model", {}).get("type")
    if kind not in ("WordPiece", "WordLevel") or ends != "TemplateProcessing":
        found = f"the vocabulary of {type(tokenizer).__name__} ({kind}, {ends})"
        raise TypeError(f"{found} cannot be cut: expected a fast WordPiece tokenizer, as BERT's")
    words = held["model"]["vocab"]
    number = {old: new for new, old in enumerate(ids)}
    held["model"]["vocab"] = {w: number[i] for w, i in words.items() if i in number}
    added = [token for token in held["added_tokens"] if token["id"] in number]
    held["added_tokens"] = [{**token, "id": number[token["id"]]} for token in added]
    for token in ((held.get("post_processor") or {}).get("special_tokens") or {}).values():
        token["ids"] = [number[i] for i in token["ids"]]
    kept = "model_max_length", "model_input_names", "padding_side", "truncation_side"
    given = {name: getattr(tokenizer, name) for name in kept} | tokenizer.special_tokens_map
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(held)), **given)


def keep_rows_(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Leaves the word embeddings these rows, in place, and says so in the config."""
    table = model.get_input_embeddings()
    kept = table.weight.detach()[torch.as_tensor(list(ids), device=table.weight.device)].clone()
    padding = model.config.pad_token_id
    padding = list(ids).index(padding) if padding in ids else None
    new = nn.Embedding(len(ids), kept.shape[1], padding, device="meta")
    new.weight = nn.Parameter(kept, requires_grad=table.weight.requires_grad)
    model.set_input_embeddings(new.train(table.training))
    model.config.vocab_size, model.config.pad_token_id = len(ids), padding
