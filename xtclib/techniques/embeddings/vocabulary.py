"""A smaller vocabulary: tokens of a tokenizer and rows of a word table, removed together."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xtclib.techniques.base import table_of

_STRAY = 1e-3  # of the tokens with letters: a script below that is a name or a sign here and there


def tokens_to_keep(
    tokenizer: PreTrainedTokenizerBase,
    counts: np.ndarray,
    keep: float | None,
    scripts: bool = False,
) -> list[int]:
    """Rising ids of the tokens that stay; ``counts`` (vocabulary,) says how often each occurs.

    ``keep`` is their share; ``None`` keeps what occurs at all. First come the special tokens, then
    the single characters of tokens that occur, so that every word can still be spelled, then the
    most frequent, then those with the lowest ids. A token of BPE brings those that it is merged
    from. ``scripts``: what does not occur goes last, unless all its letters are of scripts that are
    in use (:func:`scripts_in_use`), or it has none; ``None`` keeps that too. Raises ``ValueError``
    where ``keep`` leaves too few for the special tokens or for the characters, or of a script in
    use nothing but single characters.
    """
    size = len(tokenizer)
    special = set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(list(range(size)))
    alphabet = {c for i in np.flatnonzero(counts) if i not in special for c in pieces[i]}
    merges, unknown = _merges(tokenizer)
    if merges and unknown is None:  # its characters are bytes: without one, text would vanish
        alphabet = {p for p in pieces if len(p) == 1}
    spells = [len(p.removeprefix("##")) == 1 and p[-1] in alphabet for p in pieces]
    kind = np.array([0 if i in special else 1 if spells[i] else 2 for i in range(size)])
    written = [scripts_of(text) for text in _texts(tokenizer, pieces)] if scripts else []
    used = scripts_in_use(written, counts)
    reads = np.array([scripts and written[i] <= used for i in range(size)])
    ordered = np.lexsort((np.arange(size), ~reads, -counts, kind))
    if keep is None:
        count = int(((kind < 2) | (counts > 0) | reads).sum())
    else:
        count = round(keep * size)
        keeping = f"keeping {count} of {size} tokens"
        if count < len(special):
            stay = f"{len(special)} of them ({', '.join(tokenizer.all_special_tokens)})"
            raise ValueError(f"{keeping} drops special tokens: {stay} have to stay, keep more")
        if count < (kind < 2).sum():
            least = f"special tokens and the characters in use are {(kind < 2).sum()}"
            raise ValueError(f"{keeping} leaves words that cannot be spelled: {least}, keep more")
    ids, kept = {piece: i for i, piece in enumerate(pieces)}, set[int]()
    for i in (ordered if merges and keep is not None else ordered[:count]).tolist():
        made = _made_of(pieces[i], merges) if merges and i not in special else ()
        wanted = {i, *(ids[part] for part in made)} - kept
        if keep is None or len(kept) + len(wanted) <= count:
            kept |= wanted
    for script in sorted(used):
        own = {i for i in np.flatnonzero(kind == 2).tolist() if script in written[i]}
        if own and not own & kept:
            only = f"keeping {len(kept)} of {size} tokens leaves the texts' {script.capitalize()}"
            raise ValueError(f"{only} nothing but single characters: keep more")
    return sorted(kept)


def scripts_of(text: str) -> set[str]:
    """The writing systems of a text's letters and their marks, by the names that Unicode has.

    >>> sorted(scripts_of("Ångström 3, κόσμε")), scripts_of("42!")
    (['GREEK', 'LATIN'], set())
    """
    letters = {c for c in text if unicodedata.category(c)[0] in "LM"}
    first = {unicodedata.name(c, "").partition(" ")[0] for c in letters}
    return first - {"", "COMBINING", "MODIFIER", "VARIATION", "FEMININE", "MASCULINE", "MICRO"}


def scripts_in_use(written: Sequence[set[str]], counts: np.ndarray) -> set[str]:
    """Those of at least a thousandth of all tokens with letters; ``written``: each token's.

    >>> sorted(scripts_in_use([{"LATIN"}, {"GREEK"}, {"THAI"}], np.array([5000, 50, 1])))
    ['GREEK', 'LATIN']
    """
    often: Counter[str] = Counter()
    for scripts, times in zip(written, counts, strict=False):
        often.update(dict.fromkeys(scripts, int(times)))
    return {script for script, n in often.items() if n and n >= _STRAY * sum(often.values())}


def _texts(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> list[str]:
    """What each token says; bytes that are no whole character are a sign of no script."""
    decoder = tokenizer.backend_tokenizer.decoder if tokenizer.is_fast else None
    return [decoder.decode([piece]) if decoder else piece for piece in pieces]


def _merges(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[tuple[str, str], int], str | None]:
    """The pairs that a BPE merges, with their ranks, and its token for what is unknown to it.

    No pairs for another kind of tokenizer.
    """
    held = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    model = held.get("model") or {}
    pairs = {(a, b): rank for rank, (a, b) in enumerate(model.get("merges") or ())}
    return pairs, model.get("unk_token")


def _made_of(token: str, merges: Mapping[tuple[str, str], int]) -> set[str]:
    """All that BPE makes on its way to a token, which it does in the same order in any word.

    >>> sorted(_made_of("abab", {("a", "b"): 0, ("ab", "ab"): 1, ("b", "a"): 2}))
    ['ab', 'abab']
    """
    parts, made = list(token), set[str]()
    while known := [pair for pair in pairwise(parts) if pair in merges]:
        at = list(pairwise(parts)).index(min(known, key=merges.__getitem__))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        made.add(parts[at])
    return made


def cut_tokenizer(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]
) -> PreTrainedTokenizerFast:
    """A tokenizer with only these tokens, numbered from 0 in their old order.

    A word whose token went is spelled in smaller pieces. Raises ``ValueError`` if a special token
    would go, ``TypeError`` for a kind of tokenizer that is not known here.
    """
    dropped = sorted(set(tokenizer.all_special_ids) - set(ids))
    if dropped:
        lost = tokenizer.convert_ids_to_tokens(dropped)
        raise ValueError(f"the cut drops the special tokens {lost}, which models need: keep them")
    held = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    processors = _processors(held.get("post_processor"))
    ends, model = [each["type"] for each in processors], held.get("model") or {}
    kind, marks = model.get("type"), ("continuing_subword_prefix", "end_of_word_suffix")
    marked = kind == "BPE" and any(model.get(mark) for mark in marks)
    if kind not in _KINDS or marked or set(ends) - {*_ENDS}:
        found = f"the vocabulary of {type(tokenizer).__name__} ({kind}, {', '.join(ends)})"
        known = "a fast WordPiece, Unigram or BPE tokenizer, as BERT's, XLM-R's or RoBERTa's"
        raise TypeError(f"{found} cannot be cut: expected {known}")
    number = {old: new for new, old in enumerate(ids)}
    if kind == "Unigram":  # words with their scores, by number
        model["vocab"] = [word for i, word in enumerate(model["vocab"]) if i in number]
        model["unk_id"] = number.get(model["unk_id"])
    else:
        model["vocab"] = {w: number[i] for w, i in model["vocab"].items() if i in number}
    if kind == "BPE":
        words = model["vocab"]
        model["merges"] = [
            [a, b] for a, b in model["merges"] if a in words and b in words and a + b in words
        ]
    added = [token for token in held["added_tokens"] if token["id"] in number]
    held["added_tokens"] = [{**token, "id": number[token["id"]]} for token in added]
    for each in processors:
        for token in (each.get("special_tokens") or {}).values():
            token["ids"] = [number[i] for i in token["ids"]]
        for name in ("cls", "sep"):  # RoBERTa's, a token and its number
            if name in each:
                each[name][1] = number[each[name][1]]
    kept = "model_max_length", "model_input_names", "padding_side", "truncation_side"
    given = {name: getattr(tokenizer, name) for name in kept} | tokenizer.special_tokens_map
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(held)), **given)


_KINDS = "WordPiece", "WordLevel", "Unigram", "BPE"
_ENDS = "TemplateProcessing", "RobertaProcessing", "BertProcessing", "ByteLevel"


def _processors(found: dict | None) -> list[dict]:
    """What a tokenizer does to tokens after all else, one by one."""
    if found and found["type"] == "Sequence":
        return [each for part in found["processors"] for each in _processors(part)]
    return [found] if found else []


def keep_rows_(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Leaves the word embeddings these rows, in place, and says so in the config.

    Raises ``ValueError`` where the padding token, from which RoBERTa's kin number their positions,
    would get another number.
    """
    table = model.get_input_embeddings()
    kept = table.weight.detach()[torch.as_tensor(list(ids), device=table.weight.device)].clone()
    padding = model.config.pad_token_id
    padding = list(ids).index(padding) if padding in ids else None
    counts = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    if counts is not None and padding != model.config.pad_token_id:
        moved = f"the padding token would be {padding} instead of {model.config.pad_token_id}"
        raise ValueError(f"{moved}, from which {type(model).__name__} numbers its positions: "
                         "keep the tokens before it")  # fmt: skip
    new = table_of(nn.Parameter(kept, table.weight.requires_grad), padding)
    model.set_input_embeddings(new.train(table.training))
    model.config.vocab_size, model.config.pad_token_id = len(ids), padding
