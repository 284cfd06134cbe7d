"""Figures of costs: their data, not their pixels."""

import pytest

from xtclib.costs.breakdown import break_down, by_length
from xtclib.costs.latency import ComponentLatency
from xtclib.costs.published import table
from xtclib.figures import costs

BASE = break_down("bert-base", 1, 128)


def named(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


def test_shares_are_cut_from_a_hundred():
    times = ComponentLatency("m", 1, 128, 3, "cpu", 1, 100, 90, 110,
                             {"feed-forward": 60.0, "attention": 40.0})  # fmt: skip
    figure = costs.shares(BASE, times)
    bars = named(figure)
    assert [sum(t.x[i] for t in figure.data) for i in range(4)] == pytest.approx([100] * 4, abs=0.2)
    assert bars["feed-forward"].x[3] == 60
    assert bars["feed-forward"].x[0] == pytest.approx(100 * 56_669_184 / 109_483_778)
    assert "52 % of the parameters" in figure.layout.title.text.replace("<br>", " ").replace(
        "\u00a0", " "
    )
    looks = {(t.marker.color, t.marker.pattern.shape) for t in figure.data}
    assert len(looks) == len(figure.data)


def test_lengths_mark_the_crossing():
    figure = costs.over_lengths(by_length("bert-2-128", [128, 256, 512, 1024]))
    lines = named(figure)
    assert "from length 512 on" in figure.layout.title.text.replace("<br>", " ")
    assert lines["attention"].y[2] == pytest.approx(lines["feed-forward"].y[2])
    assert figure.layout.shapes[0].x0 == 512
    short = costs.over_lengths(by_length("bert-2-128", [16, 32]))
    assert "Up to length 32" in short.layout.title.text


def test_layers():
    left, right = costs.layers(BASE).data
    assert list(left.y)[:2] == ["outside", "layer 1"] and len(left.y) == 13
    assert left.x[1] == pytest.approx(7.087872)
    assert right.x[1] == pytest.approx(BASE.by("layer", lambda p: p.flops())[0] / 1e9)


def test_architectures_have_a_point_each():
    figure = costs.architectures([BASE, break_down("bert-2-128")])
    points = named(figure)
    assert points["bert-base"].x[0] == pytest.approx(109.483778)
    assert 10 ** points["bert-2-128"].y[0] == pytest.approx(0.11, abs=0.01)


def test_the_roof_has_its_ridge():
    limits = {"gflops": 50.0, "gbytes": 25.0, "ridge": 2.0}
    figure = costs.roofline({"a": (0.5, 10.0), "b": (20.0, 45.0)}, limits)
    roof = figure.data[0]
    assert roof.x[1] == 2 and roof.y[1] == roof.y[2] == 50
    assert roof.y[0] == pytest.approx(25 * roof.x[0])
    assert figure.layout.title.text.startswith("1 of 2 stand left of the ridge at 2.0")


@pytest.mark.slow
def test_size_against_score_has_every_published_point_beside_its_computed_size():
    figure = costs.glue_against_size()
    rows = table("glue_against_size")
    points = named(figure)
    assert len(rows) == sum(t.mode == "lines" for t in figure.data)
    computed = [t for t in figure.data if t.name == "XTC-BERT*, 12L, 1 bit"][1]
    assert computed.x[0] == pytest.approx(109_482_240 / 8 / 1e6) and computed.y[0] == 83.4
    assert points["XTC-BERT, 8L"].x[0] == pytest.approx(81_130_752 * 4 / 1e6)
    texts = {a.text for a in figure.layout.annotations}
    assert {"← quantization", "layer reduction →"} <= texts


@pytest.mark.slow
def test_operations_against_score_are_coloured_by_release():
    figure = costs.glue_against_gflops()
    rows = table("glue_against_gflops")
    points = named(figure)
    dates = {str(row["release"]) for row in rows}
    assert dates <= set(points) and len({points[d].marker.color for d in dates}) == len(dates)
    assert len({points[d].marker.symbol for d in dates}) == len(dates)
    assert points["BERT-Base"].x[0] == pytest.approx(22.348, abs=0.001)
    assert (
        points["ELMo"].marker.color
        == points[next(str(r["release"]) for r in rows if r["system"] == "ELMo")].marker.color
    )
