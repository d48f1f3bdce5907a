"""Panoptic fusion (paper, section 4.4): instances by descending score, then stuff on the pixels that are left."""

from typing import Any

import torch
from torch import Tensor

SegmentInfo = dict[str, Any]


def _axis_weights(low: Tensor, high: Tensor, first: int, last: int, size: int) -> Tensor:
    """(last - first, size) bilinear weights of ``size`` mask cells spanning low..high, at pixel centres first..last-1.

    Beyond the outermost cell centres the mask fades to zero, as with zero padding.
    """
    pixels = torch.arange(first, last, dtype=torch.float32, device=low.device) + 0.5
    index = (pixels - low) * (size / (high - low)) - 0.5
    cells = torch.arange(size, dtype=torch.float32, device=low.device)
    return (1 - (index[:, None] - cells[None, :]).abs()).clamp_(min=0)


def paste_mask(mask: Tensor, box: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """Foreground pixels of one mask inside a window of the image.

    Args:
        mask: (h, w) float probabilities over the box.
        box: (4,) float x0, y0, x1, y1 in pixels, of positive area.
        window: x0, y0, x1, y1, integers; pixels outside the box are never foreground.

    Returns:
        (y1 - y0, x1 - x0) bool: bilinear probability strictly above one half at the pixel's centre.
    """
    x0, y0, x1, y1 = window
    rows = _axis_weights(box[1], box[3], y0, y1, mask.shape[0])
    columns = _axis_weights(box[0], box[2], x0, x1, mask.shape[1])
    return rows @ mask @ columns.T > 0.5


def fuse_panoptic(
    sem_seg: Tensor,
    boxes: Tensor,
    classes: Tensor,
    scores: Tensor,
    mask_logits: Tensor,
    *,
    num_stuff: int,
    score_thresh: float = 0.5,
    overlap_thresh: float = 0.5,
    stuff_area_thresh: int = 4096,
) -> tuple[Tensor, list[SegmentInfo]]:
    """Merge detections and semantic labels into one panoptic map.

    Instances enter by descending score (equal scores in input order) and keep the pixels that no earlier one holds;
    one of which more than ``overlap_thresh`` is already held is dropped. What remains free is stuff by its semantic
    label. A free pixel whose label is a thing class is void. No segment is ever without a pixel.

    Args:
        sem_seg: (H, W) int64 labels, stuff 0..S-1, then things S..C-1.
        boxes: (N, 4) float x0, y0, x1, y1 in pixels of that map.
        classes: (N,) int64, thing classes 0..T-1.
        scores: (N,) float in 0..1; an instance needs a score strictly above ``score_thresh``.
        mask_logits: (N, h, w) float logits of the predicted class over the box.
        num_stuff: S.
        score_thresh: see ``scores``.
        overlap_thresh: largest share of an instance, in 0..1, that may be hidden.
        stuff_area_thresh: least number of free pixels of a stuff segment.

    Returns:
        panoptic_seg: (H, W) int32, 0 = void, otherwise a segment's id.
        segments_info: one dict per segment in the order of the ids 1..K: ``id``, ``isthing``, ``category_id`` (things
        0..T-1, stuff 0..S-1), ``area`` in pixels, and for things ``score`` and ``instance_id`` (row of the input).
    """
    height, width = sem_seg.shape
    panoptic_seg = torch.zeros((height, width), dtype=torch.int32, device=sem_seg.device)
    segments_info: list[SegmentInfo] = []
    boxes = boxes.float()
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[scores[order] > score_thresh]
    # One transfer to the host for all instances; the masks stay where they are.
    host_boxes, host_scores, host_classes = boxes[order].tolist(), scores[order].tolist(), classes[order].tolist()
    for instance, (bx0, by0, bx1, by1), score, category in zip(
        order.tolist(), host_boxes, host_scores, host_classes, strict=True
    ):
        # Pixels whose centre can lie in the box.
        x0, y0 = max(int(bx0), 0), max(int(by0), 0)
        x1, y1 = min(int(bx1) + 1, width), min(int(by1) + 1, height)
        if x0 >= x1 or y0 >= y1 or not (bx0 < bx1 and by0 < by1):
            continue
        mask = paste_mask(mask_logits[instance].float().sigmoid(), boxes[instance], (x0, y0, x1, y1))
        window = panoptic_seg[y0:y1, x0:x1]
        free = mask & (window == 0)
        area, free_area = int(mask.sum()), int(free.sum())
        if free_area == 0 or (area - free_area) / area > overlap_thresh:
            continue
        segment = len(segments_info) + 1
        window.masked_fill_(free, segment)
        segments_info.append(
            {
                "id": segment,
                "isthing": True,
                "category_id": category,
                "area": free_area,
                "score": score,
                "instance_id": instance,
            }
        )
    # Thing labels and pixels of instances share a bin after the stuff classes; its segment is 0.
    labels = torch.where(panoptic_seg == 0, sem_seg.clamp(max=num_stuff), num_stuff)
    areas = torch.bincount(labels.flatten(), minlength=num_stuff + 1).tolist()
    segment_of_label = [0] * (num_stuff + 1)
    for category, area in enumerate(areas[:num_stuff]):
        if area > 0 and area >= stuff_area_thresh:
            segment_of_label[category] = segment = len(segments_info) + 1
            segments_info.append({"id": segment, "isthing": False, "category_id": category, "area": area})
    table = torch.tensor(segment_of_label, dtype=torch.int32, device=sem_seg.device)
    return panoptic_seg.add_(table[labels]), segments_info


def resize_panoptic(
    panoptic_seg: Tensor, segments_info: list[SegmentInfo], height: int, width: int
) -> tuple[Tensor, list[SegmentInfo]]:
    """Bring a panoptic map to another size by nearest sampling at pixel centres.

    Areas are counted again; segments that vanish are dropped and the ids made consecutive, in the old order.

    Args:
        panoptic_seg: (h, w) int32, 0 = void, ids 1..K.
        segments_info: the K segments in the order of their ids.
        height, width: the new size.

    Returns:
        (height, width) int32 map and new dicts.
    """
    old_height, old_width = panoptic_seg.shape
    if (height, width) == (old_height, old_width):
        return panoptic_seg, segments_info
    device = panoptic_seg.device
    rows = (torch.arange(height, device=device, dtype=torch.float64) + 0.5) * (old_height / height)
    columns = (torch.arange(width, device=device, dtype=torch.float64) + 0.5) * (old_width / width)
    resized = panoptic_seg[
        rows.long().clamp(max=old_height - 1)[:, None], columns.long().clamp(max=old_width - 1)[None, :]
    ]
    areas = torch.bincount(resized.flatten(), minlength=len(segments_info) + 1).tolist()
    kept, new_id = [], [0] * (len(segments_info) + 1)
    for segment in segments_info:
        if areas[segment["id"]]:
            new_id[segment["id"]] = len(kept) + 1
            kept.append({**segment, "id": len(kept) + 1, "area": areas[segment["id"]]})
    return torch.tensor(new_id, dtype=torch.int32, device=device)[resized.long()], kept
