"""The manifest of an output folder: what each input was, and what became of it."""

from pathlib import Path

import pytest

from seamless_d2.errors import UserError
from seamless_d2.prediction.batch.manifest import (
    DONE,
    FAILED,
    PENDING,
    Manifest,
    describe_file,
    find_missing_shards,
    read_manifests,
)


def make_entries(folder: Path, count: int) -> dict:
    for k in range(count):
        (folder / f"{k}.png").write_bytes(b"x" * k)
    return {str(k): describe_file(folder / f"{k}.png", f"{k}.png", image_id=k or None) for k in range(count)}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    entries = make_entries(tmp_path, 3)
    manifest, other = Manifest(tmp_path), Manifest(tmp_path, "2-of-2")
    manifest.add({name: entries[name] for name in "01"})
    other.add({"2": entries["2"]})
    manifest.finish("0")
    other.finish("2", "2.png cannot be read")
    found = read_manifests(tmp_path)
    assert {name: entry.as_pending() for name, entry in found.items()} == entries
    assert [(found[n].outcome, found[n].reason) for n in "012"] == [
        (DONE, ""),
        (PENDING, ""),
        (FAILED, "2.png cannot be read"),
    ]
    assert list(read_manifests(tmp_path, "1".__eq__)) == ["1"]


def test_a_changed_input_is_pending_again(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    manifest.add(make_entries(tmp_path, 1))
    manifest.finish("0")
    (tmp_path / "0.png").write_bytes(b"other")
    changed = describe_file(tmp_path / "0.png", "0.png")
    assert not read_manifests(tmp_path)["0"].is_same_file(changed)
    manifest.add({"0": changed})
    assert read_manifests(tmp_path)["0"] == changed and changed.outcome == PENDING


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_a_kill_cut_off(tmp_path: Path, cut: int) -> None:
    manifest = Manifest(tmp_path)
    manifest.add(make_entries(tmp_path, 2))
    manifest.finish("0")
    manifest.path.write_bytes(manifest.path.read_bytes()[:-cut])
    manifest.finish("1")  # the next line does not continue the torn one
    found = read_manifests(tmp_path)
    assert found["0"].outcome == (DONE if cut == 1 else PENDING) and found["1"].outcome == DONE


@pytest.mark.parametrize(
    "text", ["[1]\n", "{}\n", '{"name": 1}\n', '{"name": "a", "time": 1, "source": "b"}\n', "no json\n"]
)
def test_files_of_others(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.jsonl was not written by this program"):
        read_manifests(tmp_path)


def test_the_latest_line_counts_in_whatever_file_it_is(tmp_path: Path) -> None:
    entries = make_entries(tmp_path, 2)
    one, two = Manifest(tmp_path), Manifest(tmp_path, "1-of-1")
    one.add(entries)
    one.finish("0")
    (tmp_path / "0.png").write_bytes(b"changed")
    two.add({"0": describe_file(tmp_path / "0.png", "0.png")})
    two.finish("0", "cannot be read")
    one.finish("1")  # makes the first file the newer one
    assert read_manifests(tmp_path)["0"].outcome == FAILED
    two.finish("0")
    one.finish("1")
    assert read_manifests(tmp_path)["0"].outcome == DONE


def test_shards_that_have_not_begun(tmp_path: Path) -> None:
    assert find_missing_shards(tmp_path) is None
    Manifest(tmp_path, "2-of-3").add({})
    Manifest(tmp_path, "1-of-3").add(make_entries(tmp_path, 1))
    assert find_missing_shards(tmp_path) == "3/3"
    Manifest(tmp_path, "1-of-2").add({})
    Manifest(tmp_path, "2-of-2").add({})
    assert find_missing_shards(tmp_path) is None
