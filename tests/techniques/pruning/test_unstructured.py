"""Single weights pruned: masks in training, after a resume, and in the file."""

import copy

import pytest
import torch
from made import taught
from safetensors.torch import load_file
from torch import nn

from xtclib.artefact import format, ledger
from xtclib.bert import encoder_linears
from xtclib.deployment import onnx, runtimes
from xtclib.distillation.objective import Objective
from xtclib.tasks.masked import MASKED, under_head
from xtclib.tasks.rows import Calibration
from xtclib.techniques import PruneHeads, apply_all, technique
from xtclib.techniques.embeddings.technique import PruneVocabulary
from xtclib.techniques.pruning.layers import MaskedLinear, QuantMaskedLinear, SparseLinear
from xtclib.techniques.pruning.structured import LearnGates, PruneWidth
from xtclib.techniques.pruning.unstructured import (
    ReweightedProximal,
    Schedule,
    Sparsify,
)
from xtclib.techniques.quantization.packing import encode, pack
from xtclib.techniques.quantization.technique import Quantize
from xtclib.training.budget import Budget


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def layers(model):
    return list(encoder_linears(model).values())


def sparsity_of(model):
    """The share of zeros in every encoder weight by name, in training or stored."""
    found = {}
    for name, layer in model.base_model.encoder.named_modules():
        if isinstance(layer, SparseLinear):
            found[name] = 1 - float(layer.present().float().mean())
        elif isinstance(layer, nn.Linear):
            weight = layer.weight * getattr(layer, "mask", True)
            found[name] = float((weight == 0).float().mean())
    return found


def shares(model):
    return set(sparsity_of(model).values())


def finalized(model, techniques):
    return format.finalize(apply_all(model, techniques), techniques).eval()


def test_nothing_pruned_is_the_original_model(bert, batch):
    pruned = Sparsify(0.0).apply(bert)
    assert torch.equal(logits(pruned, batch), logits(bert, batch)) and shares(pruned) == {0.0}


@pytest.mark.parametrize(
    "values",
    [
        {"sparsity": 0.75},
        {"sparsity": 0.75, "scope": "model"},
        {"sparsity": 0.75, "criterion": "random"},
        {"sparsity": 0.75, "pattern": "4x8"},
        {"pattern": "1:4"},
        {"sparsity": 0.75, "criterion": "movement", "schedule": {"end": 0.5}},
    ],
)
def test_the_share_is_gone_and_a_mask_computes_as_zeros_do(bert, batch, values):
    pruned, zeroed = Sparsify(**values).apply(bert), copy.deepcopy(bert)
    found = sparsity_of(pruned)
    weights = {n: m.weight.numel() for n, m in bert.base_model.encoder.named_modules()
               if isinstance(m, nn.Linear)}  # fmt: skip
    total = sum(found[n] * weights[n] for n in weights) / sum(weights.values())
    assert total == pytest.approx(0.75, abs=1e-6)
    assert (len(set(found.values())) > 1) == (values.get("scope") == "model")
    for ours, theirs in zip(layers(pruned), layers(zeroed), strict=True):
        theirs.weight.data *= ours.mask
    assert torch.equal(logits(pruned, batch), logits(zeroed, batch))


