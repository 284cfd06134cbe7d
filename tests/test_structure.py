"""Heads and neurons removed for good: the same numbers as masked ones, in smaller matrices."""

import copy
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForSequenceClassification, TrainingArguments

from xtclib import architectures, artefact, breakdown, ledger, structure
from xtclib.models import encoder_layers
from xtclib.recipes import Objective
from xtclib.techniques import (
    LayerReduction,
    PruneHeads,
    PruneNeurons,
    Quantize,
    Storage,
    apply_all,
    technique,
)
from xtclib.training import DistillationTrainer


def finalized(model, techniques):
    return artefact.finalize(apply_all(model, techniques), techniques).eval()


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def test_removed_heads_are_masked_heads(bert, batch):
    masked, removed = copy.deepcopy(bert), copy.deepcopy(bert)
    for index, heads in enumerate(([1], [0], [0, 1], [1])):
        gone = [h for h in range(2) if h not in heads]
        for h in gone:  # a head whose output is not read might as well not be there
            encoder_layers(masked)[index].attention.output.dense.weight.data[
                :, 16 * h : 16 * h + 16
            ] = 0
        structure.keep_heads_(encoder_layers(removed)[index], heads)
    assert (logits(masked, batch) - logits(removed, batch)).abs().max() < 1e-5
    assert (logits(bert, batch) - logits(removed, batch)).abs().max() > 1e-3
    assert [w["heads"] for w in structure.widths(removed)] == [1, 1, 2, 1]
    assert encoder_layers(removed)[0].attention.self.query.weight.shape == (16, 32)


def test_removed_neurons_are_masked_neurons(bert, batch):
    masked, removed = copy.deepcopy(bert), copy.deepcopy(bert)
    for layer in encoder_layers(masked):
        layer.output.dense.weight.data[:, ::3] = 0
    kept = [n for n in range(64) if n % 3]
    for layer in encoder_layers(removed):
        structure.keep_neurons_(layer, kept)
    assert (logits(masked, batch) - logits(removed, batch)).abs().max() < 1e-5
    assert {w["neurons"] for w in structure.widths(removed)} == {42}


@pytest.mark.parametrize("cls", [PruneHeads, PruneNeurons])
@pytest.mark.parametrize("scope", ["layer", "model"])
def test_keeping_everything_is_the_original_model(bert, batch, cls, scope):
    pruned = cls(keep=1.0, scope=scope).apply(bert)
    assert (
        torch.equal(logits(pruned, batch), logits(bert, batch)) and structure.uneven(pruned) is None
    )


def test_magnitude_finds_the_planted_heads_and_neurons(bert):
    with torch.no_grad():
        for index, layer in enumerate(encoder_layers(bert)):
            head = index % 2
            for name in ("query", "key", "value"):
                getattr(layer.attention.self, name).weight[16 * head : 16 * head + 16] *= 5
            layer.intermediate.dense.weight[7] *= 100
    heads = structure.best(structure.head_magnitudes(bert), 0.5)
    assert heads == [[0], [1], [0], [1]]
    neurons = structure.best(structure.neuron_magnitudes(bert), 1 / 64)
    assert neurons == [[7]] * 4


def test_a_whole_model_is_ranked_together_and_no_layer_goes_empty(make_bert):
    model = make_bert(4)
    with torch.no_grad():
        encoder_layers(model)[2].intermediate.dense.weight *= 1e-3
    pruned = PruneNeurons(keep=0.5, scope="model").apply(model)
    neurons = [w["neurons"] for w in structure.widths(pruned)]
    assert (
        sum(neurons) == 128
        and neurons[2] == 1
        and structure.uneven(pruned) == structure.widths(pruned)
    )


