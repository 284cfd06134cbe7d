import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from xtclib import artefact, recipes
from xtclib.layers import PackedEmbedding, PackedLinear
from xtclib.quantizers import Scheme
from xtclib.techniques import Quantize, apply_all

BINARY = [Quantize()]
PTQ = "ptq-1bit", "ptq-2bit", "ptq-4bit", "ptq-8bit"


def packed(model, techniques=BINARY):
    return artefact.finalize(apply_all(copy.deepcopy(model), techniques), techniques)


@pytest.fixture
def saved(bert, tokenizer, tmp_path):
    return artefact.save(packed(bert), tokenizer, tmp_path / "saved")


def rewrite(folder, change, checked=False):
    """Changes tensors (a dict) in the file, with fresh checksums or the old ones."""
    path = folder / artefact.WEIGHTS
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    if checked:
        metadata["xtc"] = json.dumps({k: artefact.digest(t) for k, t in tensors.items()})
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("name", recipes.names())
def test_a_reloaded_artefact_computes_the_same_bits(name, bert12, tokenizer, batch, tmp_path):
    model = packed(bert12, recipes.load(name).techniques)
    artefact.save(model, tokenizer, tmp_path / "a")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a").eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
        assert not torch.equal(again(**batch).logits, bert12(**batch).logits) or "8of" in name
    assert again.config.id2label == bert12.config.id2label


def test_saving_a_reloaded_artefact_gives_the_same_tensors_and_sums(saved, tokenizer, tmp_path):
    model, _ = artefact.load(saved)
    again = artefact.save(model, tokenizer, tmp_path / "again")
    sums = []
    for folder in (saved, again):
        with safe_open(folder / artefact.WEIGHTS, "pt") as file:
            sums.append(json.loads(file.metadata()["xtc"]))
    assert sums[0] == sums[1] and len(sums[0]) > 40  # loading checked the tensors against them
    sizes = [(folder / artefact.WEIGHTS).stat().st_size for folder in (saved, again)]
    assert sizes[0] == sizes[1]


def test_loading_gives_the_tokenizer_too(saved, tokenizer):
    model, found = artefact.load(saved)
    assert found("w3 w4")["input_ids"] == tokenizer("w3 w4")["input_ids"] and not model.training


def test_the_base_model_loads_without_its_head(saved, bert, batch):
    base = AutoModel.from_pretrained(saved).eval()
    with torch.no_grad():
        wanted = packed(bert).bert(**batch).last_hidden_state
        assert torch.equal(base(**batch).last_hidden_state, wanted)


OPEN = """
import sys
from transformers import AutoModelForSequenceClassification as Auto
for folder in sys.argv[1:]:
    try:
        Auto.from_pretrained(folder)
        print("opened")
    except Exception as error:
        print(type(error).__name__)
"""


def test_a_program_without_xtclib_stops_instead_of_guessing(bert, tokenizer, tmp_path):
    folders = []
    for name in PTQ:
        model = packed(bert, recipes.load(name).techniques)
        folders.append(str(artefact.save(model, tokenizer, tmp_path / name)))
    found = subprocess.run(
        [sys.executable, "-c", OPEN, *folders], capture_output=True, text=True, timeout=120,
        cwd=tmp_path,
    )  # fmt: skip
    assert found.stdout.split() == ["RuntimeError"] * len(PTQ), found.stderr[-2000:]


def cut(folder):
    path = folder / artefact.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder):
    path = folder / artefact.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def foreign(folder):
    path = folder / artefact.WEIGHTS
    save_file(load_file(path), path)


def newer(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format"] = artefact.FORMAT + 1
    (folder / "config.json").write_text(json.dumps(config))


def other_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut, "truncated"),
        (lambda f: (f / artefact.WEIGHTS).write_bytes(b"hello"), "truncated|damaged"),
        (flip, "does not match its sha256; the file was altered or damaged, copy"),
        (foreign, "carries no checksums of an xtc artefact: it was written by another program"),
        (lambda f: rewrite(f, lambda t: t.pop("classifier.bias")), "'classifier.bias' is missing"),
        (lambda f: rewrite(f, lambda t: t.update(x=torch.zeros(1))), "tensor 'x' is extra"),
        (
            lambda f: rewrite(f, lambda t: t.pop("classifier.bias"), checked=True),
            r"does not fit BertForSequenceClassification: missing \['classifier.bias'\]",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update(x=torch.zeros(1)), checked=True),
            r"unexpected \['x'\]",
        ),
        (newer, "this artefact has format 3; this xtclib reads up to 2: update it"),
        (other_layers, r"unexpected \['bert.encoder.layer.3.*config.json may belong to another"),
    ],
)
def test_a_damaged_artefact_gives_one_clear_error(saved, damage, message):
    damage(saved)
    with pytest.raises(ValueError, match=message):
        artefact.load(saved)


