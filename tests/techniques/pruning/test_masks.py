"""Masks, schedule and proximal step against hand-computed values and closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xtclib.techniques.pruning.masks import (
    check_pattern,
    cubic,
    masks,
    parse_pattern,
    pattern_sparsity,
    reweighting,
    soft_threshold,
)


def test_the_schedule_by_hand():
    # s_f · (1 − (1 − x)³) with x = 0, ¼, ½, ¾, 1 of the way from step 20 to step 60.
    wanted = [0, 0.9 * (1 - 0.75**3), 0.9 * (1 - 0.5**3), 0.9 * (1 - 0.25**3), 0.9]
    found = [cubic(step, 20, 60, 0.9) for step in (20, 30, 40, 50, 60)]
    assert found == pytest.approx(wanted)
    assert cubic(0, 20, 60, 0.9) == 0 and cubic(99, 20, 60, 0.9) == 0.9
    assert cubic(0, 0, 0, 0.5) == 0.5  # in one step


@given(st.floats(0, 0.99), st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
def test_exactly_the_share_goes_even_where_scores_tie(sparsity, rows, columns, seed):
    scores = torch.randint(0, 3, (rows, columns), generator=torch.Generator().manual_seed(seed))
    (mask,) = masks([scores.float()], sparsity)
    assert int((~mask).sum()) == round(sparsity * rows * columns)
    if (~mask).any() and mask.any():
        assert scores[~mask].max() <= scores[mask].min()


def test_a_model_is_ranked_together():
    small, large = torch.full((2, 2), 0.1), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    first, second = masks([small, large], 0.5, "model")
    assert not first.any() and second.all()
    first, second = masks([small, large], 0.5)
    assert int(first.sum()) == int(second.sum()) == 2


def test_two_of_four_keeps_the_two_largest_of_every_four_inputs():
    scores = torch.rand(6, 16, generator=torch.Generator().manual_seed(0))
    (mask,) = masks([scores], 0.5, pattern="2:4")
    assert masks([scores], 0.0, pattern="2:4")[0].all()  # a schedule's beginning
    groups, kept = scores.view(6, 4, 4), mask.view(6, 4, 4)
    assert (kept.sum(-1) == 2).all()
    assert torch.equal(
        (groups * kept).sum(-1), groups.sort(-1, descending=True).values[..., :2].sum(-1)
    )


def test_blocks_go_whole():
    scores = torch.rand(8, 12, generator=torch.Generator().manual_seed(0))
    (mask,) = masks([scores], 0.25, pattern="4x3")
    blocks = mask.view(2, 4, 4, 3).permute(0, 2, 1, 3).flatten(2)
    assert ((blocks.all(-1)) | (~blocks.any(-1))).all() and int(blocks.all(-1).sum()) == 6
    means = scores.view(2, 4, 4, 3).mean((1, 3))
    assert means[~blocks.all(-1)].max() < means[blocks.all(-1)].min()


def test_the_proximal_step_minimizes_its_own_problem():
    """argmin ½(x − w)² + t|x| over a fine grid, against the closed form."""
    grid = torch.linspace(-3, 3, 60001, dtype=torch.float64)
    for weight in (-2.5, -0.3, 0.0, 0.4, 1.7):
        for threshold in (0.0, 0.35, 1.0):
            cost = 0.5 * (grid - weight) ** 2 + threshold * grid.abs()
            found = soft_threshold(torch.tensor(weight, dtype=torch.float64), threshold)
            assert float(found) == pytest.approx(float(grid[cost.argmin()]), abs=2e-4)


def test_small_weights_are_pulled_harder():
    alpha = reweighting(torch.tensor([0.0, 0.01, 1.0]), 0.01)
    assert alpha.tolist() == pytest.approx([100, 50, 1 / 1.01])


@pytest.mark.parametrize("pattern", ["4:2", "2:2", "0:4", "x4", "2-4", "two:four", "0x3"])
def test_patterns_that_say_nothing(pattern):
    with pytest.raises(ValueError, match="cannot read the pattern .*write '2:4'"):
        parse_pattern(pattern)


def test_patterns_that_do_not_divide():
    with pytest.raises(ValueError, match="pattern 2:4 does not divide a weight of 3 outputs by 6"):
        check_pattern("2:4", (3, 6))
    with pytest.raises(ValueError, match="pattern 4x2 does not divide a weight of 6 outputs by 6"):
        masks([torch.rand(6, 6)], 0.5, pattern="4x2")
    with pytest.raises(ValueError, match="unknown scope 'modell': did you mean 'model'"):
        masks([torch.rand(2, 2)], 0.5, "modell")
    assert pattern_sparsity("3:4") == 0.25 and pattern_sparsity(None) is None
