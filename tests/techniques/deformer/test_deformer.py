"""Two segments read apart: the mask is two runs, a cache is no other model, 0 layers are none."""

import copy
import json
import multiprocessing

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    MobileBertConfig,
    MobileBertForSequenceClassification,
)

from xtclib.artefact import format, ledger
from xtclib.deployment.onnx import export_onnx
from xtclib.deployment.runtimes import OnnxModel
from xtclib.distillation.objective import Objective, distillation_loss
from xtclib.distillation.terms import Reader, states_of
from xtclib.recipes import recipe
from xtclib.study.compress import compress
from xtclib.tasks.rows import Calibration
from xtclib.techniques import DeFormer, LayerReduction, Quantize, apply_all
from xtclib.techniques.deformer import segments
from xtclib.techniques.deformer.passages import PassageCache

SIZES = dict(vocab_size=200, hidden_size=32, num_hidden_layers=4, num_attention_heads=2,
             intermediate_size=64, max_position_embeddings=40, initializer_range=0.3)  # fmt: skip
QUESTION, PASSAGE = "w1 w2 w3", "w4 w5 w6 w7 w8 w9"


def bert(kind=BertForSequenceClassification, seed=0, **other):
    torch.manual_seed(seed)
    return kind(BertConfig(**SIZES | other)).eval()


def electra():
    torch.manual_seed(0)
    return ElectraForSequenceClassification(ElectraConfig(embedding_size=16, **SIZES)).eval()


@pytest.fixture
def pairs():
    types = torch.tensor([[0] * 4 + [1] * 8, [0] * 5 + [1] * 5 + [0] * 2])
    mask = torch.tensor([[1] * 12, [1] * 10 + [0] * 2])
    ids = torch.arange(5, 29).reshape(2, 12) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


# Apart.


@pytest.mark.parametrize("make", [bert, electra])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "xtc"])
def test_the_mask_is_two_runs(make, attention, pairs):
    model = make()
    model.set_attn_implementation(attention)
    apart = DeFormer(3, "fp32").apply(model)
    with torch.no_grad():
        together = apart(**pairs, output_hidden_states=True).hidden_states[3]
        for row, (first, second) in enumerate([(4, 12), (5, 10)]):
            for side in (slice(0, first), slice(first, second)):
                own = {name: x[row : row + 1, side] for name, x in pairs.items()}
                alone = model(**own, output_hidden_states=True).hidden_states[3]
                assert (together[row, side] - alone[0]).abs().max() < 1e-4
    assert (logits(apart, pairs) - logits(model, pairs)).abs().max() > 0.1


def test_no_layers_apart_is_the_model_itself(pairs):
    model = bert()
    same = DeFormer(0).apply(model)
    assert torch.equal(logits(same, pairs), logits(model, pairs))
    assert not same.base_model._forward_pre_hooks


def test_a_text_alone_and_positions_that_are_given_stay(pairs):
    model = bert()
    apart = DeFormer(3, "fp32").apply(model)
    single = {name: x[:1] for name, x in pairs.items() if name != "token_type_ids"}
    assert torch.allclose(logits(apart, single), logits(model, single), atol=1e-5)
    given = pairs | {"position_ids": torch.arange(12)[None] + 3}
    assert (logits(apart, given) - logits(apart, pairs)).abs().max() > 1e-3
    with torch.no_grad():
        by_place = apart(pairs["input_ids"], pairs["attention_mask"], pairs["token_type_ids"])
    assert torch.equal(by_place.logits, logits(apart, pairs))


def test_states_are_stored_as_said_and_learn_through_it(pairs):
    model = bert()
    found = {kind: logits(DeFormer(2, kind).apply(model), pairs) for kind in segments.KINDS}
    far = {kind: float((z - found["fp32"]).abs().max()) for kind, z in found.items()}
    assert far["fp32"] == 0 < 3 * far["fp16"] < far["int8"] < 0.1
    for kind in segments.KINDS:
        apart = DeFormer(2, kind).apply(model).train()
        apart(**pairs, labels=torch.tensor([0, 1])).loss.backward()
        first = apart.bert.encoder.layer[0].intermediate.dense.weight.grad
        assert first.isfinite().all() and first.abs().sum() > 0


