"""The original's format: registered directly, trained and evaluated on, converted both ways."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.utils.file_io import PathManager
from PIL import Image

from seamless_d2 import get_config, register_seamseg
from seamless_d2.data.mapper import SeamlessMapper
from seamless_d2.data.prepare.class_list import describe_classes
from seamless_d2.data.prepare.validate import validate
from seamless_d2.data.registration import find_entry, register_from_config
from seamless_d2.errors import UserError
from seamless_d2.evaluation import build_evaluators
from seamless_d2.io import read_id_map
from seamless_d2.seamseg.dataset_to_coco import prepare_seamseg, write_seamseg
from seamless_d2.structures.classes import Classes

from ..helpers.panoptic_files import scene, unique_name, write_dataset

META = {
    "num_stuff": 2,
    "num_thing": 2,
    "categories": ["road", "sky", "car", "person"],
    "palette": [[k, 255 - k, k // 2] for k in range(256)],
    "original_ids": [7, 23, 26, 24],
}
SIZE = (40, 60)


def draw(order: tuple[int, ...] = (0, 1, 2, 2, 3)) -> tuple[np.ndarray, list[int], list[int]]:
    """Mask, "cat" and "iscrowd": road, sky, two cars, a crowd of persons, and void; listed in ``order`` of class."""
    mask = np.zeros(SIZE, np.uint8)
    boxes = {0: [(0, 20, 60, 40)], 1: [(0, 0, 60, 18)], 2: [(5, 22, 15, 30), (30, 25, 50, 38)], 3: [(50, 10, 60, 24)]}
    for index, label in sorted(enumerate(order, 1), key=lambda pair: pair[1]):
        x0, y0, x1, y1 = boxes[label].pop(0)
        mask[y0:y1, x0:x1] = index
    return mask, [255, *order], [0, *(int(label == 3) for label in order)]


def write_original(root: Path) -> Path:
    """Splits train (a, b) and val (c); c has a car without pixels, a mask of 16 bits and a JPEG."""
    for folder in ("img", "msk", "lst", "coco"):
        (root / folder).mkdir(parents=True)
    described = []
    random = np.random.RandomState(0)
    for name, order in (("a", (0, 1, 2, 2, 3)), ("b", (3, 2, 1, 0)), ("c", (2, 0, 1, 3, 2))):
        mask, cat, crowd = draw(order)
        if name == "c":
            cat, crowd = [*cat, 2], [*crowd, 0]
        Image.fromarray(mask.astype(np.uint16 if name == "c" else np.uint8)).save(root / "msk" / f"{name}.png")
        image = random.randint(0, 256, (*SIZE, 3)).astype(np.uint8)
        Image.fromarray(image).save(root / "img" / f"{name}.{'jpg' if name == 'c' else 'png'}")
        described.append({"id": name, "cat": cat, "size": SIZE, "iscrowd": crowd})
    (root / "metadata.bin").write_bytes(msgspec.msgpack.encode({"images": described, "meta": META}))
    (root / "lst" / "train.txt").write_text("a\nb\n")
    (root / "lst" / "val.txt").write_text("c\n")
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return write_original(tmp_path / "old")


def decode(root: Path, name: str) -> tuple[np.ndarray, set[tuple[int, int, bytes]]]:
    """Semantic labels, and class, crowd and mask of each segment: what does not depend on the order of indices."""
    content = msgspec.msgpack.decode((root / "metadata.bin").read_bytes())
    (image,) = [i for i in content["images"] if i["id"] == name]
    mask = np.asarray(Image.open(root / "msk" / f"{name}.png"))
    assert image["size"] == list(SIZE) == list(mask.shape)
    segments = {(image["cat"][k], image["iscrowd"][k], (mask == k).tobytes()) for k in np.unique(mask).tolist() if k}
    return np.array(image["cat"])[mask], segments


def test_round_trip(root, tmp_path) -> None:
    train, val = prepare_seamseg(root, workers=1)
    assert (train.name, val.name) == ("panoptic_train.json", "panoptic_val.json")
    for path in (train, val):
        assert validate(path, root / "img", workers=1)[0].problems == []
        assert "NUM_CLASSES 4 MODEL.ROI_HEADS.NUM_CLASSES 2" in describe_classes(path)
    content = json.loads(train.read_text())
    assert [i["id"] for i in content["images"]] == ["a", "b"]
    assert [c["id"] for c in content["categories"]] == META["original_ids"]
    new = tmp_path / "new"
    splits = {s: (root / "img", p.with_suffix(""), p) for s, p in (("train", train), ("val", val))}
    write_seamseg(new, splits)
    assert (new / "lst" / "train.txt").read_text() == "a\nb\n"
    for name in "abc":
        semantic, segments = decode(root, name)
        assert np.array_equal(semantic, decode(new, name)[0]) and segments == decode(new, name)[1]
    assert (new / "img" / "c.jpg").read_bytes() == (root / "img" / "c.jpg").read_bytes()
    meta = msgspec.msgpack.decode((new / "metadata.bin").read_bytes())["meta"]
    assert meta == {**META, "palette": META["palette"][:4]}
    things = json.loads((new / "coco" / "train.json").read_text())
    car, person = META["original_ids"].index(26), META["original_ids"].index(24)  # the labels of the original
    assert [(a["image_id"], a["category_id"], a["iscrowd"]) for a in things["annotations"]] == [
        ("a", car, 0),
        ("a", car, 0),
        ("a", person, 1),
        ("b", person, 1),
        ("b", car, 0),
    ]
    assert [c["id"] for c in things["categories"]] == [2, 3]
    with pytest.raises(UserError, match="already holds"):
        write_seamseg(new, splits)


def test_from_coco_panoptic_and_back(tmp_path) -> None:
    ids, segments = scene()
    many = np.arange(2400).reshape(40, 60) // 8 + 70_000  # more segments than a byte counts
    small = [{"id": int(i), "category_id": 90, "iscrowd": 0} for i in np.unique(many)]
    source = write_dataset(tmp_path / "d", {"a": (ids, segments), "many": (many, small)})
    write_seamseg(tmp_path / "s", {"x": tuple(source.values())}, link=True)
    assert (tmp_path / "s" / "img" / "a.png").is_symlink()
    (path,) = prepare_seamseg(tmp_path / "s", workers=1)
    content = json.loads(path.read_text())
    assert {c["id"] for c in content["categories"]} == {3, 7, 11, 90}
    for name, old, count in (("a", ids, 5), ("many", many, 300)):
        (annotation,) = [a for a in content["annotations"] if a["image_id"] == name]
        assert len(annotation["segments_info"]) == count
        found = read_id_map(path.with_suffix("") / annotation["file_name"])
        pairs = np.unique(np.stack([old.ravel(), found.ravel()]), axis=1)
        assert pairs.shape[1] == len(np.unique(old)) == len(np.unique(found))


def test_direct_registration_trains(root) -> None:
    name = unique_name()
    register_seamseg(name, root, "train")
    register_seamseg(name, root, "train")
    with pytest.raises(UserError, match="already registered"):
        register_seamseg(name, root, "val")
    classes = Classes.from_metadata(MetadataCatalog.get(name))
    assert (classes.names, classes.num_stuff) == (META["categories"], 2)
    records = get_detection_dataset_dicts([name], filter_empty=True)
    mapper = SeamlessMapper(is_train=True, augmentations=[], image_format="RGB", classes=classes)
    for record in records:
        out = mapper(record)
        semantic, segments = decode(root, record["image_id"])
        assert np.array_equal(out["sem_seg"].numpy(), semantic)
        masks = {m.tobytes() for m in out["instances"].gt_masks.bitmasks().numpy()}
        assert masks == {m for label, crowd, m in segments if label >= 2 and not crowd}
        assert len(out["instances"].gt_masks.crowd_ids) == 1


def perfect(record: dict, num_stuff: int = 2) -> dict:
    """What a model that knows the ground truth returns."""
    ids = read_id_map(record["pan_seg_file_name"])
    segments = [s for s in record["segments_info"] if not s["iscrowd"] and (ids == s["id"]).any()]
    panoptic = np.where(np.isin(ids, [s["id"] for s in segments]), ids, 0).astype(np.int32)
    semantic = np.zeros(ids.shape, np.int64)
    for s in record["segments_info"]:
        semantic[ids == s["id"]] = s["category_id"] + (num_stuff if s["isthing"] else 0)
    keys = ("id", "isthing", "category_id")
    return {
        "panoptic_seg": (torch.from_numpy(panoptic), [{k: s[k] for k in keys} for s in segments]),
        "sem_seg": torch.nn.functional.one_hot(torch.from_numpy(semantic), 4).permute(2, 0, 1).float(),
    }


def test_direct_registration_is_evaluated(root, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root.parent))
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.MODEL.SEAMLESS.OUTPUTS = ["panoptic_seg", "sem_seg"]
    name = unique_name()
    cfg.DATASETS.PANOPTIC = [[name, "old", "train"]]
    register_from_config(cfg, [name])
    assert find_entry(cfg, name) == [name, "old", "train"]
    evaluators = build_evaluators(cfg, name)
    evaluators.reset()
    records = DatasetCatalog.get(name)
    evaluators.process(records, [perfect(record) for record in records])
    results = evaluators.evaluate()
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    cfg.MODEL.SEAMLESS.OUTPUTS = ["instances"]
    build_evaluators(cfg, name)
    things = json.loads(Path(PathManager.get_local_path(MetadataCatalog.get(name).json_file)).read_text())
    assert len(things["annotations"]) == 5
    cfg.DATASETS.PANOPTIC = [["x", "old"]]
    with pytest.raises(UserError, match="root, split"):
        find_entry(cfg, "x")


def change_metadata(root: Path, change) -> None:
    content = msgspec.msgpack.decode((root / "metadata.bin").read_bytes())
    change(content)
    (root / "metadata.bin").write_bytes(msgspec.msgpack.encode(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: (r / "msk" / "a.png.1").touch(), r"a\.png has overlapping layers .*merge them"),
        (lambda r: (r / "msk" / "a.png").unlink(), r"msk/a\.png does not exist"),
        (lambda r: (r / "img" / "b.png").unlink(), r"img/b\.png or \.jpg does not exist"),
        (lambda r: (r / "lst" / "train.txt").write_text("zzz\n"), "does not describe image zzz"),
        (lambda r: (r / "lst" / "train.txt").write_text("\n"), "lists no image"),
        (lambda r: (r / "lst" / "train.txt").unlink(), r"train\.txt does not exist; the splits are val"),
        (lambda r: (r / "metadata.bin").write_bytes(b"\xc1"), "not seamseg's metadata.bin"),
        (lambda r: (r / "metadata.bin").unlink(), r"has no metadata\.bin"),
        (lambda r: change_metadata(r, lambda c: c["images"][0]["cat"].append(0)), "different lengths"),
        (lambda r: change_metadata(r, lambda c: c["images"][0]["cat"].__setitem__(1, 255)), "void class"),
        (lambda r: change_metadata(r, lambda c: c["images"][0]["cat"].__setitem__(1, 4)), "class 4 of 4"),
    ],
)
def test_mistakes_are_named(root, change, words: str) -> None:
    change(root)
    with pytest.raises(UserError, match=words):
        register_seamseg(unique_name(), root, "train")


def test_what_cannot_be_written(tmp_path) -> None:
    ids, segments = scene()
    one = write_dataset(tmp_path / "one", {"a": (ids, segments)})
    two = write_dataset(tmp_path / "two", {"a": (ids, segments)})
    with pytest.raises(UserError, match="two images are called a"):
        write_seamseg(tmp_path / "s", {"x": tuple(one.values()), "y": tuple(two.values())})
    content = json.loads(two["panoptic_json"].read_text())
    content["categories"][0]["name"] = "bus"
    content["images"][0]["file_name"] = "a.tif"
    two["panoptic_json"].write_text(json.dumps(content))
    with pytest.raises(UserError, match="different categories"):
        write_seamseg(tmp_path / "s", {"x": tuple(one.values()), "y": tuple(two.values())})
    with pytest.raises(UserError, match="neither PNG nor JPEG"):
        write_seamseg(tmp_path / "s", {"y": tuple(two.values())})
