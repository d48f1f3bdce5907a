"""What evaluation remembers of a data set: sums of a fixed size, and a few images."""

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from ..io import rgb_to_ids
from .panoptic_quality import ImageMatch, PanopticStatistics, Segments

# Steps of the score axis of the curves.
SCORE_BINS = 100
# Images kept as the best and as the worst, and the longest side of their remembered maps in pixels.
NUM_EXAMPLES = 4
EXAMPLE_SIDE = 640


@dataclass
class Example:
    """A prediction worth showing: its image's PQ (a fraction), and its map reduced to at most EXAMPLE_SIDE."""

    quality: float
    image_id: Any
    ids: np.ndarray
    segments: Segments


@dataclass
class DatasetStatistics:
    """Everything that the reports show, in memory that does not depend on the number of images.

    Attributes:
        quality: the sums of PQ.
        confusion: (C + 1, C + 1) int64 pixels, true class by predicted class; the last is void. Crowd regions have
            their class.
        curve: (3, C, SCORE_BINS) sums of matched IoU, TP and FP of the predicted segments of each class by score.
        unscored: (C,) number of predicted segments without a score.
        best, worst: of all images in which a segment counts, by falling and by rising PQ.
        images: how many were added.
    """

    num_classes: int
    quality: PanopticStatistics = field(init=False)
    confusion: np.ndarray = field(init=False)
    curve: np.ndarray = field(init=False)
    unscored: np.ndarray = field(init=False)
    best: list[Example] = field(default_factory=list)
    worst: list[Example] = field(default_factory=list)
    images: int = 0

    def __post_init__(self) -> None:
        size = self.num_classes
        self.quality = PanopticStatistics(size)
        self.confusion = np.zeros((size + 1, size + 1), np.int64)
        self.curve = np.zeros((3, size, SCORE_BINS))
        self.unscored = np.zeros(size, np.int64)

    def add(self, match: ImageMatch, image_id: Any, predicted_map: np.ndarray) -> None:
        """Add one image.

        Args:
            match: of the image.
            image_id: any that names it.
            predicted_map: (H, W) ids or (H, W, 3) uint8, kept in small if the image is one of the best or worst.
        """
        self.quality.add(match)
        self._add_confusion(match)
        self._add_scores(match)
        self.images += 1
        if match.quality is None:
            return
        for examples, sign in ((self.best, -1), (self.worst, 1)):
            if len(examples) < NUM_EXAMPLES or _rank(match.quality, image_id, sign) < _rank(
                examples[-1].quality, examples[-1].image_id, sign
            ):
                examples.append(Example(match.quality, image_id, _reduce(predicted_map), match.predicted))
                _keep(examples, sign)

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
        place = classes * SCORE_BINS + bins
        size = self.num_classes * SCORE_BINS
        pairs = scored[match.columns]
        matched = place[match.columns][pairs]
        sums = (
            np.bincount(matched, match.iou[pairs], size),
            np.bincount(matched, minlength=size),
            np.bincount(place[match.false & scored], minlength=size),
        )
        self.curve += np.stack(sums).reshape(self.curve.shape)

    def __iadd__(self, other: "DatasetStatistics") -> "DatasetStatistics":
        self.quality += other.quality
        self.confusion += other.confusion
        self.curve += other.curve
        self.unscored += other.unscored
        self.images += other.images
        for examples, more, sign in ((self.best, other.best, -1), (self.worst, other.worst, 1)):
            examples += more
            _keep(examples, sign)
        return self

    def semantic_iou(self) -> np.ndarray:
        """(C,) IoU of the predicted map's classes, a fraction; NaN for classes that the ground truth lacks.

        Pixels without a segment count against the true class, as in the original's mode "panoptic".
        """
        ground_truth, predicted = self.confusion[:-1].sum(axis=1), self.confusion[:-1, :-1].sum(axis=0)
        hit = self.confusion.diagonal()[:-1]
        iou = np.full(self.num_classes, np.nan)
        return np.divide(hit, ground_truth + predicted - hit, out=iou, where=ground_truth > 0)

    def score_curves(self, classes: np.ndarray) -> dict[str, np.ndarray] | None:
        """What would become of the means of some classes if only segments above a score had been kept.

        The pixels of segments that go are taken as void, so that this is a little below what a new fusion with that
        threshold gives.

        Args:
            classes: (C,) bool.

        Returns:
            "score", "pq", "sq", "rq", each (SCORE_BINS,); None where no segment of these classes has a score.
            Classes with segments that have none are left out.
        """
        iou, tp, fp = (part[:, ::-1].cumsum(axis=1)[:, ::-1] for part in self.curve)
        chosen = classes & (self.quality.tp + self.quality.fp + self.quality.fn > 0) & (self.unscored == 0)
        if not (tp[chosen] + fp[chosen]).any():
            return None
        ground_truth = (self.quality.tp + self.quality.fn)[:, None]
        weight = 0.5 * (tp + fp + ground_truth)
        parts = {"pq": (iou, weight), "sq": (iou, tp), "rq": (tp, weight)}
        curves = {"score": np.arange(SCORE_BINS) / SCORE_BINS}
        for name, (a, b) in parts.items():
            curves[name] = np.divide(a, b, out=np.zeros(a.shape), where=b > 0)[chosen].mean(axis=0)
        return curves


def _reduce(id_map: np.ndarray) -> np.ndarray:
    """(h, w) int32 ids at most EXAMPLE_SIDE long, nearest sampling."""
    id_map = id_map if id_map.ndim == 3 else id_map.astype(np.int32)
    height, width = id_map.shape[:2]
    scale = EXAMPLE_SIDE / max(height, width)
    if scale < 1:
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        id_map = cv2.resize(id_map, size, interpolation=cv2.INTER_NEAREST)
    return rgb_to_ids(id_map) if id_map.ndim == 3 else id_map


def _rank(quality: float, image_id: Any, sign: int) -> tuple[float, str]:
    # Equal values go by name, so that order and number of processes do not matter.
    return sign * quality, str(image_id)


def _keep(examples: list[Example], sign: int) -> None:
    examples.sort(key=lambda e: _rank(e.quality, e.image_id, sign))
    del examples[NUM_EXAMPLES:]
