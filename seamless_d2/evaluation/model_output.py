"""The panoptic map of any model in one form."""

from typing import Any

import torch
from torch import Tensor

from ..structures.classes import LABEL_DIVISOR, Classes
from ..structures.id_maps import SegmentInfo


def read_panoptic_seg(output: dict[str, Any], classes: Classes) -> tuple[Tensor, list[SegmentInfo]]:
    """Return the map and the segments of a model's output in Detectron2's form.

    Args:
        output: The output for one image; "panoptic_seg" is an (H, W) integer map with the list of its segments, whose
            area and score are optional, or a map of label * 1000 + instance, -1 = void, with None. The label is the
            semantic one, 0..C-1.
        classes: The C classes.

    Returns:
        (H, W) map of segment ids, 0 = void, and its segments.
    """
    panoptic_seg, segments_info = output["panoptic_seg"]
    if segments_info is not None:
        return panoptic_seg, segments_info
    numbers, ids = torch.unique(panoptic_seg, return_inverse=True)
    found = [number for number in numbers.tolist() if number >= 0]
    segments = [{"id": k, **classes.from_label(number // LABEL_DIVISOR)} for k, number in enumerate(found, 1)]
    return ids + (1 if len(found) == len(numbers) else 0), segments
