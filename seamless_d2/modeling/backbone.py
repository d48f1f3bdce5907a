"""ResNet with leaky-ReLU normalised blocks, and the feature pyramid of the paper (section 4.1)."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from .norm import Activation, NormFactory, init_xavier, norm_act_from_config

# Blocks per stage res2..res5 (He et al. 2016, table 1).
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _conv_norm_add(conv: Conv2d, x: Tensor, residual: Tensor) -> Tensor:
    """Convolution, then its norm layer with the residual added before the activation."""
    y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return conv.norm(y, residual)


class SeamlessStem(BasicStem):
    """7x7/2 convolution, norm + activation, 3x3/2 max pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 64, ceil(H/4), ceil(W/4))."""
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Within the block, batch normalisation does not move its running statistics."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(m.momentum, m.num_batches_tracked.clone()) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


class _NormAddsShortcut:
    """Mixin for Detectron2's residual blocks: activation is part of the norm layers, the last one adds the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs) -> None:
        super().__init__(in_channels, out_channels, **kwargs)
        if self.shortcut is not None:
            self.shortcut.norm.act = Activation("identity")


class SeamlessBasicBlock(_NormAddsShortcut, BasicBlock):
    """Two 3x3 convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return _conv_norm_add(self.conv2, self.conv1(x), shortcut)


class SeamlessBottleneckBlock(_NormAddsShortcut, BottleneckBlock):
    """1x1, 3x3 and 1x1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return _conv_norm_add(self.conv3, self.conv2(self.conv1(x)), shortcut)


class SeamlessResNet(ResNet):
    """ResNet whose frozen stages get no gradient but keep updating their running statistics, as the original's do."""

    #: names of the stages that keep only their input for the backward pass
    checkpoint_stages: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """As Detectron2's."""
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            if name in self.checkpoint_stages and self.training and torch.is_grad_enabled():
                # The second time must not move the running statistics again.
                x = checkpoint(
                    stage, x, use_reentrant=False, context_fn=lambda s=stage: (nullcontext(), keep_statistics(s))
                )
            else:
                x = stage(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs

    def freeze(self, freeze_at: int = 0) -> "SeamlessResNet":
        """Freeze the stem (``freeze_at`` >= 1) and the stages res2..res``freeze_at``."""
        stages = [self.stem, *self.stages]
        for module in stages[:freeze_at]:
            for parameter in module.parameters():
                parameter.requires_grad_(False)
        return self


def build_seamless_resnet(cfg: CfgNode, input_shape: ShapeSpec) -> SeamlessResNet:
    """ResNet-18/34/50/101/152 of ``cfg.MODEL.RESNETS``, with Detectron2's parameter names.

    Raises:
        UserError: a depth that does not exist, or dilation, which the feature pyramid cannot take.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH not in BLOCKS:
        raise UserError(f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}; use one of {', '.join(map(str, BLOCKS))}")
    if resnets.RES5_DILATION != 1:
        raise UserError("MODEL.RESNETS.RES5_DILATION must be 1: the feature pyramid needs strides 4, 8, 16, 32")
    norm = norm_act_from_config(cfg, resnets.NORM)
    bottleneck = resnets.DEPTH >= 50
    out_channels = resnets.RES2_OUT_CHANNELS if bottleneck else resnets.STEM_OUT_CHANNELS
    stem = SeamlessStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, norm)
    stages, in_channels = [], resnets.STEM_OUT_CHANNELS
    for i, num_blocks in enumerate(BLOCKS[resnets.DEPTH]):
        extra = {}
        if bottleneck:
            extra = {
                "bottleneck_channels": resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 2**i,
                "num_groups": resnets.NUM_GROUPS,
                "stride_in_1x1": resnets.STRIDE_IN_1X1,
            }
        stages.append(
            ResNet.make_stage(
                SeamlessBottleneckBlock if bottleneck else SeamlessBasicBlock,
                num_blocks,
                stride_per_block=[1 if i == 0 else 2] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                norm=norm,
                **extra,
            )
        )
        in_channels, out_channels = out_channels, out_channels * 2
    resnet = SeamlessResNet(stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
    resnet.checkpoint_stages = tuple(cfg.MODEL.SEAMLESS.CHECKPOINT_STAGES)
    unknown = set(resnet.checkpoint_stages) - set(resnet.stage_names)
    if unknown:
        raise UserError(
            f"MODEL.SEAMLESS.CHECKPOINT_STAGES names {sorted(unknown)[0]!r}; the stages are "
            f"{', '.join(resnet.stage_names)}"
        )
    return resnet


class ExtraLevels(nn.Module):
    """Further pyramid levels p6, p7, ...: stride-2 3x3 convolutions with norm + activation, the first one on C5."""

    in_feature = "res5"

    def __init__(self, in_channels: int, out_channels: int, num_levels: int, norm: NormFactory) -> None:
        super().__init__()
        self.num_levels = num_levels
        for i in range(num_levels):
            conv = Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False, norm=norm(out_channels))
            init_xavier(conv, conv.norm.act.gain)
            self.add_module(f"p{6 + i}", conv)
            in_channels = out_channels

    def forward(self, c5: Tensor) -> list[Tensor]:
        """(N, C5, H, W) -> num_levels tensors, each half the size of the one before, rounded up."""
        levels = []
        for conv in self.children():
            c5 = conv(c5)
            levels.append(c5)
        return levels


class SeamlessFPN(FPN):
    """Feature pyramid with norm + activation on lateral and output convolutions, for any input size.

    The coarser map is brought to the size of the finer one (nearest), so images need no padding to a multiple of the
    stride.
    """

    size_divisibility = 0

    def __init__(self, bottom_up: SeamlessResNet, norm: NormFactory, **kwargs) -> None:
        super().__init__(bottom_up, norm=norm, **kwargs)
        for conv in self.lateral_convs + self.output_convs:
            init_xavier(conv, conv.norm.act.gain)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {"p2": (N, C, ceil(H/4), ceil(W/4)), "p3": ..., ...}."""
        features = self.bottom_up(x)
        merged, outputs = None, []
        for name, lateral, output in zip(self.in_features[::-1], self.lateral_convs, self.output_convs, strict=True):
            y = lateral(features[name])
            merged = y if merged is None else y + F.interpolate(merged, size=y.shape[-2:], mode="nearest")
            outputs.insert(0, output(merged))
        if self.top_block is not None:
            outputs.extend(self.top_block(features[self.top_block.in_feature]))
        return dict(zip(self._out_features, outputs, strict=True))


@BACKBONE_REGISTRY.register()
def build_seamless_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SeamlessFPN:
    """The trunk: ``SeamlessResNet`` + ``SeamlessFPN`` with ``MODEL.FPN.EXTRA_LEVELS`` levels above p5."""
    resnet = build_seamless_resnet(cfg, input_shape)
    fpn = cfg.MODEL.FPN
    norm = norm_act_from_config(cfg, fpn.NORM)
    top_block = None
    if fpn.EXTRA_LEVELS:
        in_channels = resnet.output_shape()[ExtraLevels.in_feature].channels
        top_block = ExtraLevels(in_channels, fpn.OUT_CHANNELS, fpn.EXTRA_LEVELS, norm)
    return SeamlessFPN(resnet, norm, in_features=fpn.IN_FEATURES, out_channels=fpn.OUT_CHANNELS, top_block=top_block)
