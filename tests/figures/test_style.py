"""What every figure shares: lines told apart, numbers as people write them, margins of any task."""

import numpy as np
import pytest

from xtclib import records as results
from xtclib.figures import deployment, training
from xtclib.figures.style import line_of, plain


def test_no_two_lines_are_alike():
    looks = {tuple(line_of(i).values()) for i in range(36)}
    assert len(looks) == 36


def test_a_loss_of_one_term_is_one_curve():
    (run,) = results.read("reviews", task="reviews", budget="A", recipe="finetune-half", seed=0)
    assert {"loss", "loss_labels"} <= {*run.stages[0]["losses"][0]}
    assert [trace.name for trace in training.loss_curves(run).data] == ["labels"]


def test_numbers_have_no_exponent():
    assert [plain(v) for v in (1310, 1e6, -39, 0.5)] == ["1,310", "1,000,000", "-39.0", "0.500"]


@pytest.mark.parametrize(
    ("classes", "what", "x", "y"),
    [
        (1, "value", [1.0, 4.0], [1.5, 4.0]),
        (2, "margin", [3.0, 1.0], [-0.5, 1.0]),
        (3, "margin", [3.0, 5.0], [-0.5, 5.0]),
    ],
)
def test_runtimes_are_compared_for_every_kind_of_task(classes, what, x, y):
    wanted = np.array([[1.0, 4.0, 0.0], [4.0, 5.0, 10.0]])[:, :classes]
    found = np.array([[1.5, 1.0, 0.0], [4.0, 5.0, 10.0]])[:, :classes]
    figure = deployment.side_by_side(wanted, found, ("A", "B"))
    points = [(a, b) for t in figure.data[1:] for a, b in zip(t.x, t.y, strict=True)]
    assert sorted(points) == sorted(zip(x, y, strict=True))
    assert figure.layout.xaxis.title.text == f"{what} in A"
    agree = "50.0 % of 2 labels agree" in figure.layout.title.text.replace("\xa0", " ")
    assert agree == (classes > 1)
