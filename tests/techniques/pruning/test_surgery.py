"""Heads and neurons removed for good: the same numbers as masked ones, in smaller matrices."""

import copy
import math

import pytest
import torch
from made import taught
from transformers import (
    AutoModelForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ElectraModel,
    TrainingArguments,
)

from xtclib.artefact import format, ledger
from xtclib.bert import encoder_layers
from xtclib.costs import architectures, breakdown
from xtclib.distillation.objective import Objective
from xtclib.tasks.rows import Calibration
from xtclib.techniques import PruneHeads, PruneNeurons, apply_all, technique
from xtclib.techniques.embeddings import vocabulary
from xtclib.techniques.embeddings.technique import PruneVocabulary
from xtclib.techniques.pruning import importance, surgery
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.pruning.layers import HardConcrete
from xtclib.techniques.pruning.structured import LearnGates, PruneWidth
from xtclib.techniques.pruning.unstructured import Sparsify
from xtclib.techniques.quantization.technique import Quantize, Storage
from xtclib.training.budget import Budget
from xtclib.training.trainer import DistillationTrainer


def finalized(model, techniques):
    return format.finalize(apply_all(model, techniques), techniques).eval()


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
        surgery.keep_heads_(encoder_layers(removed)[index], heads)
    assert (logits(masked, batch) - logits(removed, batch)).abs().max() < 1e-5
    assert (logits(bert, batch) - logits(removed, batch)).abs().max() > 1e-3
    assert [w["heads"] for w in surgery.widths(removed)] == [1, 1, 2, 1]
    assert encoder_layers(removed)[0].attention.self.query.weight.shape == (16, 32)


def test_removed_neurons_are_masked_neurons(bert, batch):
    masked, removed = copy.deepcopy(bert), copy.deepcopy(bert)
    for layer in encoder_layers(masked):
        layer.output.dense.weight.data[:, ::3] = 0
    kept = [n for n in range(64) if n % 3]
    for layer in encoder_layers(removed):
        surgery.keep_neurons_(layer, kept)
    assert (logits(masked, batch) - logits(removed, batch)).abs().max() < 1e-5
    assert {w["neurons"] for w in surgery.widths(removed)} == {42}


@pytest.mark.parametrize("cls", [PruneHeads, PruneNeurons])
@pytest.mark.parametrize("scope", ["layer", "model"])
def test_keeping_everything_is_the_original_model(bert, batch, cls, scope):
    pruned = cls(keep=1.0, scope=scope).apply(bert)
    assert (
        torch.equal(logits(pruned, batch), logits(bert, batch)) and surgery.uneven(pruned) is None
    )


def test_magnitude_finds_the_planted_heads_and_neurons(bert):
    with torch.no_grad():
        for index, layer in enumerate(encoder_layers(bert)):
            head = index % 2
            for name in ("query", "key", "value"):
                getattr(layer.attention.self, name).weight[16 * head : 16 * head + 16] *= 5
            layer.intermediate.dense.weight[7] *= 100
    heads = importance.best(importance.head_magnitudes(bert), 0.5)
    assert heads == [[0], [1], [0], [1]]
    neurons = importance.best(importance.neuron_magnitudes(bert), 1 / 64)
    assert neurons == [[7]] * 4


