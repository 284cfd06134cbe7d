"""Masked language modelling: what is hidden, and that it learns."""

import numpy as np
import pytest
import torch
from made import taught
from transformers import BertConfig, BertForMaskedLM

from xtclib.distillation.objective import Objective
from xtclib.tasks.evaluation import evaluate
from xtclib.tasks.masked import (
    IGNORED,
    MASKED,
    MaskedWords,
    split_texts,
    unlabelled,
)
from xtclib.techniques.base import Technique
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.training.budget import Budget


def judged(model, tokenizer, texts):
    return evaluate(model, tokenizer, MASKED.data(texts, texts), 64)["held out"]


def rows_of(ids):
    return [{"input_ids": row, "labels": 0} for row in ids.tolist()]


def test_masking_hides_fifteen_percent_and_never_special_tokens(tokenizer):
    ids = torch.randint(5, 200, (200, 50), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    batch = MASKED.collate(rows_of(ids), tokenizer, draw=1)
    seen, labels = batch["input_ids"], batch["labels"]
    guessed = labels != IGNORED
    assert not guessed[:, 0].any() and not guessed[:, -1].any()
    assert guessed[:, 1:-1].float().mean() == pytest.approx(0.15, abs=0.01)
    masked = (seen == tokenizer.mask_token_id)[guessed].float().mean()
    assert masked == pytest.approx(0.8, abs=0.03)
    assert torch.equal(seen[~guessed], ids[~guessed])
    assert torch.equal(labels[guessed], ids[guessed])
    again, other = (MASKED.collate(rows_of(ids), tokenizer, draw=d)["labels"] for d in (1, 2))
    assert torch.equal(again, labels) and not torch.equal(other, labels)


def test_words_in_always_are_always_guessed(tokenizer):
    batch = MaskedWords(share=0.0, always=(7, 9)).collate(
        rows_of(torch.arange(5, 55).reshape(1, -1)), tokenizer
    )
    assert batch["labels"][batch["labels"] != IGNORED].tolist() == [7, 9]


def test_no_batch_is_without_a_word_to_guess(tokenizer):
    batch = MaskedWords(share=0.0).collate(rows_of(torch.tensor([[2, 7, 3]])), tokenizer)
    assert batch["labels"].tolist() == [[IGNORED, 7, IGNORED]]


def test_words_always_guessed_are_weighed_apart():
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 7, 2, 7])
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    found = MaskedWords(always=(7,), others=0.4).loss(logits, labels)
    wanted = each[[1, 3]].mean() + 0.4 * each[[0, 2]].mean()
    assert float(found) == pytest.approx(float(wanted))
    assert float(MASKED.loss(logits, labels)) == pytest.approx(float(each.mean()))


def test_the_head_reads_the_words_to_guess_alone(tokenizer):
    model = masked_lm()
    batch = MASKED.collate(rows_of(torch.randint(5, 200, (3, 9))), tokenizer, draw=3)
    labels = batch.pop("labels")
    with torch.no_grad():
        with MASKED.answering(model, labels):
            found, wanted = MASKED.answers(model(**batch), labels, batch["attention_mask"])
        whole = model(**batch).logits
    assert torch.equal(wanted, labels[labels != IGNORED]) and whole.shape == (3, 9, 200)
    torch.testing.assert_close(found, whole[labels != IGNORED])


@pytest.mark.slow
def test_pretraining_lowers_the_loss_and_repeats_itself(tokenizer, tmp_path):
    texts = [f"w{i % 5} w{i % 5 + 1} w{i % 5 + 2}." for i in range(40)]
    budget = Budget(steps=60, batch_size=16, learning_rate=3e-3, max_length=64)
    runs = []
    for name in "ab":
        model = masked_lm().train()
        notes = taught(model, tokenizer, MASKED.data(texts), Objective(labels=1), budget,
                       tmp_path / name)[1]  # fmt: skip
        runs.append([entry["loss"] for entry in notes["losses"]])
    assert runs[0] == runs[1]
    assert np.mean(runs[0][-3:]) < 0.8 * np.mean(runs[0][:3])


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(ValueError, match="nothing to train on: received no texts"):
        MASKED.data([])


def masked_lm(**kwargs):
    torch.manual_seed(0)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64, **kwargs,
        )
    ).eval()  # fmt: skip


