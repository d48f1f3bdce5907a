"""Atomic output."""

import errno
import json
import os

import pytest

from seamless_d2.io import atomic_write, make_temporary, remove_temporaries, write_json


def test_file_appears_whole(tmp_path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_failure_keeps_the_old_file_and_leaves_no_other(tmp_path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_names_the_file(tmp_path) -> None:
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as write() raises it
    assert caught.value.filename == str(tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


def test_permissions_are_those_of_the_umask(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", 1)
        assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_only_our_temporaries_are_removed(tmp_path) -> None:
    ours, theirs = make_temporary(tmp_path / "deep" / "a.mp4", ".mp4"), tmp_path / ".vimrc.tmp"
    theirs.touch()
    remove_temporaries(tmp_path)
    assert theirs.exists() and not ours.exists()
