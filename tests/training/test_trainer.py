import copy
import os
from dataclasses import replace

import pytest
import torch
from made import taught
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback, TrainingArguments

from xtclib.distillation.objective import Objective, distillation_loss
from xtclib.distillation.terms import Reader
from xtclib.tasks.evaluation import predict
from xtclib.tasks.glue import TASKS, Split, TaskData
from xtclib.tasks.rows import Rows, collate
from xtclib.techniques import Compact
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.quantization.technique import Quantize
from xtclib.training import callbacks, trainer
from xtclib.training.budget import Budget
from xtclib.training.trainer import Run

ONE_STAGE = Objective(logits=1, hidden_states=1, attention_scores=1)
SHORT = Budget(steps=7, batch_size=8, learning_rate=1e-3, max_length=16)  # 5 steps an epoch


def train(student, tokenizer, data, folder, objective=ONE_STAGE, budget=SHORT, **kwargs):
    return taught(student, tokenizer, data, objective, budget, folder, **kwargs)


def student_of(teacher):
    return Quantize().apply(LayerReduction(layers=2).apply(teacher))


def same(a, b):
    b = b.state_dict()
    return all(torch.equal(v, b[k]) for k, v in a.state_dict().items())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(bert, tokenizer, data, tmp_path):
    runs = [
        train(student_of(bert), tokenizer, data, tmp_path / str(i), teacher=bert, seed=seed)[0]
        for i, seed in enumerate((3, 3, 4))
    ]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["last", "evaluation"])
def test_a_killed_run_goes_on_to_the_same_weights(
    bert, tokenizer, data, tmp_path, monkeypatch, keep
):
    budget = replace(SHORT, keep=keep)
    whole, notes = train(
        student_of(bert), tokenizer, data, tmp_path / "whole", budget=budget, teacher=bert
    )
    compute, calls = trainer.DistillationTrainer.compute_loss, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 7:  # checkpoints at 2, 4, 6; step 7 is the second of epoch 2
            raise KeyboardInterrupt
        return compute(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.DistillationTrainer, "compute_loss", killed)
        train(student_of(bert), tokenizer, data, tmp_path / "cut", budget=budget, teacher=bert)
    assert "checkpoint-6" in os.listdir(tmp_path / "cut")
    resumed, later = train(
        student_of(bert), tokenizer, data, tmp_path / "cut", budget=budget, teacher=bert
    )
    assert later["resumed"] and not notes["resumed"] and len(calls) == 7
    assert same(resumed, whole)
    assert later["losses"][-1] == notes["losses"][-1]
    assert later.get("best") == notes.get("best")


@pytest.mark.slow
def test_a_checkpoint_cut_off_while_written_is_passed_over(bert, tokenizer, data, tmp_path):
    wanted, _ = train(student_of(bert), tokenizer, data, tmp_path / "whole", teacher=bert)
    (tmp_path / "cut" / "checkpoint-4").mkdir(parents=True)
    found, _ = train(student_of(bert), tokenizer, data, tmp_path / "cut", teacher=bert)
    assert same(found, wanted)


def test_training_moves_the_student_and_leaves_the_teacher(bert, tokenizer, data, tmp_path):
    before, student = copy.deepcopy(bert), student_of(bert)
    start = copy.deepcopy(student)
    trained, notes = train(student, tokenizer, data, tmp_path, teacher=bert)
    assert same(bert, before) and not bert.training
    assert bert.config._attn_implementation == before.config._attn_implementation
    assert all(p.requires_grad for p in bert.parameters())
    assert trained is student and not trained.training and not same(trained, start)
    assert (notes["steps"], notes["rows"], notes["precision"]) == (7, 40, "fp32")
    # of every second step, and not of the last, after which the student itself is kept
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


@pytest.mark.slow
def test_every_term_is_logged_and_they_add_up(bert, tokenizer, data, tmp_path):
    _, notes = train(student_of(bert), tokenizer, data, tmp_path, teacher=bert)
    assert [entry["step"] for entry in notes["losses"]] == [1, 2, 3, 4, 5, 6, 7]
    for entry in notes["losses"]:
        terms = [entry[f"loss_{n}"] for n in ("logits", "hidden_states", "attention_scores")]
        assert sum(terms) == pytest.approx(entry["loss"], rel=1e-3)


