"""Boxes as tensors: clipping, and non-maximum suppression with the two conventions of the tie at the threshold."""

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms


def clip_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return (..., 4) boxes x0, y0, x1, y1 cut to an image of (height, width); undefined numbers stay as they are."""
    height, width = image_size
    return torch.stack([boxes[..., i].clamp(0, (width, height)[i % 2]) for i in range(4)], dim=-1)


def box_sides(boxes: Tensor) -> Tensor:
    """Return the (...) length of the shorter side of (..., 4) boxes."""
    return (boxes[..., 2:] - boxes[..., :2]).amin(dim=-1)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, thresh: float, inclusive: bool) -> Tensor:
    """Suppress boxes that overlap a better one of the same group.

    Args:
        boxes: (N, 4) float x0, y0, x1, y1, all at least 0.
        scores: (N,) float.
        groups: (N,) integers, for instance classes; None means one group.
        thresh: The IoU threshold, in 0..1.
        inclusive: Whether to suppress at IoU >= thresh (the original) instead of > (torchvision, Detectron2).

    Returns:
        (K,) int64 indices of the boxes that are kept, by descending score.
    """
    if inclusive:
        # The largest number below the float32 threshold: ">" it means ">=" the threshold.
        thresh = float(np.nextafter(np.float32(thresh), np.float32(-1)))
    exporting = torch.compiler.is_compiling()
    if exporting:
        # For torch.export at least two boxes are kept: these, which meet no other and come last.
        boxes = torch.cat([boxes, boxes.new_tensor([[-2.0, -2, -1, -1], [-4, -4, -3, -3]])])
        scores = torch.cat([scores, scores.new_full((2,), -1e30)])
        groups = None if groups is None else torch.cat([groups, groups.new_zeros(2)])
    if groups is not None and (exporting or len(boxes)):
        # Groups are moved apart; in float64 the shift does not round the overlaps.
        boxes = boxes.double()
        boxes = boxes + groups[:, None].double() * (boxes.max() - boxes.min() + 1)
        scores = scores.double()
    kept = torchvision_nms(boxes, scores, thresh)
    return kept[:-2] if exporting else kept
