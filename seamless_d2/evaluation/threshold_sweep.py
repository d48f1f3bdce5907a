"""PQ at many fusion thresholds in one pass over the images.

``ExhaustiveSweep`` is the plain form: it fuses and evaluates an image at every point of the grid. ``ThresholdSweep``
gives the same numbers from one fusion per overlap threshold. It relies on two properties of ``fuse_panoptic``:
instances enter by descending score, so that a higher score threshold only removes the last ones, and a stuff segment
exists or not by its area alone, so that it suffices to know how its free pixels depend on the score threshold.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..modeling.fusion import is_stuff_segment
from ..structures.classes import Classes
from ..structures.id_maps import SegmentInfo
from .counting import count_overlaps
from .panoptic_quality import PanopticStatistics, Segments, match_counts, match_image

# Fuses (h, w) integer labels at a score, an overlap and an area threshold into a (h, w) map and its segments.
Fuse = Callable[[np.ndarray, float, float, int], tuple[np.ndarray, list[SegmentInfo]]]


@dataclass(frozen=True)
class ThresholdGrid:
    """The thresholds to try, each ascending and distinct.

    Attributes:
        scores: (S,) float thresholds of the score, 0..1.
        overlaps: (O,) float thresholds of the hidden share, 0..1.
        areas: (A,) int thresholds of the area of stuff, in pixels.
    """

    scores: np.ndarray
    overlaps: np.ndarray
    areas: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(O, S, A): the order of the axes of ``quality``."""
        return len(self.overlaps), len(self.scores), len(self.areas)