@pytest.mark.slow
def test_labels_alone_are_learned(make_bert, tokenizer, data, tmp_path):
    budget = replace(SHORT, steps=60, learning_rate=3e-3, dropout=0.0)
    model, notes = train(make_bert(2), tokenizer, data, tmp_path, Objective(labels=1), budget)
    assert notes["losses"][-1]["loss"] < notes["losses"][0]["loss"] / 3
    answers = predict(model, tokenizer, data.train).argmax(-1)
    assert (answers == data.train.labels).mean() > 0.9  # two of three are positive
    assert not list(tmp_path.rglob("*.bin"))  # a checkpoint holds no pickled arguments


@pytest.mark.slow
def test_regression_learns_the_teachers_values(make_bert, tokenizer, data, tmp_path):
    rows = Split(data.train.first, data.train.first, [float(i % 6) for i in range(40)])
    values = TaskData(TASKS["stsb"], rows, {"dev": rows}, "in memory", "dev")
    teacher, student = make_bert(2, 1), make_bert(2, 1, seed=1)
    budget = replace(SHORT, steps=1, batch_size=40, dropout=0.0)
    _, notes = train(
        copy.deepcopy(student), tokenizer, values, tmp_path, Objective(logits=1), budget,
        teacher=teacher,
    )  # fmt: skip
    gap = predict(student, tokenizer, rows, 16) - predict(teacher, tokenizer, rows, 16)
    assert notes["losses"][0]["loss"] == pytest.approx(float((gap**2).mean()), rel=1e-4)


def trainer_for(model, tokenizer, data, folder, batch, accumulate):
    rows = Rows.tokenize(data.train, tokenizer, 16)
    args = TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=batch, report_to="none",
        gradient_accumulation_steps=accumulate, learning_rate=1e-2, lr_scheduler_type="constant",
        use_cpu=True, disable_tqdm=True, save_strategy="no", remove_unused_columns=False,
        max_grad_norm=0.0, optim="sgd",
    )  # fmt: skip
    return trainer.DistillationTrainer(
        model, Objective(labels=1), sampler=SequentialSampler(rows), args=args,
        train_dataset=rows, data_collator=lambda r: collate(r, 0),
    )  # fmt: skip


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(make_bert, tokenizer, data, tmp_path):
    models = []
    for batch, accumulate in ((8, 1), (4, 2)):
        model = make_bert(2, dropout=0.0)
        trainer_for(model, tokenizer, data, tmp_path, batch, accumulate).train()
        models.append(model)
    start = make_bert(2, dropout=0.0)
    assert not same(models[0], start)
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_held_out_rows_are_not_trained_on_and_evaluation_rows_not_looked_at(
    make_bert, tokenizer, data, tmp_path, monkeypatch
):
    budget = replace(SHORT, keep="held-out", steps=4)
    train_rows, held_out = trainer._held_out(data, budget, 0)
    assert len(train_rows) == 38 and len(held_out) == 2
    assert sorted(train_rows.first + held_out.first) == sorted(data.train.first)
    scored, real = [], trainer.evaluate
    monkeypatch.setattr(
        trainer, "evaluate", lambda *args: scored.append(args[-1]["held-out"]) or real(*args)
    )
    _, notes = train(make_bert(2), tokenizer, data, tmp_path, Objective(labels=1), budget)
    assert notes["rows"] == 38 and notes["keep"] == "held-out"
    assert scored and all(rows == held_out for rows in scored)
    own = replace(data, held_out=data.train.select([0]))
    assert trainer._held_out(own, budget, 0) == (data.train, own.held_out)


