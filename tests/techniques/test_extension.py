"""A technique in one folder: a toy one, known to nothing in xtclib, goes all the way."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xtclib import artefact, recipes
from xtclib.artefact.ledger import byte_ledger, plan
from xtclib.costs.breakdown import break_down, parameters
from xtclib.study.compress import compress
from xtclib.techniques import TECHNIQUES, technique

TOY = '''
"""Two weights in one byte: each is rounded to one of 16 levels between the row's ends."""

from typing import ClassVar

import copy

import torch
from torch import nn

from xtclib import techniques
from xtclib.bert import encoder_linears, linear_of, replace_module_
from xtclib.config import config
from xtclib.techniques import Held, Stored, Technique


def rounded(weight):
    """Codes 0 to 15 and each row's step: w ≈ (code − 7.5) · step."""
    step = (weight.abs().amax(1, keepdim=True) / 7.5).half().float()
    return (weight / step + 7.5).round().clamp(0, 15), step


class NibbleLinear(nn.Linear):
    """Trains in full precision through the rounding."""

    def forward(self, x):
        codes, step = rounded(self.weight.detach())
        seen = (codes - 7.5) * step
        weight = self.weight + (seen - self.weight).detach()
        return nn.functional.linear(x, weight, self.bias)

    def stored(self):
        layer = StoredNibbles(self.in_features, self.out_features)
        codes, step = rounded(self.weight.detach())
        layer.weight = (codes[:, 0::2] + 16 * codes[:, 1::2]).to(torch.uint8).unsqueeze(-1)
        layer.step, layer.bias = step.half(), nn.Parameter(self.bias.detach().half().float())
        return layer


class StoredNibbles(Stored):
    """The bytes."""

    def __init__(self, columns, rows, device=None):
        super().__init__()
        self.in_features, self.out_features = columns, rows
        self.register_buffer(
            "weight", torch.empty(rows, columns // 2, 1, dtype=torch.uint8, device=device)
        )
        self.register_buffer("step", torch.empty(rows, 1, dtype=torch.float16, device=device))
        self.bias = nn.Parameter(torch.empty(rows, device=device))

    def dense(self):
        bytes_ = self.weight.squeeze(-1)
        codes = torch.stack([bytes_ % 16, bytes_ // 16], -1).flatten(1).float()
        return linear_of((codes - 7.5) * self.step.float(), self.bias)

    def trainable(self):
        dense = self.dense()
        layer = NibbleLinear(dense.in_features, dense.out_features)
        layer.weight, layer.bias = dense.weight, dense.bias
        return layer

    def entries(self):
        return {"weight": Held(self.in_features * self.out_features, 4, 4)}

    def forward(self, x):
        return self.dense()(x)


@techniques.register
@config
class Nibbles(Technique):
    """The feed-forward matrices at four bits a weight."""

    name: ClassVar[str] = "toy_nibbles"
    layers: str = "intermediate"
    stored: ClassVar[bool] = True

    def _chosen(self, model):
        return {n: m for n, m in encoder_linears(model).items() if self.layers in n}

    def apply(self, model, data=None):
        model = copy.deepcopy(model)
        for name, linear in self._chosen(model).items():
            layer = NibbleLinear(linear.in_features, linear.out_features)
            layer.weight, layer.bias = linear.weight, linear.bias
            replace_module_(model, name, layer)
        return model

    def finalize(self, model):
        return techniques.pack_(model)

    def rebuild(self, model):
        device = next(model.parameters()).device
        for name, linear in self._chosen(model).items():
            shape = linear.in_features, linear.out_features
            replace_module_(model, name, StoredNibbles(*shape, device))
'''

RECIPE = {
    "stages": [
        {
            "four bits": {
                "techniques": [{"layer_reduction": {"layers": 2}}, {"toy_nibbles": {}}],
                "objective": {"logits": 1},
            }
        }
    ]
}

FRESH = """
import sys, torch, toy_nibbles
from transformers import AutoModelForSequenceClassification as Auto
model = Auto.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    print(model(torch.arange(5, 12)[None]).logits.tolist())
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_nibbles.py").write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("toy_nibbles")
    yield module
    TECHNIQUES.pop("toy_nibbles")
    del sys.modules["toy_nibbles"]


@pytest.mark.slow
def test_a_toy_technique_goes_from_recipe_to_file_and_back(toy, tmp_path):
    recipe = recipes.from_dict("toy", RECIPE)
    assert recipe.techniques[1] == technique("toy_nibbles")
    run = compress(recipe, "sst2", "smoke", "2steps", out=tmp_path / "a", progress=False,
                   say=lambda *_: None)  # fmt: skip
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        wanted = run.student(ids).logits

    # in a fresh process, given the module to import
    found = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "a")], capture_output=True, text=True,
        timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    assert eval(found.stdout) == wanted.tolist()

    # what it costs: the ledger is the file, the plan the ledger
    entries = {entry.tensor: entry for entry in byte_ledger(tmp_path / "a")}
    assert sum(e.bytes for e in entries.values()) == run.record.bytes
    (packed,) = {
        e.width for e in entries.values() if e.tensor.endswith("intermediate.dense.weight")
    }
    assert packed == 4
    planned = plan(run.teacher.model.config, recipe.techniques)
    assert {e.tensor for e in planned} == entries.keys()
    teacher = parameters(run.teacher.model)
    cut = sum(p.numel() for p in run.teacher.model.bert.encoder.layer[:10].parameters())
    assert run.record.parameters == teacher - cut
    assert (
        break_down(tmp_path / "a", length=16).flops()
        == break_down(run.student.config, length=16).flops()
    )

    # and back to one that trains
    model, _ = artefact.load(tmp_path / "a")
    model = artefact.trainable(model).train()
    layers = [m for m in model.modules() if isinstance(m, toy.NibbleLinear)]
    assert len(layers) == 2
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, wanted)
    model.train()(ids).logits.sum().backward()
    assert all(float(layer.weight.grad.abs().max()) > 0 for layer in layers)


@pytest.mark.slow
def test_a_toy_technique_is_exported_as_its_dense_self(toy, tmp_path, make_bert):
    onnxruntime = pytest.importorskip("onnxruntime")
    from xtclib.deployment.onnx import export_onnx

    techniques = [technique("toy_nibbles")]
    model = artefact.finalize(techniques[0].apply(make_bert(1)), techniques)
    session = onnxruntime.InferenceSession(export_onnx(model, tmp_path / "a.onnx"))
    ids = torch.arange(5, 12)[None]
    given = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    (found,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(**given).logits)


def test_nothing_in_the_package_knows_it():
    package = Path(artefact.__file__).parents[1]
    assert not [f for f in package.rglob("*.py") if "nibble" in f.read_text(encoding="utf-8")]
