"""The statistics of an evaluated data set: sums of fixed size, a row per image, and a few example images."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..io import rgb_to_ids
from .panoptic_quality import ImageMatch, PanopticStatistics, Segments, join_iou, split_iou

# The number of steps of the score axis of the curves.
SCORE_BINS = 100
# The number of images that are kept as the best and as the worst, and the longest side of their maps in pixels.
NUM_EXAMPLES = 4
EXAMPLE_SIDE = 640


class ImageRow(NamedTuple):
    """The segments of one image.

    Attributes:
        image_id: The id of the image.
        iou: The sum of the IoU of its matched segments.
        tp, fp, fn: The numbers of its matched, false and missed segments.
    """

    image_id: Any
    iou: float
    tp: int
    fp: int
    fn: int

    @classmethod
    def from_match(cls, match: ImageMatch, image_id: Any) -> "ImageRow":
        """Return the row of an image."""
        counts = len(match.rows), int(match.false.sum()), int(match.missed.sum())
        return cls(image_id, float(match.iou.sum()), *counts)

    @property
    def quality(self) -> tuple[float, float, float] | None:
        """PQ, SQ and RQ of the image alone, over all its segments, in 0..1; None if no segment counts."""
        weight = self.tp + 0.5 * (self.fp + self.fn)
        return (self.iou / weight, self.iou / self.tp if self.tp else 0.0, self.tp / weight) if weight else None


@dataclass
class Example:
    """The prediction of one image, for the report.

    Attributes:
        quality: The PQ of the image alone, in 0..1.
        image_id: The id of the image.
        ids: (h, w) int32 map of the prediction, at most EXAMPLE_SIDE pixels long.
        segments: The predicted segments.
    """

    quality: float
    image_id: Any
    ids: np.ndarray
    segments: Segments


@dataclass
class DatasetStatistics:
    """Everything that the reports show. Of each image no more is kept than its row, about 150 bytes.

    Attributes:
        num_classes: The number C of classes.
        quality: The sums of PQ.
        confusion: (C + 1, C + 1) int64 numbers of pixels, true by predicted class; the last class is void. Crowd
            regions have their class.
        curve: (4, C, SCORE_BINS) int64 sums of both parts of matched IoU (``split_iou``), of TP and of FP of the
            predicted segments of each class by score.
        unscored: (C,) numbers of predicted segments without a score.
        best, worst: The images with the highest and the lowest PQ, in this order, of those in which a segment counts.
        rows: A row per image, in the order in which they were added.
    """

    num_classes: int
    quality: PanopticStatistics = field(init=False)
    confusion: np.ndarray = field(init=False)
    curve: np.ndarray = field(init=False)
    unscored: np.ndarray = field(init=False)
    best: list[Example] = field(default_factory=list)
    worst: list[Example] = field(default_factory=list)
    rows: list[ImageRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = self.num_classes
        self.quality = PanopticStatistics(size)
        self.confusion = np.zeros((size + 1, size + 1), np.int64)
        self.curve = np.zeros((4, size, SCORE_BINS), np.int64)
        self.unscored = np.zeros(size, np.int64)

    def add(self, match: ImageMatch, image_id: Any, predicted_map: np.ndarray) -> None:
        """Add one image.

        Args:
            match: The matched segments of the image.
            image_id: The id of the image.
            predicted_map: (H, W) ids or (H, W, 3) uint8. A reduced copy is kept if the image is among the best or
                worst.
        """
        self.quality.add(match)
        self._add_confusion(match)
        self._add_scores(match)
        self.rows.append(ImageRow.from_match(match, image_id))
        if match.quality is None:
            return
        for examples, sign in ((self.best, -1), (self.worst, 1)):
            if len(examples) < NUM_EXAMPLES or _rank(match.quality, image_id, sign) < _rank(
                examples[-1].quality, examples[-1].image_id, sign
            ):
                examples.append(Example(match.quality, image_id, _reduce(predicted_map), match.predicted))
                _sort_and_trim(examples, sign)

    def _add_confusion(self, match: ImageMatch) -> None:
        void, size = self.num_classes, self.num_classes + 1
        rows = np.concatenate([[void], match.ground_truth.classes, [void]])
        columns = np.concatenate([[void], match.predicted.classes, [void]])
        pairs = rows[:, None] * size + columns
        counts = np.bincount(pairs.ravel(), match.counts.ravel(), size * size)
        self.confusion += counts.astype(np.int64).reshape(size, size)

    def _add_scores(self, match: ImageMatch) -> None:
        scores, classes = match.predicted.scores, match.predicted.classes
        scored = np.zeros(len(classes), bool) if scores is None else ~np.isnan(scores)
        self.unscored += np.bincount(classes[~scored], minlength=self.num_classes)
        if not scored.any():
            return
        bins = np.clip(np.nan_to_num(scores) * SCORE_BINS, 0, SCORE_BINS - 1).astype(np.int64)
        cells = classes * SCORE_BINS + bins
        size = self.num_classes * SCORE_BINS
        pairs = scored[match.columns]
        matched = cells[match.columns][pairs]
        sums = (
            *(np.bincount(matched, part, size) for part in split_iou(match.iou[pairs])),
            np.bincount(matched, minlength=size),
            np.bincount(cells[match.false & scored], minlength=size),
        )
        self.curve += np.stack(sums).astype(np.int64).reshape(self.curve.shape)

    def __iadd__(self, other: "DatasetStatistics") -> "DatasetStatistics":
        self.quality += other.quality
        self.confusion += other.confusion
        self.curve += other.curve
        self.unscored += other.unscored
        self.rows += other.rows
        for examples, more, sign in ((self.best, other.best, -1), (self.worst, other.worst, 1)):
            examples += more
            _sort_and_trim(examples, sign)
        return self

    @property
    def images(self) -> int:
        """The number of images that were added."""
        return len(self.rows)

    def worst_first(self) -> list[ImageRow]:
        """Return the rows by ascending PQ; images without a segment that counts come last."""
        return sorted(self.rows, key=lambda r: _rank(r.quality[0] if r.quality else np.inf, r.image_id, 1))

    def semantic_iou(self) -> np.ndarray:
        """Return the (C,) IoU of the classes of the predicted map, in 0..1; NaN for classes without ground truth.

        Pixels without a segment count against the true class, as in the original's mode "panoptic".
        """
        ground_truth, predicted = self.confusion[:-1].sum(axis=1), self.confusion[:-1, :-1].sum(axis=0)
        hit = self.confusion.diagonal()[:-1]
        iou = np.full(self.num_classes, np.nan)
        return np.divide(hit, ground_truth + predicted - hit, out=iou, where=ground_truth > 0)

    def score_curves(self, classes: np.ndarray) -> dict[str, np.ndarray] | None:
        """Return the means of some classes as functions of a score threshold.

        The pixels of segments below the threshold count as void, so that the quality is a little lower than that of a
        new fusion with this threshold.

        Args:
            classes: (C,) bool selection of classes. Those with a segment that has no score are left out.

        Returns:
            Arrays "score", "pq", "sq" and "rq" of shape (SCORE_BINS,) with values in 0..1; None if no segment of the
            selected classes has a score.
        """
        *iou, tp, fp = (part[:, ::-1].cumsum(axis=1)[:, ::-1] for part in self.curve)
        chosen = classes & (self.quality.tp + self.quality.fp + self.quality.fn > 0) & (self.unscored == 0)
        if not (tp[chosen] + fp[chosen]).any():
            return None
        ground_truth = (self.quality.tp + self.quality.fn)[:, None]
        weight = 0.5 * (tp + fp + ground_truth)
        iou = join_iou(np.stack(iou))
        parts = {"pq": (iou, weight), "sq": (iou, tp), "rq": (tp, weight)}
        curves = {"score": np.arange(SCORE_BINS) / SCORE_BINS}
        for name, (a, b) in parts.items():
            curves[name] = np.divide(a, b, out=np.zeros(a.shape), where=b > 0)[chosen].mean(axis=0)
        return curves


def _reduce(id_map: np.ndarray) -> np.ndarray:
    """Return the (h, w) int32 ids of a map, reduced to at most EXAMPLE_SIDE pixels by nearest sampling."""
    id_map = id_map if id_map.ndim == 3 else id_map.astype(np.int32)
    height, width = id_map.shape[:2]
    scale = EXAMPLE_SIDE / max(height, width)
    if scale < 1:
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        id_map = cv2.resize(id_map, size, interpolation=cv2.INTER_NEAREST)
    return rgb_to_ids(id_map) if id_map.ndim == 3 else id_map


def _rank(quality: float, image_id: Any, sign: int) -> tuple[float, str]:
    """Return the sort key of an example; equal values are ordered by id, whatever the number of processes."""
    return sign * quality, str(image_id)


def _sort_and_trim(examples: list[Example], sign: int) -> None:
    """Sort examples in place and remove all but the first NUM_EXAMPLES."""
    examples.sort(key=lambda e: _rank(e.quality, e.image_id, sign))
    del examples[NUM_EXAMPLES:]
