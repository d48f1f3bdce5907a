"""Cityscapes: against the official script on frames drawn by the official script, and through Detectron2's loader."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic
from PIL import Image
from pycocotools.coco import COCO

from seamless_d2 import register_panoptic
from seamless_d2.data.prepare.cityscapes import prepare_cityscapes
from seamless_d2.errors import UserError
from seamless_d2.io import read_id_map
from seamless_d2.structures.classes import Classes

from ...helpers.panoptic_files import unique_name

SIZE = (120, 60)
# Label and x0, y0, x1, y1, painted in this order.
FRAMES = [
    [
        ("sky", 0, 0, 119, 20),
        ("building", 0, 20, 60, 40),
        ("road", 0, 40, 119, 59),
        ("car", 5, 30, 30, 50),
        ("license plate", 8, 40, 12, 44),
        ("car", 20, 32, 45, 55),
        ("cargroup", 80, 30, 119, 45),
        ("person", 50, 20, 55, 50),
        ("rider", 60, 20, 66, 35),
        ("bicycle", 58, 30, 70, 48),
        ("bicyclegroup", 71, 30, 79, 48),
        ("caravan", 84, 12, 95, 28),
        ("trailer", 96, 12, 110, 28),
        ("trailergroup", 111, 12, 118, 28),
        ("polegroup", 1, 1, 3, 40),
        ("rectification border", 0, 0, 119, 1),
        ("out of roi", 0, 0, 2, 59),
        ("ego vehicle", 30, 56, 90, 59),
    ],
    [("ego vehicle", 0, 0, 119, 59)],
    [("vegetation", 0, 0, 119, 59), *[("car", 3 * i, 2 * i, 3 * i + 4, 2 * i + 4) for i in range(25)]],
]


def polygon_json(objects: list[tuple]) -> dict:
    width, height = SIZE
    drawn = [{"label": label, "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]} for label, x0, y0, x1, y1 in objects]
    return {"imgWidth": width, "imgHeight": height, "objects": drawn}


def write_image(root: Path, split: str, name: str) -> None:
    image = root / "leftImg8bit" / split / name.split("_")[0] / f"{name}_leftImg8bit.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (90, 80, 70)).save(image)


def write_map(root: Path, split: str, name: str, ids: np.ndarray, suffix: str = "gtFine") -> Path:
    path = root / suffix / split / name.split("_")[0] / f"{name}_{suffix}_instanceIds.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)
    write_image(root, split, name)
    return path


@pytest.fixture
def official(tmp_path) -> Path:
    """The frames, drawn by cityscapesScripts."""
    why = "needs the package cityscapesscripts (part of the extras `dev` and `cityscapes`)"
    tool = pytest.importorskip("cityscapesscripts.preparation.json2instanceImg", reason=why)
    from cityscapesscripts.helpers.annotation import Annotation

    root = tmp_path / "cityscapes"
    for number, objects in enumerate(FRAMES):
        name = f"{('ulm', 'aachen')[number % 2]}_{number:06d}_000019"
        write_image(root, "train", name)
        folder = root / "gtFine" / "train" / name.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        polygons = folder / f"{name}_gtFine_polygons.json"
        polygons.write_text(json.dumps(polygon_json(objects)))
        annotation = Annotation()
        annotation.fromJsonFile(str(polygons))
        drawn = np.asarray(tool.createInstanceImage(annotation, "ids"))
        # As the 16-bit PNG that the official tool saves, which new versions of Pillow refuse to.
        Image.fromarray(drawn.astype(np.uint16)).save(folder / f"{name}_gtFine_instanceIds.png")
    return root


def test_agrees_with_the_official_script(official, tmp_path) -> None:
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    convert2panoptic(str(official / "gtFine"), str(theirs), setNames=["train"])
    (path,) = prepare_cityscapes(official, workers=1)
    assert path == official / "gtFine" / "cityscapes_panoptic_train.json"
    expected = json.loads((theirs / "cityscapes_panoptic_train.json").read_text())
    found = json.loads(path.read_text())
    assert found["annotations"] == expected["annotations"]
    assert sum(len(a["segments_info"]) for a in found["annotations"]) == 10 + 0 + 26
    assert sum(s["iscrowd"] for a in found["annotations"] for s in a["segments_info"]) == 2
    assert found["categories"] == [{k: v for k, v in c.items() if k != "supercategory"} for c in expected["categories"]]
    for ours, other in zip(found["images"], expected["images"], strict=True):
        # The official json names images that do not exist; ours are relative to leftImg8bit/train.
        assert (official / "leftImg8bit" / "train" / ours.pop("file_name")).is_file()
        del other["file_name"]
        assert ours == other
    for annotation in found["annotations"]:
        png = f"cityscapes_panoptic_train/{annotation['file_name']}"
        assert np.array_equal(np.asarray(Image.open(theirs / png)), np.asarray(Image.open(official / "gtFine" / png)))
    for polygons in (official / "gtFine" / "train").glob("*/*_polygons.json"):
        json2labelImg(str(polygons), str(tmp_path / "labels.png"), "trainIds")
        labels = polygons.with_name(polygons.name.replace("polygons.json", "labelTrainIds.png"))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "labels.png")), np.asarray(Image.open(labels)))


def simple_map() -> np.ndarray:
    ids = np.full((60, 120), 23, np.uint16)
    ids[30:] = 7
    ids[35:45, 10:30] = 26_000
    ids[35:45, 40:60] = 26  # group
    ids[50:] = 1
    return ids


def test_detectron2_reads_it(tmp_path) -> None:
    root = tmp_path / "cityscapes"
    write_map(root, "val", "ulm_000000_000019", simple_map())
    (path,) = prepare_cityscapes(root, workers=1)
    builtin = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    assert builtin.panoptic_json.endswith("cityscapes/gtFine/cityscapes_panoptic_val.json")
    images, pngs = root / "leftImg8bit" / "val", path.with_suffix("")
    (record,) = load_cityscapes_panoptic(str(images), str(pngs), str(path), builtin.as_dict())
    assert record["image_id"] == "ulm_000000_000019"
    assert Path(record["sem_seg_file_name"]).is_file()
    assert {(s["id"], s["category_id"], s["iscrowd"]) for s in record["segments_info"]} == {
        (7, 0, 0),
        (23, 10, 0),
        (26, 13, 1),
        (26_000, 13, 0),
    }
    assert np.unique(read_id_map(record["pan_seg_file_name"])).tolist() == [0, 7, 23, 26, 26_000]
    name = unique_name()
    register_panoptic(name, images, pngs, path)
    classes = Classes.from_metadata(MetadataCatalog.get(name))
    assert (classes.num_stuff, classes.num_things) == (11, 8)
    instances = COCO(root / "gtFine" / "cityscapes_instances_val.json")
    assert [(a["category_id"], a["iscrowd"], a["area"]) for a in instances.dataset["annotations"]] == [
        (26, 1, 200),
        (26, 0, 200),
    ]


def test_license_plates_that_other_tools_store_are_void(tmp_path) -> None:
    ids = simple_map()
    ids[0, :5] = 65_535  # -1 in 16 bits
    ids[1, :5] = 255  # -1 in 8 bits
    write_map(tmp_path, "train", "ulm_000000_000019", ids)
    (path,) = prepare_cityscapes(tmp_path, workers=1)
    found = read_id_map(path.with_suffix("") / "ulm_000000_000019_gtFine_panoptic.png")
    assert not found[:2, :5].any() and found[2, 0] == 23


def test_coarse(tmp_path) -> None:
    for split in ("train", "train_extra", "val"):
        ids = simple_map()
        ids[0] = 0
        write_map(tmp_path, split, f"ulm_00000{len(split)}_000019", ids, "gtCoarse")
    paths = prepare_cityscapes(tmp_path, coarse=True, workers=1)
    assert [p.name for p in paths] == [f"cityscapes_panoptic_{s}.json" for s in ("train", "train_extra", "val")]
    content = json.loads(paths[1].read_text())
    assert content["images"][0]["file_name"] == "ulm/ulm_0000011_000019_leftImg8bit.png"
    assert (paths[1].with_suffix("") / content["annotations"][0]["file_name"]).is_file()


def test_mistakes_are_named(tmp_path) -> None:
    with pytest.raises(UserError, match="gtFine does not exist"):
        prepare_cityscapes(tmp_path)
    (tmp_path / "gtFine").mkdir()
    (tmp_path / "leftImg8bit").mkdir()
    with pytest.raises(UserError, match="holds no"):
        prepare_cityscapes(tmp_path)
    bad = simple_map()
    bad[0, 0] = 40
    write_map(tmp_path, "train", "ulm_000000_000019", bad)
    write_map(tmp_path, "train", "ulm_000001_000019", simple_map()).write_bytes(b"no png")
    write_map(tmp_path, "train", "ulm_000002_000019", simple_map())
    (tmp_path / "leftImg8bit/train/ulm/ulm_000002_000019_leftImg8bit.png").unlink()
    write_map(tmp_path, "train", "ulm_000003_000019", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError) as error:
        prepare_cityscapes(tmp_path, workers=1)
    for words in ("4 of 4", "value 40", "000001_000019_gtFine_instanceIds.png cannot be read", "holds colors (RGB)"):
        assert words in str(error.value)
    assert "ulm_000002_000019_leftImg8bit.png, the image of" in str(error.value)
