"""Panoptic fusion (paper, section 4.4): instances by descending score, then stuff on the pixels that are left."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..structures.id_maps import SegmentInfo, nearest_positions, renumber
from .ops.fuse_blocks import axis_weights, is_visible
from .ops.fuse_cpu import fuse_on_cpu
from .ops.fuse_gpu import fuse_on_gpu

Claim = Callable[[tuple[int, int], Tensor, Tensor, float], tuple[Tensor, Tensor]]


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

    Instances enter by descending score (equal scores in input order) and keep the pixels that no earlier one holds. An
    instance of which more than ``overlap_thresh`` is already held is dropped. What remains free is stuff by its
    semantic label. A free pixel whose label is a thing class is void. No segment is ever without a pixel.

    Args:
        sem_seg: (H, W) int64 labels, stuff 0..S-1, then things S..C-1.
        boxes: (N, 4) float x0, y0, x1, y1 in pixels of that map.
        classes: (N,) int64 thing classes 0..T-1.
        scores: (N,) float in 0..1. An instance needs a score strictly above ``score_thresh``.
        mask_logits: (N, h, w) float logits of the predicted class over the box.
        num_stuff: The number S of stuff classes.
        score_thresh: See ``scores``.
        overlap_thresh: The largest share of an instance, in 0..1, that may be hidden.
        stuff_area_thresh: The least number of free pixels of a stuff segment.

    Returns:
        panoptic_seg: (H, W) int32, 0 is void, otherwise the id of a segment.
        segments_info: One dict per segment in the order of the ids 1..K: ``id``, ``isthing``, ``category_id`` (things
            0..T-1, stuff 0..S-1), ``area`` in pixels, and for things ``score`` and ``instance_id`` (row of the input).
    """
    order = find_order(scores, score_thresh)
    probabilities = mask_logits[order].detach().float().sigmoid()
    fuse = fuse_on_gpu if sem_seg.is_cuda else fuse_on_cpu
    panoptic_seg, thing_areas, stuff_areas = fuse(
        sem_seg, boxes[order].float(), probabilities, num_stuff, overlap_thresh, stuff_area_thresh
    )
    segments_info: list[SegmentInfo] = []

    def add(area: int, **info: Any) -> None:
        if area:
            segments_info.append({"id": len(segments_info) + 1, **info, "area": area})

    things = zip(order.tolist(), scores[order].tolist(), classes[order].tolist(), thing_areas.tolist(), strict=True)
    for row, score, category, area in things:
        add(area, isthing=True, category_id=category, score=score, instance_id=row)
    for category, area in enumerate(stuff_areas.tolist()):
        add(area, isthing=False, category_id=category)
    return panoptic_seg, segments_info


def find_order(scores: Tensor, score_thresh: float) -> Tensor:
    """Return the rows of (N,) scores strictly above ``score_thresh``, highest first, equal ones in input order."""
    order = torch.argsort(scores, descending=True, stable=True)
    return order[scores[order] > score_thresh]