def test_of_a_copy_and_a_shorter_student_the_layers_are_its_own(pairs):
    apart = DeFormer(2, "fp32").apply(bert())
    shorter = LayerReduction([0, 1, 3]).apply(apart)
    assert shorter.config.segments["layers"] == 2 and len(shorter.bert.encoder.layer) == 3
    assert (
        logits(shorter, pairs).isfinite().all() and shorter.bert.encoder.layer[0].segments is None
    )


# What it learns by.


def test_auxiliary_losses_are_0_where_nothing_is_apart(pairs):
    model = bert()
    objective = recipe.load("deformer-9of12").stages[0].objective
    lost = {}
    for layers in (0, 3):
        student = DeFormer(layers).apply(model)
        readers = [Reader(m, objective.reads) for m in (student, model)]
        with torch.no_grad():
            shown = [r(m, **pairs) for r, m in zip(readers, (student, model), strict=True)]
        for signals in shown:
            signals.logits = signals.output.logits
        compared, labels = objective.pairs(student, model), torch.tensor([0, 1])
        found = distillation_loss(objective, *shown, labels, pairs["attention_mask"], compared)
        lost[layers] = {name: float(value) for name, value in found.items()}
        for read in readers:
            read.close()
    assert lost[0]["logits"] == pytest.approx(0, abs=1e-6) and lost[0]["hidden_states"] == 0
    assert lost[3]["logits"] > 0.01 and lost[3]["hidden_states"] > 0.01
    assert lost[0]["labels"] > 0.1


def test_the_states_above_a_share_are_the_upper_layers():
    for depth, layers in ((12, 9), (6, 4), (4, 3)):
        assert DeFormer(0.75).count(depth) == layers
        assert states_of(0.75, depth) == list(range(layers + 1, depth + 1))
    with pytest.raises(ValueError, match="states"):
        Objective(hidden_states={"states": 1.5})


@pytest.mark.slow
def test_a_recipe_runs_on_pairs():
    found = compress("deformer-9of12", "mrpc", "smoke", progress=False)
    assert found.student.config.segments == {"layers": 9, "states": "fp16"}
    assert found.record.metrics["dev"]["score"] >= 0


# On disk.


@pytest.mark.slow
@pytest.mark.parametrize("techniques", [[DeFormer(2)], [DeFormer(2, "int8"), Quantize()]],
                         ids=["plain", "packed"])  # fmt: skip
def test_it_is_saved_opened_and_exported(techniques, pairs, tokenizer, tmp_path):
    made = format.finalize(apply_all(bert(num_hidden_layers=3), techniques), techniques)
    format.save(made, tokenizer, tmp_path / "out")
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(found, pairs), logits(made, pairs))
    entries = ledger.byte_ledger(tmp_path / "out")
    assert sum(e.bytes for e in entries) == (tmp_path / "out" / "model.safetensors").stat().st_size
    export_onnx(found, tmp_path / "m.onnx", "trained")
    exported = torch.as_tensor(OnnxModel(tmp_path / "m.onnx")(**pairs).logits)
    assert torch.allclose(exported, logits(made, pairs), atol=1e-2)
    (tmp_path / "out" / "SHA256SUMS").unlink()
    path = tmp_path / "out" / "config.json"
    path.write_text(path.read_text().replace('"layers": 2', '"layers": 1'))
    with pytest.raises(ValueError, match="config.json says segments="):
        format.load(tmp_path / "out")
    again = format.trainable(found, pack=False)
    again.save_pretrained(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    assert plain.config.segments == made.config.segments
    assert torch.allclose(logits(plain, pairs), logits(again.eval(), pairs), atol=0.05)


# The cache.


def asked(tokenizer, question=QUESTION, passage=PASSAGE):
    return tokenizer(question, passage, return_tensors="pt", return_token_type_ids=True)


@pytest.mark.parametrize("kind", segments.KINDS)
@pytest.mark.parametrize("make", [bert, electra])
@pytest.mark.parametrize("packed", [False, True])
def test_with_a_cache_and_without_the_answers_are_one(make, kind, packed, tokenizer, tmp_path):
    techniques = [DeFormer(3, kind), *([Quantize()] if packed else [])]
    model = format.finalize(apply_all(make(), techniques), techniques)
    cache = PassageCache(tmp_path, model, tokenizer)
    ids = cache.add([PASSAGE, "w10", "w11 w12 " * 9])
    questions = [QUESTION, "w20", "w21 w22 w23 w24"]
    found = cache.logits(questions, ids)
    for question, id_, row in zip(questions, ids, found, strict=True):
        passage = cache._open(id_)[2]
        whole = logits(model, asked(tokenizer, question, passage))[0]
        alone = cache.logits([question], [id_])[0]
        assert (alone - whole).abs().max() < (1e-3 if packed else 1e-5)
        assert (row - alone).abs().max() < (1e-3 if packed else 1e-5)
    assert len(cache) == 3 and ids[0] in cache
    assert cache.bytes == sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))


