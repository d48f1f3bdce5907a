"""Inputs of large jobs: folders, lists, tar and Parquet files; the files of predictions."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seamless_d2.errors import UserError
from seamless_d2.io import ids_to_rgb, read_image

from ...helpers.images import make_image

pa = pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")
import pyarrow.parquet as pq  # noqa: E402

from seamless_d2.prediction.batch.part_files import Prediction, decode_part, encode_part  # noqa: E402
from seamless_d2.prediction.batch.remote_files import Folder, find_items, load_images  # noqa: E402


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(make_image(20, 30, seed)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Six images: two files, two in a tar file, two in a Parquet file."""
    root = tmp_path / "in"
    (root / "deep").mkdir(parents=True)
    (root / "a.png").write_bytes(png(0))
    (root / "deep" / "b.png").write_bytes(png(1))
    (root / "notes.md").write_text("no image")
    with tarfile.open(root / "c.tar", "w") as archive:
        for seed, name in ((2, "x/1.png"), (3, "x/2.png"), (9, "x/2.json")):
            member = tarfile.TarInfo(name)
            member.size = len(png(seed))
            archive.addfile(member, io.BytesIO(png(seed)))
    pq.write_table(pa.table({"id": [7, 8], "image": [png(4), png(5)]}), root / "d.parquet", row_group_size=1)
    return root


def test_every_kind_of_input(inputs: Path, tmp_path: Path) -> None:
    items = find_items([str(inputs)])
    assert [(i.name, i.image, i.kind) for i in items] == [
        ("a", "a.png", "file"),
        ("c/x/1", "c/x/1.png", "tar"),
        ("c/x/2", "c/x/2.png", "tar"),
        ("d/000000", "d/000000.jpg", "parquet"),
        ("d/000001", "d/000001.jpg", "parquet"),
        ("deep/b", "deep/b.png", "file"),
    ]
    for image, seed in zip(load_images(items), (0, 2, 3, 4, 5, 1), strict=True):
        assert np.array_equal(image, make_image(20, 30, seed))
    # In any order, and some of them.
    assert np.array_equal(load_images(items[4:3:-1] + items[2:0:-1])[1], make_image(20, 30, 3))
    # Files that only say where the images are.
    (tmp_path / "list.txt").write_text(f"# images\n{inputs}/a.png\n\n{inputs}/deep/b.png\n")
    pq.write_table(pa.table({"uri": [f"{inputs}/a.png"]}), tmp_path / "uris.parquet")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": f"{inputs}/a.png"}]}), tmp_path / "hf.parquet")
    for name, seeds in (("list.txt", (0, 1)), ("uris.parquet", (0,)), ("hf.parquet", (0,))):
        found = find_items([str(tmp_path / name)])
        assert all(np.array_equal(i, make_image(20, 30, s)) for i, s in zip(load_images(found), seeds, strict=True))
    assert len(find_items([str(inputs / "a.png"), str(inputs)])) == 7


def test_results_are_no_inputs(inputs: Path) -> None:
    output = Folder(f"{inputs}/out")
    output.write("part-0.parquet", encode_part(make_predictions(2), "parquet"))
    assert len(find_items([str(inputs)], output)) == 6 and len(find_items([str(inputs)])) == 8


def test_names_stay_in_their_folder(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for member in ("../../evil.png", "/etc/abs.png"):
        with tarfile.open(tmp_path / "evil.tar", "w") as archive:
            entry = tarfile.TarInfo(member)
            entry.size = len(png(0))
            archive.addfile(entry, io.BytesIO(png(0)))
        (item,) = find_items([str(tmp_path / "evil.tar")])
        assert item.name in ("evil/evil", "evil/etc/abs", "etc/abs")
    (inputs / "list.txt").write_text("../in/a.png\n")
    monkeypatch.chdir(inputs)
    (item,) = find_items(["list.txt"])
    assert item.name == "in/a" and item.uri == str(inputs / "a.png")


def test_a_file_that_has_changed_since_it_was_listed(inputs: Path) -> None:
    items = [i for i in find_items([str(inputs)]) if i.kind == "tar"]
    (inputs / "c.tar").write_bytes((inputs / "c.tar").read_bytes() + b"more")
    assert all("has changed since it was listed" in str(error) for error in load_images(items))


def test_inputs_that_are_none(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(UserError, match="does not exist, or holds no images"):
            find_items([str(wrong)])
    with pytest.raises(UserError, match="no address that fsspec knows"):
        find_items(["foo://bucket/x"])
    pq.write_table(pa.table({"label": [1]}), tmp_path / "no.parquet")
    with pytest.raises(UserError, match=r"no\.parquet has no column of images"):
        find_items([str(tmp_path / "no.parquet")])
    (inputs / "a.png").write_bytes(b"broken")
    (error,) = load_images(find_items([str(inputs / "a.png")]))
    assert isinstance(error, UserError) and f"{inputs}/a.png cannot be read" in str(error)
    (inputs / "a.png").unlink()
    (tmp_path / "list.txt").write_text(f"{inputs}/a.png")
    missing, other = load_images(find_items([str(tmp_path / "list.txt"), str(inputs / "deep")]))
    assert "a.png cannot be read" in str(missing) and np.array_equal(other, make_image(20, 30, 1))
    (inputs / "c.tar").write_bytes(b"no tar file, but long enough for one" * 100)
    with pytest.raises(UserError, match=r"c\.tar cannot be read \(ReadError"):
        find_items([str(inputs / "c.tar")])
    items = find_items([str(inputs / "d.parquet")])
    (inputs / "d.parquet").write_bytes(b"PAR1")
    assert all(isinstance(error, UserError) for error in load_images(items))


def make_predictions(count: int) -> list[Prediction]:
    found = []
    for k in range(count):
        ids = np.zeros((4, 6), np.int32)
        ids[:2] = 1
        segment = {"id": 1, "category_id": 7, "isthing": True, "area": 12, "bbox": [0, 0, 6, 2], "iscrowd": 0}
        buffer = io.BytesIO()
        Image.fromarray(ids_to_rgb(ids)).save(buffer, format="PNG")
        segments = [segment | {"score": 0.1 * k if k % 2 else None}]
        found.append(Prediction(f"a.b/{k}", f"a.b/{k}.jpg", f"s3://x/{k}.jpg", 4, 6, buffer.getvalue(), segments))
    return found


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_parts(format: str, count: int, tmp_path: Path) -> None:
    predictions = make_predictions(count)
    data = encode_part(predictions, format)
    assert list(decode_part(data, format)) == predictions and encode_part(predictions, format) == data
    folder = Folder(str(tmp_path / "out"))
    assert folder.list("") == []
    folder.write("part.bin", data)
    assert folder.list(".bin") == ["part.bin"] and folder.read("part.bin") == data
    if format == "webdataset" and count:  # readers of webdataset group files by what stands before the first point
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert archive.getnames()[:2] == ["000000.json", "000000.png"]
            assert json.load(archive.extractfile("000000.json"))["name"] == "a.b/0"


def test_the_png_of_a_part_is_read_as_ids(tmp_path: Path) -> None:
    (prediction,) = make_predictions(1)
    (tmp_path / "a.png").write_bytes(prediction.png)
    assert np.array_equal(read_image(tmp_path / "a.png")[:2, :, 0], np.ones((2, 6), np.uint8))
    coco = prediction.to_coco()
    assert coco["images"][0]["file_name"] == "a.b/0.jpg" and coco["annotations"][0]["file_name"] == "a.b/0.png"
    assert "score" not in coco["annotations"][0]["segments_info"][0]
