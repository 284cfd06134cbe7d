"""What a user adds in a notebook: a term and a criterion, each one call, used from a recipe."""

from typing import ClassVar

import pytest
import torch

from xtclib import distillation
from xtclib.bert import encoder_linears
from xtclib.config import Positive, config
from xtclib.distillation.terms import TERMS
from xtclib.recipes import from_dict
from xtclib.study.compress import compress
from xtclib.techniques.pruning import Criterion, importance, register_criterion


def run(values):
    quiet = {"progress": False, "say": lambda *line: None, "device": "cpu"}
    return compress(from_dict("toy", values), "sst2", "smoke", "2steps", **quiet)


@pytest.mark.slow
def test_a_term_of_ones_own(monkeypatch):
    calls = []

    def furthest(student, teacher, mask, power=1):
        calls.append(power)
        return (student - teacher).abs().amax() ** power

    monkeypatch.setitem(TERMS, "furthest", None)  # so that it is taken out again
    del TERMS["furthest"]
    distillation.register_term("furthest", furthest, states="last")
    objective = {"furthest": {"weight": 2, "power": 3}}
    stage = {"techniques": [{"layer_reduction": {"layers": 2}}], "objective": objective}
    found = run({"stages": [{"pulling in": stage}]})
    assert set(calls) == {3} and found.record.stages[0]["losses"][0]["loss_furthest"] > 0
    with pytest.raises(ValueError, match="unknown key of furthest 'powr': did you mean 'power'"):
        from_dict("toy", {"stages": [{"s": {"objective": {"furthest": {"powr": 3}}}}]})
    for name, reads, message in (
        ("furthest", "hidden_states", "'furthest' is a key of objectives already"),
        ("labels", "hidden_states", "'labels' is a key of objectives already"),
        ("other", "hiden_states", "unknown signal 'hiden_states': did you mean 'hidden_states'"),
    ):
        with pytest.raises(ValueError, match=message):
            distillation.register_term(name, furthest, reads)


@pytest.mark.slow
def test_a_criterion_of_ones_own(monkeypatch):
    monkeypatch.setitem(importance.CRITERIA, "farthest", None)  # so that it is taken out again
    del importance.CRITERIA["farthest"]

    @register_criterion
    @config
    class Farthest(Criterion):
        """How far a weight lies from ``center``."""

        name: ClassVar[str] = "farthest"
        center: Positive = 0.1

        def scores(self, layer, generator):
            return (layer.weight.detach() - self.center).abs()

    sparsify = {"sparsity": 0.5, "criterion": {"farthest": {"center": 0.05}}}
    found = run({"stages": [{"the cut": {"techniques": [{"sparsify": sparsify}]}}]})
    with pytest.raises(ValueError, match="center of farthest must be a number above 0"):
        Farthest(center=0)
    encoder = encoder_linears(found.teacher.model)
    for name, layer in encoder_linears(found.student, torch.nn.Module).items():
        if name in encoder and hasattr(layer, "present"):
            gone = ~layer.present().bool()
            far = (encoder[name].weight - 0.05).abs()
            assert float(far[gone].max()) <= float(far[~gone].min())