def resize_nearest(small: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a (h, w) map to ``size`` by nearest sampling at pixel centers, as ``resize_panoptic`` does."""
    if small.shape == tuple(size):
        return small
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64).clip(max=old - 1)
        for new, old in zip(size, small.shape, strict=True)
    )
    return small[rows[:, None], columns]


class ExhaustiveSweep:
    """PQ at each point of a grid, by fusing and evaluating every image at each of them; works for any fusion rule."""

    def __init__(self, grid: ThresholdGrid, num_stuff: int, num_classes: int, rules: str = "panopticapi") -> None:
        """
        Args:
            grid: The thresholds.
            num_stuff: The number S of stuff classes.
            num_classes: The number C of all classes; labels number stuff first.
            rules: The void and crowd rules, see ``match_counts``.
        """
        self.grid, self.rules = grid, rules
        self.classes = Classes.numbered(num_classes, num_classes - num_stuff)
        self.images = 0
        self._sums = [PanopticStatistics(num_classes) for _ in range(int(np.prod(grid.shape)))]

    def add(self, gt_map: np.ndarray, ground_truth: Segments, labels: np.ndarray, fuse: Fuse) -> None:
        """Add one image.

        Args:
            gt_map: (H, W) ids or (H, W, 3) uint8 RGB-coded ids of the ground truth.
            ground_truth: Its segments.
            labels: (h, w) integer semantic labels; fused maps are brought to (H, W) by nearest sampling.
            fuse: Fuses labels with the image's detections, see ``Fuse``.
        """
        self.images += 1
        for place, sums in zip(np.ndindex(self.grid.shape), self._sums, strict=True):
            overlap, score, area = self.grid.overlaps[place[0]], self.grid.scores[place[1]], self.grid.areas[place[2]]
            panoptic_seg, info = fuse(labels, float(score), float(overlap), int(area))
            panoptic_seg = resize_nearest(panoptic_seg, gt_map.shape[:2])
            predicted = Segments(
                np.array([s["id"] for s in info], np.int64),
                np.array([self.classes.to_label(s) for s in info], np.int64),
                np.zeros(len(info), bool),
            )
            predicted = predicted.select(np.isin(predicted.ids, panoptic_seg))
            sums.add(match_image(gt_map, ground_truth, panoptic_seg, predicted, self.rules))

    def quality(self) -> np.ndarray:
        """Return (O, S, A) PQ as a fraction."""
        return np.array([sums.average(None, self.rules)["pq"] for sums in self._sums]).reshape(self.grid.shape)


class ThresholdSweep:
    """``ExhaustiveSweep`` for the rule of ``fuse_panoptic``, with one fusion per overlap threshold.

    Memory does not grow with the number of images.
    """

    def __init__(self, grid: ThresholdGrid, num_stuff: int, num_classes: int, rules: str = "panopticapi") -> None:
        """See ``ExhaustiveSweep``."""
        self.grid, self.num_stuff, self.num_classes, self.rules = grid, num_stuff, num_classes, rules
        overlaps, scores, areas = grid.shape
        # Sums of matched IoU, TP and FP.
        self.things = np.zeros((3, overlaps, scores, num_classes - num_stuff))
        self.stuff = np.zeros((3, overlaps, scores, areas, num_stuff))
        self.ground_truth = np.zeros(num_classes, np.int64)
        self.images = 0

    def add(self, gt_map: np.ndarray, ground_truth: Segments, labels: np.ndarray, fuse: Fuse) -> None:
        """Add one image; see ``ExhaustiveSweep.add``."""
        self.images += 1
        self.ground_truth += np.bincount(ground_truth.classes[~ground_truth.crowd], minlength=self.num_classes)
        # Every pixel is "some thing", so that no stuff is made.
        no_stuff = np.full_like(labels, self.num_stuff)
        for o, overlap in enumerate(self.grid.overlaps.tolist()):
            things, info = fuse(no_stuff, float(self.grid.scores[0]), overlap, 0)
            classes = np.array([s["category_id"] for s in info], np.int64)
            scores = np.array([s["score"] for s in info], np.float32)
            # An instance exists at its first ``levels`` score thresholds; fusion compares in single precision.
            levels = np.searchsorted(self.grid.scores.astype(np.float32), scores, side="left")
            self._add_things(o, gt_map, ground_truth, things, classes + self.num_stuff, levels)
            self._add_stuff(o, gt_map, ground_truth, labels, np.concatenate([[0], levels])[things])

    def _add_things(
        self,
        o: int,
        gt_map: np.ndarray,
        ground_truth: Segments,
        things: np.ndarray,
        classes: np.ndarray,
        levels: np.ndarray,
    ) -> None:
        things = resize_nearest(things, gt_map.shape[:2])
        ids = np.arange(1, len(classes) + 1)
        visible = np.bincount(things.ravel(), minlength=len(ids) + 1)[1:] > 0
        crowd = np.zeros(len(ids), bool)
        predicted = Segments(ids, classes, crowd).select(visible)
        levels = levels[visible]
        match = match_image(gt_map, ground_truth, things, predicted, self.rules)
        size = self.things.shape[2:]

        def by_threshold(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
            """Return (S, T) sums of the values of those instances that each score threshold keeps."""
            sums = np.zeros((size[0] + 1, size[1]))
            np.add.at(sums, (levels[columns], predicted.classes[columns] - self.num_stuff), values)
            return sums[::-1].cumsum(axis=0)[::-1][1:]

        self.things[0, o] += by_threshold(match.columns, match.iou)
        self.things[1, o] += by_threshold(match.columns, np.ones(len(match.columns)))
        self.things[2, o] += by_threshold(match.false.nonzero()[0], np.ones(int(match.false.sum())))

    def _add_stuff(
        self, o: int, gt_map: np.ndarray, ground_truth: Segments, labels: np.ndarray, covered: np.ndarray
    ) -> None:
        """Add the stuff of one image; ``covered`` (h, w) counts the score thresholds at which a thing holds a pixel."""
        stuff, scores = self.num_stuff, len(self.grid.scores)
        bins = scores + 1
        groups = np.where(labels < stuff, 1 + labels * bins + covered, 0).astype(np.int32)
        areas = np.bincount(groups.ravel(), minlength=stuff * bins + 1)[1:].reshape(stuff, bins)
        # At threshold j the pixels with covered <= j are free.
        areas = areas.cumsum(axis=1)[:, :scores]
        ids = np.arange(1, stuff * bins + 1)
        counts = count_overlaps(gt_map, ground_truth.ids, resize_nearest(groups, gt_map.shape[:2]), ids)
        free = counts[:, 1:-1].reshape(len(counts), stuff, bins).cumsum(axis=2)[:, :, :scores]
        columns = np.zeros((len(counts), stuff * scores + 2), np.int64)
        columns[:, 1:-1] = free.reshape(len(counts), -1)
        predicted = Segments(
            np.arange(stuff * scores), np.repeat(np.arange(stuff), scores), np.zeros(stuff * scores, bool)
        )
        gt_area = counts[1:-1].sum(axis=1)
        match = match_counts(columns, ground_truth, predicted, self.rules, gt_area)
        # (S, A, stuff): whether the segment is large enough.
        kept = is_stuff_segment(areas.T[:, None, :], self.grid.areas[None, :, None])
        number = stuff * scores
        for k, values in enumerate(
            (
                np.bincount(match.columns, match.iou, number),
                np.bincount(match.columns, minlength=number),
                match.false,
            )
        ):
            self.stuff[k, o] += kept * values.reshape(stuff, scores).T[:, None, :]

    def quality(self) -> np.ndarray:
        """Return (O, S, A) PQ as a fraction."""
        shape = self.stuff.shape[1:4]
        things = np.broadcast_to(self.things[:, :, :, None], (3, *shape, self.num_classes - self.num_stuff))
        iou, tp, fp = np.concatenate([self.stuff, things], axis=-1)
        # TP + FP / 2 + FN / 2, with FN = ground truth - TP.
        weight = 0.5 * (tp + fp + self.ground_truth)
        per_class = np.divide(iou, weight, out=np.zeros(iou.shape), where=weight > 0)
        count = (weight > 0).sum(axis=-1) if self.rules == "panopticapi" else np.full(shape, self.num_classes)
        return np.divide(per_class.sum(axis=-1), count, out=np.zeros(shape), where=count > 0)