@torch.no_grad()
def fuse_tensors(
    sem_seg: Tensor,
    boxes: Tensor,
    masks: Tensor,
    num_stuff: int,
    overlap_thresh: float,
    stuff_area_thresh: int,
    claim: Claim | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """State the rule of ``fuse_panoptic`` in tensors alone, without waiting for the device.

    Args:
        sem_seg: (H, W) integer labels, stuff 0..S-1, then things.
        boxes: (N, 4) float32 x0, y0, x1, y1 in pixels of that map, by descending score.
        masks: (N, h, w) float32 probabilities over the boxes; all zero excludes an instance.
        num_stuff: The number S of stuff classes.
        overlap_thresh: The largest share of an instance that may be hidden, in 0..1.
        stuff_area_thresh: The least number of free pixels of a stuff segment.
        claim: How the instances claim their pixels; default ``claim_in_order``.

    Returns:
        (H, W) int32 map, 0 is void, then ids of the kept instances in their order and of the stuff segments by class;
        (N,) int64 pixels of each instance and (S,) int64 pixels of each stuff class, 0 if it is no segment.
    """
    panoptic_seg, thing_areas = (claim or claim_in_order)(sem_seg.shape, boxes, masks, overlap_thresh)
    # Thing labels and the pixels of instances share a bin after the stuff classes; it has no segment.
    labels = torch.where(panoptic_seg == 0, sem_seg.long().clamp(max=num_stuff), num_stuff)
    areas = torch.zeros(num_stuff + 1, dtype=torch.int64, device=sem_seg.device)
    areas = areas.scatter_add(0, labels.flatten(), torch.ones_like(labels).flatten())
    is_kept = is_stuff_segment(areas[:num_stuff], stuff_area_thresh)
    ids = torch.where(is_kept, (thing_areas > 0).sum() + is_kept.cumsum(0), 0).int()
    panoptic_seg = panoptic_seg + torch.cat([ids, ids.new_zeros(1)])[labels]
    return panoptic_seg, thing_areas, areas[:num_stuff] * is_kept


def claim_in_order(size: tuple[int, int], boxes: Tensor, masks: Tensor, overlap_thresh: float) -> tuple[Tensor, Tensor]:
    """Let instances claim the free pixels of their masks, one after the other, unless too much of one is hidden.

    Args:
        size: (height, width) of the map.
        boxes, masks, overlap_thresh: See ``fuse_tensors``.

    Returns:
        (H, W) int32 map, 0 is free, otherwise the number 1, 2, ... of an instance among those that were kept, and the
        (N,) int64 pixels that each instance got, 0 if it is dropped.
    """
    panoptic_seg = torch.zeros(tuple(size), dtype=torch.int32, device=boxes.device)
    count = panoptic_seg.new_zeros(())
    areas = [torch.zeros((0,), dtype=torch.int64, device=boxes.device)]
    for box, mask in zip(boxes, masks, strict=True):
        panoptic_seg, count, area = claim_pixels(panoptic_seg, count, box, mask, overlap_thresh)
        areas.append(area[None])
    return panoptic_seg, torch.cat(areas)


def claim_pixels(
    panoptic_seg: Tensor, count: Tensor, box: Tensor, mask: Tensor, overlap_thresh: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Let one instance claim the free pixels of its mask, unless too much of it is hidden.

    Args:
        panoptic_seg: (H, W) int32 map so far, 0 is free.
        count: Scalar int32, the number of instances in it.
        box: (4,) float32 x0, y0, x1, y1.
        mask: (h, w) float32 probabilities over the box.
        overlap_thresh: See ``fuse_tensors``.

    Returns:
        The new map, the new count, and the scalar int64 number of pixels that the instance got (0 if it is dropped).
    """
    with torch.autocast(mask.device.type, enabled=False):
        rows = axis_weights(box[1], box[3], panoptic_seg.shape[0], mask.shape[0])
        columns = axis_weights(box[0], box[2], panoptic_seg.shape[1], mask.shape[1])
        foreground = rows @ mask @ columns.T > 0.5
    free = foreground & (panoptic_seg == 0)
    area, free_area = foreground.sum(), free.sum()
    is_kept = is_visible(area, free_area, overlap_thresh)
    count = count + is_kept
    return torch.where(free & is_kept, count, panoptic_seg), count, free_area * is_kept


def is_stuff_segment(area: Any, stuff_area_thresh: float) -> Any:
    """Return whether a stuff class with ``area`` free pixels (number, array or tensor) becomes a segment."""
    return (area > 0) & (area >= stuff_area_thresh)


def resize_panoptic(
    panoptic_seg: Tensor, segments_info: list[SegmentInfo], height: int, width: int
) -> tuple[Tensor, list[SegmentInfo]]:
    """Bring a panoptic map to another size by nearest sampling at pixel centres.

    Areas are counted again; segments that vanish are dropped and the ids made consecutive, in the old order.

    Args:
        panoptic_seg: (h, w) int32, 0 is void, otherwise ids 1..K.
        segments_info: The K segments in the order of their ids.
        height, width: The new size in pixels.

    Returns:
        (height, width) int32 map and new dicts.
    """
    old_height, old_width = panoptic_seg.shape
    if (height, width) == (old_height, old_width):
        return panoptic_seg, segments_info
    device = panoptic_seg.device
    rows, columns = (
        torch.from_numpy(nearest_positions(*sizes)).to(device) for sizes in ((old_height, height), (old_width, width))
    )
    resized = panoptic_seg[rows[:, None], columns[None, :]]
    areas = torch.bincount(resized.flatten(), minlength=len(segments_info) + 1).tolist()
    new_id, kept = renumber(areas, segments_info)
    return torch.tensor(new_id, dtype=torch.int32, device=device)[resized.long()], kept
