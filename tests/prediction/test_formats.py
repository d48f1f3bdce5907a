"""Every format, read back by a program that is not ours."""

import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from panopticapi.evaluation import pq_compute
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from seamless_d2 import PanopticResult, Predictor
from seamless_d2.data.registration import load_panoptic_json
from seamless_d2.errors import UserError
from seamless_d2.io import save_image
from seamless_d2.prediction.batch.coco_folder import assemble_coco, find_images, number_images, read_image_ids
from seamless_d2.prediction.formats import FORMATS, write_formats
from seamless_d2.prediction.result import HeadOutputs
from seamless_d2.structures.coco_json import CocoFile

from ..helpers.images import make_image
from ..helpers.panoptic_files import CLASSES


def result(with_segments: bool = True) -> PanopticResult:
    """A car and a person on a road under a void sky."""
    ids = np.zeros((50, 70), np.int32)
    if not with_segments:
        return PanopticResult.from_fusion(make_image(), ids, [], CLASSES)
    ids[20:] = 3
    ids[25:35, 10:30] = 1
    ids[22:40, 40:44] = 2
    segments = [
        {"id": 1, "isthing": True, "category_id": 0, "area": 200, "score": 0.875, "instance_id": 4},
        {"id": 2, "isthing": True, "category_id": 1, "area": 72, "score": 0.625, "instance_id": 0},
        {"id": 3, "isthing": False, "category_id": 0, "area": 2100 - 272},
    ]
    return PanopticResult.from_fusion(make_image(), ids, segments, CLASSES)


def test_segments_are_typed() -> None:
    car, person, road = result().segments
    assert (car.class_name, car.isthing, car.category_id, car.dataset_id) == ("car", True, 0, 7)
    assert (car.area, car.box, car.score) == (200, (10, 25, 30, 35), 0.875)
    assert (person.class_name, person.box) == ("person", (40, 22, 44, 40))
    assert (road.class_name, road.score, road.area, road.dataset_id) == ("road", None, 1828, 3)
    assert result().segments_info[0]["bbox"] == [10, 25, 20, 10]


def test_results_compare_and_say_what_they_are() -> None:
    one, two, empty = result(), result(), result(False)
    assert one == two and hash(one) == hash(two) and len({one, two, empty}) == 2
    assert one != empty and one != "text"
    assert one != replace(one, panoptic_seg=np.zeros_like(one.panoptic_seg)) and one != replace(one, segments=[])
    assert repr(one) == "PanopticResult(50x70, 2 things, 1 stuff: car 0.88, person 0.62, road)"
    assert repr(empty) == "PanopticResult(50x70, 0 things, 0 stuff)"
    assert repr(replace(one, segments=3 * one.segments)).endswith("person 0.62, ...)")


def test_coco_files_are_read_by_the_official_programs(tmp_path: Path) -> None:
    names = ["a", "deep/b", "empty"]
    for name in names:
        write_formats(result(name != "empty"), tmp_path, name, ["coco"])
    panoptic_json, instance_json = assemble_coco(
        tmp_path, {name: (number, f"{name}.jpg") for number, name in enumerate(names, 1)} | {"none": (4, "none.jpg")}
    )
    # panopticapi: a prediction judged against itself is perfect.
    quality = pq_compute(str(panoptic_json), str(panoptic_json))
    assert quality["All"]["pq"] == 1.0 and quality["All"]["n"] == 3
    png = np.asarray(Image.open(tmp_path / "panoptic" / "deep" / "b.png"))
    assert np.array_equal(rgb2id(png), result().panoptic_seg)
    # Our own registration, and with it Detectron2's data sets.
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_image()).save(tmp_path / "images" / f"{name}.jpg")
    content = json.loads(panoptic_json.read_text())
    assert [i["id"] for i in content["images"]] == [1, 2, 3]
    assert [i["file_name"] for i in content["images"]] == ["a.jpg", "deep/b.jpg", "empty.jpg"]
    # pycocotools: instances as results on a data set of the same categories.
    ground_truth = COCO()
    ground_truth.dataset = {"images": content["images"], "annotations": [], "categories": content["categories"]}
    ground_truth.createIndex()
    loaded = ground_truth.loadRes(str(instance_json))
    found = loaded.loadAnns(loaded.getAnnIds(imgIds=2))
    assert [(a["category_id"], a["score"], a["area"], a["bbox"]) for a in found] == [
        (7, 0.875, 200, [10, 25, 20, 10]),
        (90, 0.625, 72, [40, 22, 4, 18]),
    ]
    assert np.array_equal(coco_mask.decode(found[0]["segmentation"]), result().panoptic_seg == 1)