def test_a_whole_model_is_ranked_together_and_no_layer_goes_empty(make_bert):
    model = make_bert(4)
    with torch.no_grad():
        encoder_layers(model)[2].intermediate.dense.weight *= 1e-3
    pruned = PruneNeurons(keep=0.5, scope="model").apply(model)
    neurons = [w["neurons"] for w in surgery.widths(pruned)]
    assert (
        sum(neurons) == 128 and neurons[2] == 1 and surgery.uneven(pruned) == surgery.widths(pruned)
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
    folder = format.save(model, tokenizer, tmp_path / "a")
    again = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert surgery.widths(again) == surgery.widths(model)
    entries = ledger.byte_ledger(folder)
    assert sum(e.bytes for e in entries) == (folder / format.WEIGHTS).stat().st_size
    stored = sum(e.values for e in entries if not e.tensor.endswith(("_scale", "_zero")))
    assert stored == breakdown.parameters(model)


def test_a_pruned_teacher_passes_its_structure_on(bert, tokenizer, batch, tmp_path):
    """No technique of the student's says that heads were removed: its layers do."""
    teacher = apply_all(bert, [PruneHeads(0.6, scope="model"), PruneNeurons()])
    model = finalized(teacher, [LayerReduction("top", 3), Quantize()])
    again, _ = format.load(format.save(model, tokenizer, tmp_path / "a"))
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert surgery.widths(again) == surgery.widths(teacher)[1:]


def test_half_the_heads_and_neurons_are_half_the_encoder_and_half_the_operations(tmp_path):
    teacher = architectures.build("bert-base")
    half = architectures.build("bert-base")
    surgery.resize_(half, [{"heads": 6, "neurons": 1536}] * 12)
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
        (
            PruneHeads,
            {"keep": 0},
            "keep of prune_heads must be .* above 0 and at most 1, received 0",
        ),
        (PruneNeurons, {"keep": 1.5}, "must be a number above 0 and at most 1, received 1.5"),
        (PruneHeads, {"criterion": "magnitud"}, "unknown criterion .*did you mean 'magnitude'"),
        (
            PruneHeads,
            {"scope": "layers"},
            "unknown scope of prune_heads 'layers': did you mean 'layer'",
        ),
    ],
)
def test_bad_settings(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_bad_uses(bert, make_bert):
    packed = finalized(make_bert(1), [Quantize()])
    with pytest.raises(ValueError, match="already packed; apply `xtclib.trainable` first"):
        PruneHeads().apply(packed)
    with pytest.raises(ValueError, match="prune_neurons comes before quantize: list it first"):
        apply_all(bert, [Quantize(), PruneNeurons()])
    with pytest.raises(ValueError, match="every head of a layer would go: keep at least one"):
        surgery.keep_heads_(encoder_layers(bert)[0], [])
    with pytest.raises(ValueError, match=r"cannot keep neurons \[64\]: .* from 0 to 63"):
        surgery.keep_neurons_(encoder_layers(bert)[0], [64])
    with pytest.raises(ValueError, match="widths of 1 layers were given for 4 layers"):
        surgery.resize_(bert, [{"heads": 1, "neurons": 2}])
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


@pytest.fixture
def rows(data, tokenizer):
    return Calibration(data, tokenizer, rows=24, batch_size=4)


def test_gradients_of_gates_are_those_of_a_masked_head_by_differences(bert, rows, data, tokenizer):
    """∂L/∂ξ against (L(ξ + h) − L(ξ − h)) / 2h in float64, one row at a time."""
    single = Calibration(data, tokenizer, rows=24, batch_size=1)
    bert = bert.double()
    found = importance.gradients(bert, rows.batches(), surgery.HEADS)
    for layer in (0, 3):
        slopes = []
        dense = encoder_layers(bert)[layer].attention.output.dense
        for head in range(2):
            total, columns, kept = 0.0, slice(16 * head, 16 * head + 16), dense.weight.data.clone()
            for batch in single.batches():
                losses = []
                for h in (1e-5, -1e-5):
                    dense.weight.data = kept.clone()
                    dense.weight.data[:, columns] *= 1 + h
                    with torch.no_grad():
                        losses.append(bert(**batch).loss)
                total += abs(float(losses[0] - losses[1]) / 2e-5)
            dense.weight.data = kept
            slopes.append(total)
        wanted = torch.tensor(slopes) / torch.tensor(slopes).norm()
        assert torch.allclose(found[layer].float(), wanted, atol=1e-4)


@pytest.mark.parametrize("cls", [PruneHeads, PruneNeurons])
def test_what_the_loss_does_not_feel_goes_first(bert, rows, cls):
    with torch.no_grad():
        for layer in encoder_layers(bert):
            layer.attention.output.dense.weight[:, 16:] = 0  # head 1 of two
            layer.output.dense.weight[:, ::2] = 0
    pruned = cls(0.5, "gradient").apply(bert, rows)
    batch = next(rows.batches())
    assert torch.allclose(pruned(**batch).logits, bert(**batch).logits, atol=1e-5)


@pytest.mark.slow
def test_gates_start_open_learn_and_close(bert, data, tokenizer, batch, tmp_path):
    gates = LearnGates("heads", penalty_weight=2.0, learning_rate=0.3)
    student = gates.apply(bert)
    assert torch.equal(logits(student, batch), logits(bert, batch))  # open: exactly 1
    both = LearnGates("neurons").apply(student)  # each part answers for itself
    assert float(gates.penalty(both)) == float(gates.penalty(student))
    assert float(gates.penalty(student)) == pytest.approx(2 / (1 + math.exp(-4.0986)), abs=1e-3)
    student, notes = taught(
        student.requires_grad_(True), tokenizer, data, Objective(labels=1),
        Budget(steps=80, batch_size=8), tmp_path, techniques=[gates],
    )  # fmt: skip
    penalties = [entry["loss_penalty"] for entry in notes["losses"]]
    assert penalties[-1] < 0.5 * penalties[0]
    scores = [dense.scores.clone() for _, dense, _ in surgery.readers(student, "heads")]
    closed = gates.finalize(copy.deepcopy(student))
    assert torch.allclose(logits(closed, batch), logits(student, batch), atol=1e-5)
    cut = PruneHeads(0.5, "gates").apply(student)
    assert [w["heads"] for w in surgery.widths(cut)] == [1] * 4
    for index, layer in enumerate(encoder_layers(cut)):
        best = int(scores[index].argmax())
        wanted = encoder_layers(bert)[index].attention.self.query.weight.shape[1]
        assert layer.attention.self.query.weight.shape == (16, wanted)
        kept = encoder_layers(student)[index].attention.self.query.weight[
            16 * best : 16 * best + 16
        ]
        assert torch.equal(layer.attention.self.query.weight, kept)


def test_gates_in_training_are_the_hard_concrete_distribution(bert):
    layer = HardConcrete.from_linear(torch.nn.Linear(8, 4), 8)
    layer.scores.data.fill_(0.0)
    torch.manual_seed(0)
    draws = torch.stack([layer.train().factors() for _ in range(4000)])
    assert float((draws > 0).float().mean()) == pytest.approx(
        float(layer.open_probability()[0]), abs=0.01
    )
    assert float((draws == 0).float().mean()) > 0.1 and float((draws == 1).float().mean()) > 0.1


def test_the_layer_that_does_nothing_goes_first(bert, rows):
    silent = encoder_layers(bert)[2]
    with torch.no_grad():
        for dense in (silent.attention.output.dense, silent.output.dense):
            dense.weight.zero_()
            dense.bias.zero_()
    influence = importance.layer_influence(bert, rows.batches())
    assert influence[2] == min(influence) and influence[2] < 1e-3 < min(
        influence[:2] + influence[3:]
    )
    reduction = LayerReduction("importance", 3)
    assert torch.equal(
        encoder_layers(reduction.apply(bert, rows))[2].output.dense.weight,
        encoder_layers(bert)[3].output.dense.weight,
    )


def test_a_narrower_model_computes_what_zeroed_dimensions_do_before_the_norm(bert, batch):
    """Without LayerNorm's mean over fewer dimensions the two would be equal: take it out."""
    narrow = copy.deepcopy(bert)
    kept = list(range(0, 32, 2))
    surgery.keep_hidden_(narrow, kept)
    assert narrow.config.hidden_size == 16 and surgery.widths(narrow)[0]["head_size"] == 16
    layer, slim = encoder_layers(bert)[0], encoder_layers(narrow)[0]
    states = torch.randn(2, 5, 32)
    states[..., 1::2] = 0
    with torch.no_grad():
        wide = layer.intermediate.dense(states)
        assert torch.allclose(slim.intermediate.dense(states[..., ::2]), wide, atol=1e-5)
        out = layer.output.dense(wide)
        assert torch.allclose(slim.output.dense(wide), out[..., ::2], atol=1e-5)
    assert logits(narrow, batch).shape == (3, 2)


def test_the_planted_dimensions_stay(bert):
    with torch.no_grad():
        for linear, reads, writes in surgery._on_hidden(bert):
            if reads:
                linear.weight[:, :16] *= 10
            if writes:
                linear.weight[:16] *= 10
    narrow = PruneWidth(0.5).apply(bert)
    wanted = bert.bert.embeddings.word_embeddings.weight[:, :16]
    assert torch.equal(narrow.bert.embeddings.word_embeddings.weight, wanted)
    assert PruneWidth(0.26).width(bert) == 8 and PruneWidth(0.01).width(bert) == 2


def test_a_cut_vocabulary_reads_the_words_it_kept_as_before(bert, rows, data, tokenizer):
    technique_ = PruneVocabulary(0.6)
    ids = technique_.ids(rows)
    student = technique_.apply(bert, rows)
    teacher, small = technique_.reads(bert, tokenizer, rows)
    assert len(ids) == len(small) == student.config.vocab_size == 120
    counts = rows.token_counts()
    assert min(counts[i] for i in ids if i > 4) >= max(
        counts[i] for i in range(200) if i not in ids
    )
    kept = [tokenizer.convert_ids_to_tokens(i) for i in ids if i > 4][:6]
    old, new = (t(" ".join(kept), return_tensors="pt") for t in (tokenizer, small))
    assert small.convert_ids_to_tokens(new["input_ids"][0]) == ["[CLS]", *kept, "[SEP]"]
    assert torch.equal(logits(student, new), logits(bert, old))
    assert torch.equal(logits(teacher, new), logits(bert, old))
    assert (small.cls_token_id, small.pad_token_id) == (2, 0)


def test_what_a_task_never_uses_goes_by_default(bert, rows):
    used = int((rows.token_counts() > 0).sum())
    assert len(PruneVocabulary().ids(rows)) == used + 3  # [PAD], [UNK] and [MASK] stay


@pytest.mark.parametrize(
    "techniques",
    [
        [PruneWidth(0.5)],
        [PruneWidth(0.5), PruneHeads(0.5), Quantize()],
        [PruneVocabulary(0.6), PruneNeurons(0.5)],
        [LayerReduction("importance", 2), PruneVocabulary(0.6), Sparsify(0.5)],
    ],
    ids=["width", "width and bits", "vocabulary", "all"],
)
def test_the_whole_family_saves_and_reloads(bert, rows, tokenizer, techniques, tmp_path):
    model = format.finalize(apply_all(bert, techniques, rows), techniques).eval()
    small = tokenizer
    for technique_ in techniques:
        _, small = technique_.reads(bert, small, rows)
    folder = format.save(model, small, tmp_path / "a")
    again, read = format.load(folder)
    assert len(read) == again.config.vocab_size == model.config.vocab_size
    batch = read("w3 w10 w17 w191", return_tensors="pt")
    assert torch.equal(logits(again, batch), logits(model, batch))
    planned = {e.tensor: e.bytes for e in ledger.plan(bert.config, techniques)}
    found = {e.tensor: e.bytes for e in ledger.byte_ledger(folder)}
    assert {n: b for n, b in found.items() if n != "header"} == {
        n: b * (1 if "quantization_config" in model.config.to_dict() else 2)
        for n, b in planned.items()
        if n != "header"
    }


def test_vocabularies_that_cannot_be_cut(tokenizer):
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0, "a": 1, "b</w>": 2, "ab</w>": 3}
    inner = Tokenizer(models.BPE(words, [("a", "b</w>")], end_of_word_suffix="</w>"))
    bpe = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    with pytest.raises(
        TypeError, match=r"\(BPE, TemplateProcessing\) cannot be cut: expected a fast WordP"
    ):
        vocabulary.cut_tokenizer(bpe, [0, 1, 2])
    fixed = copy.deepcopy(tokenizer)
    fixed.backend_tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fewer = vocabulary.cut_tokenizer(fixed, [0, 1, 2, 3, 4, 8])
    assert fewer("w3")["input_ids"] == [2, 5, 3]
    left = copy.deepcopy(tokenizer)
    left.padding_side = left.truncation_side = "left"
    cut = vocabulary.cut_tokenizer(left, range(10))
    assert (cut.padding_side, cut.truncation_side) == ("left", "left")


