"""Figures of distillation: their data, not their pixels."""

import re

import pytest
import torch
from made import made

from xtclib import records as results
from xtclib.distillation.objective import Objective
from xtclib.distillation.terms import TERMS
from xtclib.figures import distillation
from xtclib.figures import records as plots

widgets = pytest.importorskip("xtclib.figures.explorers", exc_type=ImportError)


def test_every_match_stands_at_the_students_layer_with_the_teachers_number():
    told = {
        "PKD": Objective(labels=1, logits=1, patience={"weight": 1, "layers": "last"}),
        "two": [Objective(hidden_states=1), Objective(logits=1, key_relations=1)],
    }
    figure = distillation.what_is_matched(told, 3, 12)
    marks = {trace.name: trace for trace in figure.data}
    assert set(marks) == {"labels", "logits", "hidden states", "first token", "relations"}
    first = marks["first token"]
    assert list(first.text) == ["10", "11"] and [round(x) for x in first.x] == [1, 2]
    assert list(first.y) == [0, 0]
    hidden = marks["hidden states"]
    assert list(hidden.text) == ["e", "4", "8", "12"] and set(hidden.y) == {1}
    assert list(marks["relations"].text) == ["12"]
    assert list(figure.layout.yaxis.ticktext) == ["PKD", "two"]
    assert len({trace.marker.symbol for trace in figure.data}) == 5  # readable without colour


def test_temperature_softens_and_keeps_the_order():
    figure = distillation.temperature(torch.tensor([4.0, 1.5, 0.0]), (1, 100))
    sharp, soft = (list(trace.y) for trace in figure.data)
    assert sharp == pytest.approx([0.9082, 0.0746, 0.0166], abs=1e-3)
    assert max(soft) - min(soft) < 0.02 and sorted(soft, reverse=True) == soft
    assert "from 0.35 to 1.10" in figure.layout.title.text.replace("<br>", " ").replace(
        "rises ", ""
    )


def test_the_table_of_terms_has_all_of_them():
    lines = distillation.terms_table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(TERMS)


def test_the_explorer_follows_its_controls():
    explorer = widgets.distillation_explorer(torch.tensor([4.0, 1.5, 0.0]), 5, 12)
    above, heat, _, controls, sentence = explorer.children
    assert sentence.value.endswith("teaches") and len(above.data) == 2
    heat.value = 10
    assert max(above.data[1].y) < 0.5 < max(above.data[0].y)
    controls.children[1].value = "release"
    assert "[1, 3, 5, 7, 9, 11]" in sentence.value and sentence.value.endswith("teaches nobody")


def test_the_comparison_puts_the_best_first():
    medians = {"teacher": {"median": 10.0}, "student": {"median": 4.0}}
    times = {"batch": 8, "length": 32, "milliseconds": medians}
    told = (("xtc-half", 0, 80.0), ("xtc-1bit", 0, 90.0), ("xtc-1bit", 1, 92.0))
    records = [
        made(recipe=name, seed=seed, metrics={"dev": {"score": score}}, latency=times)
        for name, seed, score in told
    ]
    frame = plots.comparison(records).data
    assert list(frame.index) == ["teacher", "xtc-1bit", "xtc-half"]
    assert list(frame.loc["xtc-1bit"][:2]) == [91.0, "90.0 to 92.0"]
    assert frame.loc["xtc-half", "time / teacher's"] == 0.4
    bold = re.findall(
        r"#T_\w+_row(\d)_col(\d)", plots.comparison(records).to_html().split("</style>")[0]
    )
    assert ("1", "0") in bold and not {row for row, _ in bold} & {"0"}  # the best, no teacher


def test_the_benchmark_names_what_nothing_beats():
    medians = {"teacher": {"median": 10.0}, "student": {"median": 2.5}}
    times = {"batch": 8, "length": 32, "milliseconds": medians}
    told = (("xtc-1bit", 80.0, 10), ("xtc-2bit", 90.0, 20), ("pkd-6l", 85.0, 50))
    records = [
        made(recipe=name, metrics={"dev": {"score": score}}, bytes=size * 10**6, latency=times)
        for name, score, size in told
    ]
    figure = plots.benchmark(records)
    line, quantized, shaped, _ = figure.data
    assert (list(line.x), list(line.y)) == ([10, 20], [80, 90])
    assert (quantized.name, shaped.name) == ("fewer bits", "another shape")
    assert list(quantized.marker.size) == [8, 8]  # a quarter of the time, half the diameter
    named = {a.text for a in figure.layout.annotations}
    assert {"xtc-1bit", "xtc-2bit", "teacher"} <= named and "pkd-6l" not in named


def test_differences_are_by_seed_where_both_were_measured():
    records = [
        made(recipe="rpp-90", seed=0, score=82.0), made(recipe="nip-90", seed=0, score=80.0),
        made(recipe="rpp-90", seed=1, score=70.0), made(recipe="nip-90", seed=2, score=75.0),
        made(recipe="nip", seed=1, score=10.0, budget="B"),
    ]  # fmt: skip
    assert results.differences(records, "rpp-90", "nip-90") == {0: 2.0}
    other = made(recipe="nip-90", seed=1, budget="B")
    with pytest.raises(ValueError, match="do not compare: choose one of them"):
        results.differences([*records, other], "rpp-90", "nip-90")


def test_a_term_of_ones_own_stands_in_the_picture(monkeypatch):
    monkeypatch.setitem(TERMS, "mine", TERMS["hidden_states"])
    figure = distillation.what_is_matched({"own": Objective(mine=1)}, 2, 4)
    (trace,) = figure.data
    assert (trace.name, trace.marker.symbol, list(trace.text)) == ("mine", "cross", ["e", "2", "4"])


def test_conditions_have_a_row_each_first_on_top():
    found = {
        words: [made(recipe="xtc-half", metrics={"dev": {"score": taught}}),
                made(recipe="finetune-half", metrics={"dev": {"score": labels}})]
        for words, taught, labels in (("clean labels", 84, 83), ("flipped labels", 82, 70))
    }  # fmt: skip
    figure = plots.conditions(found)
    assert list(figure.layout.yaxis.ticktext) == ["clean labels", "flipped labels"]
    assert list(figure.layout.yaxis.tickvals) == [1, 0]
    assert [list(trace.x) for trace in figure.data[:2]] == [[84, 82], [83, 70]]
    title = " ".join(figure.layout.title.text.replace("<br>", " ").split())
    assert title == "xtc-half is furthest ahead with flipped labels: by 12.0 points"
