"""Vocabularies of several scripts, cut to one: XLM-R's Unigram and RoBERTa's byte-level BPE."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made import roberta
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, XLMRobertaConfig
from transformers import XLMRobertaForSequenceClassification as XlmRoberta

from xtclib.artefact import format
from xtclib.tasks.rows import Calibration, Split
from xtclib.techniques import PruneVocabulary, Quantize
from xtclib.techniques.base import apply_all
from xtclib.techniques.embeddings import vocabulary

LATIN = [
    "the old ship sailed out of the harbour before the storm", "a film that nobody will remember",
    "the actors were better than the story they had to tell", "harbours and storms, again",
    "she told the story of the ship to the actors", "remember the film, forget the rest!",
]  # fmt: skip
GREEK = [
    "το παλιό πλοίο έφυγε από το λιμάνι πριν την καταιγίδα", "μια ταινία που κανείς δεν θα θυμάται",
    "οι ηθοποιοί ήταν καλύτεροι από την ιστορία", "λιμάνια και καταιγίδες, ξανά και ξανά",
    "είπε την ιστορία του πλοίου στους ηθοποιούς", "θυμήσου την ταινία, ξέχνα τα άλλα!",
]  # fmt: skip
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
NAMED = dict(bos_token="<s>", cls_token="<s>", pad_token="<pad>", eos_token="</s>",
             sep_token="</s>", unk_token="<unk>", mask_token="<mask>")  # fmt: skip


def unigram():
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=[*SPECIAL, "<mask>"], unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(LATIN + GREEK, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )  # fmt: skip
    return inner


def byte_level():
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(LATIN + GREEK, trainer)
    inner.add_special_tokens(["<mask>"])  # RoBERTa's comes last
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return inner


KINDS = {"unigram": unigram, "byte-level BPE": byte_level}


@pytest.fixture(scope="module", params=KINDS)
def whole(request):
    found = PreTrainedTokenizerFast(tokenizer_object=KINDS[request.param](), **NAMED)
    found.model_input_names = ["input_ids", "attention_mask"]
    return found


def counts(tokenizer, texts):
    ids = [i for text in texts for i in tokenizer(text)["input_ids"]]
    return np.bincount(ids, minlength=len(tokenizer))


@pytest.mark.parametrize("texts", [LATIN, GREEK], ids=["latin", "greek"])
def test_texts_of_one_script_are_read_as_before(whole, texts, tmp_path):
    ids = vocabulary.tokens_to_keep(whole, counts(whole, texts), None)
    cut = vocabulary.cut_tokenizer(whole, ids)
    assert len(cut) == len(ids) < len(whole)
    cut.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text, other in zip(texts, texts[1:] + texts[:1], strict=True):
        for given in ((text,), (text, other)):  # alone, and as a pair with its marks between
            before = whole(*given)
            after, reloaded = cut(*given), again(*given)
            assert [ids[i] for i in after["input_ids"]] == before["input_ids"]
            assert cut.convert_ids_to_tokens(after["input_ids"]) == whole.convert_ids_to_tokens(
                before["input_ids"]
            )
            assert dict(after) == dict(reloaded) and after.keys() == before.keys()
        assert again.decode(again(text)["input_ids"], skip_special_tokens=True) == text
    for name in NAMED:
        old, new = getattr(whole, f"{name}_id"), getattr(again, f"{name}_id")
        assert ids[new] == old and getattr(again, name) == NAMED[name]
    with pytest.raises(ValueError, match=r"drops the special tokens .*<mask>"):
        vocabulary.cut_tokenizer(whole, [i for i in ids if i != whole.mask_token_id])


def test_another_script_is_spelled_in_bytes_or_unknown(whole):
    ids = vocabulary.tokens_to_keep(whole, counts(whole, LATIN), None)
    cut = vocabulary.cut_tokenizer(whole, ids)
    found = cut(GREEK[0])["input_ids"]
    if isinstance(whole.backend_tokenizer.model, models.BPE):
        assert cut.decode(found, skip_special_tokens=True) == GREEK[0]
    else:
        assert cut.unk_token_id in found


@pytest.mark.parametrize("keep", [0.75, 0.9])
def test_a_share_of_the_tokens_stays_with_all_they_are_made_of(whole, keep):
    ids = vocabulary.tokens_to_keep(whole, counts(whole, LATIN), keep)
    assert len(ids) == round(keep * len(whole))
    cut = vocabulary.cut_tokenizer(whole, ids)
    spell, before = (each.backend_tokenizer.model.tokenize for each in (cut, whole))
    if isinstance(whole.backend_tokenizer.model, models.BPE):  # each is still made, as it was
        for piece in cut.get_vocab().keys() - {*NAMED.values()}:
            assert [t.value for t in spell(piece)] == [t.value for t in before(piece)]


def test_the_model_s_rows_are_those_of_the_tokens(whole, data, tmp_path):
    """Cut, quantized, packed, and opened again."""
    sizes = dict(vocab_size=len(whole), hidden_size=16, num_hidden_layers=1, pad_token_id=1,
                 num_attention_heads=2, intermediate_size=16, type_vocab_size=1,
                 max_position_embeddings=80)  # fmt: skip
    torch.manual_seed(0)
    model = XlmRoberta(XLMRobertaConfig(**sizes)).eval()
    rows = replace(data, train=Split(LATIN, None, [0, 1] * 3))
    techniques = [PruneVocabulary(), Quantize(activations=None)]
    calibration = Calibration(rows, whole, 64)
    _, cut = techniques[0].reads(None, whole, calibration)
    ids = techniques[0].ids(calibration)
    student = techniques[0].apply(model, calibration)
    before, after = model.get_input_embeddings(), student.get_input_embeddings()
    assert torch.equal(after.weight, before.weight[ids])
    read = [each(LATIN, padding=True, return_tensors="pt") for each in (whole, cut)]
    with torch.no_grad():
        assert torch.equal(student(**read[1]).logits, model(**read[0]).logits)
        packed = format.finalize(apply_all(model, techniques, calibration), techniques)
        format.save(packed, cut, tmp_path / "a")
        again, words = format.load(tmp_path / "a")
        found = again(**words(LATIN, padding=True, return_tensors="pt")).logits
        assert torch.equal(found, packed(**read[1]).logits)


def test_a_padding_token_that_positions_count_from_keeps_its_number():
    model = roberta(pad_token_id=1)
    with pytest.raises(ValueError, match="padding token would be 0 instead of 1, from which Rob"):
        vocabulary.keep_rows_(model, range(1, 20))
    assert model.config.vocab_size == 40
