"""Augmentation: which words change, in which sentence, and what stays."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from xtclib.config import read
from xtclib.distillation.objective import Objective
from xtclib.recipes.recipe import Stage, from_dict
from xtclib.tasks.augmentation import Augmentation, augment, candidates, read_rows, write_rows
from xtclib.tasks.glue import Split


@pytest.fixture(scope="module")
def words():
    """A tokenizer of whole words and of pieces, and a model that likes `good` everywhere."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "is", "good", "bad"]
    names += ["fine", "movie", "dull", "over", "##long", "."]
    inner = Tokenizer(WordPiece({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(names), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, initializer_range=0.5,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.cls.predictions.bias[names.index("good")] = 100.0
        table = model.bert.embeddings.word_embeddings.weight
        table[names.index("dull")] = table[[names.index("over"), names.index("##long")]].mean(0)
    return tokenizer, model


def test_a_word_of_one_token_is_guessed_and_one_of_pieces_has_neighbours(words):
    found = candidates(["the film is overlong ."], *words, count=2, progress=False)
    (film, long) = found["the film is overlong ."]  # no function words, no full stop
    assert film[:2] == (4, 8) and film[2][0] == "good" and len(film[2]) == 2
    assert long[:2] == (12, 20) and long[2][0] == "dull"


def test_a_model_without_a_head_chooses_by_vectors(words):
    tokenizer, model = words
    model.fresh_head = True
    try:
        ((_, _, found),) = candidates(["film"], tokenizer, model, 3, False)["film"]
    finally:
        del model.fresh_head
    table = torch.nn.functional.normalize(model.get_input_embeddings().weight.detach(), dim=-1)
    near = (table @ table[6]).argsort(descending=True).tolist()
    names = tokenizer.convert_ids_to_tokens(near)
    known = {"film", "good", "bad", "fine", "movie", "dull", "over"}
    assert found == [name for name in names if name in known and name != "film"][:3]


def test_copies_follow_their_rows_and_keep_labels(words):
    rows = Split(["the film is bad .", "dull movie"], None, [1, 0])
    more = augment(rows, *words, Augmentation(copies=6, probability=1.0), progress=False)
    assert more.first[:2] == rows.first and len(more) > 4 and more.second is None
    for text, label in zip(more.first[2:], more.labels[2:], strict=True):
        assert text not in rows.first
        assert label == (1 if text.startswith("the ") and text.endswith(".") else 0)
    assert len(set(more.first)) == len(more)


def test_of_a_pair_one_sentence_changes(words):
    rows = Split(["film is bad"], ["movie is fine"], [1])
    more = augment(rows, *words, Augmentation(copies=8, probability=1.0), progress=False)
    pairs = zip(more.first, more.second, strict=True)
    changed = [(a != rows.first[0], b != rows.second[0]) for a, b in pairs]
    assert set(changed[1:]) == {(True, False), (False, True)} and set(more.labels) == {1}


def test_the_same_seed_gives_the_same_rows(words, tmp_path):
    rows = Split(["the film is bad .", "dull movie"], None, [1, 0])
    how = Augmentation(copies=5, probability=0.5)
    first, same = (augment(rows, *words, how, 1, progress=False) for _ in range(2))
    assert first.first == same.first
    others = [augment(rows, *words, how, seed, progress=False).first for seed in range(2, 8)]
    assert any(first.first != other for other in others)
    write_rows(first, tmp_path / "a.json")
    assert read_rows(tmp_path / "a.json") == first


@pytest.mark.parametrize(
    "values, message",
    [
        ({"copies": 0}, "copies of augmentation must be a whole number from 1, received 0"),
        ({"probability": 0}, "probability of augmentation must be a number above 0 and at"),
        ({"copys": 1}, "unknown key of augmentation 'copys': did you mean 'copies'"),
        (3, "augmentation should be `name: value` pairs, received 3"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        read(Augmentation, values)


def test_a_stage_that_reads_no_rows_takes_no_augmentation():
    with pytest.raises(ValueError, match="this stage does not train on them: leave it out"):
        Stage("s", task="mlm", augmentation=Augmentation())
    stage = Stage("s", objective=Objective(labels=1), augmentation=Augmentation(3))
    told = {"stages": [{"s": {"objective": {"labels": 1}, "augmentation": {"copies": 3}}}]}
    assert from_dict("r", told).stages == (stage,)
