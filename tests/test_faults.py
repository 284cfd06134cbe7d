"""A bounded part of what `scripts/kills.py` and `scripts/corruptions.py` do by hundreds."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from xtclib import cache, files
from xtclib.cache import ROOT
from xtclib.study.compress import compress

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "script", [("kills.py", "--count", "10"), ("corruptions.py", "--share", "0.01")], ids=str
)
def test_a_bounded_part_of_the_harness_finds_nothing(script):
    name, *arguments = script
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, ROOT / "scripts" / name, *arguments], env=environment,
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]


def run(folder, **kwargs):
    said = []
    compress("xtc-1bit-half", profile="smoke", budget="2steps", out=folder, progress=False,
             say=said.append, device="cpu", **kwargs)  # fmt: skip
    return (folder / files.SUMS).read_text(), said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cache that holds a run, and the sums of its artefact."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTC_CACHE", str(place / "cache"))
        return place / "cache", run(place / "out")[0]


@pytest.mark.parametrize(
    "part, how",
    [("teachers", "flipped"), ("teachers", "emptied"), ("stages", "cut"), ("backbones", "flipped"),
     ("scores", "emptied"), ("sizes", "cut")],
)  # fmt: skip
def test_what_is_damaged_in_the_cache_is_set_aside_and_made_again(whole, own_cache, part, how,
                                                                  tmp_path):  # fmt: skip
    shutil.copytree(whole[0], own_cache)
    folder = sorted((own_cache / part).iterdir())[0]
    file = max(folder.iterdir(), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if how == "flipped" else content[: len(content) // 2])
    if how == "emptied":
        shutil.rmtree(folder)
        folder.mkdir()
    with pytest.warns(UserWarning, match=f"the cache's {part}/.* is damaged .* made again") as told:
        assert run(tmp_path / "out")[0] == whole[1]
    assert len([w for w in told if "damaged" in str(w.message)]) == 1
    assert [p.name for p in (own_cache / "damaged").iterdir()] == [f"{part}-{folder.name}"]
    assert not files.fault(folder)


def test_an_artefact_that_was_reached_before_the_kill_is_accepted(own_cache, tmp_path):
    sums, _ = run(tmp_path / "out")
    assert run(tmp_path / "out")[0] == sums  # the same command
    (tmp_path / "out" / "config.json").unlink()
    assert run(tmp_path / "out")[0] == sums  # cut off while a mount was filled
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds another config.json: remove it, or name"):
        run(tmp_path / "out")
    with pytest.raises(FileExistsError, match="already a folder that is not empty"):
        run(tmp_path / "out", seed=1)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {}


def test_a_checkpoint_counts_once_its_sums_are_there(own_cache, tmp_path, monkeypatch):
    sealed = cache.seal

    def killed(folder):
        if "checkpoint" in folder.name or "stages" in str(folder):
            raise KeyboardInterrupt
        return sealed(folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("xtclib.training.callbacks.seal", killed)
        run(tmp_path / "out")
    assert run(tmp_path / "out")[0]
    assert not list((own_cache / "runs").iterdir()) and not (own_cache / "damaged").exists()
