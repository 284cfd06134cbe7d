"""Measure data/mini: a fine-tuned teacher against a bag of words, for every task.

The bag of words is a logistic (for STS-B a ridge) regression on the counts of words; for pairs,
on the words of either side, the words they share, and every word of one side with every word of
the other that lacks it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from xtclib import cache, files
from xtclib.study import profiles
from xtclib.tasks import Split, base, evaluation, glue

COLUMNS = ("majority", "bag_of_words", "teacher")


def score(task: base.Task, found, split: Split) -> dict[str, float]:
    """The task's metrics, to one decimal."""
    scores = task.score(found, split.labels)
    return {name: round(float(scores[name]), 1) for name in task.metrics}


def bag(first: str, second: str | None) -> dict[str, int]:
    """Counts of words; for a pair also what is shared, and what stands on one side only."""
    sides = [re.findall(r"[a-z]+", text.lower()) for text in (first, second) if text]
    spoken = (f"{side} {word}" for side, words in enumerate(sides) for word in words)
    counts = dict(Counter(spoken))
    if len(sides) == 2:
        one, two = map(set, sides)
        counts |= {f"both {word}": 1 for word in one & two}
        counts |= {f"{a} - {b}": 1 for a in one - two for b in two - one}
        counts |= {"shared": len(one & two), "only first": len(one - two)}
        counts["only second"] = len(two - one)
    return counts


def bag_of_words(data: base.TaskData) -> dict[str, dict[str, float]]:
    """Scores per split, with the regularization that is best on dev: in the baseline's favour."""

    def bags(split: Split) -> list[dict[str, int]]:
        return list(map(bag, split.first, split.second or [None] * len(split)))

    vectors = DictVectorizer(dtype=np.float32)
    x, best = vectors.fit_transform(bags(data.train)), {}
    for strength in (0.01, 0.1, 1.0):
        model = LogisticRegression(C=strength, max_iter=2000)
        if data.task.num_labels == 1:
            model = Ridge(alpha=1 / strength, solver="sparse_cg")
        model.fit(x, data.train.labels)
        for name, split in data.evaluation.items():
            found = score(data.task, model.predict(vectors.transform(bags(split))), split)
            if name not in best or found[data.task.primary] > best[name][data.task.primary]:
                best[name] = found
    return best


def teacher(name: str, data: base.TaskData) -> dict[str, dict]:
    """The mini profile's own teacher, fine-tuned on first use: scores per split, and its budget."""
    found = profiles.teacher_for(name, "mini", data)
    budget = found.made_from["budget"]
    spent = {"steps": budget["steps"], "learning_rate": budget["learning_rate"], "seed": 0}
    scores = evaluation.evaluate(found.model, found.tokenizer, data, budget["max_length"])
    return {
        split: {"teacher": {key: round(s[key], 1) for key in data.task.metrics}, "budget": spent}
        for split, s in scores.items()
    }


def measure(name: str, root: Path) -> dict[str, dict]:
    """One row for each evaluation split of a task."""
    data = glue.load(name, root)
    bags, taught, rows = bag_of_words(data), teacher(name, data), {}
    for split, dev in data.evaluation.items():
        floor = data.task.majority(dev, data.train)
        rows[name if split == "dev" else f"{name}-{split}"] = {
            "metric": data.task.primary,
            "majority": {key: round(floor[key], 1) for key in data.task.metrics},
            "bag_of_words": bags[split],
            **taught[split],
        }
    return rows


def table(rows: dict[str, dict]) -> str:
    """The rows as the README shows them."""
    lines = ["| task | metric | majority | bag of words | teacher | teacher's budget |"]
    lines.append("|---|---|---|---|---|---|")
    order = list(glue.TASKS)
    for name, row in sorted(rows.items(), key=lambda item: order.index(item[0].partition("-")[0])):
        shown = [row.get(key, {"": "not yet measured"}) for key in COLUMNS]
        parts = [" / ".join(map(str, values.values())) for values in shown]
        budget = row.get("budget")
        spent = f"{budget['steps']} steps at {budget['learning_rate']:g}" if budget else "–"
        lines.append(f"| {name} | {', '.join(row['majority'])} | {' | '.join(parts)} | {spent} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the chosen tasks, print each, and update baselines.json and the README's table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=list(glue.TASKS))
    parser.add_argument("--root", type=Path, default=cache.ROOT / "data" / "mini")
    args = parser.parse_args()
    path, readme = args.root / "baselines.json", args.root / "README.md"
    rows = json.loads(path.read_text()) if path.exists() else {}
    for name in args.tasks:
        for key, row in measure(name, args.root).items():
            print(key, json.dumps(row), flush=True)
            rows[key] = row
        files.write_json(path, rows)
    text = readme.read_text()
    files.write_text(readme, text[: text.index("| task | metric | majority")] + table(rows))


if __name__ == "__main__":
    main()
