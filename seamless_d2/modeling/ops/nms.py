"""Non-maximum suppression with the two conventions of the tie at the threshold."""

import numpy as np
from torch import Tensor
from torchvision.ops import nms as torchvision_nms


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, thresh: float, inclusive: bool) -> Tensor:
    """Suppress boxes that overlap a better one of the same group.

    Args:
        boxes: (N, 4) float x0, y0, x1, y1.
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
    if groups is not None and len(boxes):
        # Groups are moved apart; in float64 the shift does not round the overlaps.
        boxes = boxes.double()
        boxes = boxes + groups[:, None].double() * (boxes.max() - boxes.min() + 1)
        scores = scores.double()
    return torchvision_nms(boxes, scores, thresh)
