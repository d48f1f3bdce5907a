"""Instance masks of 28x28 cells brought to the pixels of their boxes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Pixels of boxes that are looked at together on a GPU: bounds the temporaries, about 60 bytes each.
_MAX_PIXELS = 1 << 22


def axis_weights(low: np.ndarray, high: np.ndarray, first: np.ndarray, last: np.ndarray, size: int) -> list[np.ndarray]:
    """Bilinear weights along one axis of masks of ``size`` cells that span low..high, at pixel centres first..last-1.

    Beyond the outermost cell centres a mask fades to zero, as with zero padding.

    Args:
        low, high: (N,) float32.
        first, last: (N,) integers.
        size: cells.

    Returns:
        N arrays (last - first, size); made together, which costs a fraction of making them one by one.
    """
    counts = last - first
    ends = np.cumsum(counts)
    mask = np.repeat(np.arange(len(counts)), counts)
    pixels = (np.arange(len(mask)) - np.repeat(ends - counts - first, counts)).astype(np.float32) + np.float32(0.5)
    scale = np.float32(size) / (high - low)
    index = (pixels - low[mask]) * scale[mask] - np.float32(0.5)
    weights = index[:, None] - np.arange(size, dtype=np.float32)
    np.abs(weights, out=weights)
    np.subtract(1, weights, out=weights)
    np.maximum(weights, 0, out=weights)
    return np.split(weights, ends[:-1])


def paste_mask(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Foreground pixels of one mask inside a window of the image.

    Args:
        mask: (h, w) float32 probabilities over the box.
        rows: (H, h) ``axis_weights`` of the window's rows.
        columns: (W, w) of its columns.

    Returns:
        (H, W) bool: bilinear probability strictly above one half at the pixel's centre.
    """
    # PyTorch's product shares its threads with the network; NumPy's would compete with them.
    with torch.autocast("cpu", enabled=False):
        product = torch.from_numpy(rows) @ torch.from_numpy(mask) @ torch.from_numpy(columns).T
    return product.numpy() > 0.5


@dataclass
class Pasted:
    """Foreground pixels of many masks: ``instance`` and ``pixel`` (row-major index), both (M,) int64."""

    instance: Tensor
    pixel: Tensor


def paste_all(
    masks: Tensor, boxes: Tensor, windows: list[tuple[int, int, int, int] | None], image_width: int
) -> Pasted:
    """``paste_mask`` of all masks on their device, in a few calls.

    Args:
        masks: (N, h, w) float probabilities.
        boxes: (N, 4) float x0, y0, x1, y1.
        windows: of each mask, see ``paste_mask``; None = nowhere.
        image_width: of the map that pixels are numbered in.
    """
    device = masks.device
    _, height, width = masks.shape
    areas = [0 if w is None else (w[2] - w[0]) * (w[3] - w[1]) for w in windows]
    corners = torch.tensor([w or (0, 0, 1, 1) for w in windows], dtype=torch.int64).view(-1, 4).to(device)
    # A frame of zeros: neighbours outside the mask weigh nothing.
    padded = torch.nn.functional.pad(masks, (1, 1, 1, 1)).flatten()
    scale = torch.tensor([width, height], device=device) / (boxes[:, 2:] - boxes[:, :2])
    instances, pixels = [], []
    for first, last in _portions(areas):
        counts = torch.tensor(areas[first:last], device=device)
        total = sum(areas[first:last])
        instance = torch.repeat_interleave(torch.arange(first, last, device=device), counts, output_size=total)
        start = (counts.cumsum(0) - counts)[instance - first]
        offset = torch.arange(total, device=device) - start
        corner = corners[instance]
        window_width = corner[:, 2] - corner[:, 0]
        y = corner[:, 1] + torch.div(offset, window_width, rounding_mode="floor")
        x = corner[:, 0] + offset % window_width
        probability = 0.0
        at_x = (x.float() + 0.5 - boxes[instance, 0]) * scale[instance, 0] - 0.5
        at_y = (y.float() + 0.5 - boxes[instance, 1]) * scale[instance, 1] - 0.5
        base_x, base_y = at_x.floor(), at_y.floor()
        for dy in (0, 1):
            cell_y = (base_y.long() + dy + 1).clamp_(0, height + 1)
            weight_y = 1 - (at_y - base_y - dy).abs()
            for dx in (0, 1):
                cell_x = (base_x.long() + dx + 1).clamp_(0, width + 1)
                weight = weight_y * (1 - (at_x - base_x - dx).abs())
                cell = (instance * (height + 2) + cell_y) * (width + 2) + cell_x
                probability = probability + weight * padded[cell]
        foreground = (probability > 0.5).nonzero()[:, 0]
        instances.append(instance[foreground])
        pixels.append(y[foreground] * image_width + x[foreground])
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    return Pasted(torch.cat([empty, *instances]), torch.cat([empty, *pixels]))


def _portions(areas: list[int]) -> list[tuple[int, int]]:
    """Runs of instances of at most ``_MAX_PIXELS`` pixels together (a larger instance is alone)."""
    portions, first, total = [], 0, 0
    for k, area in enumerate(areas):
        if total and total + area > _MAX_PIXELS:
            portions.append((first, k))
            first, total = k, 0
        total += area
    return [*portions, (first, len(areas))] if total else portions
