"""The panoptic ground truth of a data set, and semantic labels of it."""

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ..data.derived_files import find_labels
from ..io import read_id_image, rgb_to_ids
from ..structures.classes import Classes


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
        self._classes = Classes.from_metadata(MetadataCatalog.get(dataset_name))
        self._records = {record["sem_seg_file_name"]: record for record in DatasetCatalog.get(dataset_name)}

    def __call__(self, file_name: str, dtype: type = np.int64, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the (H, W) labels of one image: stuff 0..S-1, things S..C-1, 255 = void.

        Args:
            file_name: The ``sem_seg_file_name`` of a record.
            dtype: The integer type of the labels.
            size: The (height, width) to which the map is resized by nearest sampling; default its own size.
        """
        record = self._records[file_name]
        id_map = rgb_to_ids(read_ground_truth(record["pan_seg_file_name"], size))
        return find_labels(id_map, record["segments_info"], self._classes).astype(dtype)
