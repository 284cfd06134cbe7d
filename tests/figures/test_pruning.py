"""Figures of what can be spared: their data, not their pixels."""

import pytest
import torch
from made import made

from xtclib.figures import explorers, pruning
from xtclib.techniques.pruning.sensitivity import Point


def words(figure):
    return figure.layout.title.text.replace("<br>", " ").replace("\u00a0", " ")


def test_sensitivity_starts_at_the_whole_model():
    points = [Point("query", 0.5, 95), Point("query", 0.9, 90), Point("output", 0.5, 80),
              Point("output", 0.9, 60)]  # fmt: skip
    figure = pruning.sensitivity(points, 96.5)
    query, output = figure.data
    assert list(query.x) == [0, 50, 90] and list(query.y) == [96.5, 95, 90]
    assert list(output.y) == [96.5, 80, 60]
    assert words(figure).startswith("With 90 % of its weights gone, output leaves 60.0, query 90.0")
    assert query.line.dash != output.line.dash and query.marker.symbol != output.marker.symbol
    assert {a.text for a in figure.layout.annotations} == {" query", " output"}


def test_a_head_map_shows_points_lost():
    scores = torch.tensor([[90.0, 80.0], [89.8, torch.nan]])
    figure = pruning.head_map(scores, 90.0)
    (heat,) = figure.data
    assert heat.z[0][1] == pytest.approx(10) and heat.text[0][1] == "-10.0"
    assert (
        heat.text[1][1] == ""
        and heat.text[0][0] == "0"
        and "any one of 2 of 3 heads" in words(figure)
    )
    assert "the dearest costs 10.0" in words(figure)


def test_a_mask_is_drawn_as_it_is():
    figure = pruning.mask(torch.tensor([[True, False], [False, False]]))
    assert [list(row) for row in figure.data[0].z] == [[1, 0], [0, 0]]
    assert words(figure).startswith("75 % of these weights are zero")


def test_scores_over_sparsity_have_a_line_for_each_recipe():
    records = [made(f"{name}-{share}", score + seed, seed=seed)
               for name, share, score in (("nip", 50, 90), ("nip", 90, 70), ("rpp", 90, 75))
               for seed in (0, 2)]  # fmt: skip
    records += [made(), made("nip-distilled")]  # neither is asked for
    records += [made("rpp", 80), made("rpp", 82, seed=2)]  # whose own sparsity is 80 %
    figure = pruning.over_sparsity(records, ["nip", "rpp", "movement"])
    assert [trace.name for trace in figure.data] == ["nip", "rpp"]
    nip, rpp = figure.data
    assert [round(x) for x in rpp.x] == [80, 90] and list(rpp.y) == [81, 76]
    assert list(nip.y) == [91, 71] and list(nip.error_y.array) == [1, 1]
    assert list(nip.error_y.arrayminus) == [1, 1]
    assert words(figure).startswith("At 90 % zeros rpp is ahead with 76.0")
    assert "range of 2 seeds" in figure.layout.xaxis.title.text
    with pytest.raises(ValueError, match=r"budgets \['A', 'B'\] do not compare"):
        pruning.over_sparsity([*records, made("nip-50", budget="B")], ["nip"])
    with pytest.raises(ValueError, match="no records of movement at a sparsity"):
        pruning.over_sparsity(records, ["movement"])


def test_the_explorer_follows_its_sliders(bert):
    view, controls, sentence = explorers.pruning_explorer(bert, lambda model: 50.0).children
    zeros, heads, criterion = controls.children
    assert words(view).startswith("50 % of these weights are zero")
    assert sentence.value.startswith("<b>score 50.0</b>")
    zeros.value = 90
    assert words(view).startswith("90 % of these weights are zero")
    before = sentence.value
    heads.value = 1
    assert sentence.value != before
    criterion.value = "random"
    assert words(view).startswith("90 % of these weights are zero")
