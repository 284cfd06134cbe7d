"""Times told from layers: which are measured, once, and that they add up."""

import copy
import json

import pytest
import torch

from xtclib import attention, cache
from xtclib.artefact import format, ledger
from xtclib.costs import latency, layer_times
from xtclib.recipes import recipe as recipes
from xtclib.techniques import apply_all


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("XTC_CACHE", str(tmp_path))
    return lambda: sorted((cache.cache_dir() / "layers").glob("*/ms.json"))


def test_layers_of_one_structure_are_measured_once_and_kept(make_bert, fresh, monkeypatch):
    model = make_bert(layers=3)
    found = layer_times.predicted(model, 2, 8)
    assert len(fresh()) == 2  # three layers in a row, and what is around them
    assert found == pytest.approx(sum(json.loads(f.read_text()) for f in fresh()))
    monkeypatch.setattr(layer_times, "_measured", None)
    assert layer_times.predicted(make_bert(layers=3), 2, 8) == found
    with pytest.raises(TypeError):
        layer_times.predicted(make_bert(layers=2), 2, 8)  # another model: it is measured


def test_a_kept_time_is_read_and_again_measures_anew(make_bert, fresh):
    model = make_bert(layers=2)
    layer_times.predicted(model, 1, 8)
    for file in fresh():
        file.write_text("50.0")
    assert layer_times.predicted(model, 1, 8) == 100
    assert layer_times.predicted(model, 1, 8, again=True) < 100


RECIPES = ("xtc-1bit movement-50 nip-8bit-distilled kprune-50 albert-shared pq-1bit bilstm-kd "
           "cnn-kd svd-50 mobilebert").split()  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_an_empty_model_of_any_recipe_runs_once_filled(name, bert12):
    planned = ledger.planned(bert12.config, recipes.load(name).techniques)
    assert all(p.device.type == "meta" for p in planned.parameters())
    filled = layer_times.filled(planned).eval()
    with torch.inference_mode():
        logits = filled(input_ids=torch.full((2, 5), 5)).logits
    assert logits.shape == (2, 2) and bool(logits.isfinite().all())


@pytest.mark.parametrize(("name", "attends"), [("xtc-1bit", "sdpa"), ("ternarybert", "xtc")])
def test_an_empty_model_is_timed_with_the_attention_of_its_artefact(name, attends, bert12):
    techniques = recipes.load(name).techniques
    filled = layer_times.filled(ledger.planned(bert12.config, techniques))
    made = format.finalize(apply_all(attention.use(copy.deepcopy(bert12)), techniques), techniques)
    assert filled.config._attn_implementation == made.config._attn_implementation == attends


@pytest.mark.slow
def test_layers_and_the_rest_come_near_the_whole(make_bert, fresh):
    model = make_bert(layers=4)
    told, whole = [], []
    for _ in range(3):  # in turns, and the quickest of each: other work slows some of them down
        told.append(layer_times.predicted(model, 8, 64, again=True))
        whole.append(latency.of_models({"all": model}, 8, 64, 20)["milliseconds"]["all"]["low"])
    assert (
        0.5 < min(told) / min(whole) < 2
    )  # a bound for busy machines; benchmarks/effectiveness.py measures
