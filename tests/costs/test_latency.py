"""Timing in turns, and components whose times add up."""

import pytest
import torch

from xtclib.costs import architectures, latency
from xtclib.costs.breakdown import component_of


def test_runs_take_turns_after_warming_up():
    calls = []
    found = latency.in_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=4, warm_up=2
    )
    assert calls == ["a", "b"] * 6
    assert all(t["low"] <= t["median"] <= t["high"] for t in found.values())


def test_components_are_timed(bert):
    found = latency.of_components(bert, 2, 32, repeats=3)
    assert {"query, key, value", "attention", "feed-forward", "pooler", "head"} <= set(
        found.components
    )
    assert all(value > 0 for value in found.components.values())
    assert sum(found.shares().values()) == pytest.approx(1)
    assert found.coverage == pytest.approx(sum(found.components.values()) / found.whole)
    assert found.low <= found.whole <= found.high
    assert (found.batch, found.length, found.threads) == (2, 32, torch.get_num_threads())
    assert "% of the whole" in found.table()
    assert list(found.layers) == [None, 0, 1, 2, 3]
    assert sum(found.layers.values()) == pytest.approx(sum(found.components.values()))
    assert found.table("layer").splitlines()[1].startswith("outside ")


def test_a_sum_far_from_the_whole_is_said():
    far = latency.ComponentLatency("m", 1, 8, 3, "cpu", 1, 10, 9, 11, {"head": 12.0})
    assert far.coverage == pytest.approx(1.2) and "disturbed by timers" in far.table()
    near = latency.ComponentLatency("m", 1, 8, 3, "cpu", 1, 10, 9, 11, {"head": 10.5})
    assert "disturbed" not in near.table()


def test_own_times_add_up_to_the_whole(bert, monkeypatch):
    """With a clock that ticks once at every look: no tick is lost, none is counted twice."""
    ticks = iter(range(10_000))
    looks = []
    monkeypatch.setattr(
        latency.time, "perf_counter", lambda: looks.append(next(ticks)) or looks[-1]
    )
    found = latency._timed(bert, torch.arange(6).view(1, 6))
    assert sum(found.values()) == looks[-1] - looks[0]
    # Of each layer query, key and value are three modules of one tick.
    assert all(found["query, key, value", layer] == 3 for layer in range(4))
    assert found["head", None] == 1


def test_what_a_timer_costs_is_taken_off(bert, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(ticks))
    found = latency._timed(bert, torch.arange(6).view(1, 6), (0.25, 0.5))
    assert found["head", None] == 1 - 0.25
    borders = len(list(latency._borders(bert)))
    # Every timer but the outermost is also taken off what is around it.
    assert sum(found.values()) == 2 * borders - 1 - 0.25 * borders - 0.5 * (borders - 1)


def test_a_timers_cost_is_small_and_not_negative():
    within, around = latency._timer_cost()
    assert 0 < within < 1e-3 and 0 <= around < 1e-3


def test_timers_leave_no_hook_and_do_not_change_the_output(bert):
    ids = torch.arange(6).view(1, 6)
    before = bert(input_ids=ids).logits
    latency.of_components(bert, 1, 8, repeats=1)
    assert torch.equal(bert(input_ids=ids).logits, before) and not bert.training
    latency.of_components(bert.train(), 1, 8, repeats=1)
    assert bert.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in bert.modules())


def test_only_borders_between_components_are_timed(bert):
    timed = dict.fromkeys(component for _, component, _ in latency._borders(bert))
    silent = (torch.nn.ModuleList, torch.nn.Dropout)
    modules = [name for name, m in bert.named_modules() if not isinstance(m, silent)]
    assert set(timed) == {component_of(name) for name in modules}
    assert len(list(latency._borders(bert))) < len(list(bert.modules())) * 0.7


@pytest.mark.parametrize("name", ["bilstm", "bert-2-128"])
def test_names_get_random_weights(name):
    found = latency.of_components(name, 1, 16, repeats=1, warm_up=0)
    assert found.model == name and found.whole > 0


def test_bad_input():
    with pytest.raises(ValueError, match="repeats must be at least 1, received 0"):
        latency.of_components("bert-2-128", repeats=0)
    with pytest.raises(ValueError, match="length of 600 is past the model's 512 positions"):
        latency.of_components("bert-2-128", length=600)
    assert latency.of_components("bert-2-128", length=600, repeats=1, extend=True).whole > 0
    model = architectures.build("bert-2-128").to_empty(device="cpu")
    assert latency.of_components(model, length=600, repeats=1, extend=True).whole > 0
    with pytest.raises(ValueError, match="unknown architecture"):
        latency.of_components("bert-2-129")


def test_the_machines_limits_and_a_product_under_them():
    limits = latency.machine(repeats=2)
    assert limits["ridge"] == pytest.approx(limits["gflops"] / limits["gbytes"])
    intensity, speed = latency.product_speed(4, 64, 128, repeats=2)
    assert intensity == pytest.approx(2 * 4 * 64 * 128 / (4 * (64 * 128 + 4 * 192)))
    assert speed > 0


def test_fast_models_are_timed_more_often(bert, monkeypatch):
    assert latency.enough({"nothing": lambda: None}, 2.0) == 200
    monkeypatch.setattr(latency, "in_turns", lambda *a, **k: {"slow": {"median": 1e4}})
    assert latency.enough({"slow": lambda: None}, 2.0) == 10
    monkeypatch.setattr(latency, "in_turns", lambda *a, **k: {x: {"median": 20.0} for x in "ab"})
    assert latency.enough({"a": None, "b": None}, 2.0) == 50