def test_bytes_of_a_passage_are_its_tokens_by_width(tokenizer, tmp_path):
    sizes = {}
    for kind in segments.KINDS:
        cache = PassageCache(tmp_path / kind, DeFormer(3, kind).apply(bert()), tokenizer)
        cache.add("w1 " * 30)
        sizes[kind] = cache.bytes
    assert sizes["fp32"] - sizes["fp16"] == pytest.approx(31 * 32 * 2, abs=8)
    assert sizes["fp16"] - sizes["int8"] == pytest.approx(31 * 32 - 31 * 4, abs=80)


def test_the_model_and_its_halves_share_their_weights(tokenizer, tmp_path):
    model = DeFormer(3).apply(bert())
    cache = PassageCache(tmp_path, model, tokenizer)
    own = {p.data_ptr() for p in model.parameters()}
    halves = {p.data_ptr() for half in (cache.lower, cache.upper) for p in half.parameters()}
    assert halves <= own and len(model.bert.encoder.layer) == 4


def test_an_answer_is_a_span_of_the_passage(tokenizer, tmp_path):
    model = DeFormer(3).apply(bert(BertForQuestionAnswering))
    cache = PassageCache(tmp_path, model, tokenizer)
    [id_] = cache.add(PASSAGE)
    found = cache.answer(QUESTION, id_)
    assert found and found in PASSAGE
    # The same as the whole model's, read by hand.
    batch = asked(tokenizer)
    with torch.no_grad():
        out = model(**batch)
    inside = [i for i, part in enumerate(batch.sequence_ids()) if part == 1]
    best = max((float(out.start_logits[0, a] + out.end_logits[0, b]), a, b)
               for a in inside for b in inside if a <= b)  # fmt: skip
    words = PASSAGE.split()[inside.index(best[1]) : inside.index(best[2]) + 1]
    assert found == " ".join(words)
    assert cache.answer(QUESTION, id_, threshold=-1e9) == ""
    with pytest.raises(TypeError, match="gives classes: take `logits`"):
        other = PassageCache(tmp_path / "b", DeFormer(3).apply(bert()), tokenizer)
        other.answer(QUESTION, other.add(PASSAGE)[0])


def _add(folder, tokenizer, count):
    torch.set_num_threads(1)
    cache = PassageCache(folder, DeFormer(3).apply(bert()), tokenizer)
    cache.add([f"w{i} w{i + 1}" for i in range(count)])