def test_detectron2_loads_the_panoptic_json(tmp_path: Path) -> None:
    write_formats(result(), tmp_path, "7", ["coco"])
    panoptic_json, _ = assemble_coco(tmp_path, {"7": (None, "7.jpg")})
    Image.fromarray(make_image()).save(tmp_path / "7.jpg")
    from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json

    meta = {
        "thing_dataset_id_to_contiguous_id": {7: 0, 90: 1},
        "stuff_dataset_id_to_contiguous_id": {3: 0, 11: 1},
    }
    (record,) = load_coco_panoptic_json(str(panoptic_json), str(tmp_path), str(tmp_path / "panoptic"), meta)
    assert record["image_id"] == 7 and record["file_name"].endswith("7.jpg")
    assert [(s["category_id"], s["isthing"]) for s in record["segments_info"]] == [(0, True), (1, True), (0, False)]
    (ours,), classes = load_panoptic_json(tmp_path, tmp_path / "panoptic", panoptic_json)
    assert classes.names == CLASSES.names and len(ours["segments_info"]) == 3


def test_ids_and_images(tmp_path: Path) -> None:
    files = write_formats(result(), tmp_path, "deep/a", ["ids", "overlay", "labelled"])
    assert [f.relative_to(tmp_path).as_posix() for f in files] == [
        "deep/a_ids.png",
        "deep/a_ids.json",
        "deep/a_overlay.jpg",
        "deep/a_labelled.jpg",
    ]
    image = Image.open(files[0])
    assert image.mode.startswith("I;16")
    assert np.array_equal(np.asarray(image), result().panoptic_seg)
    content = json.loads(files[1].read_text())
    assert content["segments"][1] == {
        "id": 2,
        "class": "person",
        "class_id": 90,
        "isthing": True,
        "area": 72,
        "box": [40, 22, 44, 40],
        "score": 0.625,
    }
    assert Image.open(files[2]).size == (70, 50)
    assert Image.open(files[3]).size == (700, 500)  # enlarged, so that names can be read
    with pytest.raises(UserError, match="'coc' is not known"):
        write_formats(result(), tmp_path, "a", ["coc"])
    with pytest.raises(UserError, match="raw=True"):
        write_formats(result(), tmp_path, "a", ["raw"])


def test_overlay_is_the_originals_image() -> None:
    drawn = result().overlay(labels=False)
    # Class colours blended half over the image (stuff has the class's very colour), void black.
    road = np.array(CLASSES.colors[0])
    assert np.abs(drawn[47, 5].astype(int) - (make_image()[47, 5].astype(int) + road) / 2).max() <= 1
    assert np.abs(drawn[5, 5].astype(int) - make_image()[5, 5] / 2).max() <= 1
    car = np.array(CLASSES.colors[2])
    assert np.abs(drawn[30, 20].astype(int) - (make_image()[30, 20].astype(int) + car) / 2).max() <= 1
    assert (drawn[25, 10:30] == 255).all() and (drawn[25:35, 30] == 255).all()


