"""The byte ledger against the file, and against minima computed by hand."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertForSequenceClassification

from xtclib import bert as berts
from xtclib import files, records
from xtclib.artefact import format, ledger
from xtclib.recipes import recipe
from xtclib.study import profiles
from xtclib.techniques import apply_all
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.quantization.technique import Quantize, Storage


@pytest.fixture
def saved(bert, tokenizer, tmp_path):
    chosen = [
        LayerReduction("top", 2),
        Quantize("ternary", "ternary-row"),
        Storage("int8-row", "binary-row", ternary=1.6),
    ]
    model = format.finalize(apply_all(bert, chosen), chosen)
    return format.save(model, tokenizer, tmp_path / "a")


def test_the_ledger_adds_up_to_the_file(saved):
    entries = ledger.byte_ledger(saved)
    assert sum(e.bytes for e in entries) == (saved / format.WEIGHTS).stat().st_size
    sizes = [e.bytes for e in entries[:-1]]
    assert sizes == sorted(sizes, reverse=True) and entries[-1].tensor == "header"
    assert entries[-1].values == 0 and entries[-1].bits == 0


def test_every_width_has_its_minimum_and_its_limit(saved):
    found = {e.tensor: e for e in ledger.byte_ledger(saved)}
    words = found["bert.embeddings.word_embeddings.weight"]  # 200 × 32 at five to a byte
    assert (words.bytes, words.values, words.width) == (200 * 7, 6400, 1.6)
    assert words.minimum == 1280 and words.bits == pytest.approx(1.75)  # 7 bytes for 32 trits
    assert words.limit == pytest.approx(6400 * math.log2(3) / 8)
    positions = found["bert.embeddings.position_embeddings.weight"]
    assert (positions.bytes, positions.minimum, positions.limit) == (256, 256, 256)
    pooler = found["bert.pooler.dense.weight"]
    assert pooler.minimum == 1024 and pooler.limit == pytest.approx(1024 * math.log2(255) / 8)
    scale = found["bert.pooler.dense.weight_scale"]
    assert (scale.dtype, scale.bytes, scale.width, scale.minimum) == ("float16", 64, 16, 64)


def test_the_table_says_how_close_the_file_is(saved):
    entries = ledger.byte_ledger(saved)
    lines = ledger.table(entries, rows=3).splitlines()
    assert len(lines) == 8 and max(map(len, lines)) < 110
    assert lines[1].split()[0] == "bert.embeddings.word_embeddings.weight"
    assert lines[4].startswith(f"… {len(entries) - 4} smaller tensors")
    total, least = sum(e.bytes for e in entries), sum(e.minimum for e in entries)
    assert (
        lines[-1]
        == f"the file is {100 * (total / least - 1):.2f} % above the minimum of its widths"
    )


def test_a_model_that_is_not_packed_has_a_ledger_too(bert, tmp_path):
    bert.save_pretrained(tmp_path / "plain")
    entries = ledger.byte_ledger(tmp_path / "plain")
    assert {e.width for e in entries[:-1]} == {32}
    parameters = sum(p.numel() for p in BertForSequenceClassification(bert.config).parameters())
    assert sum(e.values for e in entries) == parameters


def test_a_folder_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model.safetensors in .*: expected an artefact"):
        ledger.byte_ledger(tmp_path)


def test_a_plan_is_the_file_to_a_few_bytes(bert12, tmp_path):
    chosen = [
        LayerReduction(),
        Quantize("ternary", "int4-row"),
        Storage("uint8-row", "binary-row", length=16, ternary=1.6),
    ]
    planned = ledger.plan(bert12.config, chosen)
    assert bert12.config.num_hidden_layers == 12 and bert12.config.max_position_embeddings == 64
    format.finalize(apply_all(bert12, chosen), chosen).save_pretrained(tmp_path / "a")
    found = ledger.byte_ledger(tmp_path / "a")
    assert sorted(map(str, planned[:-1])) == sorted(map(str, found[:-1]))
    assert planned[-1].bytes == pytest.approx(found[-1].bytes, rel=0.15)


def test_damaged_and_foreign_files_are_one_clear_error(saved):
    (saved / files.SUMS).unlink()  # of its own kind; see test_format.py
    config = json.loads((saved / "config.json").read_text())
    other = config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (saved / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="is packed, but config.json does not say how"):
        ledger.byte_ledger(saved)
    (saved / "config.json").write_text(json.dumps(config))
    path = saved / format.WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="cannot be read .*truncated or no safetensors file"):
        ledger.byte_ledger(saved)
    (saved / "config.json").write_text(json.dumps(other))
    save_file({"classifier.bias": torch.zeros(2, dtype=torch.int8)}, path)
    with pytest.raises(ValueError, match="was quantized by 'gptq', not by xtclib"):
        ledger.byte_ledger(saved)
    del config["quantization_config"]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="tensor 'classifier.bias' has type I8"):
        ledger.byte_ledger(saved)
    (saved / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json in"):
        ledger.byte_ledger(saved)


@pytest.mark.slow
def test_plans_are_the_committed_files_sizes():
    config = berts.read_config(profiles.backbone_for("minilm"))
    off = {}
    for r in records.read("reviews", task="reviews", seed=0, budget="A"):
        planned = ledger.plan(config, recipe.load(r.recipe).techniques)
        off[r.recipe] = abs(sum(entry.bytes for entry in planned) / r.bytes - 1)
    assert len(off) > 100 and max(off.values()) < 0.003, max(off, key=off.get)
