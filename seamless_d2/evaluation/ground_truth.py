"""Semantic and instance ground truth, derived from the panoptic ground truth of a data set."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tqdm import tqdm

from ..io import read_id_image, read_id_map, rgb_to_ids, write_json
from ..structures.classes import VOID_LABEL, Classes
from ..structures.id_maps import instance_annotations, measure_segments
from .counting import number_segments


def read_ground_truth(path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read the (H, W, 3) uint8 image of segment ids of a panoptic PNG.

    Args:
        path: The PNG.
        size: The (height, width) to which the image is resized by nearest sampling; default its own size.
    """
    image = read_id_image(path)
    if size is None or image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST))


class SemanticGroundTruth:
    """Reads semantic labels straight from the panoptic PNGs of a data set.

    An instance can be passed to Detectron2's ``SemSegEvaluator`` as ``sem_seg_loading_fn``.
    """

    def __init__(self, dataset_name: str) -> None:
        """
        Args:
            dataset_name: The name of a registered panoptic data set.
        """
        classes = Classes.from_metadata(MetadataCatalog.get(dataset_name))
        self._labels = {
            record["sem_seg_file_name"]: {s["id"]: classes.to_label(s) for s in record["segments_info"]}
            for record in DatasetCatalog.get(dataset_name)
        }

    def __call__(self, file_name: str, dtype: type = np.int64, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the (H, W) labels of one image: stuff 0..S-1, things S..C-1, 255 = void.

        Args:
            file_name: The panoptic PNG, as ``sem_seg_file_name`` of a record names it.
            dtype: The integer type of the labels.
            size: The (height, width) to which the map is resized by nearest sampling; default its own size.
        """
        id_map = rgb_to_ids(read_ground_truth(file_name, size))
        labels = self._labels[file_name]
        table = np.array([VOID_LABEL, *labels.values(), VOID_LABEL], dtype)
        return table[number_segments(id_map, np.array(list(labels), np.int64))]


def _fingerprint(dataset_name: str) -> str:
    """Return a hash of the panoptic json of a data set, or of its records and PNGs if it has no json."""
    source = MetadataCatalog.get(dataset_name).get("panoptic_json")
    if source:
        content = Path(source).read_bytes()
    else:
        records = DatasetCatalog.get(dataset_name)
        written = [os.stat(record["pan_seg_file_name"]).st_mtime_ns for record in records]
        content = json.dumps([records, written]).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def write_instance_json(dataset_name: str, output_dir: str | Path) -> Path:
    """Write the things of a panoptic data set as COCO instance annotations (RLE), crowd included.

    The name of the file contains a fingerprint of the data set, so that a changed data set gets a new file. An existing
    file is kept.

    Args:
        dataset_name: The name of a registered panoptic data set.
        output_dir: The folder of the file.

    Returns:
        The path of the file.
    """
    metadata = MetadataCatalog.get(dataset_name)
    path = Path(output_dir) / f"{dataset_name}_instances_{_fingerprint(dataset_name)}.json"
    if path.is_file():
        return path
    dataset_ids = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
    images, annotations = [], []
    for record in tqdm(DatasetCatalog.get(dataset_name), desc="instance ground truth", unit="image", leave=False):
        images.append({"id": record["image_id"], "height": record["height"], "width": record["width"]})
        things = [
            {"id": s["id"], "category_id": dataset_ids[s["category_id"]], "iscrowd": s["iscrowd"]}
            for s in record["segments_info"]
            if s["isthing"]
        ]
        if things:
            id_map = read_id_map(record["pan_seg_file_name"])
            id_map[~np.isin(id_map, [s["id"] for s in things])] = 0
            for annotation in instance_annotations(id_map, measure_segments(id_map, things), set(dataset_ids.values())):
                annotations.append({"id": len(annotations) + 1, "image_id": record["image_id"], **annotation})
    categories = [
        {"id": dataset_ids[i], "name": name, "supercategory": name} for i, name in enumerate(metadata.thing_classes)
    ]
    write_json(path, {"info": {}, "images": images, "annotations": annotations, "categories": categories})
    return path
