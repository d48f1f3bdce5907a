"""The fusion rule of ``modeling/fusion.py`` in NumPy, several times faster on CPUs than tensors of one pixel each.

``fuse_on_cpu`` equals ``fuse_tensors``, pixel by pixel. It looks at an instance inside its box only, makes the weights
of many instances together, and handles stuff in bytes and runs of equal labels.
"""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

# Instances whose weights are made together.
_TOGETHER = 64
# Pixels that are worked on together, so that they stay in the processor's cache.
_BAND_PIXELS = 1 << 17
Window = tuple[int, int, int, int]


def fuse_on_cpu(
    sem_seg: Tensor, boxes: Tensor, masks: Tensor, num_stuff: int, overlap_thresh: float, stuff_area_thresh: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what ``fuse_tensors`` computes; see there for arguments and results."""
    # Products of masks keep their precision; entering the context once costs less than once per instance.
    with torch.autocast("cpu", enabled=False):
        panoptic_seg, held, thing_areas = _claim_pixels(tuple(sem_seg.shape), boxes.numpy(), masks, overlap_thresh)
    num_things = sum(area > 0 for area in thing_areas)
    stuff_areas = _add_stuff(panoptic_seg, held, sem_seg.numpy(), num_things, num_stuff, stuff_area_thresh)
    return torch.from_numpy(panoptic_seg), torch.tensor(thing_areas, dtype=torch.int64), torch.from_numpy(stuff_areas)


def _claim_pixels(
    size: tuple[int, int], boxes: np.ndarray, masks: Tensor, overlap_thresh: float
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return the (H, W) int32 map of the kept instances, which pixels they hold, and the pixels of every instance."""
    panoptic_seg = np.zeros(size, np.int32)
    held = np.zeros(size, bool)
    areas, count = [0] * len(boxes), 0
    windows = [(k, window) for k, box in enumerate(boxes.tolist()) if (window := _find_window(box, size)) is not None]
    for (k, (x0, y0, x1, y1)), rows, columns in _make_weights(windows, boxes, masks.shape[1:]):
        # PyTorch's product shares its threads with the network; NumPy's would compete with them.
        foreground = (torch.from_numpy(rows) @ masks[k] @ torch.from_numpy(columns).T).numpy() > 0.5
        held_here = held[y0:y1, x0:x1]
        free = np.greater(foreground, held_here)
        area, free_area = int(np.count_nonzero(foreground)), int(np.count_nonzero(free))
        if free_area > 0 and (area - free_area) / area <= overlap_thresh:
            count += 1
            areas[k] = free_area
            np.copyto(panoptic_seg[y0:y1, x0:x1], np.int32(count), where=free)
            np.logical_or(held_here, free, out=held_here)
    return panoptic_seg, held, areas


def _find_window(box: list[float], size: tuple[int, int]) -> Window | None:
    """Return x0, y0, x1, y1 of the pixels whose center can lie in a box, or None if there are none."""
    bx0, by0, bx1, by1 = box
    x0, y0 = max(int(bx0), 0), max(int(by0), 0)
    x1, y1 = min(int(bx1) + 1, size[1]), min(int(by1) + 1, size[0])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 and bx0 < bx1 and by0 < by1 else None


def _make_weights(
    windows: list[tuple[int, Window]], boxes: np.ndarray, cells: tuple[int, int]
) -> Iterator[tuple[tuple[int, Window], np.ndarray, np.ndarray]]:
    """Yield each instance with its window, and the ``axis_weights`` of the window's rows and columns."""
    for start in range(0, len(windows), _TOGETHER):
        group = windows[start : start + _TOGETHER]
        corners, ends = np.array([w for _, w in group]), boxes[[k for k, _ in group]]
        rows, columns = (
            _axis_weights(ends[:, i], ends[:, i + 2], corners[:, i], corners[:, i + 2], cells[1 - i]) for i in (1, 0)
        )
        yield from zip(group, rows, columns, strict=True)


def _axis_weights(
    low: np.ndarray, high: np.ndarray, first: np.ndarray, last: np.ndarray, num_cells: int
) -> list[np.ndarray]:
    """Return ``axis_weights`` of N boxes (N,) low..high at their pixels (N,) first..last-1."""
    counts = last - first
    ends = np.cumsum(counts)
    box = np.repeat(np.arange(len(counts)), counts)
    pixels = (np.arange(len(box)) - np.repeat(ends - counts - first, counts)).astype(np.float32) + np.float32(0.5)
    scale = np.float32(num_cells) / (high - low)
    index = (pixels - low[box]) * scale[box] - np.float32(0.5)
    weights = index[:, None] - np.arange(num_cells, dtype=np.float32)
    np.abs(weights, out=weights)
    np.subtract(1, weights, out=weights)
    np.maximum(weights, 0, out=weights)
    return np.split(weights, ends[:-1])


def _add_stuff(
    panoptic_seg: np.ndarray,
    held: np.ndarray,
    sem_seg: np.ndarray,
    num_things: int,
    num_stuff: int,
    stuff_area_thresh: int,
) -> np.ndarray:
    """Add the stuff segments to the map in place; return (S,) int64 pixels of each stuff class, 0 if it is none."""
    # Labels in a byte are looked up many times faster than labels of 8 bytes.
    dtype = np.uint8 if num_stuff < 256 else np.int64
    labels = np.empty(panoptic_seg.shape, dtype)
    rows = max(1, _BAND_PIXELS // max(1, panoptic_seg.shape[1]))
    bands = [slice(top, top + rows) for top in range(0, len(panoptic_seg), rows)]
    for band in bands:
        np.minimum(sem_seg[band], num_stuff, out=labels[band], casting="unsafe")
        np.copyto(labels[band], dtype(num_stuff), where=held[band])
    # Labels rarely change from one pixel to the next: runs are counted, not pixels.
    flat = labels.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])[: flat.size]
    lengths = np.diff(starts, append=flat.size)
    areas = np.bincount(flat[starts], weights=lengths, minlength=num_stuff + 1).astype(np.int64)[:num_stuff]
    areas[(areas == 0) | (areas < stuff_area_thresh)] = 0
    table = np.zeros(max(num_stuff + 1, 256), np.int32)
    table[:num_stuff] = np.where(areas > 0, num_things + np.cumsum(areas > 0), 0)
    for band in bands:
        panoptic_seg[band] += cv2.LUT(labels[band], table) if dtype is np.uint8 else table[labels[band]]
    return areas
