"""Files that Detectron2's evaluators read and that a panoptic data set does not have, made when they are first opened.

A registered data set names them "panoptic://...", which Detectron2's ``PathManager`` resolves here: the things as a
COCO json (for ``COCOEvaluator``), and the semantic labels of each image (for ``SemSegEvaluator``, ``DatasetMapper``).
"""

import hashlib
import io
import json
import os
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathHandler, PathManager
from iopath.common.file_io import get_cache_dir
from PIL import Image, ImageFile
from tqdm import tqdm

from ..io import read_id_map, write_json
from ..structures.classes import Classes
from ..structures.id_maps import instance_annotations, measure_segments, replace_ids

_PREFIX = "panoptic://"
_INSTANCES = "instances.json"
# A file of labels: these 16 bytes, width and height as 32-bit integers, and one byte per pixel.
_MAGIC = b"semantic labels\n"
_HEADER_SIZE = 24


def instances_path(dataset_name: str) -> str:
    """Return the path of the COCO json with the things of a registered panoptic data set."""
    return f"{_PREFIX}{dataset_name}/{_INSTANCES}"


def labels_path(dataset_name: str, index: int) -> str:
    """Return the path of the semantic labels of a registered panoptic data set's record ``index``."""
    return f"{_PREFIX}{dataset_name}/{index}.labels"


def find_labels(ids: np.ndarray, segments: list[dict[str, Any]], classes: Classes) -> np.ndarray:
    """Return the (H, W) uint8 semantic labels of an (H, W) map of the ids of a record's segments; 255 = void."""
    # Ids that are not listed become 0, and 0 - 1 is VOID_LABEL.
    return (replace_ids(ids, {s["id"]: classes.to_label(s) + 1 for s in segments}) - 1).astype(np.uint8)


def _time_of_change(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0  # what is wrong with the file is told when it is read


def _fingerprint(dataset_name: str) -> str:
    """Return a hash of the records, classes and json of a data set, and of the times at which its PNGs were written."""
    metadata, records = MetadataCatalog.get(dataset_name), DatasetCatalog.get(dataset_name)
    written = [_time_of_change(record["pan_seg_file_name"]) for record in records]
    things = metadata.thing_classes, list(metadata.thing_dataset_id_to_contiguous_id.items())
    source = metadata.get("panoptic_json")
    content = json.dumps([records, written, things]).encode() + (Path(source).read_bytes() if source else b"")
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
    path = Path(output_dir) / f"{dataset_name}_instances_{_fingerprint(dataset_name)}.json".replace("/", "_")
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


class _LabelImage(ImageFile.ImageFile):
    """The image of a file of labels: 8-bit gray, but an array of 64-bit integers.

    ``SemSegEvaluator`` calls ``np.array(image, copy=False, dtype=int)``. NumPy 2 refuses that for an ordinary image,
    whose conversion to ``int`` is a copy.
    """

    format = "SEMANTIC_LABELS"
    format_description = "semantic labels of a panoptic data set"

    def _open(self) -> None:
        self._size = struct.unpack_from("<II", self.fp.read(_HEADER_SIZE), len(_MAGIC))
        self._mode = "L"
        self.tile = [("raw", (0, 0, *self._size), _HEADER_SIZE, ("L", 0, 1))]

    @property
    def __array_interface__(self) -> dict[str, Any]:
        # NumPy prefers this to __array__, but it cannot hand over the memory of a new array.
        raise AttributeError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        labels = np.frombuffer(self.tobytes(), np.uint8).reshape(self.size[::-1])
        return labels.astype(np.int64 if dtype is None else dtype)


class _DerivedFiles(PathHandler):
    """Makes the files of a data set from its panoptic ground truth."""

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """Return the json of the things, which is written to Detectron2's cache folder if it is not there yet."""
        name, file = path.removeprefix(_PREFIX).rsplit("/", 1)
        if file != _INSTANCES:
            raise FileNotFoundError(f"{path} is not kept on a disk; open it with Detectron2's PathManager")
        return str(write_instance_json(name, Path(get_cache_dir()) / "seamless_d2"))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO:
        name, file = path.removeprefix(_PREFIX).rsplit("/", 1)
        if file == _INSTANCES:
            return open(self._get_local_path(path), mode)
        record = DatasetCatalog.get(name)[int(file.removesuffix(".labels"))]
        classes = Classes.from_metadata(MetadataCatalog.get(name))
        labels = find_labels(read_id_map(record["pan_seg_file_name"]), record["segments_info"], classes)
        return io.BytesIO(_MAGIC + struct.pack("<II", *labels.shape[::-1]) + labels.tobytes())


PathManager.register_handler(_DerivedFiles())
Image.register_open(_LabelImage.format, _LabelImage, lambda start: start.startswith(_MAGIC))
