"""Panoptic quality (Kirillov et al., CVPR 2019): matching of one image's segments, and sums over images.

Equal to panopticapi, including that only the last crowd region of a class in the json excuses false positives.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UserError

RULES = ("panopticapi", "original")


@dataclass
class PanopticStatistics:
    """Sums per class, from which PQ follows; sums of several processes are added."""

    num_classes: int
    iou: np.ndarray = field(init=False)
    tp: np.ndarray = field(init=False)
    fp: np.ndarray = field(init=False)
    fn: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.iou = np.zeros(self.num_classes)
        self.tp, self.fp, self.fn = (np.zeros(self.num_classes, np.int64) for _ in range(3))

    def __iadd__(self, other: "PanopticStatistics") -> "PanopticStatistics":
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        return self

    def per_class(self) -> dict[str, np.ndarray]:
        """pq, sq, rq as fractions (0 for classes without any segment), and the sums tp, fp, fn, iou."""
        weight = self.tp + 0.5 * self.fp + 0.5 * self.fn
        return {
            "pq": np.divide(self.iou, weight, out=np.zeros(self.num_classes), where=weight > 0),
            "sq": np.divide(self.iou, self.tp, out=np.zeros(self.num_classes), where=self.tp > 0),
            "rq": np.divide(self.tp, weight, out=np.zeros(self.num_classes), where=weight > 0),
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
            "iou": self.iou,
        }

    def average(self, classes: np.ndarray | None = None, rules: str = "panopticapi") -> dict[str, float]:
        """Means over a (num_classes,) bool selection of classes, and how many of them count.

        panopticapi's mean leaves out classes without any segment, the original's takes them as 0. Without any class
        the means are 0 and n is 0.
        """
        chosen = np.ones(self.num_classes, bool) if classes is None else classes.copy()
        if rules == "panopticapi":
            chosen &= self.tp + self.fp + self.fn > 0
        values = self.per_class()
        n = int(chosen.sum())
        return {key: float(values[key][chosen].mean()) if n else 0.0 for key in ("pq", "sq", "rq")} | {"n": n}


@dataclass
class Segments:
    """Segments of one image: ids as in the map, classes 0..C-1, crowd flags, and areas where the json states them."""

    ids: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray | None = None

    @classmethod
    def from_json(cls, segments_info: list[dict[str, Any]], class_of_id: dict[int, int], source: str) -> "Segments":
        """From ``segments_info`` with the data set's category ids.

        Raises:
            UserError: an unknown category; ``source`` names the image.
        """
        for segment in segments_info:
            if segment["category_id"] not in class_of_id:
                raise UserError(f"{source} has a segment of category {segment['category_id']}, which the truth lacks")
        areas = [segment.get("area") for segment in segments_info]
        return cls(
            np.array([s["id"] for s in segments_info], np.int64),
            np.array([class_of_id[s["category_id"]] for s in segments_info], np.int64),
            np.array([bool(s.get("iscrowd", 0)) for s in segments_info], bool),
            None if any(a is None for a in areas) else np.array(areas, np.int64),
        )


def local_labels(ids: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
    """Map ids to positions.

    Args:
        ids: (H, W) integers in 0..2^24-1.
        segment_ids: (n,) distinct ids.

    Returns:
        (H, W) int32: 0 for id 0, k + 1 for ``segment_ids[k]``, n + 1 for any other id.
    """
    n = len(segment_ids)
    top = int(ids.max(initial=0))
    known = segment_ids <= top
    table = np.full(top + 1, n + 1, np.int32)
    table[0] = 0
    table[segment_ids[known]] = np.arange(1, n + 1, dtype=np.int32)[known]
    return table.take(ids)


def add_image(
    statistics: PanopticStatistics,
    truth_ids: np.ndarray,
    truth: Segments,
    predicted_ids: np.ndarray,
    predicted: Segments,
    rules: str = "panopticapi",
) -> None:
    """Match one image and add it to ``statistics``.

    Args:
        statistics: sums, changed in place.
        truth_ids, predicted_ids: (H, W) integer maps, 0 = void.
        truth, predicted: their segments.
        rules: "panopticapi", or "original": crowd truth is void, so that its pixels leave the union too.

    Raises:
        UserError: maps of different sizes, a predicted id that no segment has, or a segment without a pixel.
    """
    if truth_ids.shape != predicted_ids.shape:
        sizes = [f"{ids.shape[1]} x {ids.shape[0]}" for ids in (predicted_ids, truth_ids)]
        raise UserError(f"the prediction is {sizes[0]} pixels and the truth {sizes[1]}; they must have the same size")
    num_truth, num_predicted = len(truth.ids), len(predicted.ids)
    pairs = local_labels(truth_ids, truth.ids).astype(np.int64)
    pairs *= num_predicted + 2
    pairs += local_labels(predicted_ids, predicted.ids)
    counts = np.bincount(pairs.ravel(), minlength=(num_truth + 2) * (num_predicted + 2))
    counts = counts.reshape(num_truth + 2, num_predicted + 2)
    if counts[:, -1].any():
        raise UserError("the predicted map holds an id that its segments_info does not list")
    predicted_area = counts[:, 1:-1].sum(axis=0)
    if not predicted_area.all():
        missing = predicted.ids[predicted_area == 0][0]
        raise UserError(f"predicted segment {missing} has no pixel in the map")
    void = counts[0, 1:-1]
    crowd = truth.crowd
    if rules == "original":
        void = void + counts[1:-1, 1:-1][crowd].sum(axis=0)
    intersection = counts[1:-1, 1:-1]
    truth_area = counts[1:-1].sum(axis=1) if truth.areas is None else truth.areas
    union = predicted_area[None, :] + truth_area[:, None] - intersection - void[None, :]
    comparable = (truth.classes[:, None] == predicted.classes[None, :]) & ~crowd[:, None] & (intersection > 0)
    iou = np.divide(intersection, union, out=np.zeros(intersection.shape), where=comparable)
    matched = iou > 0.5
    rows, columns = matched.nonzero()
    classes = truth.classes[rows]
    size = statistics.num_classes
    statistics.iou += np.bincount(classes, iou[rows, columns], size)
    statistics.tp += np.bincount(classes, minlength=size)
    unmatched = ~matched.any(axis=1) & ~crowd
    statistics.fn += np.bincount(truth.classes[unmatched], minlength=size)
    excused = void
    if rules == "panopticapi":
        # A dictionary by class: a later crowd region of the same class replaces an earlier one.
        crowd_of_class = {int(c): k for k, c in enumerate(truth.classes) if crowd[k]}
        excused = void + np.array(
            [
                intersection[crowd_of_class[c], j] if c in crowd_of_class else 0
                for j, c in enumerate(predicted.classes.tolist())
            ],
            np.int64,
        )
    false = ~matched.any(axis=0) & ~(excused > 0.5 * predicted_area)
    statistics.fp += np.bincount(predicted.classes[false], minlength=size)
