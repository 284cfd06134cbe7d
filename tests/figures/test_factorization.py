"""Figures of thin matrices and of texts read apart: their data, not their pixels."""

import re

import pytest
import torch
from transformers import BertConfig

from xtclib.figures import deformer, explorers, factorization
from xtclib.techniques.factorization.decompositions import svd

ROWS = [
    {"share": s, "batch": b, "operations": o, "faster": f}
    for b in (1, 8)
    for s, o, f in (("75%", 0.76, 1.2), ("25%", 0.27, 3.0))
]


def words(figure):
    return figure.layout.title.text.replace("<br>", " ").replace("\u00a0", " ")


def test_spectra_say_what_is_lost_at_break_even():
    flat, steep = torch.eye(8), torch.tensor([4.0, 2, 1, 0.5, 0.25, 0.1, 0.1, 0.1]).diag()
    figure = factorization.spectra({"flat": svd(flat), "steep": svd(steep)})
    assert words(figure) == "At break-even 0 to 50 % of Σ σ² is lost"
    assert figure.data[0].y[4] == pytest.approx(50) and 0 < figure.data[1].y[4] < 2
    assert max(figure.data[0].x) <= 160 and [t.name for t in figure.data] == ["flat", "steep"]
    half = factorization.spectra({"flat": svd(flat)}, 0.5)
    assert words(half) == "At 50 % of break-even 75 % of Σ σ² is lost"


def test_what_is_lost_is_a_point_for_each_way():
    found = {"query": {"svd": 20.0, "data": 6.0}, "value": {"svd": 22.0, "data": 9.0}}
    figure = factorization.lost(found)
    assert words(figure) == "data loses least on every matrix"
    assert list(figure.data[1].x) == [6.0, 9.0] and list(figure.data[0].y) == ["query", "value"]
    found["value"]["svd"] = 1.0
    assert words(factorization.lost(found)) == "No way is best"


def test_the_clock_stands_over_operations():
    figure = factorization.clock(ROWS)
    assert [trace.name for trace in figure.data] == ["as operations", "batch 1", "batch 8"]
    assert list(figure.data[1].x) == [27.0, 76.0]
    assert figure.data[1].y[0] == pytest.approx(100 / 3)


def test_a_rank_parts_kept_values_from_dropped_ones():
    figure = factorization.values(svd(torch.tensor([2.0, 1.0, 1.0]).diag()), 1)
    assert words(figure) == "Rank 1 of 3 keeps 66.7 % of Σ σ²"
    assert [list(trace.y) for trace in figure.data] == [[2.0], [1.0, 1.0]]


def test_the_slider_moves_the_rank():
    box = explorers.rank_explorer(torch.eye(16))
    slider, sentence = box.children[1].children[0], box.children[-1]
    assert "rank 4 of 16" in sentence.value
    slider.value = 100
    assert "rank 8 of 16" in sentence.value and "100 % of the values, 50.0 %" in sentence.value


def test_the_slider_moves_the_split():
    config = BertConfig(num_hidden_layers=3, hidden_size=8, num_attention_heads=2)
    box = explorers.split_explorer(config, 32, 8, 2)
    slider, sentence = box.children[1].children[0], box.children[-1]
    two = int(re.search(r": (\d+) % of the operations", sentence.value)[1])
    slider.value = 0
    assert "0 of 3 layers apart</b>: 100 % of the operations" in sentence.value and two < 70
    assert slider.max == 2


def test_what_is_left_of_the_work_stands_by_the_split():
    figure = deformer.operations([1.0, 0.7, 0.4], 2)
    assert words(figure) == "With 2 layers apart 40 % of the work is left"
    assert [list(t.x) for t in figure.data] == [[0, 1], [2]]
    assert list(figure.data[1].y) == [pytest.approx(40)]


def test_what_a_token_sees_is_its_own_text():
    figure = deformer.seen(torch.tensor([0, 0, 1]), ["[CLS]", "who", "ada"])
    assert [list(row) for row in figure.data[0].z] == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert words(figure) == "Two texts read apart: 56 % of the pairs are left"
    assert list(figure.layout.xaxis.ticktext) == ["[CLS]", "who", "ada"]


def test_times_as_fast_stand_beside_the_published():
    rows = []
    for b in (1, 32):
        times = {"whole": 1.0, "fp32, cached": 3.0 + b / 32, "int8, cached": 3.5}
        rows += [{"run": run, "batch": b, "faster": f} for run, f in times.items()]
    figure = deformer.faster(rows, published=3.55)
    assert words(figure) == "With the passage read before: 4.0 times as fast"
    assert [len(trace.x) for trace in figure.data] == [2, 2] and "whole" not in str(figure.data)
    assert any(a.text == "published 3.55" for a in figure.layout.annotations)