def test_a_model_without_the_head_gets_one_tied_to_its_embeddings(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    model = MASKED.load_model(tmp_path)
    words = bert.bert.embeddings.word_embeddings.weight
    assert torch.equal(model.cls.predictions.decoder.weight, words)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    again = MASKED.load_model(tmp_path)
    dense = "cls.predictions.transform.dense.weight"
    assert torch.equal(model.state_dict()[dense], again.state_dict()[dense])


def test_a_model_with_another_head_is_refused(tmp_path):
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    config = DistilBertConfig(n_layers=1, dim=16, n_heads=2, hidden_dim=32, vocab_size=50)
    DistilBertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="DistilBertForMaskedLM has no head at `cls`"):
        MASKED.load_model(tmp_path)


def test_masked_accuracy_by_a_model_that_always_says_one_word(tokenizer):
    model = masked_lm()
    with torch.no_grad():
        model.cls.predictions.bias.fill_(-1e4)
        model.cls.predictions.bias[tokenizer.convert_tokens_to_ids("w3")] = 1e4
    texts = ["w3 w3 w3 w3 w3 w3 w3 w3." for _ in range(30)]
    found = judged(model, tokenizer, texts)
    assert found == judged(model, tokenizer, texts) and not model.training
    assert 80 < found["accuracy"] <= 100  # full stops are guessed too, or are unknown
    other = ["w5 w5 w5 w5 w5 w5 w5 w5" for _ in range(30)]
    assert judged(model, tokenizer, other)["accuracy"] == 0


def test_an_untrained_models_perplexity_is_near_the_vocabulary(tokenizer):
    texts = [f"w{i} w{i + 1} w{i + 2} w{i + 3}" for i in range(100)]
    found = judged(masked_lm(), tokenizer, texts)
    assert found["perplexity"] == pytest.approx(200, rel=0.1)


def test_held_out_texts_are_apart_and_the_same_again():
    texts = [str(i) for i in range(100)]
    train, held_out = split_texts(texts)
    assert len(held_out) == 5 and sorted(train + held_out, key=int) == texts
    assert split_texts(texts) == (train, held_out)
    with pytest.raises(ValueError, match="received 1 texts, expected two or more"):
        split_texts(["alone"])


def test_progressive_transfer_on_text_trains_in_every_step(bert, tokenizer, data, tmp_path):
    """The turn changes before the forward pass: no step is left without a gradient."""
    student = LayerReduction(layers=2).apply(bert)
    student.config.hidden_dropout_prob = 0.0
    objective = Objective(hidden_states=1, progressive=True)
    moved, before = [], {}

    class Watch(Technique):
        name = "watch"

        def before_step(self, model, step, total):
            before.update({k: v.detach().clone() for k, v in model.named_parameters()})

        def after_step(self, model, step, total, rate):
            moved.append({k for k, v in model.named_parameters() if not torch.equal(v, before[k])})

    budget = Budget(steps=6, batch_size=8, learning_rate=1e-3, warmup=0.0)
    taught(student, tokenizer, MASKED.data(data.train.first), objective, budget, tmp_path,
           teacher=bert, techniques=[Watch()])  # fmt: skip
    parts = [{"embeddings" if "embeddings" in k else k.split("layer.")[1][0] for k in step
              if "pooler" not in k and "classifier" not in k} for step in moved]  # fmt: skip
    assert parts == [{"embeddings"}] * 2 + [{"0"}] * 2 + [{"1"}] * 2
    assert all(p.requires_grad for p in student.parameters())


def test_unlabelled(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfOne.\r\n\r\n  Two. \n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.txt").write_text("Zero.")
    (tmp_path / "c.md").write_text("not this")
    assert unlabelled(tmp_path) == ["Zero.", "One.", "Two."]
    assert unlabelled(str(tmp_path / "b.txt")) == ["One.", "Two."]
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    (tmp_path / "none").mkdir()
    for name, error, message in [
        ("nowhere.txt", FileNotFoundError, "does not exist"),
        ("c.md", ValueError, "received 'c.md', expected a .txt file"),
        ("blank.txt", ValueError, "only blank lines"),
        ("latin.txt", ValueError, "'latin.txt' is not UTF-8"),
        ("none", FileNotFoundError, "expected .txt files in it"),
    ]:
        with pytest.raises(error, match=message):
            unlabelled(tmp_path / name)
