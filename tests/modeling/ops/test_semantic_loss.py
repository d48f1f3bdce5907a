"""The hard-pixel loss against its definition and against the plain formulation at full resolution."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seamless_d2.modeling.ops import semantic_loss as loss_module
from seamless_d2.modeling.ops.semantic_loss import hard_pixel_loss


@pytest.mark.parametrize("size", [(6, 7), (1, 1), (1, 5)], ids=str)
@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.3, 0.999, 1.0])
def test_hard_pixel_loss_is_the_mean_of_the_largest(fraction: float, size: tuple[int, int]) -> None:
    logits = torch.randn(5, *size) * 3
    target = torch.randint(0, 5, size)
    target[torch.rand(size) < 0.3] = 255
    # Cross entropy by its definition, in float64.
    x, t = logits.double().numpy().reshape(5, -1), target.numpy().ravel()
    losses = [math.log(sum(math.exp(v) for v in x[:, i])) - x[k, i] if k != 255 else 0.0 for i, k in enumerate(t)]
    count = math.ceil(len(losses) * fraction)
    expected = sum(sorted(losses, reverse=True)[:count]) / count
    assert hard_pixel_loss(logits[None], target, target.shape, 255, fraction).item() == pytest.approx(
        expected, rel=1e-5, abs=1e-7
    )


def test_ignored_pixels_count_as_pixels() -> None:
    logits = torch.randn(4, 2, 2)
    target = torch.tensor([[1, 255], [255, 255]])
    one = F.cross_entropy(logits[:, :1, :1].flatten(1).T, torch.tensor([1]))
    assert torch.allclose(hard_pixel_loss(logits[None], target, target.shape, 255, 0.25), one)
    assert torch.allclose(hard_pixel_loss(logits[None], target, target.shape, 255, 0.5), one / 2)
    assert torch.allclose(hard_pixel_loss(logits[None], target, target.shape, 255, 1.0), one / 4)


def test_hard_pixel_gradient() -> None:
    """Only the kept pixels learn: (softmax - one hot) / their number."""
    logits = (torch.randn(3, 4, 5) * 2).requires_grad_()
    target = torch.randint(0, 3, (4, 5))
    hard_pixel_loss(logits[None], target, target.shape, 255, 0.25).backward()
    losses = F.cross_entropy(logits[None], target[None], reduction="none")[0].detach()
    kept = losses >= losses.flatten().sort(descending=True).values[4]
    expected = (logits.detach().softmax(dim=0) - F.one_hot(target, 3).permute(2, 0, 1)) / 5 * kept
    assert kept.sum() == 5
    assert torch.allclose(logits.grad, expected, atol=1e-6)


def test_void_only_gives_zero() -> None:
    logits = torch.randn(3, 4, 5, requires_grad=True)
    loss = hard_pixel_loss(logits[None], torch.full((4, 5), 255), (4, 5), 255, 0.25)
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def plain_loss(logits: Tensor, target: Tensor, padded: tuple[int, int], fraction: float) -> Tensor:
    """interpolate + cross_entropy + topk."""
    scores = F.interpolate(logits.float(), size=padded, mode="bilinear", align_corners=False)
    scores = scores[:, :, : target.shape[0], : target.shape[1]]
    losses = F.cross_entropy(scores, target[None], ignore_index=255, reduction="none").flatten()
    return losses.topk(math.ceil(losses.numel() * fraction)).values.mean()


@pytest.mark.parametrize("band_scores", [1, 700, 1 << 23], ids=["a row", "some rows", "all rows"])
@pytest.mark.parametrize(
    ("low", "padded", "size"),
    [
        ((10, 14), (40, 56), (40, 56)),
        ((11, 9), (43, 35), (37, 35)),
        ((1, 1), (3, 4), (2, 2)),
        ((20, 20), (9, 7), (9, 7)),
    ],
    ids=str,
)
def test_bands_equal_the_plain_formulation(
    low, padded, size, band_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "_BAND_SCORES", band_scores)
    logits = torch.randn(1, 5, *low) * 3
    target = torch.randint(0, 5, size)
    target[torch.rand(size) < 0.2] = 255
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, expected = hard_pixel_loss(ours, target, padded, 255, 0.25), plain_loss(theirs, target, padded, 0.25)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    expected.backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5 * theirs.grad.abs().max().item())


def test_scores_at_full_resolution_are_not_kept() -> None:
    logits = torch.randn(1, 19, 64, 128, requires_grad=True)
    target = torch.randint(0, 19, (256, 512))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        value = hard_pixel_loss(logits, target, (256, 512), 255, 0.25)
    value.backward()
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    full = 19 * 256 * 512 * 4
    assert sum(sizes.values()) < 0.5 * full  # indices of the kept pixels, targets, logits; no scores
    assert max(t.numel() for t in saved) < full / 4


def test_reduced_precision_logits() -> None:
    logits = (torch.randn(1, 5, 8, 8) * 3).bfloat16()
    target = torch.randint(0, 5, (32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        found = hard_pixel_loss(logits, target, (32, 32), 255, 0.25)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(plain_loss(logits, target, (32, 32), 0.25).item(), rel=1e-5)
