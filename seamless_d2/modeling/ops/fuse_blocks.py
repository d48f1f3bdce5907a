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
    instance, _, row_of, foreground = paste_all(size, boxes, masks)
    areas = foreground.sum(dim=1).index_select(0, row_of.flatten()).view_as(row_of).sum(dim=1)
    counts = (row_of > 0).sum(dim=0)
    # The pairs of a block lie side by side.
    columns, (num_pairs, num_blocks) = foreground.T.contiguous(), (foreground.shape[0], counts.shape[0])
    claims = _sum_by_block(columns.int(), counts)
    contested = torch.cat([(claims > 1).flatten().nonzero()[:, 0], counts.new_full((1,), num_blocks - 1)])
    contested_pixel = contested // num_blocks
    contested_block = contested - contested_pixel * num_blocks
    flat, first = columns.flatten(), contested_pixel * num_pairs

    def step(owner: Tensor, count: Tensor, row_of_block: Tensor, area: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Let one instance claim its contested pixels that are free, unless too much of it is hidden."""
        row = row_of_block.index_select(0, contested_block)
        mine = flat.index_select(0, first + row)
        free_area = area - (mine & (owner > 0)).sum()
        is_kept = is_visible(area, free_area, overlap_thresh)
        count = count + is_kept
        return torch.where(mine & (owner == 0) & is_kept, count, owner), count, free_area * is_kept

    owner, areas = _scan(step, claims.new_zeros(contested_block.shape), row_of, areas)
    ids = torch.where(areas > 0, (areas > 0).cumsum(0), 0).int()
    panoptic_seg = _sum_by_block(columns * ids[instance], counts).flatten().index_copy(0, contested, owner)
    return join_blocks(panoptic_seg.view_as(claims).T.flatten(), size), areas[:-1]


def _sum_by_block(values: Tensor, counts: Tensor) -> Tensor:
    """Add up what the pairs of each block have, without a scatter.

    ONNX Runtime scatters into rows by several threads, which lose sums where they meet in one.

    Args:
        values: (P, B + 1) int32 in the order of ``Pasted``.
        counts: (blocks + 1,) int64 numbers of pairs of each block.

    Returns:
        (P, blocks + 1) int32.
    """
    sums, ends = values.cumsum(1, dtype=torch.int32), counts.cumsum(0)
    return sums.index_select(1, ends) - sums.index_select(1, ends - counts)


def is_visible(area: Tensor, free_area: Tensor, overlap_thresh: float) -> Tensor:
    """Return whether instances of ``area`` pixels, of which ``free_area`` are free, enter the map."""
    # In float64, as Python divides: an overlap of exactly the threshold must not be rounded above it.
    return (free_area > 0) & ((area - free_area).double() / area.clamp(min=1) <= overlap_thresh)


class Pasted(NamedTuple):
    """The foreground of N + 1 instances in B pairs of an instance and a block that it meets, block after block.

    Before the pairs comes a row of the last instance and the last block, which has no foreground.

    Attributes:
        instance, block: (B + 1,) int64 numbers of instances and blocks.
        row_of: (N + 1, blocks + 1) int64, where in ``foreground`` a pair is; 0 if the instance does not meet the block.
        foreground: (B + 1, BLOCK * BLOCK) bool.
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
    meets = _find_blocks(boxes[:, 1], boxes[:, 3], down).T[:, None, :]
    meets = (meets & _find_blocks(boxes[:, 0], boxes[:, 2], across).T[None, :, :]).flatten(0, 1)
    meets = F.pad(meets, (0, 0, 0, 1))
    row_of = torch.where(meets, meets.flatten().cumsum(0).view_as(meets), 0).T
    block, instance = meets.nonzero(as_tuple=True)
    y = block // across
    foreground = _paste(boxes[instance], masks[instance], y * BLOCK, (block - y * across) * BLOCK, size)
    first = (block.new_full((1,), count - 1) for count in row_of.shape)
    instance, block = (torch.cat(pair) for pair in zip(first, (instance, block), strict=True))
    return Pasted(instance, block, row_of, F.pad(foreground, (0, 0, 1, 0)))


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
