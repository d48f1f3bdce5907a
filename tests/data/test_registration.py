"""Registration and the convention of class ids."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic

from seamless_d2 import get_config, register_panoptic
from seamless_d2.data.registration import register_from_config
from seamless_d2.engine.setup import adopt_classes
from seamless_d2.errors import UserError
from seamless_d2.modeling.panoptic import register_classes
from seamless_d2.structures.classes import Classes

from ..helpers.panoptic_files import CATEGORIES, scene, unique_name, write_dataset


def test_classes_are_stuff_then_things_in_the_order_of_the_json(tmp_path) -> None:
    name = unique_name()
    register_panoptic(name, **write_dataset(tmp_path / "d", {"a": scene()}))
    meta = MetadataCatalog.get(name)
    assert meta.stuff_classes == ["road", "sky", "car", "person"]
    assert meta.thing_classes == ["car", "person"]
    assert meta.stuff_dataset_id_to_contiguous_id == {3: 0, 11: 1, 7: 2, 90: 3}
    assert meta.thing_dataset_id_to_contiguous_id == {7: 0, 90: 1}
    assert meta.stuff_colors[2] == [0, 0, 142] and meta.thing_colors[0] == [0, 0, 142]
    (record,) = DatasetCatalog.get(name)
    assert (record["image_id"], record["height"], record["width"]) == (17, 40, 60)
    kinds = {s["id"]: (s["isthing"], s["category_id"], s["iscrowd"]) for s in record["segments_info"]}
    assert kinds == {
        100_000: (False, 1, 0),
        300: (False, 0, 0),
        1: (True, 0, 0),
        70_000: (True, 0, 0),
        5: (True, 1, 1),
    }
    assert "annotations" not in record  # Detectron2 would drop images without things


def test_registering_again(tmp_path) -> None:
    name = unique_name()
    arguments = write_dataset(tmp_path / "d", {"a": scene()})
    register_panoptic(name, **arguments)
    register_panoptic(name, **arguments)
    with pytest.raises(UserError, match="already registered"):
        register_panoptic(name, **write_dataset(tmp_path / "e", {"a": scene()}))


def edit(arguments: dict, change) -> dict:
    content = json.loads(arguments["panoptic_json"].read_text())
    change(content)
    arguments["panoptic_json"].write_text(json.dumps(content))
    return arguments


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("categories"), "categories"),
        (lambda c: c["annotations"].clear(), "no annotations"),
        (lambda c: c["annotations"][0].update(image_id=5), "image id 5"),
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=1234), "1234"),
        (lambda c: c["categories"][0].pop("isthing"), "isthing"),
        (lambda c: c["categories"][0].update(id=3), "twice"),
    ],
)
def test_broken_json_is_named(tmp_path, change, words: str) -> None:
    arguments = edit(write_dataset(tmp_path / "d", {"a": scene()}), change)
    with pytest.raises(UserError, match=words) as error:
        register_panoptic(unique_name(), **arguments)
    assert "panoptic.json" in str(error.value)


def test_missing_files_are_named(tmp_path) -> None:
    arguments = write_dataset(tmp_path / "d", {"a": scene()})
    for key in ("image_dir", "panoptic_dir", "panoptic_json"):
        with pytest.raises(UserError, match="nowhere"):
            register_panoptic(unique_name(), **{**arguments, key: tmp_path / "nowhere"})
    arguments["panoptic_json"].write_text("{")
    with pytest.raises(UserError, match="cannot be read as json"):
        register_panoptic(unique_name(), **arguments)


def config_for(things: int = 2, total: int = 4):
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = things, total
    return cfg


def test_registration_from_the_config(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_dataset(tmp_path / "d", {"a": scene()})
    name, other = unique_name(), unique_name()
    cfg = config_for()
    cfg.DATASETS.PANOPTIC = [
        [name, "d/images", "d/panoptic", "d/panoptic.json"],
        [other, "nowhere", "nowhere", "nowhere.json"],  # not asked for: need not exist
    ]
    register_from_config(cfg, [name])
    adopt_classes(cfg, [name])
    assert cfg.MODEL.SEAMLESS.CLASS_NAMES == ["road", "sky", "car", "person"]
    assert cfg.MODEL.SEAMLESS.CLASS_DATASET_IDS == [3, 11, 7, 90]
    with pytest.raises(UserError, match="unheard_of"):
        register_from_config(cfg, ["unheard_of"])


def test_wrong_class_count_is_told_before_training(tmp_path) -> None:
    name = unique_name()
    register_panoptic(name, **write_dataset(tmp_path / "d", {"a": scene()}))
    with pytest.raises(UserError, match="NUM_CLASSES 8"):
        adopt_classes(config_for(3, 8), [name])


def test_classes_survive_the_yaml_and_reach_the_catalogue(tmp_path) -> None:
    cfg = config_for()
    Classes.from_categories(CATEGORIES, "here").to_config(cfg)
    (tmp_path / "c.yaml").write_text(cfg.dump())
    loaded = config_for()
    loaded.merge_from_file(str(tmp_path / "c.yaml"))
    name = unique_name()
    loaded.DATASETS.TEST = (name,)
    register_classes(loaded)
    assert MetadataCatalog.get(name).thing_classes == ["car", "person"]
    assert Classes.from_metadata(MetadataCatalog.get(name)) == Classes.from_config(cfg)
    loaded.MODEL.SEAMLESS.CLASS_NAMES = ["car"]
    with pytest.raises(UserError, match="CLASS_NAMES"):
        register_classes(loaded)


def test_builtin_coco_names_get_our_convention(tmp_path) -> None:
    """Registered as Detectron2 registers coco_2017_*_panoptic: things first, unified ids."""
    name = unique_name()
    files = write_dataset(tmp_path / "d", {"a": scene()})
    metadata = {
        "thing_classes": ["car", "person"],
        "stuff_classes": ["car", "road", "person", "sky"],
        "thing_dataset_id_to_contiguous_id": {7: 0, 90: 2},
        "stuff_dataset_id_to_contiguous_id": {3: 1, 11: 3},
    }
    register_coco_panoptic(
        name, metadata, str(files["image_dir"]), str(files["panoptic_dir"]), str(files["panoptic_json"]), "none.json"
    )
    cfg = config_for()
    register_from_config(cfg, [name])
    adopt_classes(cfg, [name])
    assert cfg.MODEL.SEAMLESS.CLASS_NAMES == ["road", "sky", "car", "person"]
    (record,) = DatasetCatalog.get(name)
    assert {(s["isthing"], s["category_id"]) for s in record["segments_info"]} == {
        (False, 0),
        (False, 1),
        (True, 0),
        (True, 1),
    }
    assert MetadataCatalog.get(name).json_file == f"panoptic://{name}/instances.json"  # none.json does not exist
    # Ours are left alone.
    register_from_config(cfg, [name])
    assert DatasetCatalog.get(name) == [record]


def test_builtin_cityscapes_names_find_the_images(tmp_path) -> None:
    name = unique_name()
    files = write_dataset(tmp_path / "d", {"aachen_000000_000019": scene()})
    (files["image_dir"] / "aachen").mkdir()
    image = files["image_dir"] / "aachen" / "aachen_000000_000019_leftImg8bit.png"
    (files["image_dir"] / "aachen_000000_000019.png").rename(image)
    edit(files, lambda c: c["images"][0].update(file_name="aachen_000000_000019_gtFine_leftImg8bit.png"))
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(
        panoptic_json=str(files["panoptic_json"]),
        panoptic_root=str(files["panoptic_dir"]),
        image_root=str(files["image_dir"]),
        thing_classes=["car", "person"],
        stuff_classes=["road", "sky"],
        thing_dataset_id_to_contiguous_id={7: 11, 90: 12},
        stuff_dataset_id_to_contiguous_id={3: 0, 11: 1},
    )
    register_from_config(config_for(), [name])
    assert DatasetCatalog.get(name)[0]["file_name"] == str(image)
