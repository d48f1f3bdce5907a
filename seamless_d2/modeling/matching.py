"""Matching of boxes with the truth in bounded memory, and sampling that each image seeds for itself."""

import contextlib
import logging
from collections.abc import Callable, Iterator

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

# Entries of an IoU matrix that are held at once; pairwise_iou needs about six times as much in between. A crowded
# photo (1,000 instances, a quarter of a million anchors) would need gigabytes.
MAX_ENTRIES = 2**24
_LEAST_CHUNK = 256


def in_chunks(function: Callable[[Boxes], tuple[Tensor, ...]], truth: Boxes, boxes: Boxes) -> list[tuple[Tensor, ...]]:
    """Call ``function`` with portions of ``boxes`` whose IoU matrix with ``truth`` is bounded, in their order.

    Where the GPU has not even room for that, the portions are halved.
    """
    size, start, results = max(MAX_ENTRIES // max(len(truth), 1), _LEAST_CHUNK), 0, []
    while start < len(boxes) or not results:
        try:
            results.append(function(boxes[start : start + size]))
            start += size
            continue
        except torch.cuda.OutOfMemoryError:
            if min(size, len(boxes)) <= _LEAST_CHUNK:
                raise
        # Outside the except clause: there the traceback keeps the tensors that did fit.
        size = max(min(size, len(boxes)) // 2, _LEAST_CHUNK)
        logging.getLogger(__name__).warning(
            f"out of GPU memory with {len(truth)} true boxes; matching goes on with {size} of {len(boxes)} at a time"
        )
        torch.cuda.empty_cache()
    return results


def best_matches(truth: Boxes, boxes: Boxes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best partners of each side by IoU; among equals the first.

    Args:
        truth: M boxes, M > 0.
        boxes: N boxes, N > 0.

    Returns:
        (N,) float IoU and (N,) int64 row of the best true box of each box, (M,) float IoU and (M,) int64 row of the
        best box of each true box.
    """

    def match(chunk: Boxes) -> tuple[Tensor, ...]:
        iou = pairwise_iou(truth, chunk)
        return (*iou.max(dim=0), *iou.max(dim=1))

    chunks = in_chunks(match, truth, boxes)
    best_iou, best_truth = torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks])
    if len(chunks) == 1:
        return best_iou, best_truth, *chunks[0][2:]
    sizes = torch.tensor([0, *(len(c[0]) for c in chunks[:-1])], device=best_iou.device)
    truth_iou, chunk = torch.stack([c[2] for c in chunks]).max(dim=0)
    rows = torch.stack([c[3] for c in chunks]).gather(0, chunk[None])[0] + sizes.cumsum(0)[chunk]
    return best_iou, best_truth, truth_iou, rows


def match_boxes(matcher: Matcher, truth: Boxes, boxes: Boxes) -> tuple[Tensor, Tensor]:
    """``matcher(pairwise_iou(truth, boxes))`` for a matcher without low-quality matches.

    Returns:
        (N,) int64 row of the true box of each box, (N,) int8 label of the matcher.
    """
    chunks = in_chunks(lambda chunk: matcher(pairwise_iou(truth, chunk)), truth, boxes)
    matched, labels = zip(*chunks, strict=True)
    return torch.cat(matched), torch.cat(labels)


@contextlib.contextmanager
def image_seed(seeds: list[int] | None, number: int, device: torch.device) -> Iterator[None]:
    """Within the block PyTorch draws from the seed of one image of the batch, whatever was drawn before.

    So the samples of an image depend neither on the other images nor on the process that it went to.

    Args:
        seeds: of all images of the batch; None leaves PyTorch's random numbers alone.
        number: of the image.
        device: whose random numbers are used.
    """
    if seeds is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seeds[number])
        yield
