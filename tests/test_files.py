import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from xtclib import files


def test_writers_make_parents_replace_and_leave_nothing_beside(tmp_path):
    path = tmp_path / "a" / "b" / "note.txt"
    assert files.write_text(path, "é\r\n") == path
    assert path.read_bytes() == b"\xc3\xa9\r\n"
    files.write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert os.listdir(path.parent) == ["note.txt"]


def test_json_keeps_order_letters_and_arrays(tmp_path):
    path = files.write_json(tmp_path / "r.json", {"z": np.float32(0.5), "a": np.arange(2), "é": 1})
    assert path.read_text(encoding="utf-8").startswith('{\n  "z": 0.5,\n  "a": [')
    assert json.loads(path.read_text(encoding="utf-8")) == {"z": 0.5, "a": [0, 1], "é": 1}


@pytest.mark.parametrize("value, error", [(float("nan"), ValueError), ({1, 2}, TypeError)])
def test_json_errors_keep_the_old_file(tmp_path, value, error):
    path = files.write_json(tmp_path / "r.json", 1)
    with pytest.raises(error, match="'r.json' cannot be written as JSON"):
        files.write_json(path, value)
    assert path.read_text() == "1\n" and os.listdir(tmp_path) == ["r.json"]


def test_writers_refuse_other_types(tmp_path):
    with pytest.raises(TypeError, match="received bytes .*expected str"):
        files.write_text(tmp_path / "a", b"")
    with pytest.raises(TypeError, match="received str .*expected bytes"):
        files.write_bytes(tmp_path / "a", "")
    assert not os.listdir(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "a.txt", "old")

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        files.write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("existing", [False, True])
def test_staged_folder_appears_whole(tmp_path, existing):
    target = tmp_path / "deep" / "out"
    if existing:
        target.mkdir(parents=True)
    with files.staged_folder(target) as folder:
        beside = folder.name.startswith(".out.partial-") and folder.parent == target.parent
        assert beside is not existing  # one that is there may be a mount: it is filled
        files.write_text(folder / "sub" / "a.txt", "a")
        assert existing == target.exists()
    assert (target / "sub" / "a.txt").read_text() == "a"
    assert os.listdir(target.parent) == ["out"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_staged_folder_disappears_on_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.staged_folder(tmp_path / "out") as folder:
        files.write_text(folder / "a.txt", "a")
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)


def test_staged_folder_refuses_what_is_there(tmp_path):
    files.write_text(tmp_path / "out" / "a.txt", "mine")
    for target in (tmp_path / "out", tmp_path / "out" / "a.txt"):
        with (
            pytest.raises(FileExistsError, match="already .*remove it, or name another"),
            files.staged_folder(target),
        ):
            pass
    assert (tmp_path / "out" / "a.txt").read_text() == "mine"


def test_staged_folder_keeps_what_arrived_meanwhile(tmp_path):
    with pytest.raises(OSError), files.staged_folder(tmp_path / "out"):
        files.write_text(tmp_path / "out" / "theirs.txt", "b")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["theirs.txt"]


def test_sha256_and_folder_bytes(tmp_path):
    data = bytes(range(256)) * 8192  # 2 MiB: more than one block
    path = files.write_bytes(tmp_path / "sub" / "a", data)
    files.write_bytes(tmp_path / "b", b"123")
    assert files.sha256(path) == hashlib.sha256(data).hexdigest()
    assert files.folder_bytes(tmp_path) == len(data) + 3
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        files.folder_bytes(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match="which is a file"):
        files.folder_bytes(path)


def test_nearest_and_unknown():
    assert files.nearest("SST3", ["SST2", "cola"]) == "did you mean 'SST2'? Known: SST2, cola"
    assert files.nearest("q", []) == "Known: none"
    error = files.unknown("task", "sst3", ["cola", "sst2"])
    assert isinstance(error, ValueError)
    assert str(error) == "unknown task 'sst3': did you mean 'sst2'? Known tasks: cola, sst2"
    assert str(files.unknown("loss", 3, ["mse"])) == "unknown loss 3: Known losses: mse"
    assert "Known granularities: row" in str(files.unknown("granularity", "x", ["row"]))
    assert "Known keys of sparsify: a" in str(files.unknown("key of sparsify", "x", ["a"]))
    assert "Known arrays: a" in str(files.unknown("array", "x", iter(["a"])))


