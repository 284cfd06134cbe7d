"""DualTrain: mixed batches, shared projections, and what learns."""

import copy

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from xtclib.tasks.masked import IGNORED, under_head
from xtclib.tasks.rows import Calibration
from xtclib.techniques.embeddings.technique import SmallVocabulary
from xtclib.training import dual
from xtclib.training.budget import Budget
from xtclib.training.dual import SharedProjections, TwoVocabularies, projection_loss
from xtclib.training.trainer import Lesson, Run


@pytest.fixture
def both(bert, data, tokenizer, tmp_path):
    """A small student under a head, a teacher with one, their tokenizers, the texts."""
    teacher = BertForMaskedLM(bert.config)
    teacher.bert.load_state_dict(bert.bert.state_dict(), strict=False)
    teacher.save_pretrained(tmp_path / "backbone")
    how, rows = SmallVocabulary(vocabulary=0.5), Calibration(data, tokenizer)
    student = under_head(how.apply(bert, rows), tmp_path / "backbone")
    return student, teacher, (how.tokenizer(rows), tokenizer), data.train.first


def task_of(tokenizers, mix=0.5):
    ours, theirs = tokenizers
    return TwoVocabularies(ours=ours, theirs=theirs, mix=mix, offset=200, max_length=16)


def train(both, folder, how, steps=3, seed=0, precision="fp32"):
    """The student as it was trained, and its losses."""
    student, teacher, tokenizers, texts = both
    budget = Budget(steps=steps, batch_size=16, learning_rate=3e-3)
    lesson = Lesson(task_of(tokenizers, how.mix).data(texts), tokenizers[0], budget)
    run = Run(folder, seed, precision, "cpu", progress=False)
    student, notes = dual.train_beside(student, teacher, lesson, run, how)
    return student, [entry["loss"] for entry in notes["losses"]]


def test_both_read_the_same_words_and_guess_the_same(both):
    _, _, (ours, theirs), texts = both
    for mix in (0.0, 1.0):
        task = task_of((ours, theirs), mix)
        rows = task.tokenize(task.data(texts).train, ours, 16)
        batch = task.collate([rows[i] for i in range(8)], ours, draw=0)
        found = batch["ours"], batch["theirs"]
        longest = max(len(side["input_ids"][0]) for side in found)
        assert 10 < longest <= 16
        for side, tokenizer in zip(found, (ours, theirs), strict=True):
            ids, mask = side["input_ids"], side["attention_mask"]
            assert bool((ids[:, 0] == tokenizer.cls_token_id).all())
            assert bool((ids[mask == 0] == tokenizer.pad_token_id).all())
            assert bool((side["labels"][mask == 0] == IGNORED).all())
        small, large = ((side["labels"] != IGNORED).sum(1) for side in found)
        assert int(small.sum()) > 0
        inside = found[1]["labels"][found[1]["labels"] != IGNORED]
        assert bool((inside >= 200).all()) == (mix == 1.0)  # the student's pieces come after
        assert bool((inside < 200).all()) == (mix == 0.0)
        if mix == 1.0:  # then both are spelled alike
            assert torch.equal(small, large)


def test_projections_equal_numpy_and_are_exact_where_they_can_be(both):
    student, teacher, *_ = both
    torch.manual_seed(0)
    shared = SharedProjections(teacher, student)
    p, q = (x.detach().double().numpy() for x in shared.projections)
    ours = {k: v.double() for k, v in student.base_model.encoder.named_parameters()}
    theirs = {k: v.double() for k, v in teacher.base_model.encoder.named_parameters()}
    shared = shared.double()
    down, up = [], []
    for name, small in ours.items():
        a, b = small.detach().numpy(), theirs[name].detach().numpy()
        sides = [p if size == 32 else q for size in b.shape]
        if b.ndim == 1:
            down.append(((sides[0].T @ b - a) ** 2).mean())
            up.append(((b - sides[0] @ a) ** 2).mean())
        else:
            down.append(((sides[0].T @ b @ sides[1] - a) ** 2).mean())
            up.append(((b - sides[0] @ a @ sides[1].T) ** 2).mean())
    for direction, wanted in (("down", down), ("up", up)):
        found = projection_loss(shared, theirs, ours, direction)
        assert float(found.detach()) == pytest.approx(np.mean(wanted), rel=1e-9)
    exact = {name: shared.down(weight) for name, weight in theirs.items()}
    assert float(projection_loss(shared, theirs, exact, "down").detach()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("projection", ["none", "down", "up"])
def test_the_student_learns_and_its_teacher_is_left(both, projection, tmp_path):
    student, teacher, *_ = both
    before = [copy.deepcopy(model.state_dict()) for model in (student, teacher)]
    how = SmallVocabulary(vocabulary=0.5, projection=projection)
    _, losses = train(both, tmp_path, how, 20)
    assert len(losses) == 20 and np.mean(losses[-5:]) < np.mean(losses[:5])
    ours, theirs = (model.state_dict() for model in (student, teacher))
    assert not torch.equal(ours["bert.encoder.layer.0.output.dense.weight"],
                           before[0]["bert.encoder.layer.0.output.dense.weight"])  # fmt: skip
    assert all(torch.equal(theirs[k], v) for k, v in before[1].items())


@pytest.mark.slow
@pytest.mark.parametrize("projection", ["none", "down", "up"])
def test_it_trains_in_bf16_to_nearly_the_same_losses(both, projection, tmp_path):
    how = SmallVocabulary(vocabulary=0.5, projection=projection)
    student, teacher, *rest = both
    wanted, found = (
        train((copy.deepcopy(student), teacher, *rest), tmp_path / p, how, precision=p)[1]
        for p in ("fp32", "bf16")
    )
    assert found == pytest.approx(wanted, rel=0.02) and found != wanted


def test_the_same_seed_gives_the_same_losses(both, tmp_path):
    how = SmallVocabulary(vocabulary=0.5)
    found = [train((copy.deepcopy(both[0]), *both[1:]), tmp_path / str(i), how, seed=seed)[1]
             for i, seed in enumerate((1, 1, 2))]  # fmt: skip
    assert found[0] == found[1] != found[2]


def test_nothing_to_read_is_refused(both, tmp_path):
    how = SmallVocabulary()
    with pytest.raises(ValueError, match="nothing to train on: received no texts"):
        train((*both[:3], []), tmp_path, how)
    with pytest.raises(ValueError, match="none of 2 texts has a word to guess"):
        train((*both[:3], ["", " "]), tmp_path, how)


def test_a_run_that_breaks_leaves_the_student_its_attention(both, monkeypatch, tmp_path):
    monkeypatch.setattr("xtclib.attention.trains_faster", lambda *_: True)
    monkeypatch.setattr("xtclib.training.dual._guess", lambda *_: 1 / 0)
    before = both[0].config._attn_implementation
    with pytest.raises(ZeroDivisionError):
        train(both, tmp_path, SmallVocabulary())
    assert both[0].config._attn_implementation == before
