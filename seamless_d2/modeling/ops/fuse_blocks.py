"""Instances claim their pixels block by block, without a loop over whole images: the form of exported models.

``claim_in_blocks`` equals ``claim_in_order`` of ``modeling/fusion.py``, pixel by pixel. Masks are only computed in the
blocks of 32x32 pixels that their boxes touch, and from instance to instance only those pixels are looked at that
several instances claim.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The side of a block, in pixels.
BLOCK = 32
Step = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def axis_weights(low: Tensor, high: Tensor, num_pixels: int, num_cells: int, first: Tensor | int = 0) -> Tensor:
    """Return the bilinear weights of mask cells at pixel centers along one axis.

    Beyond the outermost cell centers a mask fades to zero, as with zero padding.

    Args:
        low, high: (...) float32 ends of boxes along the axis, in pixels.
        num_pixels: The number of pixels.
        num_cells: The size of the mask.
        first: (...) the number of the first pixel.

    Returns:
        (..., num_pixels, num_cells) float32.
    """
    centers = torch.arange(num_pixels, dtype=torch.float32, device=low.device) + 0.5
    if isinstance(first, Tensor):
        centers = first[..., None] + centers
    index = (centers - low[..., None]) * (num_cells / (high - low))[..., None] - 0.5
    cells = torch.arange(num_cells, dtype=torch.float32, device=low.device)
    return (1 - (index[..., None] - cells).abs()).clamp(min=0)


@torch.no_grad()
def claim_in_blocks(
    size: tuple[int, int], boxes: Tensor, masks: Tensor, overlap_thresh: float
) -> tuple[Tensor, Tensor]:
    """Compute what ``claim_in_order`` computes; see there for arguments and results."""
    instance, block, row_of, foreground = paste_all(size, boxes, masks)
    spare = row_of.shape[1] - 1
    areas = row_of.new_zeros(row_of.shape[:1]).index_add(0, instance, foreground.sum(dim=1))
    claims = torch.zeros((spare + 1, BLOCK * BLOCK), dtype=torch.int32, device=boxes.device)
    claims = claims.index_put((block,), foreground.int(), accumulate=True)
    contested = torch.cat([(claims > 1).flatten().nonzero()[:, 0], block.new_full((1,), spare * BLOCK * BLOCK)])
    contested_block = contested // (BLOCK * BLOCK)
    contested_pixel = contested - contested_block * (BLOCK * BLOCK)
    padded = torch.cat([foreground, foreground.new_zeros((1, BLOCK * BLOCK))]).flatten()

    def step(owner: Tensor, count: Tensor, row_of_block: Tensor, area: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Let one instance claim its contested pixels that are free, unless too much of it is hidden."""
        row = row_of_block.index_select(0, contested_block)
        mine = padded.index_select(0, row * (BLOCK * BLOCK) + contested_pixel)
        free_area = area - (mine & (owner > 0)).sum()
        is_kept = is_visible(area, free_area, overlap_thresh)
        count = count + is_kept
        return torch.where(mine & (owner == 0) & is_kept, count, owner), count, free_area * is_kept

    owner, areas = _scan(step, claims.new_zeros(contested_block.shape), row_of, areas)
    ids = torch.where(areas > 0, (areas > 0).cumsum(0), 0).int()
    panoptic_seg = torch.zeros_like(claims).index_put((block,), foreground * ids[instance, None], accumulate=True)
    return join_blocks(panoptic_seg.flatten().index_copy(0, contested, owner), size), areas[:-1]


def is_visible(area: Tensor, free_area: Tensor, overlap_thresh: float) -> Tensor:
    """Return whether instances of ``area`` pixels, of which ``free_area`` are free, enter the map."""
    # In float64, as Python divides: an overlap of exactly the threshold must not be rounded above it.
    return (free_area > 0) & ((area - free_area).double() / area.clamp(min=1) <= overlap_thresh)


class Pasted(NamedTuple):
    """The foreground of N + 1 instances in B pairs of an instance and a block that it meets.

    Attributes:
        instance, block: (B,) int64 numbers of instances and blocks.
        row_of: (N + 1, blocks + 1) int64, where in ``foreground`` a pair is; B if the instance does not meet the block.
        foreground: (B, BLOCK * BLOCK) bool.
    """

    instance: Tensor
    block: Tensor
    row_of: Tensor
    foreground: Tensor