def test_sums_are_checked_line_by_line(tmp_path):
    files.write_text(tmp_path / "a" / "b.txt", "abc")
    assert files.fault(tmp_path / "none") == "no folder"
    assert files.fault(tmp_path) == "no SHA256SUMS"
    files.seal(tmp_path)
    assert files.fault(tmp_path) == ""
    sums = tmp_path / files.SUMS
    line = sums.read_text()
    assert line == f"{hashlib.sha256(b'abc').hexdigest()}  a/b.txt\n"
    for text, fault in [
        ("", "SHA256SUMS is empty"),
        (line + "x", "line 2 of SHA256SUMS cannot be read"),
        (line.replace("a/b", "../b"), "line 1 of SHA256SUMS cannot be read"),
        (line.replace("a/b", "/etc/b"), "line 1 of SHA256SUMS cannot be read"),
        (line.replace("b.txt", "c.txt"), "a/c.txt is missing"),
        (f"{'0' * 64}  a/b.txt\n", "a/b.txt does not match its sha256"),
    ]:
        sums.write_text(text)
        assert files.fault(tmp_path) == fault
    sums.write_bytes(b"\xff")
    assert files.fault(tmp_path) == "SHA256SUMS cannot be read"
    sums.unlink()
    (tmp_path / "a" / "b.txt").unlink()
    os.mkfifo(tmp_path / "a" / "b.txt")
    sums.write_text(line)
    assert files.fault(tmp_path) == "a/b.txt is missing"  # and nothing hangs


def test_modes_follow_the_umask_and_an_existing_folder_keeps_its_own(tmp_path):
    (there := tmp_path / "there").mkdir(mode=0o700)
    old = os.umask(0o027)
    try:
        for target in (tmp_path / "new", there):
            with files.staged_folder(target) as folder:
                (folder / "a").touch(mode=0o600)  # as some libraries write
            assert stat.S_IMODE((target / "a").stat().st_mode) == 0o640
    finally:
        os.umask(old)
    assert stat.S_IMODE(there.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o750
    with files.staged_folder(there, replace=True) as folder:
        files.write_text(folder / "b", "b")
    assert os.listdir(there) == ["b"] and stat.S_IMODE(there.stat().st_mode) == 0o700


def test_contents_are_replaced_where_a_folder_cannot_be_renamed(tmp_path, monkeypatch):
    files.write_text(tmp_path / "here" / "old" / "a.txt", "old")
    monkeypatch.chdir(tmp_path / "here")
    inode = os.stat(".").st_ino
    with files.staged_folder(".", replace=True) as folder:
        files.write_text(folder / "sub" / "a.txt", "new")
    assert os.listdir(".") == ["sub"] and os.stat(".").st_ino == inode


def test_the_same_files_may_be_there_again_and_no_others(tmp_path):
    files.write_text(tmp_path / "out" / "a.txt", "a")
    files.write_text(tmp_path / "out" / "mine.txt", "mine")
    with files.staged_folder(tmp_path / "out", again=True) as folder:
        files.write_text(folder / "a.txt", "a")
        files.write_text(folder / "b.txt", "b")
    assert sorted(os.listdir(tmp_path / "out")) == ["a.txt", "b.txt", "mine.txt"]
    with (
        pytest.raises(FileExistsError, match="holds another a.txt: remove it, or name another"),
        files.staged_folder(tmp_path / "out", again=True) as folder,
    ):
        files.write_text(folder / "a.txt", "other")
    assert (tmp_path / "out" / "a.txt").read_text() == "a"


def test_what_killed_writers_left_is_swept_and_no_hindrance(tmp_path):
    target = tmp_path / "out"
    (target / ".partial-1").mkdir(parents=True)
    (tmp_path / ".out.partial-2").mkdir()
    (tmp_path / ".other.partial-3").touch()
    files.check_new_folder(target)
    files.sweep(target)
    assert sorted(os.listdir(tmp_path)) == [".other.partial-3", "out"] and not os.listdir(target)


def test_a_place_is_tried_and_left_as_it_was(tmp_path):
    files.check_new_folder(tmp_path / "a" / ("b" * 245))
    files.check_new_file(tmp_path / "c" / "d.json")
    (tmp_path / "file").touch()
    for check in (files.check_new_folder, files.check_new_file):
        with pytest.raises(NotADirectoryError, match="cannot write to .*: Not a directory; name"):
            check(tmp_path / "file" / "below" / "it")
    assert os.listdir(tmp_path) == ["file"]


def test_many_may_try_a_place_at_once(tmp_path):
    """Who made its folders removes them, under the others' hands."""
    place = tmp_path / "records" / ".claims"
    with ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(lambda _: files.check_new_file(place / "any"), range(400)))
