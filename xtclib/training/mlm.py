"""Masked language modelling: the `mlm` task, on any text (`glue.unlabelled` reads files).

Fifteen of a hundred tokens are to be guessed; of these 80 % are shown as [MASK], 10 % as another
token and 10 % as they are (Devlin et al. 2019).
"""

from __future__ import annotations

import copy
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.utils import logging

from xtclib import attention
from xtclib.distillation.objective import Objective, distillation_loss
from xtclib.distillation.terms import Reader, Signals, projections
from xtclib.files import write_bytes
from xtclib.techniques.base import Technique
from xtclib.training.callbacks import learn_in_turn_, only
from xtclib.training.trainer import prepare_teacher

IGNORED = -100  # the label of a token that is not guessed


def encode_texts(tokenizer, texts: list[str], max_length: int = 64) -> list[dict]:
    """Token ids of each document: its first sentence is segment A, the rest segment B."""
    encoded = []
    for text in texts:
        first, *rest = re.split(r"(?<=[.?!])\s+", text, maxsplit=1)
        encoded.append(tokenizer(first, *rest, truncation=True, max_length=max_length))
    return encoded


def mask_tokens(
    ids: Tensor,
    tokenizer,
    generator: torch.Generator | None = None,
    share: float = 0.15,
    always: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """ids [batch, length] → (what the model sees, what it has to guess), of the same shape.

    Special tokens are never guessed, the token ids in `always` always are. Everywhere else a
    label is `IGNORED`.
    """
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    chance = torch.rand(ids.shape, generator=generator)
    fate = torch.rand(ids.shape, generator=generator)
    other = torch.randint(len(tokenizer), ids.shape, generator=generator)
    guessed = (chance < share) & ~special | torch.isin(ids, torch.tensor(always, dtype=ids.dtype))
    seen = torch.where(guessed & (fate < 0.8), tokenizer.mask_token_id, ids)
    seen = torch.where(guessed & (fate >= 0.9), other, seen)
    return seen, torch.where(guessed, ids, IGNORED)


def masked_batches(
    encoded: list[dict],
    tokenizer,
    batch: int = 96,
    seed: int = 0,
    share: float = 0.15,
    always: Sequence[int] = (),
) -> Iterator[dict[str, Tensor]]:
    """Endless masked batches, padded to their longest member.

    Documents are shuffled anew in each pass and masked anew each time. Batches are cut from
    sorted stretches of 32 batches, so that little is padding.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(encoded), generator=generator).tolist()
        for start in range(0, len(order), 32 * batch):
            stretch = sorted(
                order[start : start + 32 * batch], key=lambda i: len(encoded[i]["input_ids"])
            )
            cuts = range(0, len(stretch), batch)
            for pick in torch.randperm(len(cuts), generator=generator).tolist():
                rows = [encoded[i] for i in stretch[cuts[pick] : cuts[pick] + batch]]
                inputs = dict(tokenizer.pad(rows, return_tensors="pt"))
                inputs["input_ids"], inputs["labels"] = mask_tokens(
                    inputs["input_ids"], tokenizer, generator, share, always
                )
                yield inputs


def load_masked_lm(path: str | Path, seed: int = 0) -> PreTrainedModel:
    """A masked language model from a folder or Hub id.

    A checkpoint without that head, such as a sentence encoder or a classifier, gets a fresh one
    whose output layer is the word embeddings. Raises ``TypeError`` for models without BERT's head.
    """
    torch.manual_seed(seed)
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is expected here
    try:
        model, about = AutoModelForMaskedLM.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True,
            output_loading_info=True,
        )  # fmt: skip
    except OSError as error:
        raise FileNotFoundError(
            f"no model at {str(path)!r}: expected a folder with a model, or the id of one on the "
            f"Hub if it can be reached ({str(error).splitlines()[0]})"
        ) from None
    finally:
        logging.set_verbosity(before)
    if not hasattr(model, "cls"):
        raise TypeError(
            f"{type(model).__name__} has no head at `cls`: expected BERT's masked language model"
        )
    model.fresh_head = any("cls.predictions.transform" in name for name in about["missing_keys"])
    return model


def under_head(model: PreTrainedModel, path: str | Path, seed: int = 0) -> PreTrainedModel:
    """A masked language model around a classifier's own encoder, which it goes on sharing.

    The head is that of the checkpoint at ``path`` where it fits, else a fresh one; it is tied to
    the word embeddings. Raises ``ValueError`` where these are not as wide as the encoder.
    """
    found = load_masked_lm(path, seed)
    table, wanted = model.get_input_embeddings().weight, found.get_input_embeddings().weight
    if table.shape != wanted.shape:  # another width or vocabulary
        if table.shape[1] != model.config.hidden_size:
            raise ValueError(
                f"the word table of this {type(model).__name__} is {table.shape[1]} wide and its "
                f"encoder {model.config.hidden_size}: it cannot guess words, give the mlm stage an "
                "objective without labels and logits"
            )
        config = copy.deepcopy(found.config)
        config.vocab_size, config.hidden_size = table.shape
        torch.manual_seed(seed)
        found.cls, found.fresh_head = type(found.cls)(config), True
        for part in found.cls.modules():
            found._init_weights(part)
    setattr(found, found.base_model_prefix, model.base_model)
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


@torch.inference_mode()
def evaluate_masked(
    model: PreTrainedModel, tokenizer, texts: list[str], seed: int = 0, max_length: int = 64
) -> dict[str, float]:
    """How well masked tokens are guessed: ``accuracy`` in percent, and ``perplexity``.

    The same seed masks the same tokens, so that models can be compared.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    encoded = encode_texts(tokenizer, texts, max_length)
    right, loss, count = 0, 0.0, 0
    for start in range(0, len(encoded), 64):
        inputs = dict(tokenizer.pad(encoded[start : start + 64], return_tensors="pt"))
        inputs["input_ids"], labels = mask_tokens(inputs["input_ids"], tokenizer, generator)
        guessed = (labels != IGNORED).to(device)
        inputs = {name: value.to(device) for name, value in inputs.items()}
        logits = model.cls(model.base_model(**inputs).last_hidden_state[guessed]).float()
        wanted = labels.to(device)[guessed]
        right += int((logits.argmax(-1) == wanted).sum())
        loss += float(cross_entropy(logits, wanted, reduction="sum"))
        count += len(wanted)
    model.train(was_training)
    if not count:
        raise ValueError(f"no token of {len(texts)} texts was masked: give longer or more texts")
    return {"accuracy": 100 * right / count, "perplexity": math.exp(min(loss / count, 700))}


def pretrain(
    model,
    tokenizer,
    texts: list[str],
    steps: int,
    batch: int = 96,
    lr: float = 1e-3,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    seed: int = 0,
    bf16: bool = True,
    max_length: int = 64,
    share: float = 0.15,
    always: Sequence[int] = (),
    others: float = 1.0,
    progress: bool = True,
    techniques: Sequence[Technique] = (),
    objective: Objective | None = None,
    teacher: PreTrainedModel | None = None,
    file: str | Path | None = None,
) -> list[float]:
    """Train a `BertForMaskedLM` in place and return the loss of each step.

    AdamW, gradients clipped at 1, a linear warm-up over the share `warmup` of the steps, then
    decay to zero. With `always`, the loss is the mean over those tokens plus `others`
    times the mean over the rest: a label word, one token of twenty, would hardly be heard.
    The schedules of `techniques` run along. With an `objective` the loss is that instead: its
    labels are the masked words, and `teacher`, another masked language model, shows the rest.
    A killed run goes on from `file`, to the same result (:class:`Resumable`).
    """
    if steps < 1 or not texts:
        raise ValueError(f"nothing to train on: {steps} steps, {len(texts)} texts")
    if batch < 1 or not lr > 0:
        raise ValueError(
            f"batch and learning rate must be positive, received batch={batch}, learning rate={lr}"
        )
    torch.manual_seed(seed)
    device = next(model.parameters()).device
    encoded = encode_texts(tokenizer, texts, max_length)
    distilled = None if objective is None else _Distilled(model, objective, teacher, bf16, steps)
    learning = [*model.parameters(), *(distilled.parameters() if distilled else ())]
    optimizer, schedule = optimizer_of(learning, lr, weight_decay, warmup, steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    kept = Resumable(file, steps, **parts, **({"distilled": distilled} if distilled else {}))
    losses, batches = kept.losses, masked_batches(encoded, tokenizer, batch, seed, share, always)
    model.train()
    before = model.config._attn_implementation
    if distilled is None and attention.trains_faster(model, bf16):  # else a reader has chosen
        attention.use(model)
    bar = tqdm(kept.left(), desc="pre-training", disable=not progress, mininterval=5)
    try:
        for step, inputs in zip(bar, kept.rest(batches), strict=False):
            for technique in techniques:
                technique.before_step(model, step, steps)
            inputs = {name: value.to(device) for name, value in inputs.items()}
            labels = inputs.pop("labels")
            guessed = labels != IGNORED  # the head reads these alone, which is faster
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                if distilled is not None:
                    loss = distilled(inputs, guessed, labels[guessed], step)
                else:
                    hidden = model.base_model(**inputs).last_hidden_state
                    logits, wanted = model.cls(hidden[guessed]).float(), labels[guessed]
                    loss = _loss(logits, wanted, torch.tensor(always, device=device), others)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            for technique in techniques:
                technique.after_step(model, step, steps, optimizer.param_groups[0]["lr"])
            schedule.step()
            optimizer.zero_grad()
            kept.after_step(loss.item())
            if len(losses) % 20 == 0:
                bar.set_postfix(loss=f"{sum(losses[-20:]) / 20:.3f}")
    finally:
        if distilled is not None:
            distilled.close()
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
    return losses


class Resumable:
    """What a training loop of one's own needs to go on after it was killed, kept in a file.

    ``parts`` have a ``state_dict``: models, optimizer, schedule. Their state, the random numbers'
    and the losses are written in one piece after every fifth of the steps, and read without
    running code from the file. Batches come from a seed of their own: those that were seen are
    passed over. Without a ``file`` nothing is kept.
    """

    def __init__(self, file: str | Path | None, steps: int, **parts) -> None:
        self.file, self.steps, self.parts = file and Path(file), steps, parts
        self.losses: list[float] = []
        if self.file and self.file.is_file():
            held = torch.load(self.file, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(held[name])
            self.losses = held["losses"]
            torch.set_rng_state(held["random"])
            if torch.cuda.is_available():
                torch.cuda.set_rng_state_all(held["random on GPUs"])

    def left(self) -> range:
        """The numbers of the steps that are still to do."""
        return range(len(self.losses), self.steps)

    def rest(self, batches: Iterator) -> Iterator:
        """The batches that were not seen yet."""
        return itertools.islice(batches, len(self.losses), None)

    def after_step(self, loss: float) -> None:
        """Notes a step's loss, and keeps the state where a fifth of the steps is done."""
        self.losses.append(loss)
        if self.file and len(self.losses) % max(self.steps // 5, 1) == 0:
            held = {name: part.state_dict() for name, part in self.parts.items()}
            gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
            held |= {"random": torch.get_rng_state(), "random on GPUs": gpus}
            held["losses"] = self.losses
            content = io.BytesIO()
            torch.save(held, content)
            write_bytes(self.file, content.getvalue())


def optimizer_of(
    parameters: Sequence[nn.Parameter], lr: float, weight_decay: float, warmup: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, and a rate that rises over the share ``warmup`` of the steps and falls to 0 after."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    rising = max(1, int(warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / rising, (steps - t) / max(1, steps - rising))
    )
    return optimizer, schedule


class _Distilled(nn.Module):
    """The loss of an objective for a batch of masked text, by what two encoders show."""

    def __init__(self, model, objective: Objective, teacher, bf16: bool, steps: int) -> None:
        super().__init__()
        self._student, self._teacher = [model], []  # in lists: their parameters are not this one's
        self.objective, self.steps, self._pairs = objective, steps, {}
        self.projections = nn.ModuleDict()
        ours = model.base_model
        if objective.needs_teacher:
            if teacher is None:
                raise ValueError("this objective compares with a teacher, but none was given")
            teacher = prepare_teacher(teacher, next(model.parameters()).device, bf16)
            check_comparable(objective, model, teacher)
            self._teacher.append(teacher)
            self._pairs = objective.pairs(ours, teacher.base_model)
            found = projections(objective.matches, ours, teacher.base_model)
            self.projections = found.to(next(model.parameters()).device)
            self._read_teacher = Reader(teacher.base_model, objective.reads)
        self._read = Reader(ours, objective.reads, bf16)

    def forward(self, inputs: dict, guessed: Tensor, wanted: Tensor, step: int) -> Tensor:
        (model,), told = self._student, None
        for teacher in self._teacher:
            with torch.no_grad():
                told = self._show(teacher, self._read_teacher, inputs, guessed)
        pairs = self._pairs
        if self.objective.progressive:  # before the forward pass, which builds the graph
            pairs = only(pairs, learn_in_turn_(model, step, self.steps))
        shown = self._show(model, self._read, inputs, guessed)
        mask = inputs["attention_mask"]
        terms = distillation_loss(
            self.objective, shown, told, wanted, mask, pairs, self.projections
        )
        return sum(terms.values())

    def _show(self, model, read: Reader, inputs: dict, guessed: Tensor) -> Signals:
        signals = read(model.base_model, **inputs)
        if self.objective.labels or self.objective.logits:
            signals.logits = model.cls(signals.output.last_hidden_state[guessed]).float()
        return signals

    def close(self) -> None:
        self._read.close()
        self._student[0].requires_grad_(True)


def check_comparable(
    objective: Objective, student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    """Raises ``ValueError`` for an objective that two masked language models cannot do."""
    objective.check(student.base_model, teacher.base_model, answers=False)
    if objective.logits and getattr(teacher, "fresh_head", False):
        raise ValueError(
            "logits of the mlm task come from the backbone's masked-LM head, and this backbone has "
            "none: leave `logits` out of this stage"
        )


def _loss(logits: Tensor, wanted: Tensor, always: Tensor, others: float) -> Tensor:
    """Mean cross-entropy; the tokens in `always` and the rest averaged apart, if there are any."""
    loss, first = cross_entropy(logits, wanted, reduction="none"), torch.isin(wanted, always)
    if not first.any() or first.all():
        return loss.mean()
    return loss[first].mean() + others * loss[~first].mean()
