"""Masked language modelling: what is hidden, and that it learns."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from xtclib import mlm


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
