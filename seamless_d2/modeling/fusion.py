"""Panoptic fusion (paper, section 4.4): instances by descending score, then stuff on the pixels that are left."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from .paste import Pasted, axis_weights, paste_all, paste_mask

SegmentInfo = dict[str, Any]


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
    boxes = boxes.float()
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[scores[order] > score_thresh]
    # One transfer to the host for all instances; the masks stay where they are.
    host = [t[order].tolist() for t in (boxes, scores, classes)]
    masks = mask_logits[order].detach().float().sigmoid()
    if sem_seg.is_cuda:
        panoptic_seg, areas = _claim_in_rounds(sem_seg.shape, masks, boxes[order], host[0], overlap_thresh)
    else:
        panoptic_seg, areas = _claim_in_turn(sem_seg.shape, masks, host[0], overlap_thresh)
    segments_info: list[SegmentInfo] = []
    for instance, score, category, area in zip(order.tolist(), *host[1:], areas, strict=True):
        if area:
            segments_info.append(
                {
                    "id": len(segments_info) + 1,
                    "isthing": True,
                    "category_id": category,
                    "area": area,
                    "score": score,
                    "instance_id": instance,
                }
            )
    add_stuff = _add_stuff if sem_seg.is_cuda or num_stuff > _MAX_BYTE else _add_stuff_on_cpu
    return add_stuff(panoptic_seg, segments_info, sem_seg, num_stuff, stuff_area_thresh), segments_info


# Instances whose weights are made together.
_TOGETHER = 64
# Labels in a byte: the last value is for what is no stuff.
_MAX_BYTE = 255


def _window(box: list[float], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """x0, y0, x1, y1 of the pixels whose centre can lie in a box; None where there are none."""
    bx0, by0, bx1, by1 = box
    x0, y0 = max(int(bx0), 0), max(int(by0), 0)
    x1, y1 = min(int(bx1) + 1, size[1]), min(int(by1) + 1, size[0])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 and bx0 < bx1 and by0 < by1 else None


def _claim_in_turn(
    size: tuple[int, int], masks: Tensor, boxes: list[list[float]], overlap_thresh: float
) -> tuple[Tensor, list[int]]:
    """Instances one after the other, each inside its box only. NumPy: a fifth of the cost per call of small tensors.

    Returns:
        (H, W) int32 map of ids 1..K in the order of those kept, and the pixels of every instance (0 = dropped).
    """
    panoptic_seg = np.zeros(size, np.int32)
    held = np.zeros(size, bool)
    areas, kept = [0] * len(boxes), 0
    windows = [(k, window) for k, box in enumerate(boxes) if (window := _window(box, size)) is not None]
    probabilities = masks.numpy()
    for (k, (x0, y0, x1, y1)), down, across in _with_weights(windows, boxes, masks.shape[1:]):
        foreground = paste_mask(probabilities[k], down, across)
        held_here = held[y0:y1, x0:x1]
        free = np.greater(foreground, held_here)
        area, free_area = int(np.count_nonzero(foreground)), int(np.count_nonzero(free))
        if free_area > 0 and (area - free_area) / area <= overlap_thresh:
            kept += 1
            areas[k] = free_area
            np.copyto(panoptic_seg[y0:y1, x0:x1], np.int32(kept), where=free)
            np.logical_or(held_here, free, out=held_here)
    return torch.from_numpy(panoptic_seg), areas


def _with_weights(
    windows: list[tuple[int, tuple[int, int, int, int]]], boxes: list[list[float]], cells: tuple[int, int]
) -> Iterator[tuple[tuple[int, tuple[int, int, int, int]], np.ndarray, np.ndarray]]:
    """Each instance and its window with the ``axis_weights`` of its rows and columns."""
    for start in range(0, len(windows), _TOGETHER):
        group = windows[start : start + _TOGETHER]
        corners, places = np.array([w for _, w in group]), np.array([boxes[k] for k, _ in group], np.float32)
        rows, columns = (
            axis_weights(places[:, i], places[:, i + 2], corners[:, i], corners[:, i + 2], cells[1 - i]) for i in (1, 0)
        )
        yield from zip(group, rows, columns, strict=True)


def _claim_in_rounds(
    size: tuple[int, int], masks: Tensor, device_boxes: Tensor, boxes: list[list[float]], overlap_thresh: float
) -> tuple[Tensor, list[int]]:
    """The same for all instances at once, without waiting for the device after each of them.

    Whether an instance is kept depends only on better ones. Start with all kept; in every round each pixel goes to the
    best kept instance that covers it, and every instance is judged anew. What is right for the first k stays right and
    makes the next one right, so this ends, and ends with what the turns give; a handful of rounds suffices in practice.
    """
    windows = [_window(box, size) for box in boxes]
    device, count = masks.device, len(boxes)
    pasted: Pasted = paste_all(masks, device_boxes, windows, size[1])
    area = torch.bincount(pasted.instance, minlength=count)
    kept = area > 0
    # One more instance for pixels that nobody holds.
    holder = torch.empty(size[0] * size[1], dtype=torch.int32, device=device)
    while True:
        holder.fill_(count)
        candidate = torch.where(kept[pasted.instance], pasted.instance, count).int()
        holder.scatter_reduce_(0, pasted.pixel, candidate, "amin")
        free = torch.bincount(pasted.instance[holder[pasted.pixel] >= pasted.instance], minlength=count)
        # In float64, as Python divides: an overlap of exactly the threshold must not be rounded above it.
        judged = (free > 0) & ((area - free).double() / area.clamp(min=1) <= overlap_thresh)
        done = torch.equal(judged, kept)  # the one wait of a round
        kept = judged
        if done:
            break
    ids = torch.cat([torch.where(kept, kept.cumsum(0), 0), kept.new_zeros(1, dtype=torch.int64)]).int()
    return ids[holder.long()].view(size), torch.where(kept, free, 0).tolist()


def _name_stuff(areas: list[int], segments_info: list[SegmentInfo], stuff_area_thresh: int) -> list[int]:
    """Append the stuff segments that are large enough; returns the id of each stuff class, 0 = none."""
    segment_of_label = [0] * len(areas)
    for category, area in enumerate(areas):
        if area > 0 and area >= stuff_area_thresh:
            segment_of_label[category] = segment = len(segments_info) + 1
            segments_info.append({"id": segment, "isthing": False, "category_id": category, "area": area})
    return segment_of_label


def _add_stuff(
    panoptic_seg: Tensor, segments_info: list[SegmentInfo], sem_seg: Tensor, num_stuff: int, stuff_area_thresh: int
) -> Tensor:
    """Stuff on the pixels that are left."""
    # Thing labels and pixels of instances share a bin after the stuff classes; its segment is 0.
    labels = torch.where(panoptic_seg == 0, sem_seg.long().clamp(max=num_stuff), num_stuff)
    areas = torch.bincount(labels.flatten(), minlength=num_stuff + 1).tolist()
    segment_of_label = [*_name_stuff(areas[:num_stuff], segments_info, stuff_area_thresh), 0]
    table = torch.tensor(segment_of_label, dtype=torch.int32, device=sem_seg.device)
    return panoptic_seg.add_(table[labels])


def _add_stuff_on_cpu(
    panoptic_seg: Tensor, segments_info: list[SegmentInfo], sem_seg: Tensor, num_stuff: int, stuff_area_thresh: int
) -> Tensor:
    """The same in bytes, which are looked up many times faster than labels of 8 bytes."""
    ids, semantic = panoptic_seg.numpy(), sem_seg.numpy()
    labels = np.empty(ids.shape, np.uint8)
    # In bands that stay in the cache.
    rows = max(1, _BAND_PIXELS // max(1, ids.shape[1]))
    for top in range(0, len(ids), rows):
        band = labels[top : top + rows]
        np.minimum(semantic[top : top + rows], num_stuff, out=band, casting="unsafe")
        np.copyto(band, np.uint8(num_stuff), where=ids[top : top + rows] != 0)
    # Labels change rarely from one pixel to the next: runs are counted, not pixels.
    flat = labels.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size)
    counts = np.bincount(flat[starts], weights=lengths, minlength=_MAX_BYTE + 1).astype(np.int64)
    segment_of_label = _name_stuff(counts[:num_stuff].tolist(), segments_info, stuff_area_thresh)
    table = np.zeros(_MAX_BYTE + 1, np.int32)
    table[:num_stuff] = segment_of_label
    for top in range(0, len(ids), rows):
        band = ids[top : top + rows]
        band += cv2.LUT(labels[top : top + rows], table)
    return panoptic_seg


_BAND_PIXELS = 1 << 17


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
