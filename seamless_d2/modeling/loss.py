"""The semantic loss over the hardest pixels (paper, equation 1), in a fraction of the usual memory."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .upsample import interpolated_band, neighbours

# Scores that exist at full resolution at a time: 32 MB in float32.
_BAND_SCORES = 1 << 23


def hard_pixel_loss(
    logits: Tensor, target: Tensor, padded_size: tuple[int, int], ignore_value: int, fraction: float
) -> Tensor:
    """Cross entropy of interpolated scores, averaged over the hardest pixels of one image (Rota Bulo et al. 2017).

    Scores at full resolution are made for some rows at a time, and made again in the backward pass: what is kept is one
    loss per pixel.

    Args:
        logits: (1, C, h, w) float.
        target: (H, W) int64, 0..C-1 or ``ignore_value``; ignored pixels have loss 0 but count as pixels.
        padded_size: size that the logits are brought to (bilinear); the target is its part at the top left.
        ignore_value: label without loss.
        fraction: share of the pixels that are kept, in (0, 1]; rounded up to whole pixels.

    Returns:
        Scalar.
    """
    losses = pixel_losses(logits, target, padded_size, ignore_value).flatten()
    if fraction < 1:
        losses = losses.topk(math.ceil(losses.numel() * fraction), sorted=False).values
    return losses.mean()


def pixel_losses(logits: Tensor, target: Tensor, padded_size: tuple[int, int], ignore_value: int) -> Tensor:
    """(H, W) float32 cross entropy of every pixel; see ``hard_pixel_loss``."""
    height, width = target.shape
    rows = max(1, _BAND_SCORES // (logits.shape[1] * width))
    # On the host, which must know the bounds of each band without waiting for a GPU.
    places = neighbours(logits.shape[-2], padded_size[0], height, torch.device("cpu"))
    first_source, last_source = places[0].tolist(), places[1].tolist()
    top, bottom, down = (t.to(logits.device) for t in places)
    bands = []
    for first in range(0, height, rows):
        band = slice(first, first + rows)
        # Only the source rows of the band: the gradient of each band is as small as they are.
        source = slice(first_source[first], last_source[min(first + rows, height) - 1] + 1)
        bands.append(
            checkpoint(
                _band_losses,
                logits[:, :, source],
                target[band],
                top[band] - source.start,
                bottom[band] - source.start,
                down[band],
                padded_size[1],
                ignore_value,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
    return torch.cat(bands)


def _band_losses(
    logits: Tensor, target: Tensor, top: Tensor, bottom: Tensor, down: Tensor, padded_width: int, ignore_value: int
) -> Tensor:
    with torch.autocast(logits.device.type, enabled=False):
        scores = interpolated_band(logits[0].float(), top, bottom, down, padded_width)[:, :, : target.shape[1]]
        return F.cross_entropy(scores[None], target[None], ignore_index=ignore_value, reduction="none")[0]
