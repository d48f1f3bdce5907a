"""PQ at many fusion thresholds from one pass over the images, exactly as if each had been fused and evaluated.

Two facts make it cheap. Instances enter by falling score, so that a higher score threshold only removes the last ones:
one fusion at the lowest threshold knows all. And a stuff segment is there or not by its area alone: what counts is how
its free pixels depend on the score threshold, which one count by (class, score of the covering instance) gives. Only
the overlap threshold needs a fusion for each value.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .counting import count_overlaps
from .panoptic_quality import Segments, match_counts, match_image

# For an overlap threshold: the (h, w) map of things alone at the lowest score threshold, ids from 1 in the order of
# fusion, and their (classes 0..T-1, scores).
FuseThings = Callable[[float], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ThresholdGrid:
    """Thresholds to try, each ascending and distinct: scores and overlaps in 0..1, areas in pixels."""

    scores: np.ndarray
    overlaps: np.ndarray
    areas: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of overlaps, scores and areas: the order of the axes of ``ThresholdSweep.quality``."""
        return len(self.overlaps), len(self.scores), len(self.areas)


def _nearest(small: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest sampling at pixel centres, as ``resize_panoptic``."""
    if small.shape == tuple(size):
        return small
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64).clip(max=old - 1)
        for new, old in zip(size, small.shape, strict=True)
    )
    return small[rows[:, None], columns]


class ThresholdSweep:
    """Sums of PQ for each point of a grid of thresholds; memory does not grow with the number of images."""

    def __init__(self, grid: ThresholdGrid, num_stuff: int, num_classes: int, rules: str = "panopticapi") -> None:
        """
        Args:
            grid: the thresholds.
            num_stuff, num_classes: S and C; classes are numbered stuff first.
            rules: see ``match_counts``.
        """
        self.grid, self.num_stuff, self.num_classes, self.rules = grid, num_stuff, num_classes, rules
        overlaps, scores, areas = grid.shape
        # Sums of matched IoU, TP and FP.
        self.things = np.zeros((3, overlaps, scores, num_classes - num_stuff))
        self.stuff = np.zeros((3, overlaps, scores, areas, num_stuff))
        self.ground_truth = np.zeros(num_classes, np.int64)
        self.images = 0

    def add(self, gt_map: np.ndarray, ground_truth: Segments, labels: np.ndarray, fuse_things: FuseThings) -> None:
        """Add one image.

        Args:
            gt_map: (H, W) ids or (H, W, 3) uint8.
            ground truth: its segments.
            labels: (h, w) semantic labels where fusion happens; results are brought to (H, W) by nearest sampling.
            fuse_things: see ``FuseThings``.
        """
        self.images += 1
        self.ground_truth += np.bincount(ground_truth.classes[~ground_truth.crowd], minlength=self.num_classes)
        for o, overlap in enumerate(self.grid.overlaps.tolist()):
            things, classes, scores = fuse_things(overlap)
            # At so many of the thresholds an instance is there; fusion compares in single precision.
            levels = np.searchsorted(self.grid.scores.astype(np.float32), scores.astype(np.float32), side="left")
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
        things = _nearest(things, gt_map.shape[:2])
        ids = np.arange(1, len(classes) + 1)
        visible = np.bincount(things.ravel(), minlength=len(ids) + 1)[1:] > 0
        crowd = np.zeros(len(ids), bool)
        predicted = Segments(ids, classes, crowd).select(visible)
        levels = levels[visible]
        match = match_image(gt_map, ground_truth, things, predicted, self.rules)
        size = self.things.shape[2:]

        def by_threshold(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
            """(S, T) sums of the values of those instances that each threshold leaves."""
            sums = np.zeros((size[0] + 1, size[1]))
            np.add.at(sums, (levels[columns], predicted.classes[columns] - self.num_stuff), values)
            return sums[::-1].cumsum(axis=0)[::-1][1:]

        self.things[0, o] += by_threshold(match.columns, match.iou)
        self.things[1, o] += by_threshold(match.columns, np.ones(len(match.columns)))
        self.things[2, o] += by_threshold(match.false.nonzero()[0], np.ones(int(match.false.sum())))

    def _add_stuff(
        self, o: int, gt_map: np.ndarray, ground_truth: Segments, labels: np.ndarray, covered: np.ndarray
    ) -> None:
        """``covered``: (h, w) number of score thresholds at which an instance holds the pixel."""
        stuff, scores = self.num_stuff, len(self.grid.scores)
        bins = scores + 1
        groups = np.where(labels < stuff, 1 + labels * bins + covered, 0).astype(np.int32)
        areas = np.bincount(groups.ravel(), minlength=stuff * bins + 1)[1:].reshape(stuff, bins)
        # At threshold j the pixels with covered <= j are free.
        areas = areas.cumsum(axis=1)[:, :scores]
        ids = np.arange(1, stuff * bins + 1)
        counts = count_overlaps(gt_map, ground_truth.ids, _nearest(groups, gt_map.shape[:2]), ids)
        free = counts[:, 1:-1].reshape(len(counts), stuff, bins).cumsum(axis=2)[:, :, :scores]
        columns = np.zeros((len(counts), stuff * scores + 2), np.int64)
        columns[:, 1:-1] = free.reshape(len(counts), -1)
        predicted = Segments(
            np.arange(stuff * scores), np.repeat(np.arange(stuff), scores), np.zeros(stuff * scores, bool)
        )
        gt_area = counts[1:-1].sum(axis=1)
        match = match_counts(columns, ground_truth, predicted, self.rules, gt_area)
        # (S, A, stuff): whether the segment is large enough.
        kept = (areas.T[:, None, :] >= self.grid.areas[None, :, None]) & (areas.T[:, None, :] > 0)
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
        """(overlaps, scores, areas) PQ as a fraction."""
        shape = self.stuff.shape[1:4]
        things = np.broadcast_to(self.things[:, :, :, None], (3, *shape, self.num_classes - self.num_stuff))
        iou, tp, fp = np.concatenate([self.stuff, things], axis=-1)
        # TP + FP / 2 + FN / 2, with FN = ground truth - TP.
        weight = 0.5 * (tp + fp + self.ground_truth)
        per_class = np.divide(iou, weight, out=np.zeros(iou.shape), where=weight > 0)
        count = (weight > 0).sum(axis=-1) if self.rules == "panopticapi" else np.full(shape, self.num_classes)
        return np.divide(per_class.sum(axis=-1), count, out=np.zeros(shape), where=count > 0)
