import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xtclib.tasks import metrics
from xtclib.tasks.glue import TASKS, Split, find_task, glue_score


def score(task, *values):
    return find_task(task).score(*values)


def majority(task, *splits):
    return find_task(task).majority(*splits)


PREDICTED = [1, 1, 1, 0, 0, 0, 1, 1]
TRUE = [1, 1, 0, 0, 0, 1, 1, 1]  # tp 4, fp 1, fn 1, tn 2


def test_matthews_by_hand():
    by_hand = 100 * (4 * 2 - 1 * 1) / math.sqrt(5 * 5 * 3 * 3)  # 46.67
    assert score("cola", PREDICTED, TRUE) == pytest.approx({"matthews": by_hand, "score": by_hand})


@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_f1_by_hand(task):
    assert score(task, np.array(PREDICTED), TRUE) == pytest.approx(
        {"accuracy": 75.0, "f1": 100 * 8 / 10, "score": 77.5}
    )
    assert score(task, [0, 0], [0, 0]) == {"accuracy": 100.0, "f1": 0.0, "score": 50.0}


@pytest.mark.parametrize("task", ["sst2", "qnli", "rte", "mnli"])
def test_accuracy(task):
    assert score(task, [0, 1, 1, 0], [0, 1, 0, 0]) == {"accuracy": 75.0, "score": 75.0}


def test_correlations_by_hand():
    predicted, true = [1.0, 2.0, 3.0, 5.0], [1.0, 2.0, 4.0, 3.0]
    # means 2.75 and 2.5: Σxy = 4.5, Σx² = 8.75, Σy² = 5; ranks differ by (0, 0, 1, 1)
    pearson = 100 * 4.5 / math.sqrt(8.75 * 5)
    spearman = 100 * (1 - 6 * 2 / (4 * 15))
    assert score("stsb", predicted, true) == pytest.approx(
        {"pearson": pearson, "spearman": spearman, "score": (pearson + spearman) / 2}
    )
    assert score("stsb", np.float32([0.1, 0.2]), [0, 5])["score"] == pytest.approx(100)


@pytest.mark.filterwarnings("error")
def test_constant_predictions_give_zero():
    assert score("cola", [1, 1, 1], [1, 0, 1]) == {"matthews": 0.0, "score": 0.0}
    assert score("cola", [1, 1], [1, 1])["score"] == 0.0
    assert score("stsb", [2.5, 2.5], [1.0, 2.0]) == dict.fromkeys(
        ("pearson", "spearman", "score"), 0.0
    )
    assert score("stsb", [1.0, 2.0], [3, 3])["score"] == 0.0


@pytest.mark.parametrize(
    "task, predictions, references, error, message",
    [
        ("sst2", [0, 1], [0], ValueError, "received 2 predictions and 1 references"),
        ("sst2", [], [], ValueError, "received no predictions"),
        ("sst2", [[0.1, 0.9]], [1], ValueError, r"shape \(1, 2\), .*take argmax"),
        ("stsb", [[0.1]], [1], ValueError, r"shape \(1, 1\), .*squeeze"),
        ("stsb", [0.1, float("nan")], [1, 2], ValueError, "received nan .*, at row 1"),
        ("stsb", [0.1, 1], [1, float("inf")], ValueError, "received inf among the references"),
        ("sst2", [0.0, 1.0], [0, 1], TypeError, "type float64, expected the integer"),
        ("sst2", ["0"], [0], TypeError, "predictions of type <U1, expected numbers"),
        ("sst2", [0, 2], [0, 1], ValueError, r"class id 2 .*expected 0 … 1 \(negative, positive\)"),
        ("mnli", [0, 2], [-1, 1], ValueError, "class id -1 among the references, expected 0 … 2"),
        ("sst3", [0], [0], ValueError, "did you mean 'sst2'"),
    ],
)  # fmt: skip
def test_score_errors(task, predictions, references, error, message):
    with pytest.raises(error, match=message):
        score(task, predictions, references)