def paste_all(size: tuple[int, int], boxes: Tensor, masks: Tensor) -> Pasted:
    """Paste masks into a map of (height, width) ``size``.

    There is one more instance, which claims nothing, and one more block, which nobody claims: then no tensor is empty,
    which not every runtime could handle.
    """
    # Any box that meets a block will do.
    boxes = torch.cat([boxes, torch.arange(4, dtype=boxes.dtype, device=boxes.device)[None]])
    masks = torch.cat([masks, masks.new_zeros((1, *masks.shape[1:]))])
    down, across = ((length + BLOCK - 1) // BLOCK for length in size)
    meets = _find_blocks(boxes[:, 1], boxes[:, 3], down)[:, :, None]
    meets = meets & _find_blocks(boxes[:, 0], boxes[:, 2], across)[:, None, :]
    # One row of ``foreground`` for each instance and block that meet, and an empty one for all others.
    instance, y, x = meets.nonzero(as_tuple=True)
    meets = F.pad(meets.flatten(1), (0, 1))
    row_of = torch.where(meets, meets.flatten().cumsum(0).view_as(meets) - 1, instance.shape[0])
    foreground = _paste(boxes[instance], masks[instance], y * BLOCK, x * BLOCK, size)
    return Pasted(instance, y * across + x, row_of, foreground)


def join_blocks(blocks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the map of (height, width) ``size`` whose blocks, and one more, are given in one dimension."""
    down, across = ((length + BLOCK - 1) // BLOCK for length in size)
    whole = blocks[: down * across * BLOCK * BLOCK].view(down, across, BLOCK, BLOCK).permute(0, 2, 1, 3)
    whole = whole.reshape(down * BLOCK, across * BLOCK)
    if not torch.compiler.is_compiling():
        return whole[: size[0], : size[1]]
    # Whether a slice is the whole is a question that torch.export would answer once and for all.
    for axis, length in enumerate(size):
        whole = whole.index_select(axis, torch.arange(length, device=blocks.device))
    return whole


def _find_blocks(low: Tensor, high: Tensor, count: int) -> Tensor:
    """Return (N, count) bool: which blocks along an axis hold pixels of (N,) boxes."""
    number = torch.arange(count, device=low.device)
    low, high = low[:, None], high[:, None]
    return (low < high) & (number * BLOCK < high) & ((number + 1) * BLOCK > low)


def _paste(boxes: Tensor, masks: Tensor, row: Tensor, column: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, BLOCK * BLOCK) bool: the foreground of (B, h, w) masks in blocks that begin at (B,) rows and columns.

    Pixels outside the map, of (height, width) ``size``, are background.
    """
    with torch.autocast(masks.device.type, enabled=False):
        down = axis_weights(boxes[:, 1], boxes[:, 3], BLOCK, masks.shape[1], row)
        across = axis_weights(boxes[:, 0], boxes[:, 2], BLOCK, masks.shape[2], column)
        foreground = down @ masks @ across.mT > 0.5
    pixels = torch.arange(BLOCK, device=boxes.device)
    is_inside = ((row[:, None] + pixels) < size[0])[:, :, None] & ((column[:, None] + pixels) < size[1])[:, None, :]
    return (foreground & is_inside).flatten(1)


def _scan(step: Step, owner: Tensor, row_of: Tensor, areas: Tensor) -> tuple[Tensor, Tensor]:
    """Call ``step`` for each instance, one after the other; return the last owner and the visible area of each."""
    count = owner.new_zeros(())
    if torch.compiler.is_compiling():
        from torch._higher_order_ops.while_loop import while_loop

        numbers = torch.arange(areas.shape[0], device=areas.device)

        def is_unfinished(number: Tensor, *_: Tensor) -> Tensor:
            return number[0] < areas.shape[0]

        def body(number: Tensor, owner: Tensor, count: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
            row, area = (x.index_select(0, number)[0] for x in (row_of, areas))
            owner, count, area = step(owner, count, row, area)
            return number + 1, owner, count, torch.where(numbers == number, area, visible)

        start = areas.new_zeros(1), owner, count, torch.zeros_like(areas)
        _, owner, _, visible = while_loop(is_unfinished, body, start)
        return owner, visible
    visible = []
    for row, area in zip(row_of, areas, strict=True):
        owner, count, area = step(owner, count, row, area)
        visible.append(area)
    return owner, torch.stack(visible)
