"""Students of another shape: what they inherit, how they are saved, what they refuse."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from xtclib.artefact import format
from xtclib.costs import breakdown
from xtclib.recipes.recipe import Stage
from xtclib.tasks.rows import Calibration
from xtclib.techniques import (
    CNN,
    BiLSTM,
    Bottleneck,
    Compact,
    DistilBert,
    PruneHeads,
    technique,
)
from xtclib.techniques.embeddings.technique import SmallVocabulary
from xtclib.techniques.pruning import surgery
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.quantization.technique import Quantize, Storage

STUDENTS = {
    "sliced": Compact(layers=0.5, hidden=0.5, intermediate=0.5),
    "random": Compact(layers=2, initial="random"),
    "distilbert": DistilBert(),
    "mobilebert": Bottleneck(),
    "bilstm": BiLSTM(8, 6, 5),
    "cnn": CNN(8, 4, (2, 3)),
}
each = pytest.mark.parametrize("name", STUDENTS)


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@each
def test_a_student_takes_vocabulary_and_labels_and_leaves_its_teacher(bert, batch, name):
    before = {k: v.clone() for k, v in bert.state_dict().items()}
    student = STUDENTS[name].apply(bert)
    assert logits(student, batch).shape == (3, 2)
    assert student.config.vocab_size == 200 and student.config.id2label == bert.config.id2label
    assert all(torch.equal(before[k], v) for k, v in bert.state_dict().items())
    planned = STUDENTS[name].plan(bert)
    assert [p.shape for p in planned.parameters()] == [p.shape for p in student.parameters()]
    assert all(p.is_meta for p in planned.parameters()) and surgery.uneven(student) is None


@each
def test_padding_does_not_change_a_students_answer(bert, batch, name):
    student = STUDENTS[name].apply(bert)
    whole = logits(student, batch)
    for row, length in enumerate((7, 4, 2)):
        alone = logits(student, {"input_ids": batch["input_ids"][row : row + 1, :length]})
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_fresh_process_reads_every_student(bert, tokenizer, batch, tmp_path, fresh_logits):
    wanted = []
    for name, kind in STUDENTS.items():
        student = format.finalize(kind.apply(bert), [kind])
        wanted.append(logits(student, batch))
        format.save(student, tokenizer, tmp_path / name)
    found = fresh_logits(*(tmp_path / name for name in STUDENTS))
    for ours, theirs in zip(wanted, found, strict=True):
        torch.testing.assert_close(torch.tensor(theirs), ours, rtol=1e-5, atol=1e-6)


def test_new_weights_come_from_the_runs_seed(bert, data, tokenizer):
    rows = [Calibration(data, tokenizer, initial=seed) for seed in (1, 1, 2)]
    first, same, other = (Bottleneck().apply(bert, r).classifier.weight for r in rows)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_compact_model_of_full_size_is_its_teacher(bert, batch):
    assert torch.equal(logits(Compact().apply(bert), batch), logits(bert, batch))


def test_slices_are_the_first_entries_head_by_head(bert):
    student = Compact(layers=2, hidden=16).apply(bert)
    ours, theirs = (m.bert.encoder.layer[-1].attention for m in (student, bert))
    query = theirs.self.query.weight.detach().view(2, 16, 32)  # (heads, size, width)
    assert torch.equal(ours.self.query.weight, query[:, :8, :16].reshape(16, 16))
    out = theirs.output.dense.weight.detach().view(32, 2, 16)
    assert torch.equal(ours.output.dense.weight, out[:16, :, :8].reshape(16, 16))
    assert student.config.num_hidden_layers == len(student.bert.encoder.layer) == 2


def test_distilbert_of_all_layers_computes_what_its_teacher_does(bert, batch):
    student = DistilBert(layers=4).apply(bert)
    assert not hasattr(student.distilbert, "pooler")
    with torch.no_grad():
        ours, theirs = (m(**batch).last_hidden_state for m in (student.distilbert, bert.bert))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    half = DistilBert().apply(bert).distilbert.transformer.layer
    for layer, index in zip(half, (1, 3), strict=True):
        assert torch.equal(
            layer.ffn.lin1.weight, bert.bert.encoder.layer[index].intermediate.dense.weight
        )


def test_mobilebert_has_the_papers_shares(bert):
    config = Bottleneck().apply(bert).config
    assert (config.hidden_size, config.true_hidden_size, config.embedding_size) == (32, 8, 8)
    assert (config.num_feedforward_networks, config.num_hidden_layers) == (4, 4)


def test_a_student_can_be_quantized_and_saved(bert, tokenizer, batch, tmp_path):
    techniques = [DistilBert(), Quantize()]
    student = bert
    for item in techniques:
        student = item.apply(student)
    student = format.finalize(student, techniques)
    format.save(student, tokenizer, tmp_path / "a")
    assert torch.equal(logits(format.load(tmp_path / "a")[0], batch), logits(student, batch))


@pytest.mark.parametrize("name, count", [("bilstm", 9_759_602), ("cnn", 9_517_502)])
def test_the_catalogue_prices_them(name, count):
    found = breakdown.break_down(name, 1, 16)
    assert found.parameters == count and found.flops() == breakdown.flops(name, 1, 16) > 0


def test_a_small_vocabulary_spells_the_task(bert, data, tokenizer):
    how, rows = SmallVocabulary(vocabulary=0.5), Calibration(data, tokenizer)
    student = how.apply(bert, rows)
    teacher, reads = how.reads(bert, tokenizer, rows)
    assert teacher is None and len(reads) == student.config.vocab_size == 100
    assert student.config.pad_token_id == reads.pad_token_id
    assert student.config.hidden_size == 8 and student.config.intermediate_size == 16
    assert SmallVocabulary().count(30522) == 4928 and SmallVocabulary().count(623) == 249
    assert [p.shape for p in how.plan(bert).parameters()] == [p.shape for p in student.parameters()]


@pytest.mark.parametrize(
    "config, message",
    [
        ({"compact": {"layers": 5}}, "cannot keep 5 of 4 layers"),
        ({"compact": {"layers": 0}}, "layers of compact must be a whole number from 1, or a share"),
        ({"compact": {"hidden": 15}}, "a hidden width of 15 does not divide into 2 heads"),
        (
            {"compact": {"initial": "slices"}},
            "unknown initial of compact 'slices': did you mean",
        ),
        ({"compact": {"hiden": 3}}, "unknown key of compact 'hiden': did you mean 'hidden'"),
        (
            {"bilstm": {"hidden": "8"}},
            "hidden of bilstm must be a whole number from 1, received '8'",
        ),
        ({"bilstm": {"hidden": 1.5}}, "hidden of bilstm must be a whole number from 1"),
        ({"cnn": {"widths": [0]}}, "widths of cnn must be a whole number from 1, received 0"),
        ({"cnn": {"widths": 3}}, "widths of cnn must be a list, received 3"),
        ({"bottleneck": {"inner": -1}}, "inner of bottleneck must be a number above 0"),
        (
            {"bottleneck": {"feed_forwards": 0}},
            "feed_forwards of bottleneck must be a whole number",
        ),
        ({"compact": {"heads": 1}}, "1 heads of 32 dimensions cannot be sliced from heads of 16"),
        (
            {"small_vocabulary": {"projection": "sideways"}},
            "unknown projection of small_vocabulary 'sideways'",
        ),
        ({"small_vocabulary": {"mix": 2}}, "mix of small_vocabulary must be a number from 0 to 1"),
        ({"small_vocabulary": {}}, "small_vocabulary looks at the task's rows"),
    ],
)
def test_bad_students(bert, config, message):
    with pytest.raises(ValueError, match=message):
        technique(config).apply(bert)


def test_a_student_of_a_student_that_is_no_bert_is_refused(bert):
    shallow = CNN(8, 4, (2,)).apply(bert)
    with pytest.raises(TypeError, match="distilbert makes a student of a BERT classifier"):
        DistilBert().apply(shallow)
    with pytest.raises(TypeError, match="CNNClassifier has no layers that are built as BERT's"):
        Quantize().apply(shallow)


def test_a_student_is_made_before_anything_else_is_done_to_its_teacher(bert):
    with pytest.raises(ValueError, match="compact comes before quantize: list it first"):
        Compact(layers=2).apply(Quantize().apply(bert))
    with pytest.raises(ValueError, match="distilbert comes before heads, neurons or width"):
        DistilBert().apply(PruneHeads(0.5, "magnitude").apply(bert))


def test_a_shallow_student_is_not_stored_by_parts(bert):
    with pytest.raises(TypeError, match="CNNClassifier has no table at `embeddings.position_emb"):
        Storage(positions="int8-row").apply(CNN(8, 4, (2,)).apply(bert))


def test_layers_of_distilbert_can_be_removed(bert, batch):
    student = LayerReduction(layers=1).apply(DistilBert().apply(bert))
    assert len(student.distilbert.transformer.layer) == student.config.n_layers == 1
    assert logits(student, batch).shape == (3, 2)


def test_a_small_vocabulary_belongs_to_dual_training():
    with pytest.raises(ValueError, match="needs small_vocabulary among its techniques"):
        Stage("s", task="dual")
    for stage in ({}, {"task": "dual", "objective": {"labels": 1}}):
        with pytest.raises(ValueError, match="write `task: dual`, and no objective"):
            Stage("s", (SmallVocabulary(),), **stage)


def test_shallow_students_open_by_the_auto_class_alone(bert, tmp_path):
    CNN(8, 4, (2, 3)).apply(bert).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(model).__name__ == "CNNClassifier" and tuple(model.config.widths) == (2, 3)