def test_magnitude_keeps_the_largest_and_random_does_not_look(bert):
    for criterion, certain in (("magnitude", True), ("random", False)):
        layer = layers(Sparsify(0.5, criterion).apply(bert))[0]
        size = layer.weight.abs()
        assert (size[layer.mask].min() >= size[~layer.mask].max()) == certain
    first, again, other = (
        layers(Sparsify(0.5, "random", seed=s).apply(bert))[0].mask for s in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def trained(bert, tokenizer, data, folder, techniques, steps=10, **budget):
    student = apply_all(bert, techniques).requires_grad_(True)
    return taught(
        student, tokenizer, data, Objective(labels=1),
        Budget(steps=steps, batch_size=8, learning_rate=1e-3, **budget), folder,
        techniques=techniques, finalize=lambda m: format.finalize(m, techniques),
    )  # fmt: skip


@pytest.mark.parametrize("criterion", ["magnitude", "movement", "random"])
def test_sparsity_rises_by_the_schedule_and_then_stands_still(
    bert, tokenizer, data, tmp_path, criterion
):
    technique_ = Sparsify(0.8, criterion, Schedule(0.2, 0.6, 1))
    seen, masks_ = [], []
    inner = technique_.before_step

    def watched(model, step, total):
        inner(model, step, total)
        seen.append(sum(sparsity_of(model).values()) / len(sparsity_of(model)))
        masks_.append(layers(model)[0].mask.clone())

    object.__setattr__(technique_, "before_step", watched)
    student, _ = trained(bert, tokenizer, data, tmp_path, [technique_])
    rise = [0.8 * (1 - (1 - x) ** 3) for x in (0, 0.25, 0.5, 0.75, 1)]
    assert seen == pytest.approx([0, 0, *rise, 0.8, 0.8, 0.8], abs=1e-3)
    assert all(torch.equal(m, masks_[-1]) for m in masks_[6:])
    assert all(share == pytest.approx(0.8, abs=1e-3) for share in shares(student))


@pytest.mark.parametrize("total", [1, 2, 3, 7, 83, 87, 169, 203, 500])
def test_a_cut_in_one_step_comes_whatever_the_length(bert, total):
    """0.6 · 83 = 49.8: a share of steps turned into steps and back must not miss its step."""
    late = Sparsify(0.8, schedule=Schedule(0.6, 0.6))
    model = late.apply(bert)
    for step in range(total):
        late.before_step(model, step, total)
    assert all(share == pytest.approx(0.8, abs=1e-3) for share in shares(model))


def test_two_of_four_waits_for_its_step(bert):
    late = Sparsify(pattern="2:4", schedule=Schedule(0.5, 0.5))
    model = late.apply(bert)
    late.before_step(model, 0, 10)
    assert shares(model) == {0.0}
    late.before_step(model, 5, 10)
    assert shares(model) == {0.5}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights", "int8"])
def test_an_exported_sparse_model_is_its_dense_self(make_bert, batch, name, tmp_path):
    pytest.importorskip("onnxruntime")
    model = finalized(make_bert(1), [*CHOICES[name], *([Quantize(None, "int8-row", None)] if name ==
                                                "weights" else [])])  # fmt: skip
    path = onnx.export_onnx(model, tmp_path / "m.onnx", "trained")
    found = runtimes.OnnxModel(path)(**batch).logits
    assert torch.allclose(found, logits(model, batch), atol=2e-2)


def test_movement_scores_are_minus_the_sum_of_gradient_times_weight(bert, batch):
    model = Sparsify(0.5, "movement", Schedule(end=0.5)).apply(bert).requires_grad_(True)
    technique_, wanted = Sparsify(0.5, "movement", Schedule(end=0.5)), 0
    for step in range(3):
        model.zero_grad()
        technique_.before_step(model, 0, 100)  # nothing masked yet
        model(**batch, labels=torch.tensor([0, 1, 0])).loss.backward()
        layer = layers(model)[0]
        wanted = wanted - layer.weight.grad * layer.weight.detach()
        technique_.after_step(model, step, 100, 1e-3)
    assert torch.allclose(layer.scores, wanted, atol=1e-7) and float(wanted.abs().max()) > 0


def test_a_masked_weight_learns_a_score_but_not_a_value():
    torch.manual_seed(0)
    layer = MaskedLinear.from_linear(nn.Linear(4, 3), learned=True)
    layer.mask[0, 1] = False
    layer(torch.randn(5, 4)).square().sum().backward()
    assert layer.weight.grad[0, 1] == 0 and layer.weight.grad[0, 0] != 0
    assert layer.scores.grad[0, 1] != 0


@pytest.mark.slow
def test_the_release_scores_learn_at_a_rate_of_their_own(bert, tokenizer, data, tmp_path):
    slow, fast = (
        trained(bert, tokenizer, data, tmp_path / str(rate),
                [Sparsify(0.5, {"movement": {"score_learning_rate": rate}}, Schedule(end=0.5))],
                steps=4)[0]
        for rate in (1e-3, 1e-1)
    )  # fmt: skip
    ratio = layers(fast)[0].scores.abs().mean() / layers(slow)[0].scores.abs().mean()
    assert 50 < float(ratio) < 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "techniques",
    [
        [Sparsify(0.7, schedule=Schedule(0.1, 0.8, 2))],
        [Sparsify(0.7, "movement", Schedule(0.1, 0.8, 2))],
        [
            Sparsify(0.7, schedule=Schedule(0.9, 0.9)),
            ReweightedProximal(0.7, reweight=3, until=0.9),
        ],
    ],
    ids=["magnitude", "movement", "rpp"],
)
def test_a_resumed_run_ends_in_the_same_masks_and_weights(
    bert, tokenizer, data, tmp_path, techniques
):
    whole, _ = trained(bert, tokenizer, data, tmp_path / "whole", techniques, steps=12)

    class Cut(Exception):
        pass

    inner, calls = techniques[0].before_step, []

    def cut(model, step, total):
        calls.append(step)
        if step == 7 and len(calls) == 8:
            raise Cut
        inner(model, step, total)

    object.__setattr__(techniques[0], "before_step", cut)
    with pytest.raises(Cut):
        trained(bert, tokenizer, data, tmp_path / "cut", techniques, steps=12)
    again, notes = trained(bert, tokenizer, data, tmp_path / "cut", techniques, steps=12)
    assert notes["resumed"] and min(calls[8:]) >= 5  # it did go on, not begin anew
    for (name, a), (_, b) in zip(
        whole.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_proximal_step_of_one_layer_by_hand(bert):
    model = ReweightedProximal(strength=0.5, epsilon=0.1, reweight=2, until=1.0).apply(bert)
    technique_ = ReweightedProximal(strength=0.5, epsilon=0.1, reweight=2, until=1.0)
    layer = layers(model)[0]
    weight = layer.weight.detach().double()
    alpha = 1 / (weight.abs() + 0.1)
    for step in range(4):  # α is drawn anew at steps 0 and 2
        if step % 2 == 0:
            alpha = 1 / (weight.abs() + 0.1)
        weight = weight.sign() * (weight.abs() - 0.5 * 0.01 * alpha).clamp(min=0)
        technique_.after_step(model, step, 4, 0.01)
    assert torch.allclose(layer.weight.double(), weight, atol=1e-6)
    assert 0.05 < float((layer.weight == 0).float().mean()) < 0.95


def test_without_a_gradient_the_aimed_share_just_reaches_zero(bert):
    technique_ = ReweightedProximal(0.6, epsilon=1e-6, reweight=1, until=1.0)
    model = technique_.apply(bert)
    for step in range(400):
        technique_.after_step(model, step, 400, 1.0)
    zeros = [float((layer.weight == 0).float().mean()) for layer in layers(model)]
    assert zeros == pytest.approx([0.6] * len(zeros), abs=0.02)


def test_deleted_information_may_be_learned_again(bert, tokenizer, data, tmp_path):
    technique_ = Sparsify(0.5, recover=True)
    deleted = technique_.apply(bert)
    assert shares(deleted) == {0.5} and type(layers(deleted)[0]) is nn.Linear
    student, _ = trained(bert, tokenizer, data, tmp_path, [technique_], steps=3)
    assert max(shares(student)) < 0.01
    assert not hasattr(format.finalize(student, [technique_]), "hf_quantizer")


CHOICES = {
    "weights": [Sparsify(0.9)],
    "2:4": [Sparsify(pattern="2:4")],
    "whole model": [Sparsify(0.6, scope="model")],
    "heads first": [PruneHeads(), Sparsify(0.5)],
    "int8": [Sparsify(0.8), Quantize("int8-row", "int8-row", "int8-token")],
    "int4": [Sparsify(0.8), Quantize("int4", None, None)],
}


@pytest.mark.parametrize("name", CHOICES)
def test_every_sparse_model_saves_and_reloads_to_the_same_bits(
    bert, tokenizer, batch, name, tmp_path
):
    model = finalized(bert, CHOICES[name])
    folder = format.save(model, tokenizer, tmp_path / "a")
    again, _ = format.load(folder)
    assert torch.equal(logits(again, batch), logits(model, batch))
    entries = ledger.byte_ledger(folder)
    assert sum(e.bytes for e in entries) == (folder / format.WEIGHTS).stat().st_size
    planned = {e.tensor: e.bytes for e in ledger.plan(bert.config, CHOICES[name])}
    found = {e.tensor: e.bytes for e in entries}
    assert found.keys() == planned.keys()
    for tensor in found.keys() - {"header"}:
        if name == "whole model":  # there the share differs from matrix to matrix
            break
        gap = planned[tensor] - found[tensor]
        coded = "int" in name and tensor.endswith("_values")  # codes round some values to 0
        assert 0 <= gap <= (0.3 * planned[tensor] if coded else 0), tensor
    trainable = format.trainable(again)
    assert shares(trainable) == shares(model)
    kinds = {type(layer) for layer in layers(trainable)}
    assert kinds == ({QuantMaskedLinear} if "int" in name else {MaskedLinear})


def test_a_sparse_file_is_its_mask_and_its_values(bert, tokenizer, tmp_path):
    folder = format.save(finalized(bert, [Sparsify(0.9)]), tokenizer, tmp_path / "a")
    tensors = load_file(folder / format.WEIGHTS)
    name = "bert.encoder.layer.0.intermediate.dense"
    assert tensors[f"{name}.weight"].shape == (64, 4, 1)
    assert tensors[f"{name}.weight_values"].dtype == torch.float16
    assert len(tensors[f"{name}.weight_values"]) == round(0.1 * 64 * 32)


def test_int8_values_are_those_of_the_dense_int8_layer(bert):
    model = finalized(bert, CHOICES["int8"])
    sparse = next(m for m in model.modules() if isinstance(m, SparseLinear))
    masked = layers(apply_all(bert, CHOICES["int8"]))[0]
    from xtclib.techniques.quantization.quantizers import quantize

    codes = quantize(masked.weight.detach() * masked.mask, masked.weights).codes
    assert torch.equal(sparse.quantized().codes, codes)
    assert torch.equal(sparse.weight.squeeze(-1), pack((codes != 0).to(torch.uint8), 1))
    assert torch.equal(sparse.weight_values, encode(codes[codes != 0], 8, 127))


@pytest.mark.slow
def test_a_later_stage_quantizes_behind_the_mask(bert, tokenizer, data, tmp_path):
    first, _ = trained(
        bert, tokenizer, data, tmp_path / "1", [Sparsify(0.5, schedule=Schedule(0, 0.5, 1))]
    )
    second = Quantize("int8-row", None, "int8-token").apply(first)
    before = [layer.mask.clone() for layer in layers(second)]
    student, _ = taught(
        second, tokenizer, data, Objective(labels=1), Budget(steps=4, batch_size=8), tmp_path / "2"
    )
    assert all(torch.equal(a, b.mask) for a, b in zip(before, layers(student), strict=True))
    assert shares(student) == {0.5}


def test_pre_training_prunes_too(bert, tokenizer, tmp_path):
    bert.save_pretrained(tmp_path / "backbone")
    technique_ = Sparsify(0.6, schedule=Schedule(0, 0.5, 1))
    student = technique_.apply(bert).requires_grad_(True)
    masked = under_head(student, tmp_path / "backbone")
    texts = [f"w{i} w{i + 1} w{i + 2} w{i + 3}" for i in range(40)]
    before = student.bert.embeddings.word_embeddings.weight.detach().clone()
    budget = Budget(steps=6, batch_size=8)
    taught(masked, tokenizer, MASKED.data(texts), Objective(labels=1), budget, tmp_path / "run",
           techniques=[technique_])  # fmt: skip
    assert all(share == pytest.approx(0.6, abs=1e-3) for share in shares(student))
    assert not torch.equal(student.bert.embeddings.word_embeddings.weight, before)
    assert masked.cls.predictions.decoder.weight is student.bert.embeddings.word_embeddings.weight


def test_a_cut_model_gets_a_fresh_head_for_masked_words(bert, data, tokenizer, tmp_path):
    bert.save_pretrained(tmp_path / "backbone")
    rows = Calibration(data, tokenizer)
    for cut in (PruneWidth(), PruneVocabulary(0.6)):
        student = cut.apply(bert, rows)
        table = student.get_input_embeddings().weight
        masked = under_head(student, tmp_path / "backbone")
        assert masked.fresh_head and masked.cls.predictions.decoder.weight is table
        assert masked.cls(torch.zeros(2, table.shape[1])).shape == (2, len(table))


def test_the_best_checkpoint_is_one_of_the_final_size(bert, tokenizer, data, tmp_path):
    techniques = [Sparsify(0.5, schedule=Schedule(0.1, 0.7, 1))]
    student, notes = trained(
        bert, tokenizer, data, tmp_path, techniques, keep="evaluation", evaluations=10
    )
    assert notes["best"]["step"] > 7 and shares(student) == {0.5}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"sparsity": 1.0}, "sparsity of sparsify must be .* below 1, received 1.0"),
        ({"sparsity": -0.1}, "must be a number of at least 0 and below 1, received -0.1"),
        ({}, "sparsify needs a sparsity, the share of weights that goes"),
        ({"sparsity": 0.5, "criterion": "magnitud"}, "did you mean 'magnitude'"),
        ({"sparsity": 0.5, "scope": "layers"}, "did you mean 'layer'"),
        ({"sparsity": 0.9, "pattern": "2:4"}, "2:4 is a sparsity of 0.5, received sparsity=0.9"),
        ({"pattern": "2:4", "schedule": {"end": 0.5}}, "2:4 prunes in one step"),
        ({"sparsity": 0.5, "schedule": {"begin": 0.6, "end": 0.5}}, "expected 0 ≤ begin ≤ end < 1"),
        ({"sparsity": 0.5, "schedule": {"end": 1.0}}, "end of schedule must be .* below 1"),
        ({"sparsity": 0.5, "schedule": {"every": 0}}, "every of schedule .* from 1, received 0"),
        ({"sparsity": 0.5, "schedule": {"every": 2.5}}, "every of schedule .*, received 2.5"),
        (
            {"sparsity": 0.5, "schedule": {"ends": 0.5}},
            "key of schedule 'ends': did you mean 'end'",
        ),
        ({"sparsity": "0.5"}, "sparsity of sparsify must be a number .* received '0.5'"),
        (
            {"sparsity": 0.5, "criterion": {"magnitude": {"score_noise": 1.0}}},
            "unknown key of magnitude 'score_noise'",
        ),
        (
            {"sparsity": 0.5, "criterion": {"movement": {"score_noise": -1}}},
            "score_noise of movement must be a number of at least 0, received -1",
        ),
        ({"sparsity": 0.5, "criterion": "movement"}, "give the schedule an end after 0"),
        ({"sparsity": 0.5, "recover": True, "schedule": {"end": 0.5}}, "give no schedule"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        Sparsify(**values)


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "takes a sparsity to aim at or a strength, one of them"),
        ({"sparsity": 0.5, "strength": 1}, "one of them; received sparsity=0.5, strength=1.0"),
        ({"sparsity": 1}, "sparsity of reweighted_proximal must be .* below 1, received 1"),
        ({"strength": -1}, "strength of reweighted_proximal must be .* at least 0"),
        ({"sparsity": 0.5, "epsilon": 0}, "epsilon of .* above 0, received 0"),
        ({"sparsity": 0.5, "until": 0}, "until of .* above 0 and at most 1"),
    ],
)
def test_bad_pulls(values, message):
    with pytest.raises(ValueError, match=message):
        ReweightedProximal(**values)


