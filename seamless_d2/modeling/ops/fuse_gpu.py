"""The fusion rule of ``modeling/fusion.py`` for GPUs, where launching a kernel per instance costs more than its work.

``fuse_on_gpu`` equals ``fuse_tensors``, pixel by pixel. Pixels that the same instances claim and that have the same
label share their fate: the GPU finds these groups, and the loop over instances sees a small table of them on the CPU.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .fuse_blocks import BLOCK, join_blocks, paste_all

# Pairs of an instance and a block that are added up together, which bounds the memory.
_TOGETHER = 1 << 14


@torch.no_grad()
def fuse_on_gpu(
    sem_seg: Tensor, boxes: Tensor, masks: Tensor, num_stuff: int, overlap_thresh: float, stuff_area_thresh: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what ``fuse_tensors`` computes; see there. The areas are on the CPU."""
    height, width = size = tuple(sem_seg.shape)
    instance, block, row_of, foreground = paste_all(size, boxes, masks)
    labels = sem_seg.flatten().long().clamp(max=num_stuff)
    # A pixel's number is the sum of random ones, for each instance that claims it and for its label. Of a million
    # different sums, two are equal by chance with a probability below 1e-6.
    numbers = _random_numbers(1 << (len(row_of) + num_stuff).bit_length(), sem_seg.device)
    sums = numbers.new_zeros((row_of.shape[1], BLOCK * BLOCK))
    for number, where, mine in zip(*(x.split(_TOGETHER) for x in (instance, block, foreground)), strict=True):
        sums.index_add_(0, where, mine * numbers[number, None])
    sums = join_blocks(sums.flatten(), size).flatten() + numbers[len(row_of) :][labels]
    groups, group, counts = sums.unique(return_inverse=True, return_counts=True)
    # Any pixel of a group tells who claims it.
    pixel = torch.zeros_like(groups).scatter_(0, group, torch.arange(len(sums), device=sums.device))
    y, x = pixel // width, pixel % width
    rows = row_of[:-1, y // BLOCK * -(-width // BLOCK) + x // BLOCK]
    claims = foreground[rows, y % BLOCK * BLOCK + x % BLOCK].cpu().numpy()
    counts, labels = torch.stack([counts, labels[pixel]]).cpu().numpy()
    owners, areas = _share_groups(claims, counts, overlap_thresh)
    is_free = owners == 0
    stuff_areas = np.bincount(labels[is_free], counts[is_free], num_stuff + 1)[:num_stuff].astype(np.int64)
    stuff_areas[(stuff_areas == 0) | (stuff_areas < stuff_area_thresh)] = 0
    ids = np.append(np.where(stuff_areas > 0, np.count_nonzero(areas) + np.cumsum(stuff_areas > 0), 0), 0)
    owners[is_free] = ids[labels[is_free]]
    panoptic_seg = torch.from_numpy(owners).to(sem_seg.device)[group].view(size)
    return panoptic_seg, torch.from_numpy(areas), torch.from_numpy(stuff_areas)


@lru_cache(maxsize=16)
def _random_numbers(count: int, device: torch.device) -> Tensor:
    """Return (count,) int64 random numbers, the same in every process."""
    return torch.randint(1 << 62, (count,), generator=torch.Generator().manual_seed(0)).to(device)


def _share_groups(claims: np.ndarray, counts: np.ndarray, overlap_thresh: float) -> tuple[np.ndarray, np.ndarray]:
    """Let instances claim groups of pixels, one after the other, unless too much of one is hidden.

    Args:
        claims: (N, G) bool, which instances claim which groups.
        counts: (G,) int64 pixels of the groups.
        overlap_thresh: See ``fuse_tensors``.

    Returns:
        (G,) int32 owner of each group, 0 for none, else 1, 2, ... among those that were kept; (N,) int64 pixels that
        each instance got, 0 if it is dropped.
    """
    owners, areas, count = np.zeros(len(counts), np.int32), np.zeros(len(claims), np.int64), 0
    group_of, starts = np.nonzero(claims)[1], np.concatenate([[0], np.cumsum(np.count_nonzero(claims, axis=1))])
    pixels = counts[group_of]
    for number, (start, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        own, own_pixels = group_of[start:end], pixels[start:end]
        is_free = owners[own] == 0
        area, free_area = int(own_pixels.sum()), int(own_pixels[is_free].sum())
        if free_area > 0 and (area - free_area) / area <= overlap_thresh:
            count += 1
            owners[own[is_free]], areas[number] = count, free_area
    return owners, areas
