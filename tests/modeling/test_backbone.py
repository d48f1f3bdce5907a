"""ResNet and feature pyramid against Detectron2's and against formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_resnet_backbone
from torch import nn

from seamless_d2 import get_config
from seamless_d2.errors import UserError
from seamless_d2.modeling.backbone import (
    BLOCKS,
    ExtraLevels,
    SeamlessResNet,
    build_seamless_resnet,
    build_seamless_resnet_fpn_backbone,
)
from seamless_d2.modeling.norm import make_norm_act
from seamless_d2.modeling.ops.inplace_norm import Activation

RGB = ShapeSpec(channels=3)


def batch_norm(channels: int) -> nn.Module:
    return make_norm_act("BN", channels, Activation())


def resnet_cfg(depth: int, norm: str = "BN") -> CfgNode:
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256 if depth >= 50 else 64
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return cfg


def randomise(model: nn.Module) -> None:
    """Statistics and scales away from 0 and 1, with which a wrong order of layers could hide."""
    for name, tensor in model.state_dict().items():
        if ".norm." in name and tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if not name.endswith("mean") else 0.1 * torch.randn_like(tensor))


def tiny_resnet(toy_cfg: CfgNode, freeze_at: int = 0) -> SeamlessResNet:
    toy_cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    return build_seamless_resnet(toy_cfg, RGB)


@pytest.mark.parametrize("depth", BLOCKS)
def test_tensors_have_detectron2s_names_and_shapes(depth: int) -> None:
    cfg = resnet_cfg(depth)
    with torch.device("meta"):
        ours = build_seamless_resnet(cfg, RGB)
        theirs = build_resnet_backbone(cfg, RGB)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert ours.output_shape() == theirs.output_shape()


@pytest.mark.parametrize("depth", [18, 50])
def test_with_relu_it_is_detectron2s_resnet(depth: int) -> None:
    cfg = resnet_cfg(depth)
    cfg.MODEL.SEAMLESS.ACTIVATION = "relu"
    theirs = build_resnet_backbone(cfg, RGB)
    randomise(theirs)
    ours = build_seamless_resnet(cfg, RGB)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 45, 61)
    for training in (True, False):  # the second pass sees the statistics of the first one
        a, b = ours.train(training)(x), theirs.train(training)(x)
        assert list(a) == list(b) == ["res2", "res3", "res4", "res5"]
        for name in a:
            assert torch.allclose(a[name], b[name], atol=1e-4 * b[name].abs().max().item())


def test_residual_block_formula() -> None:
    """The activation comes after the addition; neither the shortcut nor the last norm has one of its own."""
    resnet = build_seamless_resnet(resnet_cfg(18), RGB).eval()
    randomise(resnet)
    block = resnet.res3[0]
    x = torch.randn(1, 64, 9, 7)

    def conv_norm(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y, norm = F.conv2d(x, conv.weight, None, conv.stride, conv.padding), conv.norm
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    main = conv_norm(block.conv2, F.leaky_relu(conv_norm(block.conv1, x), 0.01))
    expected = F.leaky_relu(main + conv_norm(block.shortcut, x), 0.01)
    assert torch.allclose(block(x), expected, atol=1e-5)
    assert (expected < 0).any()


def test_norm_keys_choose_the_layers(toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.RESNETS.NORM, toy_cfg.MODEL.FPN.NORM = "Affine", "GN"
    fpn = build_seamless_resnet_fpn_backbone(toy_cfg, RGB)
    assert {type(m).__name__ for m in fpn.bottom_up.modules() if "Act" in type(m).__name__} == {"AffineAct"}
    others = [m for name, m in fpn.named_modules() if "Norm" in type(m).__name__ and not name.startswith("bottom_up")]
    assert len(others) == 9 and {type(m).__name__ for m in others} == {"GroupNormAct"}


@pytest.mark.parametrize("freeze_at", range(6))
def test_frozen_stages_learn_nothing_but_follow_the_statistics(toy_cfg: CfgNode, freeze_at: int) -> None:
    resnet = tiny_resnet(toy_cfg, freeze_at).train()
    before = {k: v.clone() for k, v in resnet.state_dict().items()}
    output = resnet(torch.randn(2, 3, 32, 32))["res5"]
    if freeze_at < 5:
        output.sum().backward()
    frozen = ["stem", "res2", "res3", "res4", "res5"][:freeze_at]
    for name, parameter in resnet.named_parameters():
        assert parameter.requires_grad is (name.split(".")[0] not in frozen)
        assert (parameter.grad is not None) is parameter.requires_grad
    for name, tensor in resnet.state_dict().items():
        if "running" in name:
            assert not torch.equal(tensor, before[name])


def test_user_errors(toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.RESNETS.DEPTH = 20
    with pytest.raises(UserError, match="DEPTH is 20; use one of 18, 34, 50, 101, 152"):
        build_seamless_resnet(toy_cfg, RGB)
    toy_cfg.MODEL.RESNETS.DEPTH = 50
    toy_cfg.MODEL.RESNETS.RES5_DILATION = 2
    with pytest.raises(UserError, match="RES5_DILATION must be 1"):
        build_seamless_resnet(toy_cfg, RGB)


@pytest.mark.parametrize("size", [(64, 96), (107, 203), (33, 65), (1, 1)])
def test_pyramid_sizes(toy_cfg: CfgNode, size: tuple[int, int]) -> None:
    toy_cfg.MODEL.FPN.EXTRA_LEVELS = 2
    fpn = build_seamless_resnet_fpn_backbone(toy_cfg, RGB).eval()
    levels = fpn(torch.randn(1, 3, *size))
    expected, (h, w) = {}, size
    for level in range(1, 8):
        h, w = math.ceil(h / 2), math.ceil(w / 2)
        expected[f"p{level}"] = (1, 16, h, w)
    del expected["p1"]
    assert {name: tuple(x.shape) for name, x in levels.items()} == expected
    assert {name: s.stride for name, s in fpn.output_shape().items()} == {f"p{i}": 2**i for i in range(2, 8)}
    assert all(s.channels == 16 for s in fpn.output_shape().values())
    assert fpn.size_divisibility == 0


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_pyramid_formula(toy_cfg: CfgNode, extra: int) -> None:
    """Lateral and output convolutions each with norm and activation; nearest neighbours on any size."""
    toy_cfg.MODEL.FPN.EXTRA_LEVELS, toy_cfg.MODEL.FPN.NORM = extra, "BN"
    fpn = build_backbone(toy_cfg).eval()
    randomise(fpn)
    image = torch.randn(1, 3, 107, 203)

    def conv_norm(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        state = {k.removeprefix(f"{name}."): v for k, v in fpn.state_dict().items() if k.startswith(f"{name}.")}
        assert "bias" not in state
        y = F.conv2d(x, state["weight"], None, stride, padding=state["weight"].shape[-1] // 2)
        norm = [state[f"norm.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.leaky_relu(F.batch_norm(y, *norm), 0.01)

    stages, expected, merged = fpn.bottom_up(image), {}, None
    for level in (5, 4, 3, 2):
        y = conv_norm(f"fpn_lateral{level}", stages[f"res{level}"])
        if merged is not None:
            rows = torch.arange(y.shape[2]) * merged.shape[2] // y.shape[2]
            columns = torch.arange(y.shape[3]) * merged.shape[3] // y.shape[3]
            y = y + merged[:, :, rows[:, None], columns[None, :]]
        merged = y
        expected[f"p{level}"] = conv_norm(f"fpn_output{level}", merged)
    x = stages["res5"]
    for level in range(6, 6 + extra):
        x = expected[f"p{level}"] = conv_norm(f"top_block.p{level}", x, stride=2)
    levels = fpn(image)
    assert list(levels) == [f"p{i}" for i in range(2, 6 + extra)]
    for name, level in levels.items():
        assert torch.allclose(level, expected[name], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (4, 13)])
def test_extra_levels_halve_and_round_up(size: tuple[int, int]) -> None:
    levels = ExtraLevels("res5", 5, 6, 3, batch_norm).eval()(torch.randn(2, 5, *size))
    assert len(levels) == 3
    for level in levels:
        size = (math.ceil(size[0] / 2), math.ceil(size[1] / 2))
        assert level.shape == (2, 6, *size)