@pytest.mark.slow
def test_the_best_weights_are_kept(make_bert, tokenizer, data, tmp_path, monkeypatch):
    budget = replace(SHORT, keep="evaluation", steps=5)
    seen = []

    def scripted(model, *args):
        seen.append(copy.deepcopy(model))
        return {"dev": {"score": [10.0, 30.0, 20.0, 30.0, 5.0][len(seen) - 1]}}

    monkeypatch.setattr(trainer, "evaluate", scripted)
    model, notes = train(make_bert(2), tokenizer, data, tmp_path, Objective(labels=1), budget)
    assert len(seen) == 5 and notes["best"] == {"score": 30.0, "step": 2}
    assert same(model, seen[1]) and not same(model, seen[4])


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run(make_bert, tokenizer, data, tmp_path, monkeypatch):
    terms = trainer.distillation_loss
    monkeypatch.setattr(
        trainer, "distillation_loss",
        lambda *args: {k: v * float("nan") for k, v in terms(*args).items()},
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"the loss became nan at step 1: lower .*0.001"):
        train(make_bert(2), tokenizer, data, tmp_path, Objective(labels=1))


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown precision 'fp16': .*: auto, bf16, fp32"):
        Run(tmp_path, precision="fp16")


@pytest.mark.slow
def test_losses_are_handed_on_to_an_integration(bert, tokenizer, data, tmp_path, monkeypatch):
    logged = []

    class Book(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logged.append(logs)

    known = callbacks.integration_utils
    monkeypatch.setitem(known.INTEGRATION_TO_CALLBACK, "book", Book)
    with pytest.raises(ImportError, match=r"'book' needs its package.*pip install book"):
        Run(tmp_path, report_to="book")
    monkeypatch.setattr(known, "get_available_reporting_integrations", lambda: ["book"])
    train(student_of(bert), tokenizer, data, tmp_path, teacher=bert, report_to="book")
    assert [entry["loss_logits"] > 0 for entry in logged if "loss" in entry] == [True] * 7
    with pytest.raises(ValueError, match="unknown integration 'tensorbord': did you mean 'tensorb"):
        Run(tmp_path, report_to="tensorbord")


def test_an_objective_that_compares_needs_a_teacher(bert, tokenizer, data, tmp_path):
    with pytest.raises(ValueError, match="compares with a teacher, but none was given"):
        train(bert, tokenizer, data, tmp_path)


def test_a_deeper_student_than_its_teacher_is_refused(make_bert, tokenizer, data, tmp_path):
    with pytest.raises(ValueError, match="a student of 4 layers cannot follow a teacher of 2"):
        train(make_bert(4), tokenizer, data, tmp_path, teacher=make_bert(2))


@pytest.mark.slow
def test_bf16_training_ends_near_fp32(bert, tokenizer, data, tmp_path):
    budget = replace(SHORT, steps=3, dropout=0.0)
    found = []
    for precision in ("bf16", "fp32"):
        _, notes = train(
            student_of(bert), tokenizer, data, tmp_path / precision, budget=budget, teacher=bert,
            precision=precision,
        )  # fmt: skip
        found.append([entry["loss"] for entry in notes["losses"]])
    assert found[0] == pytest.approx(found[1], rel=0.05) and found[0] != found[1]


def test_dropout_is_set_everywhere(bert):
    trainer.set_dropout_(bert, 0.25)
    found = {m.p for m in bert.modules() if isinstance(m, torch.nn.Dropout)}
    assert found == {0.25}


def test_a_teacher_is_a_frozen_copy_in_the_training_precision(bert):
    teacher = trainer.prepare_teacher(bert.train(), "cpu", bf16=True)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert teacher.classifier.weight.dtype == torch.bfloat16
    assert teacher.bert.embeddings.word_embeddings.weight.dtype == torch.float32
    assert bert.training and bert.classifier.weight.dtype == torch.float32


def test_layers_are_matched_as_mapped(bert12, make_bert, batch):
    """Of 2, 4, …, 10 the release compares states with 1, 3, …, 11 and scores with 2, 4, …, 10."""
    teacher = trainer.prepare_teacher(bert12, "cpu", bf16=False)
    student = trainer.prepare_teacher(make_bert(5, seed=2), "cpu", bf16=False)
    student.config.kept_layers = [2, 4, 6, 8, 10]
    objective = Objective(hidden_states=2, attention_scores=3, layer_map="release", masked=False)
    shown = [Reader(m, objective.reads)(m, **batch) for m in (student, teacher)]
    pairs = objective.pairs(student, teacher)
    found = distillation_loss(objective, *shown, None, batch["attention_mask"], pairs)
    s, t = (signals.output for signals in shown)
    mse = torch.nn.functional.mse_loss
    states = sum(mse(s.hidden_states[i], t.hidden_states[2 * i + 1]) for i in range(6))
    scores = sum(mse(s.attentions[i], t.attentions[2 * i + 2]) for i in range(5))
    assert float(found["hidden_states"]) == pytest.approx(2 * float(states), rel=1e-5)
    assert float(found["attention_scores"]) == pytest.approx(3 * float(scores), rel=1e-5)
    assert set(found) == {"hidden_states", "attention_scores"}


@pytest.mark.parametrize("pad, widths", [("max_length", {24}), ("longest", {9, 10, 11, 12})])
def test_rows_are_padded_as_told(bert, tokenizer, data, tmp_path, pad, widths):
    seen = set()
    bert.register_forward_pre_hook(
        lambda _, args, inputs: seen.add(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    budget = Budget(steps=4, batch_size=2, max_length=24)
    lesson = trainer.Lesson(data, tokenizer, budget, Objective(labels=1), pad=pad)
    trainer.train(bert, lesson, trainer.Run(tmp_path, device="cpu", progress=False))
    assert seen and (seen == widths if pad == "max_length" else max(seen) < 24)


@pytest.mark.slow
def test_progressive_transfer_teaches_one_part_after_the_other(bert, tokenizer, data, tmp_path):
    objective = Objective(hidden_states=1, attention_divergence=1, progressive=True)
    student = LayerReduction(layers=2).apply(bert)
    seen, compute = [], trainer.DistillationTrainer.compute_loss

    def watched(self, model, *args, **kwargs):
        names = {n.split(".")[1:4][-1 if ".layer." in n else 0] for n, p in model.named_parameters()
                 if p.requires_grad}  # fmt: skip
        found = compute(self, model, *args, **kwargs)
        seen.append((sorted(names), sorted(self._now())))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.DistillationTrainer, "compute_loss", watched)
        budget = replace(SHORT, steps=6, dropout=0.0)
        trained, notes = train(student, tokenizer, data, tmp_path, objective, budget, teacher=bert)
    assert [names for names, _ in seen] == [["embeddings"]] * 2 + [["0"]] * 2 + [["1"]] * 2
    terms = [{k for k in entry if k.startswith("loss_")} for entry in notes["losses"]]
    assert terms[0] == {"loss_hidden_states"}  # scores belong to layers, not to the embeddings
    assert terms[-1] == {"loss_hidden_states", "loss_attention_divergence"}
    assert all(p.requires_grad for p in trained.parameters())
    fresh = LayerReduction(layers=2).apply(bert)
    assert same(trained.classifier, fresh.classifier)
    assert not same(trained.bert.encoder, fresh.bert.encoder)


@pytest.mark.slow
def test_a_projection_learns_resumes_and_is_gone_after(
    bert, tokenizer, data, tmp_path, monkeypatch
):
    objective = Objective(
        hidden_states={"weight": 1, "projection": True}, value_relations={"weight": 1, "heads": 2}
    )

    def narrow():
        return Compact(hidden=0.5, layers=2).apply(bert)

    whole, notes = train(narrow(), tokenizer, data, tmp_path / "a", objective, teacher=bert)
    assert not hasattr(whole, callbacks.PROJECTIONS)
    assert not any(layer.attention.self.value._forward_hooks for layer in whole.bert.encoder.layer)
    assert notes["losses"][-1]["loss_hidden_states"] < notes["losses"][0]["loss_hidden_states"]
    compute, calls = trainer.DistillationTrainer.compute_loss, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return compute(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.DistillationTrainer, "compute_loss", killed)
        train(narrow(), tokenizer, data, tmp_path / "b", objective, teacher=bert)
    resumed, later = train(narrow(), tokenizer, data, tmp_path / "b", objective, teacher=bert)
    assert later["resumed"] and same(resumed, whole)


def test_a_student_with_its_own_vocabulary_needs_no_teacher(bert, tokenizer, data, tmp_path):
    with pytest.raises(ValueError, match="compares with a teacher, but none was given"):
        train(bert, tokenizer, data, tmp_path, Objective(logits=1))
