"""A json of any wrong shape is answered with one sentence that names the file and the entry, whatever reads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seamless_d2 import register_panoptic
from seamless_d2.data.prepare.class_list import describe_classes
from seamless_d2.data.prepare.polygons import prepare_polygons
from seamless_d2.data.prepare.validate import validate
from seamless_d2.data.prepare.vistas import prepare_vistas
from seamless_d2.errors import UserError
from seamless_d2.evaluation.from_files import evaluate_files
from seamless_d2.prediction.batch.coco_folder import read_image_ids
from seamless_d2.seamseg.dataset_to_coco import write_seamseg
from seamless_d2.structures.coco_json import PanopticJson, read_json_as

from ..data.prepare.test_vistas import add_panoptic, write_release
from ..helpers.panoptic_files import scene, unique_name, write_dataset

Change = Callable[[dict[str, Any]], object]


def image(**values: Any) -> Change:
    return lambda c: c["images"][0].update(values)


def annotation(**values: Any) -> Change:
    return lambda c: c["annotations"][0].update(values)


def segment(**values: Any) -> Change:
    return lambda c: c["annotations"][0]["segments_info"][1].update(values)


def category(**values: Any) -> Change:
    return lambda c: c["categories"][0].update(values)


SEGMENT = r"annotations\[0\].segments_info\[1\]"
WRONG: list[tuple[Change, str]] = [
    (annotation(segments_info=None), r"got null at annotations\[0\].segments_info \(file_name 'a.png'\)"),
    (lambda c: c["annotations"][0].pop("segments_info"), r"field segments_info at annotations\[0\] .*'a.png'"),
    (annotation(segments_info=[None]), r"got null at annotations\[0\].segments_info\[0\] .*'a.png'"),
    (annotation(image_id=None), r"got null at annotations\[0\].image_id .*'a.png'"),
    (annotation(image_id=1.5), r"got float at annotations\[0\].image_id .*'a.png'"),
    (annotation(file_name=None), r"got null at annotations\[0\].file_name"),
    (segment(id=None), rf"got null at {SEGMENT}.id .*'a.png'"),
    (segment(id=1.5), rf"got float at {SEGMENT}.id .*'a.png'"),
    (segment(id="7"), rf"got str at {SEGMENT}.id .*'a.png'"),
    (segment(id=1 << 24), rf"int <= 16777215 at {SEGMENT}.id .*'a.png'"),
    (segment(id=0), rf"int >= 1 at {SEGMENT}.id .*'a.png'"),
    (segment(id=-5), rf"int >= 1 at {SEGMENT}.id .*'a.png'"),
    (segment(category_id="car"), rf"got str at {SEGMENT}.category_id .*'a.png'"),
    (segment(iscrowd="yes"), rf"got str at {SEGMENT}.iscrowd .*'a.png'"),
    (segment(iscrowd=2), rf"int <= 1 at {SEGMENT}.iscrowd .*'a.png'"),
    (segment(area="large"), rf"got str at {SEGMENT}.area .*'a.png'"),
    (segment(area=float("1e400")), None),  # written as Infinity, which counts as null
    (category(id=None), r"got null at categories\[0\].id \(name 'car'\)"),
    (category(id="seven"), r"got str at categories\[0\].id \(name 'car'\)"),
    (category(id=1.5), r"got float at categories\[0\].id \(name 'car'\)"),
    (category(name=None), r"got null at categories\[0\].name"),
    (category(name=""), r"str of length >= 1 at categories\[0\].name"),
    (category(isthing="yes"), r"got str at categories\[0\].isthing \(name 'car'\)"),
    (category(color="red"), r"got str at categories\[0\].color \(name 'car'\)"),
    (category(color=[0, 0]), r"length 3.* at categories\[0\].color \(name 'car'\)"),
    (category(color=[0, 0, 256]), r"int <= 255 at categories\[0\].color\[2\] \(name 'car'\)"),
    (lambda c: c.update(annotations={}), "got object at annotations"),
    (lambda c: c.update(annotations=None), "got null at annotations"),
    (lambda c: c.pop("annotations"), "field annotations"),
    (lambda c: c.update(categories={}), "got object at categories"),
    (lambda c: c.pop("categories"), "field categories"),
    (lambda c: c.update(images={}), "got object at images"),
    (image(id=None), r"got null at images\[0\].id \(file_name 'a.png'\)"),
    (image(file_name=None), r"got null at images\[0\].file_name"),
]
#: What the evaluation of files does not need.
WRONG_SIZES: list[tuple[Change, str]] = [
    (lambda c: c.pop("images"), "field images"),
    (lambda c: c["images"][0].pop("width"), r"field width at images\[0\] \(file_name 'a.png'\)"),
    (image(width="60"), r"got str at images\[0\].width \(file_name 'a.png'\)"),
    (image(width=0), r"int >= 1 at images\[0\].width \(file_name 'a.png'\)"),
    (image(height=-40), r"int >= 1 at images\[0\].height \(file_name 'a.png'\)"),
]


def validate_strictly(file: Path, image_dir: Path) -> None:
    """Raise the first problem, since a validation lists malformed entries."""
    report, _ = validate(file, image_dir, workers=1)
    for name, text in report.problems:
        if text.startswith("malformed"):
            assert name == str(file)
            raise UserError(f"panoptic json {file} is {text}")


@pytest.mark.parametrize(("change", "words"), [*WRONG, *WRONG_SIZES])
def test_panoptic_jsons(tmp_path: Path, change: Change, words: str | None) -> None:
    files = write_dataset(tmp_path / "d", {"a": scene(), "b": scene()})
    file = files["panoptic_json"]
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    readers: list[Callable[[], object]] = [
        lambda: register_panoptic(unique_name(), **files),
        lambda: validate_strictly(file, files["image_dir"]),
        lambda: write_seamseg(tmp_path / "s", {"train": tuple(files.values())}),
        lambda: describe_classes(file),
    ]
    if (change, words) not in WRONG_SIZES:
        readers.append(lambda: evaluate_files(file, file))
    for read in readers:
        if words is None:
            read()
            continue
        with pytest.raises(UserError, match=rf"json .*d/panoptic\.json is malformed: .*{words}") as error:
            read()
        assert "\n" not in str(error.value)


def test_what_is_no_json(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for content in (b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 10_000, b'{"annotations": "\\ud800"', bytes(9)):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"panoptic json .*a\.json (cannot be read as json|is malformed)"):
            read_json_as(file, "panoptic json", PanopticJson)
    with pytest.raises(UserError, match="cannot be read"):
        read_json_as(tmp_path, "panoptic json", PanopticJson)


def test_unknown_keys_true_and_nan_are_accepted(tmp_path: Path) -> None:
    files = write_dataset(tmp_path / "d", {"a": scene()})
    content = json.loads(files["panoptic_json"].read_text())
    content |= {"licenses": [{"id": None}], "info": float("nan")}
    content["annotations"][0] |= {"note": {"deep": [1, "x"]}}
    content["annotations"][0]["segments_info"][0] |= {"iscrowd": False, "score": float("nan"), "mine": 3}
    content["categories"][0]["isthing"] = True
    files["panoptic_json"].write_text(json.dumps(content))
    register_panoptic(unique_name(), **files)
    content["annotations"][0]["segments_info"][0]["area"] = 1
    files["panoptic_json"].write_text(json.dumps(content))
    report, _ = validate(files["panoptic_json"], files["image_dir"], fix=True, workers=1)
    assert report.fixed and not report.problems
    fixed = json.loads(files["panoptic_json"].read_text())["annotations"][0]
    assert fixed["note"] == {"deep": [1, "x"]} and fixed["segments_info"][0]["mine"] == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(images={}), "got object at images"),
        (lambda c: c["images"][0].update(file_name=None), r"got null at images\[0\].file_name"),
        (lambda c: c["images"][0].update(id=1.5), r"got float at images\[0\].id \(file_name 'a.jpg'\)"),
        (lambda c: c["images"][0].update(height="4"), r"got str at images\[0\].height \(file_name 'a.jpg'\)"),
        (lambda c: c["annotations"][0].update(image_id=None), r"got null at annotations\[0\].image_id"),
        (lambda c: c["annotations"][0].update(category_id="car"), r"annotations\[0\].category_id \(image_id 1\)"),
        (lambda c: c["annotations"][0].update(iscrowd="yes"), r"annotations\[0\].iscrowd \(image_id 1\)"),
        (lambda c: c["annotations"][0].update(segmentation=[1, 2, 3]), r"annotations\[0\].segmentation\[0\]"),
        (lambda c: c["annotations"][0].update(segmentation=[[[1, 2], [3, 4]]]), r"annotations\[0\].segmentation\[0\]"),
        (lambda c: c["annotations"][0].update(segmentation={"size": [4, 4]}), "field counts"),
        (lambda c: c["categories"][0].update(name=None), r"got null at categories\[0\].name"),
        (lambda c: c["categories"][0].update(color=[0, 0, 300]), r"int <= 255 at categories\[0\].color\[2\]"),
    ],
)
def test_detection_jsons(tmp_path: Path, change: Change, words: str) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]]}],
        "categories": [{"id": 1, "name": "car"}],
    }
    change(content)
    (tmp_path / "export.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"detection json .*export\.json is malformed: .*{words}"):
        prepare_polygons(tmp_path / "export.json", [], tmp_path / "panoptic.json", tmp_path, workers=1)


def test_jsons_of_vistas(tmp_path: Path) -> None:
    annotations = write_release(tmp_path, "v1.2", "", "config.json")
    own = add_panoptic(annotations)
    content = json.loads(own.read_text())
    own.write_text(json.dumps(content | {"annotations": [content["annotations"][0] | {"segments_info": None}]}))
    with pytest.raises(UserError, match=r"panoptic_2018\.json is malformed: .*segments_info .*'x.png'"):
        prepare_vistas(tmp_path, workers=1)
    own.write_text(json.dumps(content | {"categories": content["categories"][1:]}))
    with pytest.raises(UserError, match=r"x\.png has a segment of category 50, which its json does not list"):
        prepare_vistas(tmp_path, workers=1)
    (tmp_path / "config.json").write_text(json.dumps({"labels": [{"name": "a", "instances": 1}]}))
    with pytest.raises(UserError, match=r"config\.json is malformed: .*labels\[0\].*'a'"):
        prepare_vistas(tmp_path, workers=1)


def test_image_ids(tmp_path: Path) -> None:
    for content, words in (({"images": {}}, "got object at images"), ({"images": [{"id": 1}]}, "field file_name")):
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"json of --image-ids .*a\.json is malformed: .*{words}"):
            read_image_ids(tmp_path / "a.json")