def test_a_folder_without_an_artefact_says_what_is_missing(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json in .*nowhere: expected a folder"):
        artefact.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no model.safetensors at .*nowhere"):
        artefact.check_file(tmp_path / "nowhere" / artefact.WEIGHTS)


@pytest.mark.parametrize("weights", ["binary", "ternary", "int4-row", "uint4-group8"])
def test_the_size_on_disk_is_what_the_bits_come_to(weights, bert, tokenizer, tmp_path):
    item = Quantize(weights=weights, embeddings="binary-row")
    folder = artefact.save(packed(bert, [item]), tokenizer, tmp_path / "a")
    bits = item.weights.bits
    n = {"tensor": 1, "group": 8}.get(item.weights.granularity)
    zero = item.weights.family == "uint"
    linear = sum(
        rows * (columns * bits // 8) + (n or rows) * (2 + zero)
        for rows, columns in [(32, 32)] * 4 + [(64, 32), (32, 64)]
    )
    table = 200 * (32 // 8) + 200 * 2
    # fp16: 5 biases of 32, one of 64 and two LayerNorms a layer; positions, types, LayerNorm,
    # pooler, classifier.
    rest = 2 * (4 * (5 * 32 + 64 + 4 * 32) + (64 + 2 + 2) * 32 + 32 * 33 + 2 * 33)
    rows = artefact.ledger(folder)
    assert sum(r["bytes"] for r in rows if r["tensor"] != "header") == 4 * linear + table + rest


def test_the_ledger_adds_up_to_the_file(saved):
    rows = artefact.ledger(saved)
    assert sum(r["bytes"] for r in rows) == (saved / artefact.WEIGHTS).stat().st_size
    sizes = [r["bytes"] for r in rows[:-1]]
    assert sizes == sorted(sizes, reverse=True) and rows[-1]["tensor"] == "header"
    table = next(r for r in rows if r["tensor"] == "bert.embeddings.word_embeddings.weight")
    assert (table["shape"][:2], table["dtype"], table["bytes"]) == ((200, 4), "uint8", 800)


@pytest.mark.parametrize("weights", ["binary", "ternary-row", "int4-group8", "int8", "uint4-row"])
def test_unpacking_trains_and_packs_to_the_same_model(weights, bert, batch):
    techniques = [Quantize(weights=weights, embeddings="binary-row")]
    model = packed(bert, techniques)
    with torch.no_grad():
        wanted = model(**batch).logits
    trainable = artefact.unpack(copy.deepcopy(model))
    kinds = {type(m) for m in trainable.modules()}
    assert not {PackedLinear, PackedEmbedding} & kinds
    assert not hasattr(trainable.config, "quantization_config")
    trainable(**batch).logits.sum().backward()
    gradient = trainable.bert.encoder.layer[0].output.dense.weight.grad
    assert float(gradient.abs().max()) > 0
    again = artefact.finalize(trainable, techniques)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, wanted)


def test_saving_refuses_a_folder_that_holds_something(bert, tokenizer, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is already a folder that is not empty"):
        artefact.save(packed(bert), tokenizer, tmp_path / "full")
    assert os.listdir(tmp_path / "full") == ["mine.txt"]


def test_a_save_that_fails_leaves_nothing_behind(bert, tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        artefact.save(packed(bert), Broken(), tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_a_digest_sees_type_shape_and_content():
    kinds = [torch.zeros(2), torch.zeros(2, 1), torch.zeros(2).half(), torch.tensor([0.0, 1.0])]
    assert len({artefact.digest(t) for t in kinds}) == 4


def test_finalizing_without_quantization_stays_an_ordinary_model(bert):
    model = artefact.finalize(copy.deepcopy(bert), [])
    assert not hasattr(model.config, "quantization_config")
    assert torch.equal(model.classifier.weight, bert.classifier.weight)


def test_the_config_holds_the_techniques(saved):
    held = json.loads((saved / "config.json").read_text())["quantization_config"]
    assert held["quant_method"] == "xtc" and held["format"] == 1
    assert held["techniques"] == [Quantize().to_dict()]
    assert Scheme.parse(held["techniques"][0]["quantize"]["weights"]) == Scheme("binary")


def test_an_artefact_asked_for_in_bf16_loads_in_fp32(saved, batch):
    whole = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    asked = AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        assert torch.equal(asked(**batch).logits, whole(**batch).logits)


def test_a_packed_model_can_be_differentiated_after_inference(bert, batch):
    model = packed(bert)
    with torch.inference_mode():
        wanted = model(**batch).logits
    assert torch.equal(model(**batch).logits.detach(), wanted)
