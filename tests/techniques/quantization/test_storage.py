"""The rest of the file: pooler, positions and ternary widths, at BERT-base's full shape too."""

import json

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from xtclib.artefact import format
from xtclib.artefact.ledger import byte_ledger
from xtclib.techniques import apply_all
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.quantization.packed import PackedEmbedding, PackedLinear
from xtclib.techniques.quantization.technique import Quantize, Storage

SMALL = {"pooler": "int8-row", "positions": "int8-row"}


def quantize(bits):
    return Quantize(*(("binary", "binary-row") if bits == 1 else ("ternary", "ternary-row")))


def saved(model, techniques, folder):
    packed = format.finalize(apply_all(model, techniques), techniques)
    packed.save_pretrained(folder)
    return packed, (folder / "model.safetensors").stat().st_size / 1e6


@pytest.fixture(scope="module")
def bert_base():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig()).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers, bits, storage, at_most",
    [
        (12, 1, SMALL, 15.0),
        (6, 1, SMALL, 9.5),
        (5, 1, SMALL, 8.7),
        (12, 2, SMALL | {"ternary": 1.6}, 23.2),
        (12, 2, SMALL, 28.5),
        (6, 1, {"pooler": "binary-row", "positions": "int8-row", "length": 128}, 8.75),
    ],
    ids=["1 bit", "1 bit, 6 layers", "1 bit, 5 layers", "1.6 bits", "2 bits", "50 times"],
)
def test_bert_base_on_disk(bert_base, tmp_path, layers, bits, storage, at_most):
    chosen = [LayerReduction(layers=layers)] if layers < 12 else []
    chosen += [quantize(bits), Storage(**storage)]
    packed, size = saved(bert_base, chosen, tmp_path / "a")
    assert 0.97 * at_most < size <= at_most
    entries = byte_ledger(tmp_path / "a")
    total = sum(entry.bytes for entry in entries)
    assert total == (tmp_path / "a/model.safetensors").stat().st_size
    # Of 174 MB of values at these widths, less than 2 % is header, padding and rounding up.
    assert 1 < total / sum(entry.minimum for entry in entries) < 1.02
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    ids = torch.arange(1000, 1020).view(1, -1)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, packed(ids).logits)


def test_ternary_widths_hold_the_same_model(bert, tmp_path):
    two, wide = saved(bert, [quantize(2), Storage(ternary=2)], tmp_path / "2")
    packed, narrow = saved(bert, [quantize(2), Storage(ternary=1.6)], tmp_path / "1.6")
    assert narrow < wide
    ids = torch.arange(5, 25).view(2, 10)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "1.6")
    with torch.no_grad():
        assert torch.equal(two(ids).logits, packed(ids).logits)
        assert torch.equal(two(ids).logits, again(ids).logits)
    assert {m.width for m in again.modules() if isinstance(m, PackedLinear)} == {1.6}


def test_an_artefact_with_storage_says_so_and_unpacks_to_train(bert, tmp_path):
    storage = Storage(pooler="binary-row", positions="int8-row", length=16)
    saved(bert, [quantize(1), storage], tmp_path / "a")
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["quantization_config"]["format"] == 1
    assert config["max_position_embeddings"] == 16
    model, ids = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a"), torch.arange(9)
    before = model(ids[None]).logits
    model = format.trainable(model)
    assert not any(isinstance(m, (PackedLinear, PackedEmbedding)) for m in model.modules())
    assert torch.allclose(model(ids[None]).logits, before, atol=1e-4)
    model(ids[None]).logits.sum().backward()
    assert model.bert.pooler.dense.weight.grad is not None


def test_the_classifier_has_a_width_of_its_own(bert, tmp_path):
    chosen = [quantize(1), Storage(pooler="int8-row", classifier="int4-row")]
    packed, _ = saved(bert, chosen, tmp_path / "a")
    entries = {e.tensor: e for e in byte_ledger(tmp_path / "a")}
    assert (entries["classifier.weight"].bytes, entries["classifier.weight"].width) == (32, 4)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, packed(ids).logits)
        base = AutoModel.from_pretrained(tmp_path / "a")  # without the head
        assert torch.equal(base(ids).last_hidden_state, packed.bert(ids).last_hidden_state)


def test_storage_trains_what_it_stores(bert):
    model = apply_all(bert, [quantize(1), Storage(pooler="binary-row", length=8)])
    model(torch.arange(8)[None]).logits.sum().backward()
    assert model.bert.pooler.dense.weight.grad.abs().sum() > 0
    assert model.bert.embeddings.position_embeddings.weight.shape[0] == 8
    assert bert.config.max_position_embeddings == 64  # the original stays


def test_input_past_the_trimmed_positions_is_refused_also_after_loading(bert, tmp_path):
    packed, _ = saved(bert, [quantize(1), Storage(length=16)], tmp_path / "a")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    for model in (packed, loaded):
        assert model(torch.arange(16)[None]).logits.shape == (1, 2)
        with pytest.raises(ValueError, match="received 17 tokens, .* has 16 positions: truncate"):
            model(torch.arange(17)[None])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"ternary": 3}, "ternary of storage must be 2 or 1.6, received 3"),
        ({"length": 0}, "length of storage must be a whole number from 1, received 0"),
        ({"pooler": "int9"}, "unknown quantization scheme 'int9'"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        Storage(**values)


def test_a_longer_length_leaves_the_positions_there_are(bert, tmp_path):
    model, _ = saved(bert, [quantize(1), Storage(length=65)], tmp_path / "a")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    for found in (model, again):
        assert found.config.max_position_embeddings == 64
        with pytest.raises(ValueError, match="received 65 tokens, .* has 64 positions"):
            found(torch.full((1, 65), 5))
