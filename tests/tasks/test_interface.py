"""A task of another shape, wholly in this file: a tag for every word."""

import copy
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import taught
from transformers import AutoModelForTokenClassification

from xtclib.distillation.objective import Objective
from xtclib.tasks.base import Task, TaskData, find_task, register
from xtclib.tasks.evaluation import evaluate, scorer
from xtclib.tasks.rows import Calibration, Rows, Split
from xtclib.teachers import fine_tuned, load_teacher
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.quantization.technique import Quantize
from xtclib.training.budget import Budget

IGNORED = -100


class Parity(Task):
    """Tags words by whether their number is even; a row's label is a list, one tag a word."""

    name, title, labels, primary = "parity", "Parity", ("even", "odd"), "accuracy"
    model_class: ClassVar[type] = AutoModelForTokenClassification

    def load(self, source, limit=None):
        return TaskData(self, rows(limit or 48, 0), {"dev": rows(16, 90)}, source, "Parity dev")

    def tokenize(self, split, tokenizer, max_length):
        ids = tokenizer(list(split.first), truncation=True, max_length=max_length)["input_ids"]
        tags = [[IGNORED, *row, IGNORED] for row in split.labels]  # a word is a token here
        return Rows(ids, None, tags)

    def collate(self, rows, tokenizer, draw=0):
        batch = super().collate([{**row, "labels": 0} for row in rows], tokenizer)
        labels = torch.full(batch["input_ids"].shape, IGNORED)
        for i, row in enumerate(rows):
            labels[i, : len(row["labels"])] = torch.tensor(row["labels"])
        return {**batch, "labels": labels}

    def answers(self, output, labels, mask):
        tagged = labels != IGNORED
        return output.logits[tagged], labels[tagged]

    def loss(self, logits, labels):
        return F.cross_entropy(logits, labels)

    def decide(self, logits, batch=None):
        tagged = (batch["labels"] != IGNORED).numpy()
        return [row[here].tolist() for row, here in zip(logits.argmax(-1), tagged, strict=True)]

    def score(self, answers, references):
        right = [a == b for row in zip(answers, references, strict=True)
                 for a, b in zip(*row, strict=True)]  # fmt: skip
        return {"accuracy": 100 * np.mean(right), "score": 100 * np.mean(right)}

    def majority(self, split, train=None):
        tags = [tag for row in (train or split).labels for tag in row]
        common = int(np.mean(tags) >= 0.5)
        return self.score([[common] * len(row) for row in split.labels], split.labels)


def rows(count, start):
    numbers = [[(7 * i + 3 * j * j) % 40 for j in range(2 + i % 6)]
               for i in range(start, start + count)]  # fmt: skip
    return Split([" ".join(f"w{n}" for n in row) for row in numbers], None,
                 [[n % 2 for n in row] for row in numbers])  # fmt: skip


@pytest.fixture
def parity(monkeypatch):
    monkeypatch.setattr("xtclib.tasks.base._TASKS", {})
    register(Parity())
    return find_task("Parity").load("made up")


@pytest.mark.slow
def test_a_task_from_outside_is_learned_evaluated_and_distilled(
    parity, bert, tokenizer, tmp_path, own_cache
):
    for part in (bert.bert, tokenizer):
        part.save_pretrained(tmp_path / "backbone")
    budget = Budget(steps=60, batch_size=8, learning_rate=3e-3, max_length=16, dropout=0.0)
    teacher = fine_tuned(str(tmp_path / "backbone"), parity, budget, precision="fp32",
                         progress=False, device="cpu")  # fmt: skip
    found = evaluate(teacher.model, teacher.tokenizer, parity, 16)["dev"]["score"]
    floor = parity.task.majority(parity.evaluation["dev"], parity.train)["score"]
    assert floor < 70 < 90 < found and teacher.model.config.id2label == {0: "even", 1: "odd"}
    assert scorer(tokenizer, parity, max_length=16)(teacher.model) == found

    batches = Calibration(parity, tokenizer, 16, rows=16).batches()
    assert all(teacher.model(**batch).loss.item() > 0 for batch in batches)
    student = Quantize("int8-row", None, None).apply(LayerReduction(layers=2).apply(teacher.model))
    start = evaluate(student, tokenizer, parity, 16)["dev"]["score"]
    objective = Objective(labels=0.5, logits=1, hidden_states=1)
    whole, notes = taught(copy.deepcopy(student), tokenizer, parity, objective, budget,
                          tmp_path / "run", teacher.model)  # fmt: skip
    assert {"loss_labels", "loss_logits", "loss_hidden_states"} <= set(notes["losses"][0])
    assert evaluate(whole, tokenizer, parity, 16)["dev"]["score"] > max(start, floor) + 10


def test_a_teacher_of_another_task_is_refused(parity, make_bert, tokenizer, tmp_path):
    for part in (make_bert(1), tokenizer):
        part.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"\['negative', 'positive'\], but parity is \['even', 'od"
    ):
        load_teacher(tmp_path, "parity")
