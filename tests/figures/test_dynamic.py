"""Figures of dynamic inference: their numbers are those of the rows they are made from."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from xtclib.figures import dynamic, explorers
from xtclib.figures.style import alt
from xtclib.tasks.base import find_task
from xtclib.techniques import DropTokens
from xtclib.techniques.dynamic.calibration import Observed


@pytest.fixture
def seen():
    """Four rows of class 1 and two exits: the first is sure of two rows, and wrong on one."""
    sure = torch.tensor([[0.9, 0.9], [0.8, 0.9], [0.1, 0.7], [0.1, 0.2]])
    answers = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    tokens = np.array([4, 4, 4, 4])
    return Observed(sure, answers, tokens, (1, 2, 4), "probability", find_task("sst2"), [1] * 4)


def test_exits_are_drawn_as_right_as_they_are(seen):
    figure = dynamic.by_exit(seen)
    assert list(figure.data[0].y) == [25, 75, 100]
    assert list(figure.data[1].y) == pytest.approx([47.5, 67.5])
    assert alt(figure).startswith("The exit after layer 1 is right on 25 %")


def test_bars_hold_who_leaves_where(seen):
    right, wrong = dynamic.leaving(seen, 0.5).data
    assert list(right.y) == [25, 25, 25] and list(wrong.y) == [25, 0, 0]
    sentence = explorers.exit_explorer(seen, 2.0).children[-1].value
    assert "2.00 layers in the mean, 2.00 times fewer operations, score 75.0" in sentence


def test_a_curve_goes_through_its_points(seen):
    figure = dynamic.curve(seen.curve(["always", "never"]), {"half": (2.0, 80.0)}, "A curve")
    assert list(figure.data[0].x) == [4, 1] and list(figure.data[0].y) == [25, 100]
    assert (figure.data[1].name, list(figure.data[1].y)) == ("half", [80.0])


def test_batches_stand_beside_their_promise():
    rows = [{"run": run, "batch": b, "promised": 2.0, "faster": f}
            for b, (f, w) in {1: (1.9, 1.9), 8: (1.5, 1.0)}.items()
            for run, f in (("2", f), ("2, waiting", w))]  # fmt: skip
    figure = dynamic.regrouped(rows, "2")
    assert [list(bars.y) for bars in figure.data] == [[1.9, 1.5], [1.9, 1.0], [2.0, 2.0]]
    assert "regrouping gives 75 % of the promise" in alt(figure)


def test_tokens_are_left_as_the_model_keeps_them():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                        intermediate_size=32)  # fmt: skip
    model = DropTokens(keep=[1.0, 4, 2]).apply(BertForSequenceClassification(config)).eval()
    row = {"input_ids": torch.arange(6)[None], "attention_mask": torch.ones(1, 6).long()}
    left = [dynamic.left_after(model, row, layer) for layer in range(3)]
    assert [sum(kept) for kept in left] == [6, 4, 2] and all(kept[0] for kept in left)
    figure = dynamic.dying([*"abcdef"], left)
    assert np.array(figure.data[0].z).sum(0).tolist() == [6, 4, 2]
    assert alt(figure).startswith("67 % of the tokens")
