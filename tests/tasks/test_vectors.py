import numpy as np
import pytest
import torch
from made import one_layer
from scipy.stats import spearmanr
from transformers import AutoModel

from xtclib.artefact import format
from xtclib.bert import text_vectors
from xtclib.cache import ROOT
from xtclib.deployment import onnx, runtimes
from xtclib.study import profiles
from xtclib.study.compress import compress
from xtclib.tasks.evaluation import evaluate
from xtclib.tasks.vectors import Vectors, encode, vectors

TEXTS = (ROOT / "data" / "mini" / "corpus.txt").read_text().splitlines()[:60]


def unit(rows, width=8, seed=0):
    found = np.random.default_rng(seed).normal(size=(rows, width))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_scores_are_those_of_the_definitions():
    known = unit(12)
    task = Vectors(known=known)
    same = task.score(list(known), list(range(12)))
    assert same["spearman"] == pytest.approx(100) and same["cosine"] == pytest.approx(100)
    assert same["top-1"] == same["top-10"] == 100
    turned, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))
    assert task.score(list(known @ turned), range(12))["top-1"] == 100  # cosines among texts alone
    other = unit(12, seed=2)
    score = task.score(list(other), range(12))
    pairs = [(i, j) for i in range(12) for j in range(i)]
    ours, theirs = ([v[i] @ v[j] for i, j in pairs] for v in (other, known))
    assert score["spearman"] == pytest.approx(100 * spearmanr(ours, theirs).statistic)
    near = [[max((k for k in range(12) if k != i), key=lambda k: v[i] @ v[k]) for i in range(12)]
            for v in (other, known)]  # fmt: skip
    assert score["top-1"] == pytest.approx(100 * np.mean(np.equal(*near)))


def test_rated_pairs_are_scored_by_their_cosines():
    vectors_, ratings = unit(10), [1.0, 4.0, 2.0, 5.0, 3.0]
    found = Vectors().score(list(vectors_), ratings)
    wanted = spearmanr((vectors_[::2] * vectors_[1::2]).sum(1), ratings).statistic
    assert found == {"spearman": pytest.approx(100 * wanted), "score": found["spearman"]}


def test_the_loss_is_that_of_the_cosine():
    ours, theirs = (torch.tensor(unit(5, seed=s)) for s in (0, 1))
    wanted = (2 - 2 * (ours * theirs).sum(-1)).mean()
    assert float(Vectors().compare(ours, theirs)) == pytest.approx(float(wanted))


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    (tmp_path / "rated.tsv").write_text(
        "a\tb\tscore\n" + "".join(f"{a}\t{b}\t{i}\n" for i, (a, b) in enumerate(
            zip(TEXTS[:20:2], TEXTS[1:20:2], strict=True)))
    )  # fmt: skip
    return tmp_path


@pytest.mark.slow
def test_an_encoder_is_compressed_opens_as_one_and_exports_its_vectors(texts, tmp_path):
    out = tmp_path / "out"
    task = vectors(texts / "texts.txt", rated=texts / "rated.tsv")
    run = compress(one_layer(), task, "smoke", "3steps", out=out, progress=False,
                   say=lambda _: None, device="cpu")  # fmt: skip
    assert run.record.teacher_metrics["apart"]["spearman"] == pytest.approx(100)
    assert set(run.record.metrics) == {"apart", "rated"}
    model, tokenizer = format.load(out)
    assert type(model) is type(AutoModel.from_pretrained(out)) and model.base_model is model
    assert evaluate(model, tokenizer, run.data, 48) == run.record.metrics
    batch = tokenizer(TEXTS[:3], padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wanted = text_vectors(model(**batch).last_hidden_state, batch["attention_mask"])
    exported = runtimes.OnnxModel(onnx.export_onnx(model, tmp_path / "m.onnx", "trained"))
    found = exported(**batch).logits
    # a rounding of an activation may fall apart, and moves what follows it by a little
    assert found.shape == (3, 32) and float((found - wanted).abs().max()) < 2e-3
    cosine = torch.nn.functional.cosine_similarity(found, wanted)
    assert float(cosine.min()) > 1 - 1e-5
    np.testing.assert_allclose(encode(out, TEXTS[:3]), wanted, atol=1e-6)
    names = {f.relative_to(out).as_posix() for f in out.rglob("*.json")}
    assert {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"} <= names
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return
    np.testing.assert_allclose(SentenceTransformer(str(out)).encode(TEXTS[:3]), wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, message",
    [
        ("finetune-1bit", "vectors have no labels to learn from: take a recipe that learns from"),
        ("bilstm-kd", "the student's vectors are|compares|no layers|vectors"),
    ],
)
def test_recipes_that_cannot_teach_vectors_are_refused(texts, recipe, message):
    with pytest.raises((ValueError, TypeError), match=message):
        compress(recipe, vectors(texts / "texts.txt"), "smoke", "3steps", progress=False,
                 say=lambda _: None, device="cpu")  # fmt: skip


def test_bad_texts_and_pairs_are_told(texts):
    (texts / "few.txt").write_text("one\ntwo\n")
    backbone = profiles.backbone_for("smoke")
    with pytest.raises(ValueError, match="has 2 different texts, expected 20 or more"):
        vectors(texts / "few.txt", backbone).load(str(texts / "few.txt"))
    (texts / "bad.tsv").write_text("a\tb\tscore\nx\ty\tmany\n")
    with pytest.raises(ValueError, match="expected two texts and a number in the last three"):
        vectors(texts / "texts.txt", backbone, texts / "bad.tsv").load(str(texts / "texts.txt"))