def test_bad_uses(bert):
    with pytest.raises(
        ValueError, match="pattern 2:5 does not divide a weight of 32 outputs by 32"
    ):
        Sparsify(pattern="2:5").apply(bert)
    with pytest.raises(ValueError, match="already packed; apply `xtclib.trainable` first"):
        Sparsify(0.5).apply(finalized(bert, [Quantize()]))
    with pytest.raises(ValueError, match="sparsify comes before quantize: list it first"):
        apply_all(bert, [Quantize(), Sparsify(0.5)])
    wrong = [ReweightedProximal(0.5), Sparsify(0.5)]
    with pytest.raises(ValueError, match="reweighted_proximal comes last: after sparsify"):
        wrong[0].after_step(apply_all(bert, wrong), 0, 2, 0.0)
    for technique_ in (Sparsify(0.5), Quantize()):
        with pytest.raises(ValueError, match="meets the gates of learn_gates: first remove"):
            apply_all(bert, [LearnGates(), technique_])
    with pytest.raises(ValueError, match="pruned already: one sparsify takes all that goes"):
        apply_all(bert, [Sparsify(0.5), Sparsify(0.6)])
    with pytest.raises(ValueError, match="prune_heads comes before sparsify: list it first"):
        apply_all(bert, [Sparsify(0.5), PruneHeads()])
    with pytest.raises(ValueError, match="cannot be quantized to binary.*choose 'int8' or 'int4'"):
        apply_all(bert, [Sparsify(0.5), Quantize()])
    with pytest.raises(ValueError, match="unknown key of sparsify 'sparsty'"):
        technique({"sparsify": {"sparsty": 0.5}})
    late = Sparsify(0.5, "movement", Schedule(end=0.5))
    model = apply_all(bert, [late, Quantize("int8", None, None)])
    with pytest.raises(ValueError, match="scores learn on full-precision weights"):
        late.before_step(model, 0, 10)


def test_nan_is_refused(bert):
    bert.bert.encoder.layer[0].output.dense.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="cannot prune this model: the parameter"):
        Sparsify(0.5).apply(bert)
