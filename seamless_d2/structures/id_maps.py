"""Operations on id maps of whole images in little memory.

A temporary of 8 bytes per pixel takes 100 MB for 12 megapixels, and ``np.unique`` makes several. These functions look
up, count and measure maps a few rows at a time.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

#: A segment of a panoptic map: a dict with id, isthing, category_id and area, for things also score. Other models leave
#: out area and score.
SegmentInfo = dict[str, Any]

#: The number of ids that a panoptic PNG can hold (24 bits).
NUM_IDS = 1 << 24


def _split_rows(ids: np.ndarray) -> Iterator[slice]:
    """Yield the rows of a map in bands."""
    return (slice(top, top + 256) for top in range(0, ids.shape[0], 256))


def present_ids(ids: np.ndarray) -> list[int]:
    """Return all ids of a map in ascending order.

    Raises:
        ValueError: An id is below 0 or has more than 24 bits.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= NUM_IDS):
        raise ValueError(f"ids are {ids.min()} to {ids.max()}, but an id PNG holds 0 to {NUM_IDS - 1}")
    # The system allocates only the pages of this table that are written.
    present = np.zeros(NUM_IDS, bool)
    for rows in _split_rows(ids):
        present[ids[rows]] = True
    return np.flatnonzero(present).tolist()


def replace_ids(ids: np.ndarray, new_ids: dict[int, int]) -> np.ndarray:
    """Return an (H, W) int32 map with all ids replaced.

    Args:
        ids: (H, W) integer ids of at most 24 bits.
        new_ids: The new id of each id; ids that are not listed become 0.
    """
    table = np.zeros(NUM_IDS, np.int32)
    table[list(new_ids)] = list(new_ids.values())
    replaced = np.empty(ids.shape, np.int32)
    for rows in _split_rows(ids):
        replaced[rows] = table[ids[rows]]
    return replaced


def nearest_positions(size: int, new_size: int) -> np.ndarray:
    """Return, along one axis, the (new_size,) int64 source positions of nearest sampling at pixel centers."""
    positions = (np.arange(new_size, dtype=np.float64) + 0.5) * (size / new_size)
    return positions.astype(np.int64).clip(max=size - 1)


def renumber(areas: list[int], segments: list[SegmentInfo]) -> tuple[list[int], list[SegmentInfo]]:
    """Drop the segments without pixels, and make the ids consecutive in the old order.

    Args:
        areas: The number of pixels of each id, 0 for void included.
        segments: The K segments in the order of their ids 1..K.

    Returns:
        The new id of each old one, and new dicts with ``areas``.
    """
    kept: list[SegmentInfo] = []
    new_id = [0] * (len(segments) + 1)
    for segment in segments:
        if areas[segment["id"]]:
            new_id[segment["id"]] = len(kept) + 1
            kept.append({**segment, "id": len(kept) + 1, "area": areas[segment["id"]]})
    return new_id, kept


def resize_ids(
    ids: np.ndarray, segments: list[SegmentInfo], height: int, width: int
) -> tuple[np.ndarray, list[SegmentInfo]]:
    """Do what ``modeling.fusion.resize_panoptic`` does, in NumPy; see there."""
    if ids.shape == (height, width):
        return ids, segments
    ids = ids[nearest_positions(ids.shape[0], height)[:, None], nearest_positions(ids.shape[1], width)]
    new_id, kept = renumber(np.bincount(ids.ravel(), minlength=len(segments) + 1).tolist(), segments)
    return np.array(new_id, np.int32)[ids], kept


