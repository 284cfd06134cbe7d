"""Vocabularies cut to the writing systems that a task's texts use."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, XLMRobertaConfig
from transformers import XLMRobertaForSequenceClassification as XlmRoberta

from xtclib.artefact import format
from xtclib.tasks.rows import Calibration, Split
from xtclib.techniques import PruneVocabulary
from xtclib.techniques.embeddings import vocabulary

LATIN = ["the old ship sailed out of the harbour", "a film that nobody will remember, 1994!"]
GREEK = ["το παλιό πλοίο έφυγε από το λιμάνι", "μια ταινία που κανείς δεν θα θυμάται, 1994!"]
THAI = ["เรือเก่าออกจากท่าเรือก่อนพายุ", "หนังที่ไม่มีใครจำได้ ๑๙๙๔"]
UNSEEN = {"latin": ["sailors remember the harbours", "will the old film sail?"],
          "greek": ["το λιμάνι που κανείς δεν θυμάται", "η ταινία έφυγε; 1944"]}  # fmt: skip
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
NAMED = dict(bos_token="<s>", cls_token="<s>", pad_token="<pad>", eos_token="</s>",
             sep_token="</s>", unk_token="<unk>", mask_token="<mask>")  # fmt: skip


def unigram():
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return inner, trainers.UnigramTrainer(
        vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )


def byte_level():
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner, trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip


def word_piece():
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return inner, trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=SPECIAL, show_progress=False
    )


@pytest.fixture(scope="module", params=[unigram, byte_level, word_piece])
def whole(request):
    inner, trainer = request.param()
    inner.train_from_iterator((LATIN + GREEK + THAI + sum(UNSEEN.values(), [])) * 3, trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, **NAMED)


def counts(tokenizer, texts):
    ids = [i for text in texts for i in tokenizer(text)["input_ids"]]
    return np.bincount(ids, minlength=len(tokenizer))


@pytest.mark.parametrize("script", UNSEEN)
def test_texts_of_a_kept_script_are_read_as_before(whole, script, tmp_path):
    """Those that the rows never had too; others in bytes, or as unknown."""
    texts = {"latin": LATIN, "greek": GREEK}[script]
    seen = counts(whole, texts)
    ids = vocabulary.tokens_to_keep(whole, seen, None, scripts=True)
    fewer = vocabulary.tokens_to_keep(whole, seen, None)
    assert set(fewer) < set(ids) and len(ids) < len(whole)
    cut = vocabulary.cut_tokenizer(whole, ids)
    cut.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in texts + UNSEEN[script]:
        read = whole.tokenize(text)
        assert cut.tokenize(text) == again.tokenize(text) == read
        assert again(text)["input_ids"] == cut(text)["input_ids"]
        assert [ids[i] for i in cut(text)["input_ids"]] == whole(text)["input_ids"]
    assert cut.tokenize(THAI[0]) != whole.tokenize(THAI[0])
    assert {*cut.all_special_tokens} == {*whole.all_special_tokens}


def test_what_has_no_letters_stays_and_a_stray_letter_keeps_no_script(whole):
    seen = counts(whole, LATIN) * 1000
    thai = next(i for i, t in enumerate(vocabulary._texts(whole, whole.convert_ids_to_tokens(
        list(range(len(whole)))))) if vocabulary.scripts_of(t) == {"THAI"})  # fmt: skip
    seen[thai] = 1
    ids = vocabulary.tokens_to_keep(whole, seen, None, scripts=True)
    texts = vocabulary._texts(whole, whole.convert_ids_to_tokens(ids))
    found = set.union(*map(vocabulary.scripts_of, texts))
    assert thai in ids and found <= {"LATIN", "THAI"}
    signs = {t for t in whole.convert_ids_to_tokens(list(range(len(whole)))) if t.isdecimal()}
    assert signs and signs - {"๑", "๙", "๔"} <= {*whole.convert_ids_to_tokens(ids)}
    assert sum("THAI" in vocabulary.scripts_of(t) for t in texts) <= 4  # what it is made of


def test_a_share_that_loses_a_script_is_refused(whole):
    seen = counts(whole, LATIN) * 50 + counts(whole, GREEK)
    enough = vocabulary.tokens_to_keep(whole, seen, 0.95, scripts=True)
    assert len(enough) == round(0.95 * len(whole))
    least = next(n for n in range(5, len(whole)) if not _lost(whole, seen, n))
    with pytest.raises(ValueError, match=r"leaves (the texts' Greek|words that cannot be spelled)"):
        vocabulary.tokens_to_keep(whole, seen, (least - 1) / len(whole), scripts=True)


def _lost(tokenizer, seen, count):
    try:
        vocabulary.tokens_to_keep(tokenizer, seen, count / len(tokenizer), scripts=True)
    except ValueError as error:
        return str(error)


def test_the_greek_of_the_texts_is_named():
    inner = Tokenizer(models.WordPiece({t: i for i, t in enumerate(
        [*SPECIAL, "a", "##b", "α", "##β", "ab", "αβ"])}, unk_token="<unk>"))  # fmt: skip
    inner.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **NAMED)
    seen = np.array([0] * 9 + [9, 3])
    assert vocabulary.tokens_to_keep(tokenizer, seen, None, scripts=True) == list(range(11))
    with pytest.raises(ValueError, match="keeping 10 of 11 tokens leaves the texts' Greek nothing"):
        vocabulary.tokens_to_keep(tokenizer, seen, 10 / 11, scripts=True)


def test_a_model_keeps_the_rows_of_those_tokens(whole, data, tmp_path):
    sizes = dict(vocab_size=len(whole), hidden_size=16, num_hidden_layers=1, pad_token_id=1,
                 num_attention_heads=2, intermediate_size=16,
                 max_position_embeddings=80)  # fmt: skip
    torch.manual_seed(0)
    model = XlmRoberta(XLMRobertaConfig(**sizes)).eval()
    rows = Calibration(replace(data, train=Split(GREEK, None, [0, 1])), whole, 64)
    how = PruneVocabulary(scripts="used")
    student, (_, cut) = how.apply(model, rows), how.reads(None, whole, rows)
    assert len(cut) == student.config.vocab_size < len(whole)
    format.save(format.finalize(student, [how]), cut, tmp_path / "a")
    again, words = format.load(tmp_path / "a")
    texts = UNSEEN["greek"]
    with torch.no_grad():
        found, before = (
            m(**t(texts, padding=True, return_tensors="pt", return_token_type_ids=False)).logits
            for m, t in ((again, words), (model, whole))
        )
    torch.testing.assert_close(found, before, rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="unknown scripts of prune_vocabulary 'usd': did you mean"):
        PruneVocabulary(scripts="usd")
