"""Detection jsons with polygons and RLE: what is painted, in which order, and which mistakes are named."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from pycocotools import mask as coco_mask

from seamless_d2 import register_panoptic
from seamless_d2.data.mapper import SeamlessMapper
from seamless_d2.data.prepare.polygons import prepare_polygons
from seamless_d2.data.prepare.validate import validate
from seamless_d2.errors import UserError
from seamless_d2.io import read_id_map
from seamless_d2.structures.classes import Classes

from ...helpers.panoptic_files import unique_name

HEIGHT, WIDTH = 40, 60
ROOT, CAR, GRASS, PERSON, UNUSED = 0, 4, 5, 9, 12


def box(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def mask(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    result = np.zeros((HEIGHT, WIDTH), np.uint8)
    result[y0:y1, x0:x1] = 1
    return result


def compressed(*corners: int) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask(*corners)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(*corners: int) -> dict:
    flat = mask(*corners).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *edges, flat.size]).tolist()}


def region(category: int, segmentation, image: int = 1, **more) -> dict:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, **more}


ANNOTATIONS = [
    region(PERSON, [box(12, 12, 18, 18)]),  # small, first in the file, on top of the car
    region(CAR, compressed(10, 10, 30, 30)),
    region(GRASS, [box(0, 0, 60, 20)]),  # below both
    region(GRASS, uncompressed(0, 35, 60, 40)),  # one segment with the one above
    region(CAR, [box(40, 5, 45, 9), box(50, 5, 55, 9)]),  # one car in two parts
    region(CAR, uncompressed(40, 22, 50, 30), iscrowd=1),
    region(CAR, [box(31, 1, 33, 3)]),  # hidden by the next, which is as large and later
    region(CAR, [box(31, 1, 33, 3)]),
    region(PERSON, []),
    region(PERSON, [[1, 1, 5, 5]]),  # two points
    region(PERSON, [[7, 7, 7, 7, 7, 7]]),  # no area
    region(PERSON, None),
    region(PERSON, [box(70, 50, 80, 60)]),  # outside
]


IMAGES = [
    {"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH},
    {"id": 2, "file_name": "sub/b.jpg", "height": HEIGHT, "width": WIDTH},
]


def write(root: Path, **changes) -> None:
    (root / "images" / "sub").mkdir(parents=True, exist_ok=True)
    for image in IMAGES:
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / image["file_name"])
    write_export(root, **changes)


def write_export(root: Path, **changes) -> None:
    content = {
        "images": IMAGES,
        "annotations": ANNOTATIONS,
        "categories": [
            {"id": ROOT, "name": "objects", "supercategory": "none"},
            {"id": CAR, "name": "car", "supercategory": "objects"},
            {"id": GRASS, "name": "grass", "supercategory": "objects", "color": [0, 200, 0]},
            {"id": PERSON, "name": "person", "supercategory": "objects"},
            {"id": UNUSED, "name": "unused", "supercategory": "objects"},
        ],
        **changes,
    }
    (root / "export.json").write_text(json.dumps(content))


def prepare(root: Path, things: tuple[str, ...] = ("car", "person"), workers: int = 1) -> dict:
    path = prepare_polygons(
        root / "export.json", list(things), root / "panoptic.json", root / "images", workers=workers
    )
    return json.loads(path.read_text())


def test_what_is_painted(tmp_path) -> None:
    write(tmp_path)
    content = prepare(tmp_path)
    assert content["categories"] == [
        {"id": CAR, "name": "car", "isthing": 1},
        {"id": GRASS, "name": "grass", "isthing": 0, "color": [0, 200, 0]},
        {"id": PERSON, "name": "person", "isthing": 1},
        {"id": UNUSED, "name": "unused", "isthing": 0},  # but not the root of the others
    ]
    expected = np.zeros((HEIGHT, WIDTH), int)
    for value, corners in (
        (1, (0, 0, 60, 20)),
        (1, (0, 35, 60, 40)),
        (2, (10, 10, 30, 30)),
        (3, (40, 22, 50, 30)),
        (4, (40, 5, 45, 9)),
        (4, (50, 5, 55, 9)),
        (5, (12, 12, 18, 18)),
        (7, (31, 1, 33, 3)),
    ):
        expected[mask(*corners) > 0] = value
    ids = read_id_map(tmp_path / "panoptic" / "a.png")
    assert np.array_equal(ids, expected)
    kinds = {s["id"]: (s["category_id"], s["iscrowd"]) for s in content["annotations"][0]["segments_info"]}
    assert kinds == {1: (GRASS, 0), 2: (CAR, 0), 3: (CAR, 1), 4: (CAR, 0), 5: (PERSON, 0), 7: (CAR, 0)}
    assert content["annotations"][1] == {"image_id": 2, "file_name": "sub/b.png", "segments_info": []}
    assert not read_id_map(tmp_path / "panoptic" / "sub" / "b.png").any()


def test_the_result_is_valid_and_trains(tmp_path) -> None:
    write(tmp_path)
    prepare(tmp_path, workers=2)
    report, _ = validate(tmp_path / "panoptic.json", tmp_path / "images", workers=1)
    assert report.problems == []
    name = unique_name()
    register_panoptic(name, tmp_path / "images", tmp_path / "panoptic", tmp_path / "panoptic.json")
    records = DatasetCatalog.get(name)
    mapper = SeamlessMapper(is_train=True, augmentations=[], image_format="RGB", classes=Classes.numbered(4, 2))
    assert [len(mapper(record)["instances"]) for record in records] == [4, 0]
    instances = json.loads((tmp_path / "panoptic_instances.json").read_text())
    assert len(instances["annotations"]) == 5


def test_changed_annotations_are_converted_again(tmp_path) -> None:
    write(tmp_path)
    prepare(tmp_path)
    write(tmp_path, annotations=ANNOTATIONS[1:2])
    assert len(prepare(tmp_path, things=("car",))["annotations"][0]["segments_info"]) == 1
    assert prepare(tmp_path, things=())["categories"][0]["isthing"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"annotations": []}, "has no annotations"),
        ({"annotations": [region(CAR, [box(0, 0, 3, 3)], image=8)]}, "image id 8"),
        ({"annotations": [region(77, [box(0, 0, 3, 3)])]}, "category 77"),
        (
            {"annotations": [{"image_id": 1, "category_id": CAR, "bbox": [0, 0, 3, 3]}]},
            "has no annotations with a segmentation",
        ),
        ({"annotations": [{"image_id": 1}]}, r"field category_id at annotations\[0\] \(image_id 1\)"),
        ({"annotations": [region(CAR, "polygon")]}, r"got str at annotations\[0\].segmentation \(image_id 1\)"),
        ({"annotations": [region(CAR, {"size": [HEIGHT, WIDTH], "counts": [0, 9999]})]}, "do not add up"),
        ({"annotations": [region(CAR, {"size": [2, 2], "counts": [0, 4]})]}, "2 x 2 pixels, its image 60 x 40"),
        ({"images": [{"id": 1, "file_name": "x.jpg", "height": 4, "width": 4}]}, "1 images .*:\n  x.jpg"),
        (
            {
                "images": [
                    {"id": i, "file_name": f"a.{s}", "height": 4, "width": 4} for i, s in ((1, "jpg"), (2, "png"))
                ]
            },
            "two images called a",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, changes: dict, words: str) -> None:
    write(tmp_path, **changes)
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.png")
    with pytest.raises(UserError, match=words):
        prepare(tmp_path)


def test_arguments(tmp_path) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match="no category 'tree'; its categories are car, grass"):
        prepare(tmp_path, things=("tree",))
    for output in ("export.json", "folder"):
        with pytest.raises(UserError, match="choose another name"):
            prepare_polygons(tmp_path / "export.json", [], tmp_path / output, tmp_path / "images")


def test_splits_of_one_export_have_the_same_classes(tmp_path) -> None:
    write(tmp_path)
    everything = prepare(tmp_path)["categories"]
    write(tmp_path, annotations=ANNOTATIONS[1:2])
    assert prepare(tmp_path)["categories"] == everything


def test_a_list_of_classes(tmp_path) -> None:
    write(tmp_path)
    (tmp_path / "classes.txt").write_text("8 person thing\n5 grass stuff\n2 car thing\n3 traffic light thing\n")
    paths = tmp_path / "export.json", (), tmp_path / "panoptic.json", tmp_path / "images"
    content = json.loads(prepare_polygons(*paths, class_list=tmp_path / "classes.txt", workers=1).read_text())
    assert [(c["id"], c["name"], c["isthing"]) for c in content["categories"]] == [
        (8, "person", 1),
        (5, "grass", 0),
        (2, "car", 1),
        (3, "traffic light", 1),
    ]
    assert {s["category_id"] for s in content["annotations"][0]["segments_info"]} == {2, 5, 8}
    (tmp_path / "classes.txt").write_text("8 person thing\n5 grass stuff\n")
    with pytest.raises(UserError, match="export.json has regions of 'car', which .*classes.txt does not list"):
        prepare_polygons(*paths, class_list=tmp_path / "classes.txt", workers=1)


def test_what_is_left_out_is_said(tmp_path, capsys: pytest.CaptureFixture) -> None:
    hidden = [region(CAR, [box(2, 2, 8, 8)]), region(PERSON, [box(2, 2, 8, 8)])]
    write(tmp_path, annotations=[*ANNOTATIONS, *hidden])
    prepare(tmp_path)
    assert (
        "panoptic: left out 2 regions without polygons or runs, 3 regions without a pixel in their image, "
        "2 things hidden by smaller regions, 1 images without a region, which are void\n"
    ) in capsys.readouterr().out


def test_paths_of_label_studio(tmp_path) -> None:
    images = [
        {"id": 1, "file_name": r"..\..\data\upload\a.jpg", "height": HEIGHT, "width": WIDTH},
        {"id": 2, "file_name": r"C:\data\sub\b.jpg", "height": HEIGHT, "width": WIDTH},
    ]
    write(tmp_path)
    write_export(tmp_path, images=images)
    content = prepare(tmp_path)
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "sub/b.jpg"]


def test_an_image_of_another_size(tmp_path) -> None:
    write(tmp_path)
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tmp_path / "images" / "a.jpg")
    with pytest.raises(UserError, match=r"a.jpg is 60 x 41 pixels, but the json says 60 x 40"):
        prepare(tmp_path)
    # As stored, or as EXIF says that it is to be rotated.
    exif = Image.Exif()
    exif[0x0112] = 6
    for size in ((WIDTH, HEIGHT), (HEIGHT, WIDTH)):
        Image.new("RGB", size).save(tmp_path / "images" / "a.jpg", exif=exif)
        prepare(tmp_path)
