"""Ternary weight splitting: its sums and scales, and models of split layers."""

import copy

import pytest
import torch
from hypothesis import given, strategies

from xtclib.artefact import format, ledger
from xtclib.costs import breakdown
from xtclib.techniques import PruneHeads, PruneNeurons, apply_all
from xtclib.techniques.quantization.quantizers import Scheme, quantize
from xtclib.techniques.quantization.splitting import (
    SplitEmbedding,
    SplitLinear,
    SplitTernary,
    split,
)
from xtclib.techniques.quantization.technique import Quantize

TERNARY = Quantize("ternary", "ternary-row", "int8-token")
HALF = [PruneHeads(0.5, "magnitude"), PruneNeurons(0.5, "magnitude"), TERNARY]


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@given(seed=strategies.integers(0, 10**6), name=strategies.sampled_from(
    ["ternary", "ternary-row", "ternary-group4"]))  # fmt: skip
def test_sums_and_scales_in_float64(seed, name):
    scheme = Scheme.parse(name)
    binary = Scheme("binary", 1, scheme.granularity, scheme.groups)
    w = torch.randn(8, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first, second = split(w, scheme)
    torch.testing.assert_close(first + second, w, rtol=0, atol=1e-12)
    whole, halves = quantize(w, scheme), [quantize(half, binary) for half in (first, second)]
    for half in halves:
        torch.testing.assert_close(half.scale, whole.scale / 2, rtol=1e-12, atol=0)
    summed = sum(half.dequantize() for half in halves)
    torch.testing.assert_close(summed, whole.dequantize(), rtol=0, atol=1e-12)


def test_groups_without_zeros_or_of_zeros_alone():
    w = torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    first, second = split(w, Scheme.parse("ternary-row"))
    assert torch.equal(first, w / 2) and torch.equal(second, w / 2)


def test_a_split_model_computes_what_the_ternary_one_did(bert, batch):
    half = apply_all(bert, HALF)
    both = SplitTernary().apply(half)
    torch.testing.assert_close(logits(both, batch), logits(half, batch), rtol=1e-4, atol=1e-5)
    layer = both.bert.encoder.layer[0].intermediate.dense
    assert isinstance(layer, SplitLinear) and isinstance(
        both.bert.embeddings.word_embeddings, SplitEmbedding
    )
    assert (
        str(layer.first.weights) == "binary-tensor"
        and str(layer.second.activations) == "int8-token"
    )
    before = half.bert.encoder.layer[0].intermediate.dense
    torch.testing.assert_close(layer.first.bias + layer.second.bias, before.bias)


def test_both_halves_learn(bert, batch):
    both = SplitTernary().apply(apply_all(bert, HALF)).train()
    both(**batch, labels=torch.tensor([0, 1, 0])).loss.backward()
    layer = both.bert.encoder.layer[0].attention.self.value
    grads = [layer.first.weight.grad, layer.second.weight.grad]
    assert torch.equal(*grads) and float(grads[0].abs().max()) > 0


@pytest.mark.slow
def test_a_fresh_process_reads_split_layers(bert, tokenizer, batch, tmp_path, fresh_logits):
    techniques = [*HALF, SplitTernary()]
    model = format.finalize(apply_all(bert, techniques), techniques)
    wanted = logits(model, batch)
    format.save(model, tokenizer, tmp_path / "a")
    found = fresh_logits(tmp_path / "a")
    assert found == wanted.tolist()
    trainable = format.trainable(copy.deepcopy(model))
    torch.testing.assert_close(logits(trainable, batch), wanted, rtol=1e-4, atol=1e-5)
    entries = ledger.byte_ledger(tmp_path / "a")
    size = (tmp_path / "a" / "model.safetensors").stat().st_size
    assert sum(entry.bytes for entry in entries) == size


@pytest.mark.slow
def test_a_split_model_costs_what_its_two_halves_do(bert, tokenizer, tmp_path):
    techniques = [*HALF, SplitTernary()]
    flops = []
    for chosen in (HALF, techniques):
        model = format.finalize(apply_all(bert, chosen), chosen)
        flops.append(breakdown.flops(model.config, 1, 8))
    products = 4 * 2 * 2 * 8 * 8 * 16  # four layers, two products of scores and context, one head
    head = 2 * (32 * 32 + 32 * 2)
    assert flops[1] - products - head == 2 * (flops[0] - products - head)


def test_a_model_without_ternary_weights_is_refused(bert):
    for model in (bert, Quantize().apply(bert)):
        with pytest.raises(ValueError, match="this model has none: list `quantize`"):
            SplitTernary().apply(model)


def test_learned_ends_and_clips_come_along(bert, batch):
    techniques = [Quantize({"scheme": "ternary", "clip": 0.3}, None, "int8-lsq")]
    half = apply_all(bert, techniques)
    wanted = logits(half, batch)
    both = SplitTernary().apply(half)
    torch.testing.assert_close(logits(both, batch), wanted, rtol=1e-4, atol=1e-5)
    first = both.bert.encoder.layer[0].intermediate.dense.first
    assert float(first.input_clip.detach()) > 0
