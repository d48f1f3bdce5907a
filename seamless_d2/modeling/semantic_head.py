"""The semantic head of the paper (section 4.2, figure 3)."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ..errors import UserError
from .norm import NormFactory, init_xavier, norm_act_from_config
from .ops.fold import FoldedNorm, fold_into, is_foldable
from .ops.semantic_loss import hard_pixel_loss
from .ops.symbolic import smaller


def _sliding_mean_matrix(size: int, window: int, like: Tensor) -> Tensor:
    """Return the (size, size) float32 matrix of a stride-1 sliding mean along one axis, border values repeated."""
    window = smaller(window, size)
    # Output i averages the inputs start(i) .. start(i) + window - 1; the clamp is the replicated border.
    start = (torch.arange(size, device=like.device) - (window - 1) // 2).clamp(0, size - window)
    offset = torch.arange(size, device=like.device)[None, :] - start[:, None]
    return ((offset >= 0) & (offset < window)).float() / window


def sliding_mean(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Average pooling with stride 1 that keeps the size: borders repeat the mean of the nearest complete window.

    It is computed as one matrix product per axis, in float32 under autocast too, so that 64x64 windows cost neither
    4,096 reads a pixel nor the cancellation of an integral image.

    Args:
        x: (N, C, H, W) float features.
        window: The (height, width) of the window, cut to the map's size. An even window reaches one pixel further
            down and right.

    Returns:
        (N, C, H, W), the dtype of ``x``.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = _sliding_mean_matrix(x.shape[-2], window[0], x)
        columns = _sliding_mean_matrix(x.shape[-1], window[1], x)
        return (rows @ (x.float() @ columns.T)).to(x.dtype)


class MiniDeepLab(nn.Module):
    """One pyramid level of the semantic head: local, dilated and pooled context, concatenated and reduced."""

    def __init__(
        self, in_channels: int, channels: int, window: tuple[int, int], dilation: int, norm: NormFactory
    ) -> None:
        """
        Args:
            in_channels: The number of channels of the pyramid level.
            channels: The number of channels of each of the three branches and of the output.
            window: The (height, width) of the window of the pooled branch, in pixels of the level's map.
            dilation: The dilation of the dilated branch.
            norm: Builds a norm + activation layer from a number of channels.
        """
        super().__init__()
        self.window = window
        self.local = Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.dilated = Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.pooled = Conv2d(in_channels, channels, 1, bias=False)
        self.norm = norm(3 * channels)
        self.reduce = Conv2d(3 * channels, channels, 1, bias=False, norm=norm(channels))
        for conv in (self.local, self.dilated, self.pooled, self.reduce):
            init_xavier(conv, self.norm.act.gain)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, channels, H, W)."""
        # The 1x1 convolution and the mean commute; pooling after it handles fewer channels.
        pooled = sliding_mean(self.pooled(x), self.window)
        return self.reduce(self.norm(torch.cat([self.local(x), self.dilated(x), pooled], dim=1)))

    def fold_norms(self) -> None:
        """See ``ops.fold.fold_norms``."""
        if is_foldable(self.norm):
            scale, shift = self.norm.scale_and_shift()
            # The mean of a constant is the constant: the pooled branch's shift may come before its pooling.
            branches = (self.local, self.dilated, self.pooled)
            for conv, conv_scale, conv_shift in zip(branches, scale.chunk(3), shift.chunk(3), strict=True):
                fold_into(conv, conv_scale, conv_shift)
            self.norm = FoldedNorm(self.norm.act)


@SEM_SEG_HEADS_REGISTRY.register()
class SeamlessSemSegHead(nn.Module):
    """A ``MiniDeepLab`` on each pyramid level, brought to the finest level's size and classified together.

    Classes are stuff 0..S-1, then things S..C-1.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: list[str],
        num_classes: int,
        channels: int,
        window: tuple[int, int],
        dilation: int,
        norm: NormFactory,
        ignore_value: int = 255,
        loss_top_k: float = 0.25,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if 0 <= ignore_value < num_classes:
            raise UserError(
                f"with MODEL.SEM_SEG_HEAD.NUM_CLASSES {num_classes}, label {ignore_value} "
                "(MODEL.SEM_SEG_HEAD.IGNORE_VALUE) is a class as well as void; use fewer classes or another value"
            )
        self.in_features = in_features
        self.ignore_value = ignore_value
        self.loss_top_k = loss_top_k
        self.loss_weight = loss_weight
        self.common_stride = input_shape[in_features[0]].stride
        self.levels = nn.ModuleList(
            MiniDeepLab(input_shape[f].channels, channels, window, dilation, norm) for f in in_features
        )
        self.predictor = Conv2d(len(in_features) * channels, num_classes, 1)
        init_xavier(self.predictor, 0.1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": input_shape,
            "in_features": head.IN_FEATURES,
            "num_classes": head.NUM_CLASSES,
            "channels": head.CONVS_DIM,
            "window": tuple(head.POOLING_SIZE),
            "dilation": head.DILATION,
            "norm": norm_act_from_config(cfg, head.NORM),
            "ignore_value": head.IGNORE_VALUE,
            "loss_top_k": head.LOSS_TOP_K,
            "loss_weight": head.LOSS_WEIGHT,
        }

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Return (N, C, h, w) logits at the size of the finest pyramid level."""
        size = features[self.in_features[0]].shape[-2:]
        # Classifying each level before up-sampling equals classifying the concatenation, at a fraction of the memory.
        weights = self.predictor.weight.chunk(len(self.levels), dim=1)
        logits = F.conv2d(self.levels[0](features[self.in_features[0]]), weights[0], self.predictor.bias)
        for name, level, weight in zip(self.in_features[1:], self.levels[1:], weights[1:], strict=True):
            y = F.conv2d(level(features[name]), weight)
            logits = logits + F.interpolate(y, size=size, mode="bilinear", align_corners=False)
        return logits

    def forward(
        self,
        features: dict[str, Tensor],
        targets: Tensor | None = None,
        image_sizes: list[tuple[int, int]] | None = None,
        upsample: bool = True,
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Detectron2's interface of a semantic head, with two optional arguments.

        Args:
            features: One (N, C, h, w) map per name in ``in_features``.
            targets: In training, (N, H, W) int64 labels of the padded batch.
            image_sizes: In training, the (height, width) of each image inside the padding; default the padded size.
                The share ``loss_top_k`` is of the pixels of an image, padding excluded.
            upsample: In inference, whether to bring the logits to the size of the input. Without, they keep the size of
                the finest level, which lets ``SeamlessPanoptic`` take the best class without ever holding the scores
                of all classes at full resolution.

        Returns:
            Training: (None, {"loss_sem_seg": scalar}). Inference: ((N, C, H, W) logits, {}).
        """
        logits = self.layers(features)
        if self.training:
            return None, {"loss_sem_seg": self.loss_weight * self.losses(logits, targets, image_sizes)}
        if upsample:
            scale = float(self.common_stride)
            logits = F.interpolate(logits, scale_factor=scale, mode="bilinear", align_corners=False)
        return logits, {}

    def losses(self, logits: Tensor, targets: Tensor, image_sizes: list[tuple[int, int]] | None) -> Tensor:
        """Return the mean over the images of their hard-pixel losses at the images' resolution."""
        padded = tuple(targets.shape[-2:])
        losses = [
            hard_pixel_loss(logits[i : i + 1], targets[i, :h, :w], padded, self.ignore_value, self.loss_top_k)
            for i, (h, w) in enumerate(image_sizes or [padded] * len(targets))
        ]
        return torch.stack(losses).mean()