def count_pairs(ids: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    """Count the labels of one map inside each segment of another map.

    Args:
        ids: (H, W) integer ids of at most 24 bits.
        labels: (H, W) small integer labels of at least 0.

    Returns:
        For each id, the number of pixels of each label 0..max.
    """
    values, num_labels = present_ids(ids), int(labels.max(initial=0)) + 1
    table = np.zeros(NUM_IDS, np.int32)
    table[values] = np.arange(len(values))
    counts = np.zeros(len(values) * num_labels, np.int64)
    for rows in _split_rows(ids):
        pairs = table[ids[rows]] * num_labels + labels[rows]
        counts += np.bincount(pairs.ravel(), minlength=len(counts))
    return dict(zip(values, counts.reshape(-1, num_labels), strict=True))


def measure_segments(ids: np.ndarray, segments: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measure the segments of a map.

    Args:
        ids: (H, W) integer ids, 0 = void.
        segments: Dicts with id.

    Returns:
        Copies of the segments that have pixels, with area and bbox (x, y, width, height) in pixels.

    Raises:
        ValueError: The map has an id that no segment has, or one that no PNG can hold.
    """
    values = present_ids(ids)
    table = np.zeros(NUM_IDS, np.int32)
    table[values] = np.arange(len(values))
    areas = np.zeros(len(values), np.int64)
    low, high = np.full((len(values), 2), NUM_IDS), np.zeros((len(values), 2), np.int64)
    for rows in _split_rows(ids):
        labels = table[ids[rows]]
        areas += np.bincount(labels.ravel(), minlength=len(values))
        boxes = label_boxes(labels, len(values)).astype(np.int64)
        here = boxes[:, 2] > 0
        boxes[:, [1, 3]] += rows.start
        low[here] = np.minimum(low[here], boxes[here, :2])
        high[here] = np.maximum(high[here], boxes[here, 2:])
    position = {value: k for k, value in enumerate(values)}
    measured = []
    for segment in segments:
        k = position.pop(segment["id"], None)
        if k is not None:
            bbox = [*low[k].tolist(), *(high[k] - low[k]).tolist()]
            measured.append({**segment, "area": int(areas[k]), "bbox": bbox})
    unknown = set(position) - {0}
    if unknown:
        raise ValueError(f"id {min(unknown)} is in the map but not among the segments")
    return measured


def instance_annotations(
    ids: np.ndarray, segments: Iterable[dict[str, Any]], thing_ids: set[int]
) -> list[dict[str, Any]]:
    """Return COCO instance annotations of the things of a map, with compressed RLE, but without id and image_id.

    Args:
        ids: (H, W) integer ids.
        segments: Dicts with id, category_id, iscrowd, area and bbox.
        thing_ids: The category ids of the things.
    """
    from pycocotools import mask as coco_mask  # exported models run without it

    things = [s for s in segments if s["category_id"] in thing_ids]
    # The encoder takes masks in column-major order; transposing the map once is faster than each mask.
    columns = np.asfortranarray(ids) if things else ids
    result = []
    for segment in things:
        rle = coco_mask.encode((columns == segment["id"]).view(np.uint8))
        result.append(
            {
                "category_id": segment["category_id"],
                "iscrowd": segment["iscrowd"],
                "area": segment["area"],
                "bbox": segment["bbox"],
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    return result


def thing_categories(categories: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the categories of an instance json: the things among the categories of a panoptic json."""
    return [{"id": c["id"], "name": c["name"], "supercategory": c["name"]} for c in categories if c["isthing"]]


def label_boxes(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Return the tight boxes of all labels of a map.

    Args:
        labels: (H, W) integer labels in 0..num_labels-1.
        num_labels: The number of labels.

    Returns:
        (num_labels, 4) float32 boxes x0, y0, x1, y1 in pixels, x1 and y1 exclusive; all 0 for labels that do not occur.
    """
    boxes = np.zeros((num_labels, 4), np.float32)
    labels = labels.astype(np.int64)
    for axis, (low, high) in ((1, (0, 2)), (0, (1, 3))):
        size = labels.shape[axis]
        position = np.arange(size) if axis == 1 else np.arange(size)[:, None]
        present = np.bincount((labels * size + position).ravel(), minlength=num_labels * size).reshape(num_labels, size)
        present = present > 0
        some = present.any(axis=1)
        boxes[some, low] = present[some].argmax(axis=1)
        boxes[some, high] = size - present[some, ::-1].argmax(axis=1)
    return boxes