def test_majority():
    train = Split(list("abc"), None, [0, 0, 1])
    split = Split(list("abcd"), None, [1, 1, 1, 0])
    assert majority("sst2", split)["accuracy"] == 75.0
    assert majority("sst2", split, train)["accuracy"] == 25.0
    assert majority("sst2", Split(["a", "b"], None, [1, 0]))["accuracy"] == 50.0
    assert majority("cola", split)["matthews"] == 0.0
    assert majority("stsb", Split(["a", "b"], ["c", "d"], [1.0, 4.0]))["score"] == 0.0
    with pytest.raises(ValueError, match="split without rows"):
        majority("sst2", Split([], None, []))


@pytest.mark.parametrize("task", TASKS)
def test_metric_gives_the_same_numbers_offline(monkeypatch, tmp_path, task):
    pytest.importorskip("evaluate")
    import socket

    def refuse(*_):
        raise AssertionError("a metric must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    predicted, true = PREDICTED, TRUE
    if task == "stsb":
        predicted, true = [0.25, 1.5, 4.75, 3.1], [0.5, 1.25, 4.0, 4.8]
    metric = metrics.metric(task)
    assert metric.compute(predictions=predicted, references=true) == score(task, predicted, true)
    for p, t in zip(predicted, true, strict=True):
        metric.add(prediction=p, reference=t)
    assert metric.compute() == score(task, predicted, true)


def test_metric_without_evaluate(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match="pip install evaluate, or use the task's score"):
        metrics.metric("sst2")


# Sum without MNLI 500, its halves 86 and 82.
SCORES = {
    "mnli-matched": 86.0, "mnli-mismatched": 82.0, "qqp": 70.0, "qnli": 90.0, "sst2": 90.0,
    "cola": 50.0, "stsb": 80.0, "mrpc": 70.0, "rte": 50.0,
}  # fmt: skip


def test_glue_score_by_hand():
    assert glue_score(SCORES) == pytest.approx((500 + 84) / 8)  # 73.0
    assert glue_score(SCORES, "columns") == pytest.approx((500 + 86 + 82) / 9)  # 74.22
    whole = {name: value for name, value in SCORES.items() if not name.startswith("mnli")}
    assert glue_score({**whole, "MNLI": 84.0}) == pytest.approx(73.0)
    nested = {"mrpc": score("mrpc", PREDICTED, TRUE), "SST-2": 92.5}
    assert glue_score(nested, partial=True) == pytest.approx(85.0)
    assert glue_score({"mnli-matched": 80.0}, partial=True) == 80.0


@pytest.mark.parametrize(
    "scores, message",
    [
        ({"sst2": 90.0}, "received no score for cola, mrpc, .*partial=True"),
        ({**SCORES, "SST-2": 90.0}, "received 'sst2' twice"),
        ({**SCORES, "mnli": 80.0}, "received 'mnli' twice"),
        ({"mnli": 80.0, **SCORES}, "received 'mnli' twice"),
        ({k: v for k, v in SCORES.items() if k != "mnli-matched"}, "no score for mnli-matched"),
        ({**SCORES, "sst2": float("nan")}, "received nan for 'sst2'"),
        ({"wnli": 50.0}, "unknown task 'wnli'"),
    ],
)
def test_glue_score_errors(scores, message):
    with pytest.raises(ValueError, match=message):
        glue_score(scores)
    with pytest.raises(ValueError, match="unknown weighting 'size'"):
        glue_score(SCORES, "size")
    with pytest.raises(ValueError, match="no score for cola"):
        glue_score({}, partial=True)


@pytest.mark.slow
def test_import_and_score_without_the_optional_packages():
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['datasets', 'evaluate', 'plotly'])\n"
        "from xtclib.tasks import glue\n"
        "for task in glue.TASKS.values(): task.score([0, 1, 1], [0, 1, 0])\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