def test_one_image_json_and_saving(tmp_path: Path) -> None:
    png, content = result().to_coco("x.png", 9)
    assert np.array_equal(rgb2id(png), result().panoptic_seg)
    assert content["annotations"][0]["image_id"] == content["images"][0]["id"] == 9
    assert [s["category_id"] for s in content["annotations"][0]["segments_info"]] == [7, 90, 3]
    (tmp_path / "one.json").write_text(json.dumps(content))
    files = result().save(tmp_path / "one", "x", ["coco", "overlay"])
    assert all(f.is_file() for f in files)
    assert json.loads((tmp_path / "one" / "panoptic" / "x.json").read_text())["images"][0]["height"] == 50


def test_image_ids(tmp_path: Path) -> None:
    assert number_images({"000000139": None, "285": None}) == {"000000139": 139, "285": 285}
    two = number_images({"a/1": None, "b/1": None})
    # They do not depend on what else there is.
    assert two == {name: number_images({name: None, "c": None})[name] for name in two}
    assert len(set(two.values())) == 2 and all(0 <= number < 2**53 for number in two.values())
    assert number_images({"7": None, "07": None, "a": 7})["a"] == 7
    assert len(set(number_images({"7": None, "07": None, "a": 7}).values())) == 3
    with pytest.raises(UserError, match="images a and b have the same id 1; predict them into two folders"):
        number_images({"a": 1, "b": 1})
    (tmp_path / "ground_truth.json").write_text(
        json.dumps({"images": [{"id": "frankfurt_1", "file_name": "frankfurt/frankfurt_1_leftImg8bit.png"}]})
    )
    ids = read_image_ids(tmp_path / "ground_truth.json")
    (image,) = find_images(["frankfurt_1_leftImg8bit"], ids).values()
    assert (image.id, image.file_name) == ("frankfurt_1", "frankfurt/frankfurt_1_leftImg8bit.png")
    with pytest.raises(UserError, match="image x is not in the json"):
        find_images(["x"], ids)
    with pytest.raises(UserError, match=r"none\.json"):
        read_image_ids(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UserError, match=r"bad\.json"):
        read_image_ids(tmp_path / "bad.json")


def test_raw_keeps_only_its_own_numbers(tmp_path: Path) -> None:
    empty = torch.zeros(0)
    labels = torch.zeros(1000, 10, dtype=torch.int64)[:5]
    raw = HeadOutputs(labels, torch.zeros(0, 4), empty.long(), empty, torch.zeros(0, 28, 28))
    there = PanopticResult(make_image(), result().panoptic_seg, [], CLASSES, raw)
    (file,) = write_formats(there, tmp_path, "a", ["raw"])
    assert file.name == "a.pth.tar" and file.stat().st_size < 5000
    assert torch.load(file, weights_only=True)["sem_pred"].shape == (5, 10)


def test_image_ids_that_are_not_certain() -> None:
    known = {name: CocoFile(id=k, file_name=f"{name}.jpg") for k, name in enumerate(["x/a", "y/a", "b"], 1)}
    found = find_images(["x/a", "y/a", "deep/b"], known)
    assert {name: image.id for name, image in found.items()} == {"x/a": 1, "y/a": 2, "deep/b": 3}
    with pytest.raises(UserError, match="image a stands in several folders"):
        find_images(["a"], known)
    with pytest.raises(UserError, match="images b and deep/b are one image"):
        find_images(["b", "deep/b"], known)


def test_no_jpeg_is_that_wide(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="larger than a JPEG can be"):
        save_image(np.zeros((1, 66_000, 3), np.uint8), tmp_path / "a.jpg")


def test_a_full_disk_is_named_for_every_format(model_files, tmp_path: Path) -> None:
    result = Predictor(*model_files, "cpu", raw=True).predict(make_image(200, 300))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for format in FORMATS:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
            with pytest.raises(OSError) as caught:
                write_formats(result, tmp_path, "a", [format])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert Path(caught.value.filename).name.startswith("a")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
