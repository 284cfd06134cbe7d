from dataclasses import replace

import pytest
from made import made

from xtclib import cache
from xtclib.study import profiles
from xtclib.tasks import reviews

BACKBONE = cache.ROOT / "data" / "mini" / "backbone" / "tokenizer.json"
pytestmark = pytest.mark.skipif(not BACKBONE.is_file(), reason="the built-in backbone is missing")


def test_a_missing_folder_of_tasks_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="the tasks are not at .*nowhere: .*--glue-dir"):
        profiles.data_for("sst2", "smoke", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="SST-2/train.tsv.* is missing"):
        profiles.data_for("sst2", "smoke", tmp_path)


def test_profiles_cap_rows_and_the_environment_names_one(monkeypatch):
    data = profiles.data_for("sst2", "smoke")
    assert len(data.train) == 64 and len(data.evaluation["dev"]) <= 64
    monkeypatch.setenv("XTC_PROFILE", "bert-base")
    assert profiles.profile().name == "bert-base"


def test_the_real_profile_is_the_default_and_tasks_choose(monkeypatch):
    monkeypatch.delenv("XTC_PROFILE")
    monkeypatch.setattr(reviews, "fetched", lambda: True)
    assert (profiles.profile().name, profiles.profile().task) == ("reviews", "reviews")
    assert profiles.profile(None, "ratings").name == "reviews"
    assert profiles.profile(None, "mrpc").name == "mini"
    assert profiles.profile(None, "mrpc", "GLUE").name == "minilm"
    monkeypatch.setattr(reviews, "fetched", lambda: False)
    with pytest.warns(UserWarning, match="real reviews are not here, gen.*stand in: fetch"):
        assert (profiles.profile().name, profiles.profile().task) == ("mini", "sst2")


def test_a_question_over_records_means_the_profile_that_has_some(monkeypatch, tmp_path):
    for name in ("XTC_PROFILE", "XTC_GLUE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(profiles.reviews, "fetched", lambda: False)  # records need no rows
    for profile, task in (
        ("minilm", "sst2"),
        ("smoke", "sst2"),
        ("mini", "mrpc"),
        ("minilm", "mrpc"),
    ):
        made(profile=profile, task=task).save(tmp_path)
    asked = [
        (None, "sst2"),
        (None, "mrpc"),
        ("smoke", "sst2"),
        ("bert-base", "sst2"),
        (None, "cola"),
    ]
    found = [profiles.recorded(name, task, None, tmp_path).name for name, task in asked]
    assert found == ["minilm", "mini", "smoke", "bert-base", "mini"]
    assert profiles.recorded(None, None, None, tmp_path).name == "reviews"


def test_an_adapter_of_other_weights_is_not_taken_in_silence(monkeypatch, data):
    real = replace(data, task=reviews.REVIEWS, source="other rows")
    monkeypatch.setattr(profiles, "backbone_for", lambda _: "somebody/else")
    monkeypatch.setattr(profiles.teachers, "fine_tuned", lambda *_: "fine-tuned")
    with pytest.warns(UserWarning, match=r"was made from other weights or rows than somebody/else"):
        assert profiles.teacher_for("reviews", "reviews", real) == "fine-tuned"
