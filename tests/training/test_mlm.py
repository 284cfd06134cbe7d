"""Masked language modelling: what is hidden, and that it learns."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from xtclib.distillation.objective import Objective
from xtclib.techniques.base import Technique
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.training import mlm


def test_masking_hides_fifteen_percent_and_never_special_tokens(tokenizer):
    ids = torch.randint(5, 200, (200, 50), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    seen, labels = mlm.mask_tokens(ids, tokenizer, torch.Generator().manual_seed(1))
    guessed = labels != mlm.IGNORED
    assert not guessed[:, 0].any() and not guessed[:, -1].any()
    assert guessed[:, 1:-1].float().mean() == pytest.approx(0.15, abs=0.01)
    masked = (seen == tokenizer.mask_token_id)[guessed].float().mean()
    assert masked == pytest.approx(0.8, abs=0.03)
    assert torch.equal(seen[~guessed], ids[~guessed])
    assert torch.equal(labels[guessed], ids[guessed])


def test_words_in_always_are_always_guessed(tokenizer):
    ids = torch.arange(5, 55).reshape(1, -1)
    _, labels = mlm.mask_tokens(ids, tokenizer, share=0.0, always=[7, 9])
    assert labels[labels != mlm.IGNORED].tolist() == [7, 9]


def test_pretraining_lowers_the_loss_and_repeats_itself(tokenizer):
    texts = [f"w{i % 5} w{i % 5 + 1} w{i % 5 + 2}." for i in range(40)]
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = BertForMaskedLM(
            BertConfig(
                vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=64, max_position_embeddings=64,
            )
        )  # fmt: skip
        runs.append(mlm.pretrain(model, tokenizer, texts, 60, 16, 3e-3, bf16=False, progress=False))
    assert runs[0] == runs[1]
    assert sum(runs[0][-10:]) < 0.8 * sum(runs[0][:10])


def test_nothing_to_train_on_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="nothing to train on: 0 steps, 1 texts"):
        mlm.pretrain(None, tokenizer, ["w1"], 0)


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
    model = mlm.load_masked_lm(tmp_path)
    words = bert.bert.embeddings.word_embeddings.weight
    assert torch.equal(model.cls.predictions.decoder.weight, words)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    again = mlm.load_masked_lm(tmp_path)
    dense = "cls.predictions.transform.dense.weight"
    assert torch.equal(model.state_dict()[dense], again.state_dict()[dense])


def test_a_model_with_another_head_is_refused(tmp_path):
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    config = DistilBertConfig(n_layers=1, dim=16, n_heads=2, hidden_dim=32, vocab_size=50)
    DistilBertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="DistilBertForMaskedLM has no head at `cls`"):
        mlm.load_masked_lm(tmp_path)


def test_masked_accuracy_by_a_model_that_always_says_one_word(tokenizer):
    model = masked_lm()
    with torch.no_grad():
        model.cls.predictions.bias.fill_(-1e4)
        model.cls.predictions.bias[tokenizer.convert_tokens_to_ids("w3")] = 1e4
    texts = ["w3 w3 w3 w3 w3 w3 w3 w3." for _ in range(30)]
    found = mlm.evaluate_masked(model, tokenizer, texts)
    assert found == mlm.evaluate_masked(model, tokenizer, texts) and not model.training
    assert 80 < found["accuracy"] <= 100  # full stops are guessed too, or are unknown
    other = ["w5 w5 w5 w5 w5 w5 w5 w5" for _ in range(30)]
    assert mlm.evaluate_masked(model, tokenizer, other)["accuracy"] == 0


def test_an_untrained_models_perplexity_is_near_the_vocabulary(tokenizer):
    texts = [f"w{i} w{i + 1} w{i + 2} w{i + 3}" for i in range(100)]
    found = mlm.evaluate_masked(masked_lm(), tokenizer, texts)
    assert found["perplexity"] == pytest.approx(200, rel=0.1)


def test_held_out_texts_are_apart_and_the_same_again():
    texts = [str(i) for i in range(100)]
    train, held_out = mlm.split_texts(texts)
    assert len(held_out) == 5 and sorted(train + held_out, key=int) == texts
    assert mlm.split_texts(texts) == (train, held_out)
    with pytest.raises(ValueError, match="received 1 texts, expected two or more"):
        mlm.split_texts(["alone"])


def test_progressive_transfer_on_text_trains_in_every_step(bert, tokenizer, data):
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

    mlm.pretrain(student, tokenizer, data.train.first, 6, 8, 1e-3, objective=objective,
                 teacher=bert, bf16=False, progress=False, techniques=[Watch()])  # fmt: skip
    parts = [{"embeddings" if "embeddings" in k else k.split("layer.")[1][0] for k in step
              if "pooler" not in k and "classifier" not in k} for step in moved]  # fmt: skip
    assert parts == [{"embeddings"}] * 2 + [{"0"}] * 2 + [{"1"}] * 2
    assert all(p.requires_grad for p in student.parameters())
