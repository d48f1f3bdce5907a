"""Tiny COCO-panoptic data sets drawn by hand."""

import json
import uuid
from pathlib import Path

import numpy as np
from PIL import Image

from seamless_d2.structures.classes import Classes


def unique_name() -> str:
    """Return a name for a data set that no other test registers."""
    return f"test_{uuid.uuid4().hex}"


# Ids that are neither consecutive nor ordered, things before stuff, as in the wild.
CATEGORIES = [
    {"id": 7, "name": "car", "isthing": 1, "color": [0, 0, 142]},
    {"id": 3, "name": "road", "isthing": 0},
    {"id": 90, "name": "person", "isthing": 1},
    {"id": 11, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
]
CLASSES = Classes.from_categories(CATEGORIES, "test")  # road, sky | car, person; ids 3, 11 | 7, 90


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def scene() -> tuple[np.ndarray, list[dict]]:
    """40x60 map: sky above, road below, two cars, a crowd of persons, a void corner."""
    ids = np.full((40, 60), 100_000)
    ids[20:] = 300
    ids[22:30, 5:15] = 1  # car
    ids[25:38, 30:50] = 70_000  # car
    ids[15:25, 52:60] = 5  # crowd
    ids[:6, :6] = 0
    segments = [
        {"id": 100_000, "category_id": 11, "iscrowd": 0},
        {"id": 300, "category_id": 3, "iscrowd": 0},
        {"id": 1, "category_id": 7, "iscrowd": 0},
        {"id": 70_000, "category_id": 7, "iscrowd": 0},
        {"id": 5, "category_id": 90, "iscrowd": 1},
    ]
    for segment in segments:
        segment["area"] = int((ids == segment["id"]).sum())
    return ids, segments


def write_dataset(
    root: Path, maps: dict[str, tuple[np.ndarray, list[dict]]], categories: list[dict] = CATEGORIES
) -> dict[str, Path]:
    """Write images (noise), id PNGs and the json; returns the arguments of ``register_panoptic``."""
    images, panoptic = root / "images", root / "panoptic"
    images.mkdir(parents=True)
    panoptic.mkdir()
    content: dict = {"images": [], "annotations": [], "categories": categories}
    random = np.random.RandomState(0)
    for number, (name, (ids, segments)) in enumerate(maps.items(), 17):
        image = random.randint(0, 256, (*ids.shape, 3)).astype(np.uint8)
        Image.fromarray(image).save(images / f"{name}.png")
        Image.fromarray(id_to_rgb(ids)).save(panoptic / f"{name}.png")
        content["images"].append(
            {"id": number, "file_name": f"{name}.png", "height": ids.shape[0], "width": ids.shape[1]}
        )
        content["annotations"].append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
    (root / "panoptic.json").write_text(json.dumps(content))
    return {"image_dir": images, "panoptic_dir": panoptic, "panoptic_json": root / "panoptic.json"}
