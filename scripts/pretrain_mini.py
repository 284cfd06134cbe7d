"""Rebuild data/mini from scratch: the eight tasks, the corpus and the pre-trained backbone.

A deep post-norm BERT learns slowly from scratch, so it grows: 3 layers first, which are then
stacked to 12 (Gong et al. 2019, progressive stacking).
"""

from __future__ import annotations

import argparse
import copy
import json
import string
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from mini import tasks
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from xtclib.distillation import Objective
from xtclib.tasks import MaskedWords
from xtclib.training import Budget, Lesson, Run, train

# Words first, then what they say of each other: the last two stages always guess the label words.
EVENLY = dict.fromkeys(tasks.TASKS, 1.0)
OTHERS = ("mrpc", "qqp", "stsb", "qnli", "rte")
SST2_FIRST = {"sst2": 5, "mnli": 3, "cola": 0.5} | dict.fromkeys(OTHERS, 1.5)
MIXED = {"sst2": 2.5, "mnli": 3, "cola": 0.5} | dict.fromkeys(OTHERS, 2.0)


class Stage(NamedTuple):
    """So many layers for so many steps: what is shown and what has to be guessed."""

    layers: int
    steps: int
    rate: float
    share: float  # of the tokens is guessed
    agreeing: float  # of the pairs agree
    labels: bool  # the label words are always guessed
    shares: dict[str, float]


STAGES = (
    Stage(3, 2000, 1e-3, 0.08, 0.4, False, EVENLY),
    Stage(3, 3000, 8e-4, 0.05, 0.0, True, SST2_FIRST),
    Stage(12, 600, 5e-4, 0.05, 0.0, True, MIXED),
)
BATCH = 64
DOCUMENTS = 100_000  # of the endless stream that corpus.txt begins
PIECES = "s es d ed ing er ly un re in".split()


def build_tokenizer() -> BertTokenizer:
    """Whole words of the grammar, then characters and pieces, so that any English is covered."""
    characters = string.ascii_lowercase + string.digits
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation]
    tokens += [*tasks.vocabulary(), *characters, *(f"##{piece}" for piece in characters)]
    tokens += [f"##{piece}" for piece in PIECES]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return BertTokenizer(vocab=vocabulary, model_max_length=64)


@torch.no_grad()
def start_copying(model: BertForMaskedLM) -> None:
    """Begin near a model that copies: attention looks for equal words and passes them on.

    Adding the identity to the attention projections (compare Trockman and Kolter 2023) lets the
    alignment of two sentences emerge within hundreds of steps instead of many thousands.
    """
    eye = torch.eye(model.config.hidden_size)
    model.bert.embeddings.word_embeddings.weight.normal_(0, 0.1)
    for layer in model.bert.encoder.layer:
        attention = layer.attention
        attention.self.query.weight.add_(eye / 2)
        attention.self.key.weight.add_(eye / 2)
        attention.self.value.weight.add_(eye)
        attention.output.dense.weight.add_(eye)
    model.cls.predictions.transform.dense.weight.add_(eye)


def grow(model: BertForMaskedLM, layers: int) -> BertForMaskedLM:
    """The same model with its stack of layers repeated until there are `layers` of them."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    taller, had = BertForMaskedLM(config), model.bert.encoder.layer
    taller.load_state_dict(model.state_dict(), strict=False)  # all but the new layers
    for number, layer in enumerate(taller.bert.encoder.layer):
        layer.load_state_dict(had[number % len(had)].state_dict())
    return taller


def label_words(tokenizer: BertTokenizer) -> list[int]:
    """Ids of the words that differ between the label sentences of a task."""
    words = set()
    for task in tasks.TASKS.values():
        tails = [set(tokenizer.tokenize(tail)) for tail in task.tail.values()]
        words |= set().union(*tails) - set.intersection(*tails) if tails else set()
    return tokenizer.convert_tokens_to_ids(sorted(words))


def save(model: BertForMaskedLM, tokenizer: BertTokenizer, folder: Path) -> None:
    """fp16 weights that load as fp32, and the tokenizer."""
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.1
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Generate, pre-train, save, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/mini"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all step counts")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    start = time.perf_counter()

    tasks.generate(args.out, args.seed)
    avoid = tasks.dev_texts(args.seed)
    tokenizer = build_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=STAGES[0].layers,
        num_attention_heads=4, intermediate_size=512, max_position_embeddings=64,
        initializer_range=0.05, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    start_copying(model)
    stages, words = [], label_words(tokenizer)
    for number, stage in enumerate(STAGES):
        model = grow(model, stage.layers)
        stream = tasks.documents(args.seed + number, avoid, stage.agreeing, stage.shares)
        steps = max(1, int(stage.steps * args.scale))
        always = tuple(words) if stage.labels else ()
        task = MaskedWords(stage.share, always, others=0.4)
        lesson = Lesson(
            task.data(list(islice(stream, DOCUMENTS))),
            tokenizer,
            Budget(steps=steps, batch_size=BATCH, learning_rate=stage.rate, max_length=64),
            Objective(labels=1),
        )
        with tempfile.TemporaryDirectory() as folder:
            model, notes = train(model, lesson, Run(folder, args.seed + number, "fp32"))
        loss, minutes = notes["losses"][-1]["loss"], (time.perf_counter() - start) / 60
        told = {"loss": round(loss, 3), "minutes": round(minutes, 1)}
        stages.append({"layers": stage.layers, "steps": steps, **told})
        print(stages[-1], flush=True)
        save(grow(model, STAGES[-1].layers), build_tokenizer(), args.out / "backbone")
    print(json.dumps(stages))


if __name__ == "__main__":
    main()
