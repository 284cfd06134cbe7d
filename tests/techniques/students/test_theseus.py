"""BERT-of-Theseus: rates, what learns, what is left."""

import copy

import pytest
import torch
from made import taught

from xtclib import attention
from xtclib.artefact import format
from xtclib.distillation.objective import Objective
from xtclib.distillation.terms import Reader
from xtclib.recipes.recipe import Recipe, Stage
from xtclib.study.compress import compress
from xtclib.techniques import BiLSTM, Compact, KeepSuccessors, ReplaceModules, technique
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.quantization.technique import Quantize
from xtclib.training.budget import Budget
from xtclib.training.trainer import set_dropout_


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def at_rate(model, rate):
    set_dropout_(model, 0.0)
    for layer in model.bert.encoder.layer:
        layer.rate = rate
    return model.train()


def test_rate_0_is_the_teacher_and_rate_1_the_student(bert, batch):
    mixed = ReplaceModules().apply(bert)
    student = KeepSuccessors().apply(mixed).eval()
    assert torch.equal(logits(at_rate(mixed, 0.0), batch), logits(bert, batch))
    assert torch.equal(logits(at_rate(mixed, 1.0), batch), logits(student, batch))
    assert torch.equal(logits(mixed.eval(), batch), logits(student, batch))
    bottom = LayerReduction("bottom", 2).apply(bert)  # successors start as the first layers
    assert torch.equal(logits(student, batch), logits(bottom, batch))
    own = KeepSuccessors().apply(ReplaceModules(initial="own").apply(bert)).eval()
    assert torch.equal(logits(own, batch), logits(LayerReduction((0, 2)).apply(bert), batch))


def test_a_rate_between_takes_either_by_chance(bert, batch):
    mixed = at_rate(ReplaceModules().apply(bert), 0.5)
    torch.manual_seed(0)
    found = {tuple(logits(mixed, batch).flatten().tolist()) for _ in range(40)}
    assert len(found) == 4  # two modules, each its predecessors or its successor


def test_the_schedule_is_linear():
    how = ReplaceModules(rate=0.3, full=0.5)
    rates = [how.at(step, 100) for step in (0, 25, 50, 75, 100)]
    assert rates == pytest.approx([0.3, 0.65, 1, 1, 1])
    assert ReplaceModules(rate=1.0).at(0, 10) == 1


@pytest.mark.slow
def test_only_the_new_layers_learn_then_everything(bert, tokenizer, data, tmp_path):
    how = ReplaceModules()
    mixed = how.apply(bert)
    before = copy.deepcopy(mixed.state_dict())
    budget = Budget(steps=6, batch_size=8, learning_rate=1e-3, max_length=16)
    trained, _ = taught(
        mixed, tokenizer, data, Objective(labels=1), budget, tmp_path / "a", techniques=[how]
    )
    changed = {k for k, v in trained.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(".successor." in name for name in changed)
    assert mixed.bert.encoder.layer[0].rate == pytest.approx(how.at(5, 6))
    student = KeepSuccessors().apply(trained)
    assert (
        all(p.requires_grad for p in student.parameters()) and len(student.bert.encoder.layer) == 2
    )
    assert student.config.num_hidden_layers == 2


def test_a_finalized_model_keeps_its_successors_alone(bert, tokenizer, batch, tmp_path):
    mixed = ReplaceModules().apply(bert)
    wanted = logits(mixed.eval(), batch)
    student = format.finalize(mixed, [ReplaceModules()])
    format.save(student, tokenizer, tmp_path / "a")
    assert torch.equal(logits(format.load(tmp_path / "a")[0], batch), wanted)
    planned = ReplaceModules().plan(bert)
    assert sum(p.numel() for p in planned.parameters()) == sum(
        p.numel() for p in student.parameters()
    )


@pytest.mark.parametrize(
    "config, message",
    [
        ({"layers": 3}, "4 layers do not divide into 3 modules"),
        ({"layers": 0}, "layers of replace_modules must be a whole number from 1"),
        ({"rate": 1.5}, "rate of replace_modules must be a number from 0 to 1"),
        ({"full": 0}, "full of replace_modules must be a number above 0"),
        ({"initial": "last"}, "unknown initial of replace_modules 'last'"),
        ({"rat": 1}, "unknown key of replace_modules 'rat': did you mean 'rate'"),
    ],
)
def test_bad_settings(bert, config, message):
    with pytest.raises(ValueError, match=message):
        technique({"replace_modules": config}).apply(bert)


def test_stages_in_an_order_that_cannot_work(bert):
    with pytest.raises(ValueError, match="keep_successors found no replaced modules"):
        KeepSuccessors().apply(bert)
    with pytest.raises(ValueError, match="are being replaced already"):
        ReplaceModules().apply(ReplaceModules().apply(bert))
    with pytest.raises(ValueError, match="replace_modules works while a stage trains"):
        Stage("s", (ReplaceModules(),))


@pytest.mark.slow
def test_layers_are_not_compared_while_they_are_being_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("XTC_CACHE", str(tmp_path))
    labels, states = Objective(labels=1), Objective(hidden_states=1)
    wrong = {
        "chance decides which layers there are": [Stage("s", (ReplaceModules(),), states)],
        "list keep_successors first among its techniques": [
            Stage("s", (ReplaceModules(),), labels), Stage("t", (), labels),
        ],
    }  # fmt: skip
    for message, stages in wrong.items():
        with pytest.raises(ValueError, match=message):
            compress(Recipe("x", "", "", tuple(stages)), profile="smoke", progress=False,
                     say=lambda line: None)  # fmt: skip
    with pytest.raises(ValueError, match="replaces modules and keeps their successors at once"):
        Stage("s", (ReplaceModules(), KeepSuccessors()), labels)


def test_a_successor_follows_the_models_attention(bert, batch):
    student = KeepSuccessors().apply(ReplaceModules().apply(bert))
    attention.use(student)
    shown = Reader(student, {"attention_scores"})(student, **batch)
    assert len(shown.output.attentions) == 2
    quantized = Quantize("binary", None, "int8-token", "int8-tensor").apply(student)
    plain = Quantize("binary", None, "int8-token").apply(student)
    assert not torch.equal(logits(quantized.eval(), batch), logits(plain.eval(), batch))


@pytest.mark.parametrize("student", [Compact(layers=2), BiLSTM()], ids=["compact", "bilstm"])
def test_no_student_takes_the_place_of_modules_that_are_being_replaced(bert, student):
    model = ReplaceModules().apply(bert)
    with pytest.raises(ValueError, match="throw away the modules that are being replaced"):
        student.apply(model)
