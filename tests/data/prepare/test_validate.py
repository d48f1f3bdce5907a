"""Validation: silent on a clean set, every way of breaking one is found and the file named."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seamless_d2.data.prepare import gallery
from seamless_d2.data.prepare.validate import validate
from seamless_d2.errors import UserError
from seamless_d2.io import ids_to_rgb, read_id_map

from ...helpers.panoptic_files import scene, write_dataset

TOOL = Path(__file__).resolve().parents[3] / "tools" / "prepare_dataset.py"


class DataSet:
    """A small clean set that tests break."""

    def __init__(self, root: Path) -> None:
        ids, segments = scene()
        for segment in segments:
            y, x = np.nonzero(ids == segment["id"])
            x0, y0 = int(x.min()), int(y.min())
            segment["bbox"] = [x0, y0, int(x.max()) - x0 + 1, int(y.max()) - y0 + 1]
        plain = np.full((40, 60), 3), [{"id": 3, "category_id": 3, "iscrowd": 0, "area": 2400, "bbox": [0, 0, 60, 40]}]
        files = write_dataset(root, {"a": (ids, segments), "b": plain})
        self.images, self.panoptic, self.json = files["image_dir"], files["panoptic_dir"], files["panoptic_json"]
        Image.fromarray(np.full((40, 60, 3), 9, np.uint8)).save(self.images / "b.png")

    @property
    def content(self) -> dict:
        return json.loads(self.json.read_text())

    def edit(self, change) -> None:
        content = self.content
        change(content)
        self.json.write_text(json.dumps(content))

    def edit_ids(self, change) -> None:
        ids = read_id_map(self.panoptic / "a.png")
        Image.fromarray(ids_to_rgb(change(ids))).save(self.panoptic / "a.png")

    def problems(self, **options) -> list[tuple[str, str]]:
        report, _ = validate(self.json, self.images, self.panoptic, workers=1, **options)
        return [(Path(file).relative_to(self.json.parent).as_posix(), text) for file, text in report.problems]


@pytest.fixture
def data(tmp_path) -> DataSet:
    return DataSet(tmp_path / "data")


def test_a_clean_set(data) -> None:
    for workers in (1, 2):
        report, categories = validate(data.json, data.images, data.panoptic, workers=workers)
        assert report.problems == report.warnings == [] and report.images == 2 and report.fixed == 0
    assert report.segments == {3: 2, 7: 2, 11: 1, 90: 1}
    assert report.crowds == {90: 1}
    ids, _ = scene()
    assert report.pixels[None] == 36 and report.pixels[3] == 2400 + (ids == 300).sum()
    assert sum(report.pixels.values()) == 2 * 2400
    rows = [line.split() for line in report.format_table(categories).splitlines()]
    assert ["90", "person", "thing", "1", "1", "1.67"] in rows


def first(content: dict) -> dict:
    return content["annotations"][0]["segments_info"][0]


def paint(ids: np.ndarray, value: int, old: int | None = None) -> np.ndarray:
    if old is None:
        ids[0, 0] = value
    else:
        ids[ids == old] = value
    return ids


JSON = "panoptic.json"
BREAKS = {
    "image missing": (lambda d: (d.images / "a.png").unlink(), "images/a.png", "does not exist"),
    "image broken": (lambda d: (d.images / "a.png").write_bytes(b"?"), "images/a.png", "cannot be read"),
    "image of another size": (
        lambda d: Image.new("RGB", (8, 9)).save(d.images / "a.png"),
        "images/a.png",
        "8 x 9 pixels but",
    ),
    "PNG missing": (lambda d: (d.panoptic / "a.png").unlink(), "panoptic/a.png", "does not exist"),
    "PNG truncated": (
        lambda d: (d.panoptic / "a.png").write_bytes((d.panoptic / "a.png").read_bytes()[:90]),
        "panoptic/a.png",
        "cannot be read",
    ),
    "PNG with a palette": (
        lambda d: Image.new("P", (60, 40)).save(d.panoptic / "a.png"),
        "panoptic/a.png",
        "neither an RGB nor a gray",
    ),
    "PNG of another size": (lambda d: d.edit_ids(lambda ids: ids[1:]), "panoptic/a.png", "60 x 39 pixels"),
    "id in the PNG alone": (lambda d: d.edit_ids(lambda ids: paint(ids, 4321)), "panoptic/a.png", "id 4321 is in"),
    "id in the json alone": (
        lambda d: d.edit_ids(lambda ids: paint(ids, 300, old=1)),
        "panoptic/a.png",
        "segment 1 has no pixel",
    ),
    "wrong area": (lambda d: d.edit(lambda c: first(c).update(area=5)), "panoptic/a.png", "has area 5"),
    "no area": (lambda d: d.edit(lambda c: first(c).pop("area")), "panoptic/a.png", "has area None"),
    "wrong box": (lambda d: d.edit(lambda c: first(c).update(bbox=[0, 0, 1, 1])), "panoptic/a.png", "has bbox [0"),
    "unknown category": (
        lambda d: d.edit(lambda c: first(c).update(category_id=8)),
        "panoptic/a.png",
        "unknown category 8",
    ),
    "crowd of stuff": (lambda d: d.edit(lambda c: first(c).update(iscrowd=1)), "panoptic/a.png", "crowd of sky"),
    "segment twice": (
        lambda d: d.edit(lambda c: c["annotations"][0]["segments_info"].append(first(c))),
        "panoptic/a.png",
        "listed twice",
    ),
    "stuff twice": (
        lambda d: d.edit(lambda c: first(c).update(category_id=3)),
        "panoptic/a.png",
        "stuff road has 2 segments",
    ),
    "image id twice": (lambda d: d.edit(lambda c: c["images"][1].update(id=17)), JSON, "image id 17 occurs twice"),
    "image twice": (lambda d: d.edit(lambda c: c["images"][1].update(file_name="a.png")), JSON, "a.png is listed"),
    "annotated twice": (
        lambda d: d.edit(lambda c: c["annotations"].append(c["annotations"][0])),
        JSON,
        "17 is annotated twice",
    ),
    "not annotated": (lambda d: d.edit(lambda c: c["annotations"].pop()), JSON, "image id 18 has no annotation"),
    "not listed": (lambda d: d.edit(lambda c: c["images"].pop()), JSON, "18 is annotated but not listed"),
    "category id twice": (lambda d: d.edit(lambda c: c["categories"][0].update(id=3)), JSON, "id 3 occurs twice"),
    "blank class name": (lambda d: d.edit(lambda c: c["categories"][0].update(name=" ")), JSON, "id 7 has a name of"),
    "no images": (lambda d: d.edit(lambda c: c.update(images=[], annotations=[])), JSON, "it lists no images"),
    "no classes": (lambda d: d.edit(lambda c: c.update(categories=[])), JSON, "it lists no categories"),
    "too many classes": (
        lambda d: d.edit(
            lambda c: c["categories"].extend({"id": k, "name": str(k), "isthing": 0} for k in range(100, 360))
        ),
        JSON,
        "at most 255",
    ),
    "class name twice": (lambda d: d.edit(lambda c: c["categories"][0].update(name="sky")), JSON, "called sky"),
}


@pytest.mark.parametrize("way", BREAKS)
def test_every_way_of_breaking_is_found(data, way: str) -> None:
    change, file, words = BREAKS[way]
    change(data)
    found = data.problems()
    assert any(name == file and words in text for name, text in found), found


def test_malformed_entries_are_listed_and_the_others_checked(data) -> None:
    def spoil(content: dict) -> None:
        content["images"].append({"id": 19.5, "file_name": "c.png", "height": 40, "width": 60})
        content["annotations"].insert(0, {"image_id": 17, "file_name": "c.png", "segments_info": [{"id": "x"}]})
        content["annotations"].append({"image_id": [], "file_name": "d.png", "segments_info": None})
        content["categories"][0].update(isthing=2, color=[0, 0, 300])
        content["categories"].append(None)
        content["annotations"][2]["segments_info"][0].update(area=7, iscrowd="no")
        content["annotations"][1]["segments_info"][0].update(area=7)

    data.edit(spoil)
    found = data.problems()
    malformed = [text for file, text in found if file == JSON]
    for words in (
        "malformed: Expected int | str, got float at images[2].id (file_name 'c.png'); mend it",
        "malformed: Expected int, got str at annotations[0].segments_info[0].id (file_name 'c.png'); mend it",
        "malformed: Expected bool | int, got str at annotations[2].segments_info[0].iscrowd (file_name 'b.png'); "
        "mend it",
        "malformed: Expected int <= 1 at categories[0].isthing (name 'car'); mend it",
        "malformed: Expected object, got null at categories[4]; mend it",
    ):
        assert words in malformed
    # Nothing follows from what was left out: not that image 18 has no annotation, or that category 7 is unknown.
    assert len(malformed) == 6 and [text[:20] for file, text in found if file != JSON] == ["segment 100000 has a"]
    report, categories = validate(data.json, data.images, data.panoptic, fix=True, workers=1)
    assert report.fixed == 1 and [c.name for c in categories] == ["road", "person", "sky"]
    fixed = data.content["annotations"]
    assert fixed[1]["segments_info"][0]["area"] != 7 and fixed[2]["segments_info"][0]["area"] == 7


def rotate(data: DataSet, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise(size, 50).convert("RGB").save(data.images / "a.png", exif=exif)


WARNINGS = {
    "unused class": (
        lambda d: d.edit(lambda c: c["categories"].append({"id": 5, "name": "tree", "isthing": 0})),
        JSON,
        "no segment has the class tree",
    ),
    "image entirely void": (
        lambda d: (d.edit_ids(lambda ids: ids * 0), d.edit(lambda c: c["annotations"][0].update(segments_info=[]))),
        "panoptic/a.png",
        "all of its pixels are void",
    ),
    "rotated with its labels": (lambda d: rotate(d, 6, (40, 60)), "images/a.png", "fit the rotated image"),
    "rotated, labels not": (lambda d: rotate(d, 8, (60, 40)), "images/a.png", "fit only without that rotation"),
    "mirrored": (lambda d: rotate(d, 3, (60, 40)), "images/a.png", "(orientation 3); its labels fit either way"),
    "the same image twice": (
        lambda d: shutil.copy(d.images / "a.png", d.images / "b.png"),
        "images/b.png",
        "the same image is",
    ),
    "image that is not listed": (
        lambda d: Image.new("RGB", (8, 8)).save(d.images / "c.png"),
        "images",
        "1 of 3 images in",
    ),
    "ids that are text": (
        lambda d: d.edit(lambda c: (c["images"][0].update(id="x"), c["annotations"][0].update(image_id="x"))),
        JSON,
        "1 image ids are text (x)",
    ),
}


@pytest.mark.parametrize("way", WARNINGS)
def test_warnings_are_no_problems(data, way: str) -> None:
    change, file, words = WARNINGS[way]
    change(data)
    report, _ = validate(data.json, data.images, data.panoptic, workers=1)
    assert report.problems == []
    found = [(Path(name).relative_to(data.json.parent).as_posix(), text) for name, text in report.warnings]
    assert any(name == file and words in text for name, text in found), found


def test_json_that_cannot_be_checked(data) -> None:
    """More of them are in tests/faults/test_malformed_jsons.py."""
    for content in ("{", "[]", '{"images": [], "annotations": {}, "categories": []}'):
        data.json.write_text(content)
        with pytest.raises(UserError, match=r"panoptic\.json"):
            data.problems()


def test_splits_that_share_a_image(data, tmp_path) -> None:
    other = DataSet(tmp_path / "other")
    for name in ("a.png", "b.png"):  # the same names are no problem, the same bytes are
        Image.effect_noise((60, 40), 50).convert("RGB").save(other.images / name)
    assert data.problems(other=(other.json, other.images)) == []
    shutil.copy(data.images / "a.png", other.images / "b.png")
    ((file, text),) = data.problems(other=(other.json, other.images))
    assert file == "images/a.png" and "other/images/b.png" in text


def test_fix_rewrites_areas_and_boxes_only(data) -> None:
    before = data.content

    def spoil(content: dict) -> None:
        first(content).update(area=1, bbox=[1, 2, 3, 4])
        del content["annotations"][1]["segments_info"][0]["bbox"]

    data.edit(spoil)
    assert len(data.problems()) == 2
    for workers in (2, 1):
        report, _ = validate(data.json, data.images, data.panoptic, fix=True, workers=workers)
        assert report.problems == []
        assert report.fixed == (3 if workers == 2 else 0)
    assert data.content == before
    assert data.problems() == []


def test_images(data, tmp_path) -> None:
    folder = tmp_path / "images"
    assert data.problems(gallery=folder) == []
    names = sorted(p.name for p in folder.glob("*.jpg"))
    assert names == [
        "class_11_sky.jpg",
        "class_3_road.jpg",
        "class_7_car.jpg",
        "class_90_person.jpg",
        "contact_sheet.jpg",
    ]
    assert min(Image.open(folder / "instance_sizes.png").size) > 300
    plain = np.asarray(Image.open(folder / "class_3_road.jpg"))
    # The image in which the class covers most; small ones are enlarged. Below is the legend.
    assert plain.shape[0] > plain.shape[1] * 40 // 60
    assert plain[:200].std(axis=(0, 1)).max() < 10
    # The class has its color, the rest is faded.
    car = np.asarray(Image.open(folder / "class_7_car.jpg")).astype(int)[: 40 * 12].reshape(40, 12, 60, 12, 3)
    assert car[33, :, 40].mean(axis=(0, 1))[2] > car[33, :, 40].mean(axis=(0, 1))[0] + 30
    assert np.ptp(car[10, :, 30].mean(axis=(0, 1))) < 3 and car[10, :, 30].mean() > 150
    assert car[:5, :, :5].max(axis=4).mean() > 200  # void is hatched in cyan


def test_images_with_problems_come_first_and_others_are_spread(tmp_path) -> None:
    maps = {f"{k:02}": scene() for k in range(40)}
    data = write_dataset(tmp_path / "d", maps)
    content = json.loads(data["panoptic_json"].read_text())
    content["annotations"][30]["segments_info"][2].update(area=5, category_id=8)  # unknown
    content["annotations"][33]["segments_info"].pop()
    content["annotations"][35]["file_name"] = "missing.png"
    data["panoptic_json"].write_text(json.dumps(content))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gallery, "_draw", lambda example, *_: seen.append(example.image_file.stem) or np.zeros((8, 8, 3), np.uint8)
        )
        validate(data["panoptic_json"], data["image_dir"], workers=2, gallery=tmp_path / "out")
    sheet = seen[4:]
    assert sheet[:2] == ["30", "33"] and len(sheet) == 12
    assert max(np.diff([int(name) for name in sheet[2:]])) <= 6 and int(sheet[-1]) >= 36
    validate(data["panoptic_json"], data["image_dir"], workers=1, gallery=tmp_path / "out")  # can be drawn


def test_only_own_drawings_are_replaced(data, tmp_path) -> None:
    for folder in (data.images / "look", data.images, data.panoptic):
        with pytest.raises(UserError, match="that is read; choose another folder for --pictures"):
            data.problems(gallery=folder)
    folder = tmp_path / "look"
    folder.mkdir()
    data.problems(gallery=folder)
    data.edit(lambda c: c["categories"][1].update(name="street"))
    (folder / "notes.txt").write_text("mine")
    (folder / "contact_sheet.jpg").write_bytes(b"old")
    data.problems(gallery=folder)
    assert not (folder / "class_3_road.jpg").exists() and (folder / "class_3_street.jpg").exists()
    assert (folder / "notes.txt").exists() and Image.open(folder / "contact_sheet.jpg").size
    (folder / "class_3_road.jpg").write_bytes(b"mine")
    data.edit(lambda c: c["categories"][1].update(name="road"))
    with pytest.raises(UserError, match=r"class_3_road\.jpg was not written by this program"):
        data.problems(gallery=folder)
    assert (folder / "class_3_road.jpg").read_bytes() == b"mine"
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "contact_sheet.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="album holds files that this program did not write"):
        data.problems(gallery=tmp_path / "album")


@pytest.mark.slow
def test_the_tool(data, tmp_path) -> None:
    (data.panoptic / "a.png").unlink()
    command = [sys.executable, str(TOOL), "validate", str(data.json), "--images", str(data.images), "--workers", "1"]
    report = tmp_path / "report.jsonl"
    done = subprocess.run([*command, "--report", str(report)], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{data.panoptic / 'a.png'}: panoptic map" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: 1 problems in 1 files")
    assert json.loads(report.read_text()) == {
        "level": "error",
        "file": str(data.panoptic / "a.png"),
        "problem": f"panoptic map {data.panoptic / 'a.png'} does not exist; check the path",
    }
    done = subprocess.run([*command, "--report", str(data.json)], capture_output=True, text=True)
    assert done.returncode == 1 and "is no report of a validation" in done.stderr and data.content


@pytest.mark.slow
def test_the_tool_prints_warnings(data, tmp_path) -> None:
    shutil.copy(data.images / "a.png", data.images / "c.png")
    command = [sys.executable, str(TOOL), "validate", str(data.json), "--images", str(data.images), "--workers", "1"]
    report = tmp_path / "report.jsonl"
    for _ in range(2):
        done = subprocess.run([*command, "--report", str(report)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "1 warnings; all are listed in" in done.stdout and "1 of 3 images in" in done.stdout
        assert json.loads(report.read_text())["level"] == "warning"


@pytest.mark.slow
def test_the_tool_takes_a_data_set_of_a_config(data, tmp_path) -> None:
    paths = [str(data.images), str(data.panoptic), str(data.json)]
    config = tmp_path / "config.yaml"
    for name, values in (("mine", paths), ("old", [str(tmp_path / "root"), "train"])):
        config.write_text(json.dumps({"DATASETS": {"PANOPTIC": [[name, *values]]}}))
        command = [sys.executable, str(TOOL), "validate", name, "--config-file", str(config), "--workers", "1"]
        done = subprocess.run(command, capture_output=True, text=True)
        if name == "mine":
            assert done.returncode == 0 and done.stdout.splitlines()[-1].endswith("no problem"), done.stderr
        else:
            assert f"run `prepare_dataset.py seamseg {tmp_path / 'root'}` and validate" in done.stderr
