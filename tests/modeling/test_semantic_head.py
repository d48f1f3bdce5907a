"""The semantic head: sliding mean, hard-pixel loss and the assembly of the levels."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from torch import Tensor

from seamless_d2.modeling.norm import make_norm_act
from seamless_d2.modeling.ops.inplace_norm import Activation
from seamless_d2.modeling.semantic_head import MiniDeepLab, SeamlessSemSegHead, sliding_mean

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
# Maps of a 53 x 77 image.
SIZES = {"p2": (14, 20), "p3": (7, 10), "p4": (4, 5), "p5": (2, 3)}


def pooled(x: Tensor, window: tuple[int, int]) -> Tensor:
    """The original's formulation: average pooling, then the border repeated."""
    k = [min(a, b) for a, b in zip(window, x.shape[-2:], strict=True)]
    before = [(n - 1) // 2 for n in k]
    after = [n - 1 - b for n, b in zip(k, before, strict=True)]
    return F.pad(F.avg_pool2d(x, k, stride=1), (before[1], after[1], before[0], after[0]), mode="replicate")


@pytest.mark.parametrize("window", [(1, 1), (2, 2), (3, 5), (4, 3), (8, 8), (9, 11), (64, 64), (64, 2)], ids=str)
def test_sliding_mean_is_pooling_with_repeated_borders(window: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 9, 12)
    assert torch.allclose(sliding_mean(x, window), pooled(x.double(), window).float(), atol=1e-6)


def test_sliding_mean_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2, 4, 8]]]])
    assert sliding_mean(x, (1, 3)).flatten().tolist() == pytest.approx([7 / 3, 7 / 3, 14 / 3, 14 / 3])
    # An even window reaches one further to the right.
    assert sliding_mean(x, (1, 2)).flatten().tolist() == [1.5, 3, 6, 6]


@pytest.mark.parametrize("autocast", [False, True])
def test_sliding_mean_loses_nothing_in_bf16(autocast: bool) -> None:
    """Sums are in float32 whatever the input: the result is as good as its rounding."""
    x = (torch.randn(1, 4, 70, 90) + 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = sliding_mean(x, (64, 64))
    assert y.dtype == torch.bfloat16
    exact = pooled(x.double(), (64, 64))
    assert ((y.double() - exact).abs() / exact).max() <= 2**-8
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.allclose(sliding_mean(x.float(), (64, 64)), exact.float(), rtol=1e-6)


def test_sliding_mean_gradient() -> None:
    weight = torch.randn(1, 2, 7, 9)
    ours, theirs = (torch.ones(1, 2, 7, 9, requires_grad=True) for _ in range(2))
    (sliding_mean(ours, (4, 5)) * weight).sum().backward()
    (pooled(theirs, (4, 5)) * weight).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


def make_head(norm: str = "BN", **kwargs) -> SeamlessSemSegHead:
    arguments = {
        "in_features": list(STRIDES),
        "num_classes": 7,
        "channels": 8,
        "window": (5, 4),
        "dilation": 6,
        "norm": lambda c: make_norm_act(norm, c, Activation(), 4),
    }
    shapes = {name: ShapeSpec(channels=6, stride=stride) for name, stride in STRIDES.items()}
    return SeamlessSemSegHead(shapes, **(arguments | kwargs))


def make_features(batch: int = 2) -> dict[str, Tensor]:
    return {name: torch.randn(batch, 6, *size) for name, size in SIZES.items()}


def test_level_formula() -> None:
    """Figure 3 of the paper, in the order of the paper: pooling first, the 1x1 convolution after it."""
    level = MiniDeepLab(6, 8, (5, 4), 6, lambda c: make_norm_act("BN", c, Activation())).eval()
    x = torch.randn(2, 6, 14, 20)
    branches = [
        F.conv2d(x, level.local.weight, padding=1),
        F.conv2d(x, level.dilated.weight, padding=6, dilation=6),
        F.conv2d(pooled(x, (5, 4)), level.pooled.weight),
    ]
    y = F.leaky_relu(torch.cat(branches, dim=1) / math.sqrt(1 + 1e-5), 0.01)
    expected = F.leaky_relu(F.conv2d(y, level.reduce.weight) / math.sqrt(1 + 1e-5), 0.01)
    assert torch.allclose(level(x), expected, atol=1e-5)


def test_levels_are_joined_at_the_finest_size() -> None:
    head, features = make_head().eval(), make_features()
    torch.nn.init.normal_(head.predictor.bias)
    with torch.no_grad():
        maps = [
            F.interpolate(level(features[name]), size=SIZES["p2"], mode="bilinear", align_corners=False)
            for name, level in zip(STRIDES, head.levels, strict=True)
        ]
        expected = head.predictor(torch.cat(maps, dim=1))
        logits = head.layers(features)
        up_sampled, losses = head(features)
    assert logits.shape == (2, 7, 14, 20)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert losses == {}
    assert torch.allclose(
        up_sampled, F.interpolate(expected, size=(56, 80), mode="bilinear", align_corners=False), atol=1e-5
    )


def test_loss_sees_the_images_without_padding() -> None:
    head = make_head("GN", loss_top_k=0.3, loss_weight=2.0).train()
    features = make_features()
    sizes = [(53, 77), (40, 60)]
    targets = torch.randint(0, 7, (2, 53, 77))
    outside = targets.clone()
    outside[1, 40:] = 255
    outside[1, :, 60:] = 255
    none, losses = head(features, outside, sizes)
    assert none is None and list(losses) == ["loss_sem_seg"]
    # Each image alone, at the size of the padded batch.
    logits = head.layers(features)
    alone = []
    for i, (h, w) in enumerate(sizes):
        scores = F.interpolate(logits[i : i + 1], size=(53, 77), mode="bilinear", align_corners=False)[0, :, :h, :w]
        pixels = F.cross_entropy(scores[None], targets[i : i + 1, :h, :w], reduction="none").flatten()
        alone.append(pixels.sort(descending=True).values[: math.ceil(0.3 * h * w)].mean())
    assert torch.allclose(losses["loss_sem_seg"], 2 * torch.stack(alone).mean(), rtol=1e-5)
    # What lies in the padding does not matter.
    assert torch.equal(head(features, targets, sizes)[1]["loss_sem_seg"], losses["loss_sem_seg"])


def test_config(toy_cfg) -> None:
    config = toy_cfg.MODEL.SEM_SEG_HEAD
    config.POOLING_SIZE, config.DILATION, config.LOSS_TOP_K = [3, 2], 4, 0.125
    config.LOSS_WEIGHT, config.NUM_CLASSES, config.CONVS_DIM, config.IGNORE_VALUE = 0.5, 9, 12, 254
    head = build_sem_seg_head(toy_cfg, {name: ShapeSpec(channels=16, stride=s) for name, s in STRIDES.items()})
    assert isinstance(head, SeamlessSemSegHead)
    assert [level.window for level in head.levels] == [(3, 2)] * 4
    assert [level.dilated.dilation for level in head.levels] == [(4, 4)] * 4
    assert head.predictor.weight.shape == (9, 48, 1, 1)
    assert (head.loss_top_k, head.loss_weight, head.ignore_value) == (0.125, 0.5, 254)
    assert head.levels[0].local.weight.shape == (12, 16, 3, 3)
