"""Panoptic quality (Kirillov et al., CVPR 2019): matching of the segments of one image, and sums over images.

The results are those of panopticapi, which lets only the last crowd region of a class in the json excuse false
positives.
"""

from dataclasses import dataclass, field

import numpy as np

from ..errors import UserError
from ..structures.coco_json import CocoSegment
from .counting import count_overlaps

RULES = ("panopticapi", "original")


# The IoU of matched segments, above 1/2, is a multiple of 2^-53; its parts are one of 2^-26 and what is left.
_HIGH, _LOW = 2.0**26, 2.0**53


def split_iou(iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split IoU of 1/2 to 1 into two whole numbers each, whose sums are exact in any order."""
    high = np.floor(iou * _HIGH)
    return high, (iou - high / _HIGH) * _LOW


def join_iou(parts: np.ndarray) -> np.ndarray:
    """Return sums of IoU from the (2, ...) sums of their parts, rounded once."""
    return parts[0] / _HIGH + parts[1] / _LOW


@dataclass
class PanopticStatistics:
    """The sums per class from which PQ is computed. The sums of several processes can be added.

    Attributes:
        num_classes: The number C of classes.
        iou_parts: (2, C) int64 sums of the two parts of the IoU of matched segments, see ``split_iou``.
        tp, fp, fn: (C,) int64 numbers of matched, false and missed segments.
    """

    num_classes: int
    iou_parts: np.ndarray = field(init=False)
    tp: np.ndarray = field(init=False)
    fp: np.ndarray = field(init=False)
    fn: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.iou_parts = np.zeros((2, self.num_classes), np.int64)
        self.tp, self.fp, self.fn = (np.zeros(self.num_classes, np.int64) for _ in range(3))

    def add(self, match: "ImageMatch") -> None:
        """Add one image."""
        size = self.num_classes
        classes = match.ground_truth.classes[match.rows]
        self.iou_parts += [np.bincount(classes, part, size).astype(np.int64) for part in split_iou(match.iou)]
        self.tp += np.bincount(classes, minlength=size)
        self.fp += np.bincount(match.predicted.classes[match.false], minlength=size)
        self.fn += np.bincount(match.ground_truth.classes[match.missed], minlength=size)

    def __iadd__(self, other: "PanopticStatistics") -> "PanopticStatistics":
        self.iou_parts += other.iou_parts
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        return self

    @property
    def iou_sum(self) -> np.ndarray:
        """The (C,) sums of the IoU of matched segments."""
        return join_iou(self.iou_parts)

    def per_class(self) -> dict[str, np.ndarray]:
        """Return (C,) arrays pq, sq, rq in 0..1 (0 for classes without any segment), and the numbers tp, fp, fn."""
        weight = self.tp + 0.5 * self.fp + 0.5 * self.fn
        return {
            "pq": np.divide(self.iou_sum, weight, out=np.zeros(self.num_classes), where=weight > 0),
            "sq": np.divide(self.iou_sum, self.tp, out=np.zeros(self.num_classes), where=self.tp > 0),
            "rq": np.divide(self.tp, weight, out=np.zeros(self.num_classes), where=weight > 0),
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
        }

    def average(self, classes: np.ndarray | None = None, rules: str = "panopticapi") -> dict[str, float]:
        """Return the means of pq, sq and rq in 0..1 over some classes, and the number n of classes that count.

        Args:
            classes: (C,) bool selection of classes; default all.
            rules: "panopticapi" leaves out classes without any segment, "original" counts them as 0. If no class is
                left, the means are 0.
        """
        chosen = np.ones(self.num_classes, bool) if classes is None else classes.copy()
        if rules == "panopticapi":
            chosen &= self.tp + self.fp + self.fn > 0
        values = self.per_class()
        n = int(chosen.sum())
        return {key: float(values[key][chosen].mean()) if n else 0.0 for key in ("pq", "sq", "rq")} | {"n": n}


@dataclass
class Segments:
    """The segments of one image.

    Attributes:
        ids: (n,) int64 distinct ids, as in the map.
        classes: (n,) int64 semantic labels, 0..C-1.
        crowd: (n,) bool, whether a segment is a crowd region.
        areas: (n,) int64 numbers of pixels that the json states, which panopticapi uses for the ground truth; None if
            the pixels are counted.
        scores: (n,) float scores in 0..1, NaN for segments without a score; None if no segment has one.
    """

    ids: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray | None = None
    scores: np.ndarray | None = None

    def select(self, chosen: np.ndarray) -> "Segments":
        """Return the segments of an (n,) bool selection."""
        optional = (None if values is None else values[chosen] for values in (self.areas, self.scores))
        return Segments(self.ids[chosen], self.classes[chosen], self.crowd[chosen], *optional)

    @classmethod
    def from_json(cls, segments_info: list[CocoSegment], class_of_id: dict[int, int], source: str) -> "Segments":
        """Read the ``segments_info`` of a COCO-panoptic json.

        Args:
            segments_info: The segments of an image.
            class_of_id: The class of each category id.
            source: The name of the image, for error messages.

        Raises:
            UserError: A category is unknown, or an id occurs twice.
        """
        for segment in segments_info:
            if segment.category_id not in class_of_id:
                raise UserError(
                    f"{source} has a segment of category {segment.category_id}, which the ground truth lacks"
                )
        ids = np.array([s.id for s in segments_info], np.int64)
        if len(np.unique(ids)) < len(ids):
            raise UserError(f"{source} lists a segment id twice; ids must be unique in an image")
        areas = [s.area for s in segments_info]
        scores = np.array([np.nan if s.score is None else s.score for s in segments_info], np.float64)
        return cls(
            ids,
            np.array([class_of_id[s.category_id] for s in segments_info], np.int64),
            np.array([s.iscrowd for s in segments_info], bool),
            None if None in areas else np.array(areas, np.float64).astype(np.int64),
            None if np.isnan(scores).all() else scores,
        )


@dataclass
class ImageMatch:
    """The matched segments of one image.

    Attributes:
        ground_truth, predicted: The n true and m predicted segments.
        counts: (n + 2, m + 2) numbers of shared pixels, see ``count_overlaps``.
        rows, columns, iou: The matched pairs: their positions among the true and predicted segments, and their IoU.
        missed: (n,) bool, whether a true segment counts as FN.
        false: (m,) bool, whether a predicted segment counts as FP.
    """

    ground_truth: Segments
    predicted: Segments
    counts: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    iou: np.ndarray
    missed: np.ndarray
    false: np.ndarray

    @property
    def quality(self) -> float | None:
        """The PQ of the image alone, over all its segments, in 0..1; None if no segment counts."""
        weight = len(self.rows) + 0.5 * self.false.sum() + 0.5 * self.missed.sum()
        return float(self.iou.sum() / weight) if weight > 0 else None


def match_counts(
    counts: np.ndarray,
    ground_truth: Segments,
    predicted: Segments,
    rules: str = "panopticapi",
    gt_area: np.ndarray | None = None,
) -> ImageMatch:
    """Match segments by the pixels that they share.

    Args:
        counts: (n + 2, m + 2) numbers of shared pixels, see ``count_overlaps``.
        ground_truth, predicted: The n true and m predicted segments.
        rules: The rules for void and crowd: "panopticapi", or "original", where crowd regions are void, so that their
            pixels do not count in the union.
        gt_area: (n,) numbers of pixels of the true segments; default what the json states, else what is counted.
    """
    intersection = counts[1:-1, 1:-1]
    predicted_area = counts[:, 1:-1].sum(axis=0)
    void = counts[0, 1:-1]
    crowd = ground_truth.crowd
    if rules == "original":
        void = void + intersection[crowd].sum(axis=0)
    stated = ground_truth.areas if rules == "panopticapi" else None
    if gt_area is None:
        gt_area = counts[1:-1].sum(axis=1) if stated is None else stated
    union = predicted_area[None, :] + gt_area[:, None] - intersection - void[None, :]
    comparable = (ground_truth.classes[:, None] == predicted.classes[None, :]) & ~crowd[:, None] & (intersection > 0)
    iou = np.divide(intersection, union, out=np.zeros(intersection.shape), where=comparable)
    matched = iou > 0.5
    rows, columns = matched.nonzero()
    excused = void
    if rules == "panopticapi":
        # As in panopticapi, a later crowd region replaces an earlier one of the same class.
        crowd_of_class = {int(c): k for k, c in enumerate(ground_truth.classes) if crowd[k]}
        excused = void + np.array(
            [
                intersection[crowd_of_class[c], j] if c in crowd_of_class else 0
                for j, c in enumerate(predicted.classes.tolist())
            ],
            np.int64,
        )
    return ImageMatch(
        ground_truth,
        predicted,
        counts,
        rows,
        columns,
        iou[rows, columns],
        missed=~matched.any(axis=1) & ~crowd,
        false=~matched.any(axis=0) & ~(excused > 0.5 * predicted_area) & (predicted_area > 0),
    )


def match_image(
    gt_map: np.ndarray,
    ground_truth: Segments,
    predicted_map: np.ndarray,
    predicted: Segments,
    rules: str = "panopticapi",
) -> ImageMatch:
    """Match the segments of one image.

    Args:
        gt_map, predicted_map: (H, W) integer ids, 0 = void, or (H, W, 3) uint8 with id = R + 256 G + 65536 B.
        ground_truth, predicted: The segments of the maps.
        rules: The rules for void and crowd, see ``match_counts``.

    Raises:
        UserError: The maps differ in size, a predicted id belongs to no segment, or a predicted segment has no pixel.
    """
    sizes = gt_map.shape[:2], predicted_map.shape[:2]
    if sizes[0] != sizes[1]:
        (height, width), (predicted_height, predicted_width) = sizes
        raise UserError(
            f"the prediction is {predicted_width} x {predicted_height} pixels and the ground truth {width} x {height}; "
            "they must have the same size"
        )
    counts = count_overlaps(gt_map, ground_truth.ids, predicted_map, predicted.ids)
    if counts[:, -1].any():
        raise UserError("the predicted map holds an id that its segments_info does not list")
    areas = counts[:, 1:-1].sum(axis=0)
    if not areas.all():
        raise UserError(f"predicted segment {predicted.ids[areas == 0][0]} has no pixel in the map")
    return match_counts(counts, ground_truth, predicted, rules)
