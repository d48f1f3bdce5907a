"""The semantic loss over the hardest pixels (paper, equation 1), in a fraction of the usual memory."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .upsample import find_neighbors, interpolated_band

# Scores that exist at full resolution at a time: 8 MB in float32, which stay in the cache.
_BAND_SCORES = 1 << 21
Size = tuple[int, int]


def hard_pixel_loss(logits: Tensor, target: Tensor, padded_size: Size, ignore_value: int, fraction: float) -> Tensor:
    """Compute the cross entropy of interpolated scores, averaged over the hardest pixels of one image.

    This is the loss of Rota Bulo et al. (CVPR 2017), and equals ``interpolate`` + ``cross_entropy`` + ``topk`` + mean.
    Scores at full resolution exist for some rows at a time only, and are computed again in the backward pass; what is
    kept is one loss per pixel.

    Args:
        logits: (1, C, h, w) float.
        target: (H, W) int64 labels 0..C-1 or ``ignore_value``. Ignored pixels have loss 0 but count as pixels.
        padded_size: The (height, width) that the logits are brought to bilinearly; ``target`` is its top left part.
        ignore_value: The label without loss.
        fraction: The share of the pixels that is kept, in (0, 1], rounded up to whole pixels.

    Returns:
        The loss, a scalar.
    """
    losses = _PixelLosses.apply(logits, target, tuple(padded_size), ignore_value).flatten()
    if fraction < 1:
        losses = losses.topk(math.ceil(losses.numel() * fraction), sorted=False).values
    return losses.mean()


class _PixelLosses(torch.autograd.Function):
    """(H, W) float32 cross entropy of every pixel.

    Results and gradients are written into tensors that exist from the start: small results between large temporaries
    would leave holes in the heap that add up to what is saved.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, target: Tensor, padded_size: Size, ignore_value: int) -> Tensor:
        """Compute the loss of each pixel; the arguments are those of ``hard_pixel_loss``."""
        ctx.save_for_backward(logits, target)
        ctx.padded_size, ctx.ignore_value = padded_size, ignore_value
        losses = torch.empty(target.shape, dtype=torch.float32, device=logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            for band, _, scores in _bands(logits, target.shape, padded_size):
                scores = scores[None, :, :, : target.shape[1]]
                losses[band] = F.cross_entropy(scores, target[None, band], ignore_index=ignore_value, reduction="none")[
                    0
                ]
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Softmax minus one hot, weighted, and brought back through the interpolation."""
        logits, target = ctx.saved_tensors
        width, (_, count, _, source_width) = target.shape[1], logits.shape
        total = torch.zeros(logits.shape[1:], dtype=torch.float32, device=logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            for band, (top, bottom, down), scores in _bands(logits, target.shape, ctx.padded_size):
                valid = target[band] != ctx.ignore_value
                weight = grad[band] * valid
                part = scores[:, :, :width].softmax(dim=0).mul_(weight)
                part.scatter_add_(0, torch.where(valid, target[band], 0)[None], -weight[None])
                part = F.pad(part, (0, scores.shape[2] - width)) if width < scores.shape[2] else part
                rows = part.shape[1]
                part = torch.ops.aten.upsample_bilinear2d_backward(
                    part[None], [rows, scores.shape[2]], [1, count, rows, source_width], False
                )[0]
                lower = part * down[None, :, None]
                total.index_add_(1, bottom, lower)
                total.index_add_(1, top, part.sub_(lower))
        return total[None].to(logits.dtype), None, None, None


def _bands(logits: Tensor, size: Size, padded_size: Size) -> Iterator[tuple[slice, tuple[Tensor, ...], Tensor]]:
    """Yield rows of the result, their ``find_neighbors``, and their (C, rows, padded width) float32 scores."""
    places = find_neighbors(logits.shape[-2], padded_size[0], size[0], logits.device)
    rows = max(1, _BAND_SCORES // (logits.shape[1] * padded_size[1]))
    for first in range(0, size[0], rows):
        band = slice(first, first + rows)
        here = tuple(t[band] for t in places)
        yield band, here, interpolated_band(logits[0], *here, padded_size[1])