def test_widths_that_are_not_one_cannot_be_cut():
    config = ElectraConfig(vocab_size=50, embedding_size=16, hidden_size=32, num_hidden_layers=1,
                           num_attention_heads=2, intermediate_size=64)  # fmt: skip
    for cls in (ElectraModel, ElectraForSequenceClassification):
        with pytest.raises(TypeError, match=f"hidden width of {cls.__name__} cannot be cut"):
            PruneWidth().apply(cls(config))
    config.embedding_size = 32
    narrow = PruneWidth().apply(ElectraModel(config))
    assert narrow.config.embedding_size == narrow.config.hidden_size == 16
    assert narrow(torch.arange(5)[None]).last_hidden_state.shape == (1, 5, 16)


def test_more_bad_uses(bert, rows, tokenizer):
    with pytest.raises(ValueError, match="gradient' looks at the task's rows: give `apply` an"):
        PruneHeads(criterion="gradient").apply(bert)
    with pytest.raises(ValueError, match="layer_reduction by importance looks at the task's rows"):
        LayerReduction("importance").apply(bert)
    with pytest.raises(ValueError, match=r"reads what `learn_gates: \{part: neurons\}` has"):
        PruneNeurons(criterion="gates").apply(bert)
    with pytest.raises(ValueError, match="keeping 2 of 200 tokens drops special tokens: 5 of them"):
        PruneVocabulary(0.01).apply(bert, rows)
    with pytest.raises(ValueError, match=r"the cut drops the special tokens \['\[CLS\]'\]"):
        vocabulary.cut_tokenizer(tokenizer, [0, 1, 3, 4, 5, 6])
    with pytest.raises(ValueError, match="a hidden width of 15 does not divide by 2 heads"):
        surgery.keep_hidden_(copy.deepcopy(bert), range(15))
    with pytest.raises(
        ValueError, match="unknown part of learn_gates 'head': did you mean 'heads'"
    ):
        LearnGates("head")
    with pytest.raises(ValueError, match="learning_rate of learn_gates must be a number above 0"):
        LearnGates(learning_rate=0)
    for cls in (PruneWidth, PruneVocabulary):
        with pytest.raises(ValueError, match="must be a number above 0 and at most 1, received 0"):
            cls(keep=0)
    for item in (PruneWidth(), PruneVocabulary(0.6)):
        with pytest.raises(ValueError, match="comes before quantize"):
            item.apply(Quantize().apply(bert), rows)
