"""Measure data/mini: a fine-tuned teacher against a bag of words, for every task.

The bag of words is a logistic (for STS-B a ridge) regression on the counts of words; for pairs,
on the words of either side, the words they share, and every word of one side with every word of
the other that lacks it.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from xtclib import glue, metrics

BATCH = 32


def score(task: glue.Task, found, split: glue.Split) -> dict[str, float]:
    """The task's metrics, to one decimal."""
    scores = metrics.score(task, found, split.labels)
    return {name: round(float(scores[name]), 1) for name in task.metrics}


def bag(first: str, second: str | None) -> dict[str, int]:
    """Counts of words; for a pair also what is shared, and what stands on one side only."""
    sides = [re.findall(r"[a-z]+", text.lower()) for text in (first, second) if text]
    counts: dict[str, int] = {}
    for side, words in enumerate(sides):
        for word in words:
            counts[f"{side} {word}"] = counts.get(f"{side} {word}", 0) + 1
    if len(sides) == 2:
        one, two = map(set, sides)
        counts.update({f"both {word}": 1 for word in one & two})
        counts.update({f"{a} - {b}": 1 for a in one - two for b in two - one})
        counts["shared"] = len(one & two)
        counts["only first"], counts["only second"] = len(one - two), len(two - one)
    return counts


def bag_of_words(data: glue.TaskData) -> dict[str, dict[str, float]]:
    """Scores per split, with the regularization that is best on dev: in the baseline's favour."""

    def bags(split: glue.Split) -> list[dict[str, int]]:
        return list(map(bag, split.first, split.second or [None] * len(split)))

    vectors = DictVectorizer(dtype=np.float32)
    x, best = vectors.fit_transform(bags(data.train)), {}
    for strength in (0.01, 0.1, 1.0):
        if data.task.is_regression:
            model = Ridge(alpha=1 / strength, solver="sparse_cg")
        else:
            model = LogisticRegression(C=strength, max_iter=2000)
        model.fit(x, data.train.labels)
        for name, split in data.evaluation.items():
            found = score(data.task, model.predict(vectors.transform(bags(split))), split)
            if name not in best or found[data.task.primary] > best[name][data.task.primary]:
                best[name] = found
    return best


def encode(tokenizer, split: glue.Split) -> list[dict]:
    """Token ids of each row."""
    pairs = zip(split.first, split.second, strict=True) if split.second else zip(split.first)
    return [dict(tokenizer(*texts)) for texts in pairs]


@torch.no_grad()
def evaluate(model, tokenizer, task: glue.Task, split: glue.Split) -> dict[str, float]:
    """Score a model on a split; rows of like length share a batch."""
    model.eval()
    rows = encode(tokenizer, split)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    found = torch.zeros(len(rows), dtype=torch.float if task.is_regression else torch.long)
    for start in range(0, len(order), 100):
        part = order[start : start + 100]
        logits = model(**tokenizer.pad([rows[i] for i in part], return_tensors="pt")).logits
        found[part] = logits[:, 0] if task.is_regression else logits.argmax(-1)
    model.train()
    return score(task, found.tolist(), split)


def teacher(
    data: glue.TaskData, backbone: Path, steps: int, lr: float, seed: int, watch: int = 0
) -> tuple[dict[str, dict[str, float]], float]:
    """Fine-tune the backbone; its scores per split, and the seconds that training took."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    task, tokenizer = data.task, AutoTokenizer.from_pretrained(backbone)
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=task.num_labels)
    rows, truth = encode(tokenizer, data.train), torch.tensor(data.train.labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    rising = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / rising, (steps - t) / (steps - rising))
    )
    order: list[int] = []
    model.train()
    for step in tqdm(range(1, steps + 1), desc=task.name, mininterval=10):
        if len(order) < BATCH:
            order = torch.randperm(len(rows)).tolist()
        part, order = order[:BATCH], order[BATCH:]
        inputs = tokenizer.pad([rows[i] for i in part], return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs, labels=truth[part]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if watch and step % watch == 0:
            first = next(iter(data.evaluation.values()))
            print(task.name, step, evaluate(model, tokenizer, task, first), flush=True)
    seconds = time.perf_counter() - start
    found = {name: evaluate(model, tokenizer, task, s) for name, s in data.evaluation.items()}
    return found, seconds


def main() -> None:
    """Measure the chosen tasks, print each, and update baselines.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=list(glue.TASKS))
    parser.add_argument("--root", type=Path, default=Path("data/mini"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--watch", type=int, default=0, help="evaluate every so many steps")
    parser.add_argument("--no-teacher", action="store_true", help="the bag of words only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = args.root / "baselines.json"
    for name in args.tasks:
        data, new = glue.load(name, args.root), {}
        bags = bag_of_words(data)
        if not args.no_teacher:
            taught, seconds = teacher(
                data, args.root / "backbone", args.steps, args.lr, args.seed, args.watch
            )
        for split, rows in data.evaluation.items():
            floor = metrics.majority(data.task, rows, data.train)
            new[name if split == "dev" else f"{name}-{split}"] = row = {
                "metric": data.task.primary,
                "majority": {key: round(floor[key], 1) for key in data.task.metrics},
                "bag_of_words": bags[split],
            }
            if not args.no_teacher:
                row["teacher"] = taught[split]
                row |= {
                    "steps": args.steps,
                    "batch": BATCH,
                    "lr": args.lr,
                    "seed": args.seed,
                    "seconds": round(seconds),
                    "threads": args.threads,
                }
        for key, row in new.items():
            print(key, json.dumps(row), flush=True)
        table = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**table, **new}, indent=1) + "\n")


if __name__ == "__main__":
    main()
