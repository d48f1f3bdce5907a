"""The semantic loss from low-resolution logits to their gradient, against its plain formulation."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from seamless_d2.modeling.ops.semantic_loss import hard_pixel_loss

from .measure import Case, compare_times
from .peak_memory import peak_memory

IGNORE, FRACTION = 255, 0.25
Size = tuple[int, int, int]


def plain_loss(logits: Tensor, target: Tensor) -> Tensor:
    """interpolate + cross_entropy + topk of one image: what ``hard_pixel_loss`` computes in a fraction of the memory.

    Args:
        logits: (1, C, h, w).
        target: (H, W) int64.
    """
    scores = F.interpolate(logits, size=target.shape, mode="bilinear", align_corners=False)
    losses = F.cross_entropy(scores, target[None], ignore_index=IGNORE, reduction="none").flatten()
    return losses.topk(math.ceil(losses.numel() * FRACTION), sorted=False).values.mean()


def our_loss(logits: Tensor, target: Tensor) -> Tensor:
    """See ``plain_loss``."""
    return hard_pixel_loss(logits, target, tuple(target.shape), IGNORE, FRACTION)


def make_inputs(device: str, size: Size) -> tuple[Tensor, Tensor]:
    """Random logits at a quarter of the size, and labels."""
    classes, height, width = size
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, classes, height // 4, width // 4, generator=generator)
    target = torch.randint(0, classes, (height, width), generator=generator)
    return logits.to(device).requires_grad_(), target.to(device)


def run_loss(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> None:
    """Forwards and backwards; the gradient is in ``logits.grad``."""
    logits.grad = None
    loss(logits, target).backward()


def job(device: str, side: str, size: Size) -> Callable[[], None]:
    """For ``peak_memory``: the loss of a side, "ours" or "other"."""
    loss = our_loss if side == "ours" else plain_loss
    run_loss(loss, *make_inputs(device, (size[0], 64, 64)))  # what is allocated once and for all
    return partial(run_loss, loss, *make_inputs(device, size))


def gradient_note(device: str, size: Size) -> str:
    """The largest difference of the two gradients, relative to the largest gradient."""
    gradients = []
    for loss in (our_loss, plain_loss):
        logits, target = make_inputs(device, size)
        run_loss(loss, logits, target)
        gradients.append(logits.grad)
    difference = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    return f"largest relative difference of gradients: {float(difference):.1e}"


def benchmark_loss(device: str = "cpu", against: str | None = None, quick: bool = False) -> list[Case]:
    """Seconds and memory of a forward and a backward pass."""
    cases = []
    targets = {(19, 512, 1024): None} if quick else {(19, 1024, 2048): 3.0, (65, 1920, 2560): 8.0}
    for size, target in targets.items():
        name = f"{size[0]} classes, {size[1]}x{size[2]}"
        inputs = make_inputs(device, size)
        case = compare_times(
            name,
            partial(run_loss, our_loss, *inputs),
            partial(run_loss, plain_loss, *inputs) if against else None,
            device=device,
            repeats=0 if quick else 20 if device.startswith("cuda") else 3,
            note=gradient_note(device, size) if against else "",
            target=1.0 if device.startswith("cuda") else None,
        )
        cases.append(case)
        memory = {side: peak_memory(job, device, side, size) for side in ("ours", *(("other",) if against else ()))}
        if memory["ours"] is not None:
            note = "" if memory.get("other") or not against else "no room for the other"
            cases.append(
                Case(f"{name}, peak memory", memory["ours"], memory.get("other"), "bytes", note=note, target=target)
            )
    return cases
