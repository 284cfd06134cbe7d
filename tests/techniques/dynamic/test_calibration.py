"""How sure is sure enough: criteria by hand, thresholds that rows of their own choose, a slider."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import xtclib
from xtclib.artefact import format
from xtclib.tasks.glue import TASKS, Split
from xtclib.tasks.rows import Rows
from xtclib.techniques import EarlyExit
from xtclib.techniques.dynamic import calibration, criteria
from xtclib.techniques.dynamic.calibration import Observed, Wish

REGRESSION, SEVERAL = "regression", "multi_label_classification"


@pytest.fixture
def unseen(data):
    """Rows to choose by, and none to report on: whoever touches those fails."""
    return replace(data, held_out=data.evaluation["dev"], evaluation=None)


@pytest.fixture
def exits(bert):
    return EarlyExit(criterion="probability").apply(bert)


@pytest.fixture
def calibrated(exits, tokenizer, unseen):
    calibration.calibrate(exits, tokenizer, unseen, Wish("loss", 100.0), 16)
    return exits


def observed(criterion="probability", sure=None):
    sure = [[0.9, 0.9], [0.4, 0.8], [0.4, 0.6], [0.3, 0.2]] if sure is None else sure
    answers = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    tokens, task = np.array([2, 4, 6, 8]), TASKS["sst2"]
    return Observed(torch.tensor(sure), answers, tokens, (1, 2, 4), criterion, task, [1] * 4)


# Criteria.


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_entropy_and_probability_by_hand(classes):
    logits = torch.randn(6, classes, generator=torch.Generator().manual_seed(0)) * 2
    logits[0] = 1.0
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    by_hand = -(p * np.log(p)).sum(1) / np.log(classes)
    assert criteria.entropy(logits).numpy() == pytest.approx(by_hand, abs=1e-6)
    assert float(criteria.entropy(logits)[0]) == pytest.approx(1)
    assert criteria.probability(logits).numpy() == pytest.approx(p.max(1), abs=1e-6)
    q = 1 / (1 + np.exp(-logits.numpy()))
    two_way = -(q * np.log2(q) + (1 - q) * np.log2(1 - q))
    assert criteria.entropy(logits, True).numpy() == pytest.approx(two_way.mean(1), abs=1e-5)
    least = np.maximum(q, 1 - q).min(1)
    assert criteria.probability(logits, True).numpy() == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "answers", "counts"),
    [
        ("", [[0.0, 1], [0, 2], [3, 1], [5, 0], [1, 0], [0, 1]], [0, 1, 0, 1, 2, 0]),
        (REGRESSION, [[0.0], [0.3], [0.6], [1.3], [1.0]], [0, 1, 2, 0, 1]),
        (SEVERAL, [[1.0, 1], [2, 0.5], [2, -1], [-1, -1], [-9, -9]], [0, 1, 0, 0, 1]),
    ],
)
def test_patience_counts_equal_answers(kind, answers, counts):
    judge = criteria.Judge("patience", kind, tolerance=0.5)
    series = [torch.tensor([answer, answers[0]]) for answer in answers]
    found = [judge.sure(logits) for logits in series]
    assert [each[0].item() for each in found] == counts
    assert [each[1].item() for each in found] == list(range(len(counts)))
    judge.keep(torch.tensor([1]))
    assert judge.sure(series[-1][1:]).tolist() == [len(counts)]
    assert criteria.bar_of("patience", 2) == 1.5 and criteria.bar_of("entropy", 0.2) == 0.8


def test_what_is_right_by_hand():
    numbers = criteria.right(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]), REGRESSION)
    assert numbers.tolist() == pytest.approx([1, 1 - math.tanh(2)])
    logits, labels = torch.tensor([[1.0, -1], [1, 1]]), torch.tensor([[1.0, 0], [1, 0]])
    assert criteria.right(logits, labels, SEVERAL).tolist() == [1, 0]


# What a threshold gives.


@pytest.mark.parametrize(
    ("threshold", "exits", "operations", "score"),
    [
        ("always", [0, 0, 0, 0], 2 + 4 + 6 + 8, 25),
        (0.35, [0, 0, 0, 2], 2 + 4 + 6 + 4 * 8, 50),
        (0.5, [0, 1, 1, 2], 2 + 2 * 4 + 2 * 6 + 4 * 8, 75),
        (0.7, [0, 1, 2, 2], 2 + 2 * 4 + 4 * 6 + 4 * 8, 100),
        ("never", [2, 2, 2, 2], 4 * 20, 100),
    ],
)
def test_points_by_hand(threshold, exits, operations, score):
    seen, layers = observed(), np.array([1, 2, 4])[exits]
    assert seen.exits(threshold).tolist() == exits
    assert seen.layers(threshold).tolist() == layers.tolist()
    point = seen.at(threshold)
    assert (point.threshold, point.score, point.depth) == (threshold, score, layers.mean())
    assert point.speed == pytest.approx(4 * 20 / operations)
    if isinstance(threshold, float):
        assert observed("entropy").exits(1 - threshold).tolist() == exits


def test_patience_is_a_count():
    seen = observed("patience", [[0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert seen.thresholds() == [1, 2, "never"]
    assert [seen.exits(t).tolist() for t in (1, 2)] == [[1, 2, 1, 1], [2, 2, 2, 2]]


@pytest.mark.parametrize(
    ("goal", "amount", "layers"),
    [
        ("loss", 0, [1, 2, 4, 4]),
        ("loss", 30, [1, 2, 2, 4]),
        ("loss", 100, [1, 1, 1, 1]),
        ("speed", 1.2, [1, 2, 4, 4]),
        ("speed", 4.1, [1, 1, 1, 1]),
        ("depth", 2.7, [1, 2, 4, 4]),
        ("depth", 2.3, [1, 2, 2, 4]),
    ],
)
def test_a_wish_is_met(goal, amount, layers):
    seen = observed()
    assert seen.layers(calibration.choose(seen, Wish(goal, amount)).threshold).tolist() == layers


def test_a_curve_goes_from_the_fastest_to_the_whole_model():
    curve = observed().curve()
    speeds = [point.speed for point in curve]
    assert curve[0].threshold == "always" and curve[-1].threshold == "never"
    assert speeds == sorted(speeds, reverse=True) and speeds[0] == 4 and speeds[-1] == 1
    assert len(curve) <= calibration.GRID + 2


@pytest.mark.parametrize(
    ("goal", "amount", "says"),
    [("speed", 9.0, "no threshold gives a speed of 9: these exits give 1.00 to 4.00, choose withi"),
     ("depth", 0.5, "no threshold gives a depth of 0.5: these exits give 1.00 to 4.00")],
)  # fmt: skip
def test_a_wish_out_of_reach_is_told(goal, amount, says):
    with pytest.raises(ValueError, match=says):
        calibration.choose(observed(), Wish(goal, amount))


@pytest.mark.parametrize("criterion", criteria.CRITERIA)
def test_what_was_observed_is_what_a_batch_does(criterion, bert, data, tokenizer):
    model, split = EarlyExit(criterion=criterion).apply(bert), data.train
    seen = calibration.observe(model, tokenizer, data.task, split, 16, batch_size=8)
    rows = Rows.tokenize(split, tokenizer, 16)
    batch = data.task.collate([rows[i] for i in range(len(rows))], tokenizer)
    labels = batch.pop("labels")
    assert seen.tokens.tolist() == rows.lengths.tolist() and seen.labels == labels.tolist()
    for threshold in ("always", *((1, 2, 3) if criterion == "patience" else (0.3, 0.6)), "never"):
        model.config.exits["threshold"] = threshold
        found, point = model(**batch), seen.at(threshold)
        assert found["layers"].tolist() == seen.layers(threshold).tolist()
        right = (found.logits.argmax(-1) == labels).double().mean()
        assert point.score == pytest.approx(100 * float(right))


# Chosen on rows of their own.


@pytest.mark.parametrize("goal", [dict(loss=5.0), dict(speed=1.5), dict(depth=2.0), {}])
def test_the_reported_rows_choose_nothing(goal, bert, data, unseen, tokenizer):
    technique, thresholds = EarlyExit(criterion="probability", **goal), []
    for given in (unseen, replace(unseen, evaluation={"dev": data.train})):
        model = technique.apply(bert)
        technique.calibrate(model, tokenizer, given, 16)
        thresholds.append(model.config.exits["threshold"])
    seen = calibration.observe(model, tokenizer, data.task, unseen.held_out, 16)
    assert thresholds == [calibration.choose(seen, technique.wish).threshold] * 2
    assert model.config.exits["calibrated_on"] == "14 held-out rows"
    assert len(model.config.exits["speeds"]) == len(seen.curve())


def test_a_threshold_that_is_given_stays(bert, data, unseen, tokenizer):
    technique = EarlyExit(threshold=0.25)
    model = technique.apply(bert)
    technique.calibrate(model, tokenizer, unseen, 16)
    assert model.config.exits["threshold"] == 0.25 and model.config.exits["speeds"]
    with pytest.raises(ValueError, match="sst2 holds no rows out, and thresholds may not be chos"):
        technique.calibrate(model, tokenizer, data, 16)


@pytest.mark.parametrize(("rows", "count"), [(40, 2), (5, 1), (30_000, 1000)])
def test_a_twentieth_is_held_out(rows, count, data):
    train = Split([f"w{i}" for i in range(rows)], None, [0] * rows)
    apart = replace(data, train=train).holding_out()
    held, left = set(apart.held_out.first), set(apart.train.first)
    assert len(held) == count and held | left == set(train.first) and not held & left
    assert apart.source == f"in memory, {count} training rows held out"
    assert apart.evaluation is data.evaluation and apart.holding_out() is apart
    assert replace(data, train=train).holding_out() == apart


# The slider.


def test_a_speed_moves_the_threshold(calibrated, tokenizer, tmp_path):
    speeds = dict(map(tuple, calibrated.config.exits["speeds"]))
    for wanted in (1.0, 1.3, 2.0, max(speeds.values())):
        found = xtclib.set_speed(calibrated, wanted)
        threshold = calibrated.config.exits["threshold"]
        assert found == speeds[threshold] == min(speeds.values(), key=lambda s: abs(s - wanted))
        assert xtclib.set_speed(calibrated, found) == found
        assert calibrated.config.exits["threshold"] == threshold
    model = format.finalize(calibrated, [EarlyExit(criterion="probability")])
    xtclib.set_speed(model, 1.3)
    format.save(model, tokenizer, tmp_path / "out")
    opened, _ = format.load(tmp_path / "out")
    assert opened.config.exits == model.config.exits
    assert xtclib.set_speed(opened, 2.0) == xtclib.set_speed(model, 2.0)
    assert opened.config.exits == model.config.exits


def test_a_speed_that_cannot_be_is_told(bert, exits, calibrated):
    with pytest.raises(ValueError, match="no threshold gives a speed of 99: .* 1.00 to 4.00"):
        xtclib.set_speed(calibrated, 99)
    with pytest.raises(ValueError, match="BertForSequenceClassification has no exits: a recipe"):
        xtclib.set_speed(bert, 2)
    exits.config.exits["speeds"] = []
    with pytest.raises(ValueError, match="not calibrated"):
        xtclib.set_speed(exits, 2)


def test_a_curve_is_timed_and_the_threshold_comes_back(calibrated, data, tokenizer, monkeypatch):
    before = calibrated.config.exits["threshold"]

    def in_turns(runs, repeats, warm_up):
        for name, one in runs.items():
            one()
            assert str(calibrated.config.exits["threshold"]) == name
        return {name: {"median": 28.0} for name in runs}

    monkeypatch.setattr(calibration, "in_turns", in_turns)
    found = calibration.measured(calibrated, tokenizer, data, 16, points=3)
    assert calibrated.config.exits["threshold"] == before and found["split"] == "dev"
    timed = {p["threshold"]: p["ms_1"] for p in found["curve"] if "ms_8" in p}
    assert timed.keys() >= {before, "never"} and set(timed.values()) == {2.0}


def test_beside_other_runs_nothing_is_timed(calibrated, data, tokenizer, monkeypatch):
    def in_turns(*_):
        raise AssertionError("a busy machine was timed")

    monkeypatch.setattr(calibration, "in_turns", in_turns)
    found = EarlyExit().measure(calibrated, tokenizer, data, 16, timed=False)["exits"]
    assert len(found["curve"]) > 2 and not any("ms_1" in point for point in found["curve"])
