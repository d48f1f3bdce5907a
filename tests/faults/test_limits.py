"""What would exhaust the memory or end the process is refused in one sentence, before memory is allocated for it."""

import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from seamless_d2.data.mapper import SeamlessMapper
from seamless_d2.data.prepare.polygons import prepare_polygons, region_mask
from seamless_d2.data.prepare.validate import validate
from seamless_d2.data.registration import load_panoptic_json
from seamless_d2.errors import UserError
from seamless_d2.io import read_bytes, read_id_map, read_image, read_image_size, read_instance_png
from seamless_d2.seamseg.dataset import read_metadata
from seamless_d2.seamseg.ini import convert_ini
from seamless_d2.seamseg.raw import fuse_raw, load_raw
from seamless_d2.seamseg.weights import convert
from seamless_d2.tensor_files import load_file

from ..helpers.panoptic_files import scene, write_dataset

HUGE = 10**6


def write_png_header(path: Path, width: int, height: int, color: int) -> Path:
    """A PNG that claims a size and has hardly any data."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)), (b"IDAT", zlib.compress(b"")))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (*chunks, (b"IEND", b""))
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("color", [0, 2])
@pytest.mark.parametrize("read", [read_image, read_image_size, read_id_map, read_instance_png])
def test_large_images(tmp_path: Path, read, color: int) -> None:
    file = write_png_header(tmp_path / "big.png", 13_000, 13_000, color)
    with pytest.raises(UserError, match=r"big.png has 13000 x 13000 pixels; at most 100 million"):
        read(file)


def test_large_sizes_in_a_panoptic_json(tmp_path: Path) -> None:
    files = write_dataset(tmp_path / "d", {"a": scene()})
    content = json.loads(files["panoptic_json"].read_text())
    content["images"][0].update(height=HUGE, width=HUGE)
    files["panoptic_json"].write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"panoptic\.json: image a.png has 1000000 x 1000000 pixels"):
        load_panoptic_json(*files.values())
    report, _ = validate(files["panoptic_json"], files["image_dir"], workers=1)
    assert any("image a.png has 1000000 x 1000000 pixels" in text for _, text in report.problems)


BOX = [0.0, 0.0, 8.0, 0.0, 8.0, 8.0, 0.0, 8.0]


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([[float("nan"), *BOX[1:]]], r"got null at annotations\[0\].segmentation\[0\]\[0\] \(image_id 1\)"),
        ([[float("inf"), *BOX[1:]]], "got null"),
        ([[1e9, *BOX[1:]]], "a.png: a polygon is not finite or far outside"),
        ([[1e300] * 8], "a.png: a polygon is not finite or far outside"),
        ([[1e6, 1e6, 0, 0] * 20], "a.png: a polygon is not finite or far outside"),
        ([BOX[:-1]], "a.png: a polygon has 7 numbers"),
        ({"size": [HUGE, HUGE], "counts": "0"}, "a.png: an RLE is 1000000 x 1000000 pixels, its image 60 x 40"),
        ({"size": [40, 60], "counts": "0"}, "a.png: the runs of an RLE do not add up"),
        ({"size": [40, 60], "counts": [2400, 1]}, "a.png: the runs of an RLE do not add up"),
        ({"size": [40, 60], "counts": [-100, 2500]}, "Expected int >= 0"),
        ({"size": [40, 60], "counts": "o"}, "matching regex"),  # its number goes on beyond the end
        ({"size": [40, 60], "counts": "o" * 9 + "0"}, "matching regex"),
    ],
)
def test_regions(tmp_path: Path, segmentation: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        prepare(tmp_path, segmentation, 40, 60)


def prepare(root: Path, segmentation: object, height: int, width: int) -> None:
    (root / "images").mkdir()
    Image.new("RGB", (60, 40)).save(root / "images" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": segmentation}],
        "categories": [{"id": 1, "name": "road"}],
    }
    (root / "export.json").write_text(json.dumps(content))
    prepare_polygons(root / "export.json", [], root / "out" / "panoptic.json", root / "images", workers=1)


def test_large_sizes_in_a_detection_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image a.png has 1000000 x 1000000 pixels"):
        prepare(tmp_path, [BOX], HUGE, HUGE)


def test_polygons_that_leave_the_image_a_little_are_drawn() -> None:
    assert region_mask([[-50.0, -50.0, 200.0, -50.0, 200.0, 200.0, -50.0, 200.0]], 40, 60).all()


RAW = {
    "sem_pred": torch.zeros(40, 60, dtype=torch.int64),
    "bbx_pred": torch.tensor([[5.0, 5.0, 20.0, 20.0]]),
    "cls_pred": torch.tensor([0]),
    "obj_pred": torch.tensor([0.9]),
    "msk_pred": torch.ones(1, 28, 28),
}


def fuse(root: Path, **changes: object) -> None:
    torch.save(RAW | changes, root / "a.pth.tar")
    options = {"score_thresh": 0.5, "overlap_thresh": 0.5, "stuff_area_thresh": 1}
    fuse_raw(load_raw(root / "a.pth.tar"), "a.pth.tar", num_stuff=1, num_classes=2, **options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sem_pred": torch.zeros(1, dtype=torch.int64).expand(200_000, 200_000)}, "would take 320.0 GB of memory"),
        (
            {key: value.expand(10**9, *value.shape[1:]) for key, value in RAW.items() if key != "sem_pred"},
            "would take 3164.0 GB of memory",
        ),
        ({"sem_pred": torch.zeros(4, 4, dtype=torch.int64).to_sparse()}, "no dense values"),
        ({"bbx_pred": torch.tensor([[float("nan"), 5, 20, 20]])}, "bbx_pred has values that are no numbers"),
        ({"bbx_pred": torch.tensor([[0, 0, float("inf"), 20]])}, "bbx_pred has values that are no numbers"),
        ({"obj_pred": torch.tensor([float("nan")])}, "obj_pred has values that are no numbers"),
        ({"cls_pred": torch.tensor([0.5])}, "cls_pred has values that are no numbers of its kind"),
    ],
)
def test_raw_predictions(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=f"a.pth.tar.*{words}"):
        fuse(tmp_path, **changes)


def test_large_map_of_a_raw_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seamless_d2.limits.MAX_PIXELS", 2399)
    with pytest.raises(UserError, match="the map of .*a.pth.tar has 60 x 40 pixels"):
        fuse(tmp_path)


def test_raw_predictions_that_are_unusual_but_right(tmp_path: Path) -> None:
    fuse(tmp_path, bbx_pred=torch.tensor([[-1e9, -1e9, 1e9, 1e9]]))
    fuse(tmp_path, **{key: value[:0] for key, value in RAW.items() if key != "sem_pred"})


def write_zeros(archive: zipfile.ZipFile, name: str, megabytes: int) -> None:
    with archive.open(name, "w", force_zip64=True) as file:
        for _ in range(megabytes):
            file.write(bytes(1 << 20))


def test_archives(tmp_path: Path) -> None:
    """A release of the original, and the container of torch, both of which may be compressed."""
    for name, member in (("release.zip", "model.pth.tar"), ("model.pth", "model/data/0")):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            if name == "model.pth":
                archive.writestr("model/data.pkl", b"")
            write_zeros(archive, member, 200)
        with pytest.raises(UserError, match=f"{name} would take 0.2 GB of memory, but has 0.2 MB"):
            convert(tmp_path / name, tmp_path / "out.pth")
    with pytest.raises(UserError, match="would take 0.2 GB"):
        load_file(tmp_path / "model.pth")


def test_damaged_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        archive.writestr("config.ini", b"\xff\xfe")
        archive.writestr("model.pth.tar", b"weights")
    with pytest.raises(UserError, match="archive .*release.zip cannot be read .*damaged or encrypted"):
        convert(tmp_path / "release.zip", tmp_path / "out.pth")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x02}r" + struct.pack("<I", 0x3FFFFFFF) + b".", "no place 1073741823"),
        (b"\x80\x05\x96" + struct.pack("<Q", 8 << 30) + b"abc.", "expected 8589934592 bytes"),
        # numpy.ndarray((1000000, 1000000), "u1", b"xxxxxxxx", 0, (0, 0))
        (
            b"\x80\x03}C\x01wcnumpy\nndarray\n(I1000000\nI1000000\n\x86X\x02\x00\x00\x00u1C\x08xxxxxxxxI0\nI0\nI0\n\x86tRs.",
            "would take 1000.0 GB of memory",
        ),
    ],
)
def test_pickles(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(UserError, match=f"a.pkl .*{words}"):
        load_file(tmp_path / "a.pkl")


def test_large_files(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(3 << 30)  # takes no room on the disk
    with pytest.raises(UserError, match="json .*a.json is larger than 2 GB"):
        read_bytes(tmp_path / "a.json", "json")


@pytest.mark.parametrize("original", [False, True])
def test_narrow_images_do_not_grow_without_bound(tmp_path: Path, toy_cfg: CfgNode, original: bool) -> None:
    files = write_dataset(tmp_path / "d", {"a": (np.full((3, 10_000), 1), [{"id": 1, "category_id": 3}])})
    (record,), _ = load_panoptic_json(*files.values())
    toy_cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS = original
    toy_cfg.INPUT.MIN_SIZE_TEST, toy_cfg.INPUT.MAX_SIZE_TEST = 1024, 1_000_000  # as a converted model has them
    with pytest.raises(UserError, match="a.png: the image, resized by INPUT.MIN_SIZE.* has 1000000 x 300 pixels"):
        SeamlessMapper(toy_cfg, False)(record)


@pytest.mark.parametrize("start", [b"\xdd\xff\xff\xff\xff", b"\x81\xa6images\xdd\xff\xff\xff\xff", b"\x91" * 100_000])
def test_metadata_that_claims_more_than_it_has(start: bytes) -> None:
    with pytest.raises(UserError, match="x.bin is not seamseg's metadata.bin"):
        read_metadata(start, "x.bin")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[fpn]\nextra_scales = 1000000000", r"\[fpn\] extra_scales = 1000000000; it must be 0 to 16"),
        ("[optimizer]\nlr = (1, 2)", r"\[optimizer\] lr = '\(1, 2\)' is a value of a wrong form"),
        ("[rpn]\nsigma = 0", r"\[rpn\] sigma = '0' is a value of a wrong form"),
        ("[optimizer]\nlr = " + "[" * 100_000, r"\[optimizer\] lr = '\[\[.* is not a number"),
        ("[optimizer]\nlr = " + "1" * 5000, r"\[optimizer\] lr = '111.* is not a number"),
    ],
)
def test_settings_of_the_original(text: str, words: str) -> None:
    with pytest.raises(UserError, match=f"x.ini: {words}"):
        convert_ini(text, "x.ini")