def test_two_processes_share_a_cache(tokenizer, tmp_path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_add, args=(tmp_path, tokenizer, 12)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    cache = PassageCache(tmp_path, DeFormer(3).apply(bert()), tokenizer)
    ids = cache.add([f"w{i} w{i + 1}" for i in range(12)])
    assert len(cache) == 12 and cache.logits(["w3"] * 12, ids).isfinite().all()


# What cannot be.


@pytest.mark.parametrize("layers", [4, 5, 0.99])
def test_a_split_of_all_layers_is_refused(layers):
    with pytest.raises(ValueError, match=r"of 4 layers read the texts apart, and none .* up to 3"):
        DeFormer(layers).apply(bert())


@pytest.mark.parametrize("layers", [-1, 1.5, 0.0, True, "half"])
def test_other_layers_are_refused(layers):
    with pytest.raises(ValueError, match="layers of deformer must be"):
        DeFormer(layers)


def test_a_task_of_single_texts_is_refused(data, tokenizer):
    with pytest.raises(ValueError, match="SST-2|sst2.* one a row: take a task of pairs"):
        DeFormer().apply(bert(), Calibration(data, tokenizer, 16))


def test_models_that_tell_no_segments_are_refused():
    small = dict(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=16)
    single = DistilBertForSequenceClassification(DistilBertConfig(**small))
    narrow = MobileBertForSequenceClassification(MobileBertConfig(num_hidden_layers=2))
    for model in (single, narrow, bert(type_vocab_size=1)):
        with pytest.raises(TypeError, match=r"two segments .* expected BERT or ELECTRA"):
            DeFormer().apply(model)


def test_twice_and_on_packed_models_is_refused():
    apart = DeFormer().apply(bert())
    with pytest.raises(ValueError, match="apart already"):
        DeFormer().apply(apart)
    with pytest.raises(ValueError, match="already packed"):
        DeFormer().apply(format.finalize(Quantize().apply(bert()), [Quantize()]))


@pytest.mark.parametrize("said", [None, "3", {"layers": 4, "states": "fp16"}, {"layers": 2},
                                  {"layers": True, "states": "fp16"}])  # fmt: skip
def test_altered_segments_are_named(said):
    model = bert()
    model.config.segments = said
    with pytest.raises(ValueError, match=r"config\.json says segments="):
        DeFormer().rebuild(model)


def test_a_cache_of_others_is_refused(tokenizer, tmp_path):
    model = DeFormer(3).apply(bert())
    with pytest.raises(ValueError, match="all layers of this .* read both texts"):
        PassageCache(tmp_path, bert(), tokenizer)
    PassageCache(tmp_path, model, tokenizer)
    with pytest.raises(ValueError, match="passages of another model"):
        PassageCache(tmp_path, DeFormer(3).apply(bert(seed=1)), tokenizer)
    with pytest.raises(ValueError, match="passages of another model"):
        PassageCache(tmp_path, DeFormer(2).apply(bert()), tokenizer)
    words = copy.deepcopy(tokenizer)
    words.add_tokens(["w999"])
    with pytest.raises(ValueError, match="passages of another tokenizer"):
        PassageCache(tmp_path, model, words)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read: delete the folder"):
        PassageCache(tmp_path, model, tokenizer)


def test_a_damaged_passage_is_told_and_heals(tokenizer, tmp_path):
    cache = PassageCache(tmp_path, DeFormer(3).apply(bert()), tokenizer)
    [id_] = cache.add(PASSAGE)
    path = tmp_path / f"{id_}.safetensors"
    good = path.read_bytes()
    before = cache.logits([QUESTION], [id_])
    tensors = load_file(path)
    kept = tensors["states"].clone()
    tensors["states"][0, 0] += 1
    for damage in (lambda: path.write_bytes(good[:-9]), lambda: save_file(tensors, path)):
        damage()
        with pytest.raises(ValueError, match="damaged, truncated|not what was written"):
            cache.logits([QUESTION], [id_])
        assert cache.add(PASSAGE) == [id_] and torch.equal(load_file(path)["states"], kept)
    assert torch.equal(cache.logits([QUESTION], [id_]), before)
    path.unlink()
    with pytest.raises(KeyError, match="`add` gives the ids"):
        cache.logits([QUESTION], [id_])


@pytest.mark.parametrize(
    ("passage", "says"),
    [("  ", "expected a text"), ("w1 " * 60, "61 tokens, and the model has 40")],
)
def test_passages_that_cannot_be_read_are_refused(passage, says, tokenizer, tmp_path):
    cache = PassageCache(tmp_path, DeFormer(3).apply(bert()), tokenizer)
    with pytest.raises(ValueError) as error:
        cache.add([PASSAGE, passage])
    assert says in str(error.value) and len(cache) == 0
    assert json.loads((tmp_path / "cache.json").read_text())["states"] == "fp16"
