"""From every format to a trained step: the same toy scenes written as Cityscapes, Vistas, seamseg and polygons."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from PIL import Image
from pycocotools import mask as coco_mask

from seamless_d2.data.prepare.cityscapes import prepare_cityscapes
from seamless_d2.data.prepare.polygons import prepare_polygons
from seamless_d2.data.prepare.vistas import prepare_vistas
from seamless_d2.data.toy_streets import CATEGORIES, write_toy_streets
from seamless_d2.engine import run
from seamless_d2.io import read_id_map
from seamless_d2.seamseg.dataset_to_coco import write_seamseg

# Cityscapes' label ids of the toy classes, by name.
LABEL_IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "vegetation": 21,
    "sky": 23,
    "person": 24,
    "car": 26,
    "bicycle": 33,
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    return write_toy_streets(root, num_train=4, num_val=2, height=64, width=96, workers=1, progress=False)


def scenes(toy: Path) -> list[tuple[str, Path, np.ndarray, list[dict[str, Any]]]]:
    """(name, image, id map, segments) of the training scenes."""
    content = json.loads((toy / "panoptic_train.json").read_text())
    return [
        (
            Path(a["file_name"]).stem,
            toy / "train" / a["file_name"],
            read_id_map(toy / "panoptic_train" / a["file_name"]),
            a["segments_info"],
        )
        for a in content["annotations"]
    ]


def names() -> dict[int, str]:
    return {c["id"]: c["name"] for c in CATEGORIES}


def cityscapes(toy: Path, root: Path) -> tuple[list[str], int, int]:
    for name, image, ids, segments in scenes(toy):
        values = np.zeros(ids.shape, np.uint16)
        for k, s in enumerate(segments):
            label = LABEL_IDS[names()[s["category_id"]]]
            values[ids == s["id"]] = label if label < 24 or s["iscrowd"] else 1000 * label + k
        for folder in ("gtFine", "leftImg8bit"):
            (root / folder / "train" / "town").mkdir(parents=True, exist_ok=True)
        stem = f"town_{name}_000019"
        Image.fromarray(values).save(root / f"gtFine/train/town/{stem}_gtFine_instanceIds.png")
        Image.open(image).save(root / f"leftImg8bit/train/town/{stem}_leftImg8bit.png")
    (panoptic_json,) = prepare_cityscapes(root, workers=1)
    return ["leftImg8bit/train", str(panoptic_json.with_suffix("")), str(panoptic_json)], 19, 8


def vistas(toy: Path, root: Path) -> tuple[list[str], int, int]:
    order = [c["id"] for c in CATEGORIES]
    labels = [
        {
            "name": c["name"],
            "readable": c["name"],
            "instances": bool(c["isthing"]),
            "evaluate": True,
            "color": c["color"],
        }
        for c in CATEGORIES
    ]
    labels.append({"name": "void", "readable": "void", "instances": False, "evaluate": False, "color": [0, 0, 0]})
    for folder in ("images", "instances"):
        (root / "training" / folder).mkdir(parents=True)
    (root / "config.json").write_text(json.dumps({"labels": labels}))
    for name, image, ids, segments in scenes(toy):
        values = np.full(ids.shape, 256 * len(order), np.uint16)
        for k, s in enumerate(segments):
            values[ids == s["id"]] = 256 * order.index(s["category_id"]) + k
        Image.fromarray(values).save(root / "training" / "instances" / f"{name}.png")
        Image.open(image).save(root / "training" / "images" / f"{name}.jpg")
    (panoptic_json,) = prepare_vistas(root, workers=1)
    return ["training/images", str(panoptic_json.with_suffix("")), str(panoptic_json)], 8, 3


def seamseg(toy: Path, root: Path) -> tuple[list[str], int, int]:
    write_seamseg(root, {"train": (toy / "train", toy / "panoptic_train", toy / "panoptic_train.json")})
    return [".", "train"], 8, 3


def polygons(toy: Path, root: Path) -> tuple[list[str], int, int]:
    images, annotations = [], []
    for number, (_, image, ids, segments) in enumerate(scenes(toy), 1):
        images.append({"id": number, "file_name": image.name, "height": ids.shape[0], "width": ids.shape[1]})
        for s in segments:
            rle = coco_mask.encode(np.asfortranarray(ids == s["id"]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": s["category_id"],
                    "iscrowd": s["iscrowd"],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    categories = [{"id": c["id"], "name": c["name"]} for c in CATEGORIES]
    (root / "export.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    output = root / "mine" / "panoptic.json"
    prepare_polygons(root / "export.json", ["person", "car", "bicycle"], output, toy / "train", workers=1)
    return [str(toy / "train"), str(output.with_suffix("")), str(output)], 8, 3


@pytest.mark.slow
@pytest.mark.parametrize("make", [cityscapes, vistas, seamseg, polygons])
def test_a_few_iterations_from_every_format(
    make: Callable[[Path, Path], tuple[list[str], int, int]],
    toy: Path,
    tmp_path: Path,
    toy_cfg: CfgNode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    place, total, things = make(toy, root)
    name = f"prepared_{make.__name__}"
    cfg = toy_cfg
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES = total, things
    cfg.DATASETS.PANOPTIC = [[name, *place]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.DATALOADER.NUM_WORKERS = 2, 3, 0
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    results = run(default_argument_parser().parse_args(["--config-file", str(tmp_path / "config.yaml")]))
    assert {"panoptic_seg", "bbox", "segm", "sem_seg"} <= set(results)
    lines = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    losses = [value for line in lines for key, value in json.loads(line).items() if key.startswith("loss")]
    assert losses and np.isfinite(losses).all()