def test_random_is_a_control_with_a_seed(bert, batch):
    first, again, other = (
        logits(PruneNeurons(criterion="random", seed=s).apply(bert), batch) for s in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


CHOICES = {
    "heads": [PruneHeads(0.5)],
    "uneven": [PruneNeurons(0.4, scope="model"), PruneHeads(0.6, scope="model")],
    "with layers and bits": [
        LayerReduction("top", 2), PruneHeads(), PruneNeurons(), Quantize(),
        Storage("int8-row", "int8-row"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_every_structure_saves_and_reloads_to_the_same_bits(bert, tokenizer, batch, name, tmp_path):
    model = finalized(bert, CHOICES[name])
    folder = artefact.save(model, tokenizer, tmp_path / "a")
    again = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert structure.widths(again) == structure.widths(model)
    entries = ledger.byte_ledger(folder)
    assert sum(e.bytes for e in entries) == (folder / artefact.WEIGHTS).stat().st_size
    stored = sum(e.values for e in entries if not e.tensor.endswith(("_scale", "_zero")))
    assert stored == breakdown.parameters(model)


def test_a_pruned_teacher_passes_its_structure_on(bert, tokenizer, batch, tmp_path):
    """No technique of the student's says that heads were removed: its layers do."""
    teacher = apply_all(bert, [PruneHeads(0.6, scope="model"), PruneNeurons()])
    model = finalized(teacher, [LayerReduction("top", 3), Quantize()])
    again, _ = artefact.load(artefact.save(model, tokenizer, tmp_path / "a"))
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert structure.widths(again) == structure.widths(teacher)[1:]


FRESH = """
import sys, torch, xtclib
from transformers import AutoModelForSequenceClassification as Auto
model = Auto.from_pretrained(sys.argv[1]).eval()
print(model(torch.arange(5, 15)[None]).logits.tolist())
"""


def test_a_fresh_process_reads_uneven_layers(bert, tokenizer, tmp_path):
    model = finalized(bert, CHOICES["uneven"])
    folder = artefact.save(model, tokenizer, tmp_path / "a")
    found = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder)], capture_output=True, text=True, timeout=120
    )
    wanted = logits(model, {"input_ids": torch.arange(5, 15)[None]}).tolist()
    assert eval(found.stdout) == wanted, found.stderr[-2000:]


def test_half_the_heads_and_neurons_are_half_the_encoder_and_half_the_operations(tmp_path):
    teacher = architectures.build("bert-base")
    half = architectures.build("bert-base")
    structure.resize_(half, [{"heads": 6, "neurons": 1536}] * 12)
    sizes = [sum(p.numel() for p in m.base_model.encoder.parameters()) for m in (half, teacher)]
    assert sizes[0] / sizes[1] == pytest.approx(0.5, abs=0.001)  # biases and LayerNorm stay
    ratio = breakdown.flops(half, 1, 128) / breakdown.flops(teacher, 1, 128)
    assert ratio == pytest.approx(0.5, abs=0.001)


def test_operations_follow_the_structure_that_is_saved(bert):
    model = finalized(bert, [PruneHeads(), PruneNeurons()])
    assert breakdown.flops(model.config, 1, 16) < 0.55 * breakdown.flops(bert.config, 1, 16)


@pytest.mark.parametrize(
    "cls, values, message",
    [
        (PruneHeads, {"keep": 0}, "keep must be above 0 and at most 1, received 0"),
        (PruneNeurons, {"keep": 1.5}, "keep must be above 0 and at most 1, received 1.5"),
        (PruneHeads, {"criterion": "magnitud"}, "unknown criterion .*did you mean 'magnitude'"),
        (PruneHeads, {"scope": "layers"}, "unknown scope 'layers': did you mean 'layer'"),
    ],
)
def test_bad_settings(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_bad_uses(bert, make_bert):
    packed = finalized(make_bert(1), [Quantize()])
    with pytest.raises(ValueError, match="already packed; apply `xtclib.artefact.unpack` first"):
        PruneHeads().apply(packed)
    with pytest.raises(ValueError, match="prune_neurons comes before quantize and sparsify"):
        apply_all(bert, [Quantize(), PruneNeurons()])
    with pytest.raises(ValueError, match="every head of a layer would go: keep at least one"):
        structure.keep_heads_(encoder_layers(bert)[0], [])
    with pytest.raises(ValueError, match=r"cannot keep neurons \[64\]: .* from 0 to 63"):
        structure.keep_neurons_(encoder_layers(bert)[0], [64])
    with pytest.raises(ValueError, match="widths of 1 layers were given for 4 layers"):
        structure.resize_(bert, [{"heads": 1, "neurons": 2}])
    with pytest.raises(ValueError, match="unknown key of prune_heads 'sparsity'"):
        technique({"prune_heads": {"sparsity": 0.5}})


def test_pruned_models_train(bert, batch):
    model = apply_all(bert, [PruneHeads(), PruneNeurons(), Quantize()])
    model.train()(**batch).logits.sum().backward()
    gradient = encoder_layers(model)[0].attention.self.query.weight.grad
    assert gradient.shape == (16, 32) and float(gradient.abs().max()) > 0


def test_scores_of_fewer_heads_are_refused_before_training(bert, tmp_path):
    pruned = PruneHeads().apply(bert)
    with pytest.raises(ValueError, match="layer 0 of the student has 1 heads and its teacher's 2"):
        DistillationTrainer(
            pruned, Objective(attention_scores=1), bert,
            args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
        )  # fmt: skip
