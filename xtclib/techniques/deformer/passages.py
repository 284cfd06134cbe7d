"""Passages read once: what the lower layers made of them, on disk, and answers that start there."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib.bert import encoder_layers, logits_of, longest, set_encoder_layers_
from xtclib.cache import digest, key, opened
from xtclib.config import short
from xtclib.files import cut, write_bytes, write_json
from xtclib.tasks.questions import QUESTION, Questions, Span
from xtclib.tasks.rows import collate
from xtclib.techniques.deformer.segments import int8

_ABOUT, _SUM = "cache.json", "sha256"


class PassageCache:
    """The passages that a DeFormer model has read, in a folder, one file for each.

    ``add`` reads passages and gives their ids; ``logits`` and ``answer`` read a question and take
    the passage from here. States are stored as the model's technique says; the folder belongs to
    one model and one tokenizer, and several processes may use it at once. Raises ``ValueError`` for
    a model whose layers all read both texts, and for a folder of another model or tokenizer.
    """

    def __init__(self, folder: str | Path, model: PreTrainedModel,
                 tokenizer: PreTrainedTokenizerBase) -> None:  # fmt: skip
        segments = getattr(model.config, "segments", None) or {}
        if not segments.get("layers"):
            whole = f"all layers of this {type(model).__name__} read both texts"
            raise ValueError(f"{whole}, so nothing can be kept: apply deformer first")
        self.folder, self.tokenizer, self.kind = Path(folder), tokenizer, segments["states"]
        self.lower, self.upper = _halves(model, segments["layers"])
        weights = [digest(tensor) for _, tensor in sorted(self.lower.state_dict().items())]
        about = {"model": key(*weights, segments), "tokenizer": key(tokenizer.get_vocab()),
                 "states": self.kind, "width": model.config.hidden_size}  # fmt: skip
        self._check(about)

    def _check(self, about: dict) -> None:
        path = self.folder / _ABOUT
        if not path.is_file():
            write_json(path, about)
            return
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            held = None
        if not isinstance(held, dict):
            raise ValueError(f"{path} cannot be read: delete the folder, and add its passages anew")
        for name, value in about.items():
            if held.get(name) != value:
                other = f"{self.folder} holds passages of another {name}"
                was = f"({short(held.get(name))}, this is {short(value)})"
                raise ValueError(f"{other} {was}: name another folder, or delete this one")

    def add(self, passages: str | Sequence[str], batch_size: int = 16) -> list[str]:
        """Reads passages that are not here yet; the id of each, which its text decides.

        Raises ``ValueError`` for an empty one, and for one that is longer than the model reads.
        """
        texts = [passages] if isinstance(passages, str) else list(passages)
        ids = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
        todo = {i: t for i, t in zip(ids, texts, strict=True) if not self._holds(i)}
        waiting = [(i, t, *self._tokens(t)) for i, t in todo.items()]
        waiting.sort(key=lambda each: len(each[2]))
        for start in range(0, len(waiting), batch_size):
            some = waiting[start : start + batch_size]
            states = self._read([tokens for _, _, tokens, _ in some], segment=1)
            for (id_, text, tokens, letters), row in zip(some, states, strict=True):
                self._write(id_, text, row[: len(tokens)], letters)
        return ids

    def _tokens(self, text: str) -> tuple[list[int], np.ndarray]:
        """A passage's tokens with the last separator, and the letters of each, -1 where none."""
        if not text.strip():
            raise ValueError(f"received the passage {short(text)}, expected a text")
        # As the second of a pair: some tokenizers put a space before it, or none.
        out = self.tokenizer("", text, return_offsets_mapping=True, return_token_type_ids=True,
                             verbose=False)  # fmt: skip
        own = [i for i, t in enumerate(out["token_type_ids"]) if t == 1]
        most = longest(self.lower)
        if most and len(own) > most:
            raise ValueError(
                f"the passage {cut(text, 40)!r} has {len(own)} tokens, and the model has {most} "
                "positions: cut it into shorter ones"
            )
        inside = [part == 1 for part in out.sequence_ids()]
        letters = [out["offset_mapping"][i] if inside[i] else (-1, -1) for i in own]
        return [out["input_ids"][i] for i in own], np.array(letters, dtype=np.int32)

    @torch.inference_mode()
    def _read(self, rows: Sequence[Sequence[int]], segment: int) -> list[Tensor]:
        """What the lower layers make of rows of one segment: (tokens, width) each."""
        batch = collate([{"input_ids": row, "labels": 0} for row in rows],
                        self.tokenizer.pad_token_id)  # fmt: skip
        ids, mask = (batch[name].to(self.lower.device) for name in ("input_ids", "attention_mask"))
        types = torch.full_like(ids, segment)
        states = self.lower(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        return [row[: len(own)] for row, own in zip(states, rows, strict=True)]

    def _path(self, id_: str) -> Path:
        return self.folder / f"{id_}.safetensors"

    def _write(self, id_: str, text: str, states: Tensor, letters: np.ndarray) -> None:
        tensors = {"letters": torch.from_numpy(letters)}
        if self.kind == "int8":
            codes, scale = int8(states)
            tensors |= {"states": codes.to(torch.int8), "scale": scale}
        else:
            tensors["states"] = states.half() if self.kind == "fp16" else states.float()
        tensors = {name: each.cpu().contiguous() for name, each in tensors.items()}
        sums = key(*(digest(each) for _, each in sorted(tensors.items())), text)
        write_bytes(self._path(id_), save(tensors, {"text": text, _SUM: sums}))

    def _holds(self, id_: str) -> bool:
        try:
            self._open(id_)
        except (KeyError, ValueError):
            return False  # a damaged one is written anew
        return True

    def __contains__(self, id_: str) -> bool:
        return self._path(id_).is_file()

    def _open(self, id_: str) -> tuple[Tensor, np.ndarray, str]:
        """A passage's states (tokens, width) in fp32, its tokens' letters, and its text."""
        path = self._path(id_)
        if not path.is_file():
            raise KeyError(f"no passage {short(id_)} in {self.folder}: `add` gives the ids")
        with opened(path) as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        sums = key(*(digest(each) for _, each in sorted(held.items())), metadata.get("text", ""))
        if metadata.get(_SUM) != sums:
            raise ValueError(f"{path} is not what was written: add its passage again")
        states = held["states"].float()
        states = states * held["scale"] if "scale" in held else states
        return states, held["letters"].numpy(), metadata["text"]

    @property
    def bytes(self) -> int:
        """Bytes on disk of all passages."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.safetensors"))

    @torch.inference_mode()
    def logits(self, first: Sequence[str], ids: Sequence[str]) -> Tensor:
        """What the model says of first texts on passages: (batch, classes) or (batch, length, 2).

        A first text of more than ``QUESTION`` tokens is cut, as :class:`.Questions` cuts it.
        """
        return self._join(first, [self._open(id_)[0] for id_ in ids])

    def _join(self, first: Sequence[str], passages: Sequence[Tensor]) -> Tensor:
        """The upper layers' answer to first texts and passages, each side padded at its end."""
        rows = self.tokenizer(list(first), truncation=True, max_length=QUESTION + 2)["input_ids"]
        own = self._read(rows, segment=0)
        sides = [own, [row.to(own[0].device) for row in passages]]
        states = [pad_sequence(side, batch_first=True) for side in sides]
        real = [pad_sequence([row.new_ones(len(row)) for row in side], True) for side in sides]
        mask = torch.cat(real, 1).long()
        return logits_of(self.upper(inputs_embeds=torch.cat(states, 1), attention_mask=mask))

    @torch.inference_mode()
    def answer(self, question: str, id_: str, threshold: float | None = None) -> str:
        """The span of a passage that answers a question.

        ``threshold``: by how much no answer has to beat the best span; there is always an answer
        unless it is told. Raises ``TypeError`` for a model without scores of both ends.
        """
        states, letters, text = self._open(id_)
        found = self._join([question], [states])
        if found.dim() != 3:
            classes = f"{type(self.upper).__name__} gives classes"
            raise TypeError(f"{classes}: take `logits`, or a model that answers questions")
        label = np.full((found.shape[1], 4), -1)
        label[-len(letters) :, 1:3] = letters
        window = Questions().window(found[0].float().cpu().numpy(), label)
        best = max(window.spans, default=Span(-np.inf, 0, 0))
        empty = threshold is not None and window.none - best.score > threshold
        return "" if empty else text[best.begin : best.end]


class _Given(nn.Module):
    """In the place of embeddings: states that were computed before."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


def _halves(model: PreTrainedModel, layers: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The encoder's lower layers, and the model from there on; both share the model's weights."""
    lower, upper = _shared(model.base_model), _shared(model)
    set_encoder_layers_(lower, encoder_layers(lower)[:layers])
    if getattr(lower, "pooler", None) is not None:
        lower.pooler = None
    set_encoder_layers_(upper, encoder_layers(upper)[layers:])
    base = upper.base_model
    base.embeddings = _Given()
    if hasattr(base, "embeddings_project"):  # ELECTRA's, of which the lower half has its own
        del base.embeddings_project
    return lower.eval(), upper.eval()


def _shared(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with the same weights, not copies of them, that reads no segments apart."""
    tensors = [*model.parameters(), *model.buffers()]
    found = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for module in (found, found.base_model, *encoder_layers(found)):
        module._forward_pre_hooks.clear()
        module._forward_pre_hooks_with_kwargs.clear()
    return found
