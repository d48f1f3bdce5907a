"""ResNet with leaky-ReLU normalised blocks, and the feature pyramid of the paper (section 4.1)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from .norm import NormFactory, init_xavier, norm_act_from_config
from .ops.inplace_norm import Activation

# Blocks per stage res2..res5 (He et al. 2016, table 1).
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _conv_norm_add(conv: Conv2d, x: Tensor, residual: Tensor) -> Tensor:
    """Apply a convolution, then its norm layer with the residual added before the activation."""
    y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return conv.norm(y, residual)


class SeamlessStem(BasicStem):
    """7x7/2 convolution, norm + activation, 3x3/2 max pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 64, ceil(H/4), ceil(W/4))."""
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Keep batch normalization from moving its running statistics within the block."""
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

    def __init__(self, *args: Any, gradient_checkpointing: Sequence[str] = (), **kwargs: Any) -> None:
        """
        Args:
            gradient_checkpointing: The names of the stages ("res2" ... "res5") that keep only their input in training
                and are computed again in the backward pass.
            args, kwargs: The arguments of Detectron2's ``ResNet``.

        Raises:
            UserError: ``gradient_checkpointing`` names a stage that does not exist.
        """
        super().__init__(*args, **kwargs)
        unknown = sorted(set(gradient_checkpointing) - set(self.stage_names))
        if unknown:
            raise UserError(
                f"MODEL.SEAMLESS.GRADIENT_CHECKPOINTING names {unknown[0]!r}; the stages are "
                f"{', '.join(self.stage_names)}"
            )
        self.gradient_checkpointing = frozenset(gradient_checkpointing)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {name: (N, C, h, w)} for the stages that ``out_features`` names."""
        outputs = {}
        x = self.stem(x)
        if "stem" in self._out_features:
            outputs["stem"] = x
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            if name in self.gradient_checkpointing and self.training and torch.is_grad_enabled():
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
        UserError: The depth does not exist, or a dilation is set, which the feature pyramid cannot take.
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
    return SeamlessResNet(
        stem,
        stages,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        gradient_checkpointing=cfg.MODEL.SEAMLESS.GRADIENT_CHECKPOINTING,
    )


class ExtraLevels(nn.Module):
    """Further pyramid levels p6, p7, ...: stride-2 3x3 convolutions with norm + activation.

    The first one takes the coarsest feature map of the bottom-up network.
    """

    def __init__(
        self, in_feature: str, in_channels: int, out_channels: int, num_levels: int, norm: NormFactory
    ) -> None:
        super().__init__()
        self.in_feature = in_feature
        self.num_levels = num_levels
        for i in range(num_levels):
            conv = Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False, norm=norm(out_channels))
            init_xavier(conv, conv.norm.act.gain)
            self.add_module(f"p{6 + i}", conv)
            in_channels = out_channels

    def forward(self, c5: Tensor) -> list[Tensor]:
        """(N, C5, H, W) -> list of num_levels maps (N, C, h, w), each half the size of the one before, rounded up."""
        levels = []
        for conv in self.children():
            c5 = conv(c5)
            levels.append(c5)
        return levels


class SeamlessFPN(FPN):
    """Feature pyramid with norm + activation on lateral and output convolutions, for any input size.

    The coarser map is brought to the size of the finer one (nearest), so images need no padding to a multiple of the
    stride, unless the bottom-up network needs it.
    """

    def __init__(self, bottom_up: Backbone, norm: NormFactory, **kwargs) -> None:
        super().__init__(bottom_up, norm=norm, **kwargs)
        for conv in self.lateral_convs + self.output_convs:
            init_xavier(conv, conv.norm.act.gain)

    @property
    def size_divisibility(self) -> int:
        # Detectron2's Swin declares the property and lacks what it reads.
        return getattr(self.bottom_up, "size_divisibility", 0)

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


def build_seamless_fpn(cfg: CfgNode, bottom_up: Backbone) -> SeamlessFPN:
    """Put the feature pyramid of the paper on top of any bottom-up network.

    Args:
        cfg: The configuration; ``MODEL.FPN.IN_FEATURES`` names feature maps of ``bottom_up`` whose strides double from
            one to the next, ``MODEL.FPN.EXTRA_LEVELS`` the number of levels above the coarsest of them.
        bottom_up: A backbone of Detectron2's interface, for instance ``SwinTransformer``.

    Raises:
        UserError: ``MODEL.FPN.IN_FEATURES`` names a feature map that ``bottom_up`` does not have, or strides do not
            double.
    """
    fpn, shapes = cfg.MODEL.FPN, bottom_up.output_shape()
    missing = [name for name in fpn.IN_FEATURES if name not in shapes]
    if missing or not fpn.IN_FEATURES:
        raise UserError(
            f"MODEL.FPN.IN_FEATURES is {list(fpn.IN_FEATURES)}, but the backbone has the feature maps "
            f"{', '.join(shapes)}; name some of these"
        )
    strides = [shapes[name].stride for name in fpn.IN_FEATURES]
    if any(b != 2 * a for a, b in pairwise(strides)):
        known = ", ".join(f"{name} ({shape.stride})" for name, shape in shapes.items())
        raise UserError(
            f"MODEL.FPN.IN_FEATURES is {list(fpn.IN_FEATURES)}, whose strides {strides} do not double from one to the "
            f"next; name others of the backbone's feature maps (strides): {known}"
        )
    norm = norm_act_from_config(cfg, fpn.NORM)
    top_block = None
    if fpn.EXTRA_LEVELS:
        last = fpn.IN_FEATURES[-1]
        top_block = ExtraLevels(last, shapes[last].channels, fpn.OUT_CHANNELS, fpn.EXTRA_LEVELS, norm)
    return SeamlessFPN(bottom_up, norm, in_features=fpn.IN_FEATURES, out_channels=fpn.OUT_CHANNELS, top_block=top_block)


@BACKBONE_REGISTRY.register()
def build_seamless_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SeamlessFPN:
    """Build the backbone of the paper: ``SeamlessResNet`` under ``SeamlessFPN``."""
    return build_seamless_fpn(cfg, build_seamless_resnet(cfg, input_shape))
