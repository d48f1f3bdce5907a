"""Matching of boxes with ground-truth boxes in bounded memory.

Both functions equal what Detectron2's ``Matcher`` makes of the whole matrix ``pairwise_iou(gt_boxes, boxes)``, but hold
only a part of it at a time.
"""

from collections.abc import Callable

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

# Entries of the IoU matrix that are held at a time; pairwise_iou needs about six times as much for temporaries. A
# crowded image (1,000 instances, a quarter of a million anchors) would need gigabytes.
MAX_ENTRIES = 2**24


def _in_chunks(
    function: Callable[[Boxes], tuple[Tensor, ...]], num_gt_boxes: int, boxes: Boxes
) -> list[tuple[Tensor, ...]]:
    """Call ``function`` on consecutive chunks of ``boxes``, at least once, and return its results."""
    size = max(MAX_ENTRIES // max(num_gt_boxes, 1), 1)
    return [function(boxes[start : start + size]) for start in range(0, max(len(boxes), 1), size)]


def best_matches(gt_boxes: Boxes, boxes: Boxes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the best partner of each box on both sides by IoU; among equals the first.

    Args:
        gt_boxes: M > 0 ground-truth boxes.
        boxes: N > 0 boxes.

    Returns:
        (N,) float IoU and (N,) int64 row of the best ground-truth box of each box, and (M,) float IoU and (M,) int64
        row of the best box of each ground-truth box.
    """

    def match(chunk: Boxes) -> tuple[Tensor, ...]:
        iou = pairwise_iou(gt_boxes, chunk)
        return (*iou.max(dim=0), *iou.max(dim=1))

    chunks = _in_chunks(match, len(gt_boxes), boxes)
    best_iou, best_gt = torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])
    if len(chunks) == 1:
        return best_iou, best_gt, *chunks[0][2:]
    sizes = torch.tensor([0, *(len(c[0]) for c in chunks[:-1])], device=best_iou.device)
    gt_iou, chunk = torch.stack([c[2] for c in chunks]).max(dim=0)
    rows = torch.stack([c[3] for c in chunks]).gather(0, chunk[None])[0] + sizes.cumsum(0)[chunk]
    return best_iou, best_gt, gt_iou, rows


def match_boxes(matcher: Matcher, gt_boxes: Boxes, boxes: Boxes) -> tuple[Tensor, Tensor]:
    """Return ``matcher(pairwise_iou(gt_boxes, boxes))`` for a matcher without low-quality matches.

    Returns:
        (N,) int64 row of the ground-truth box of each box, and the (N,) int8 label that the matcher gives it.
    """
    chunks = _in_chunks(lambda chunk: matcher(pairwise_iou(gt_boxes, chunk)), len(gt_boxes), boxes)
    matched, labels = zip(*chunks, strict=True)
    return torch.cat(matched), torch.cat(labels)
