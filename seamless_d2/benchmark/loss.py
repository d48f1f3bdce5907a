"""The semantic loss from low-resolution logits: time of a forward and backward pass."""

import torch
import torch.nn.functional as F

from ..modeling.semantic_head import hard_pixel_loss
from .measure import Case, compare_times


def benchmark_loss(device: str = "cpu", against: str | None = None, quick: bool = False) -> list[Case]:
    """Interpolation, hard-pixel loss and its gradient, against plain cross entropy over all pixels."""
    cases = []
    sizes = [(5, 64, 128)] if quick else [(19, 1024, 2048), (65, 1920, 2560)]
    for classes, height, width in sizes:
        logits = torch.randn(1, classes, height // 4, width // 4, device=device, requires_grad=True)
        target = torch.randint(0, classes, (height, width), device=device)

        def ours(logits=logits, target=target) -> None:
            scores = F.interpolate(logits, size=target.shape, mode="bilinear", align_corners=False)
            hard_pixel_loss(scores[0], target, 255, 0.25).backward()

        def other(logits=logits, target=target) -> None:
            scores = F.interpolate(logits, size=target.shape, mode="bilinear", align_corners=False)
            F.cross_entropy(scores, target[None]).backward()

        cases.append(
            compare_times(
                f"{classes} classes, {height}x{width}",
                ours,
                other if against else None,
                device=device,
                repeats=3,
                note="other: cross entropy over all pixels (Detectron2's semantic head)",
            )
        )
    return cases
