"""Normalization and activation in one layer, the building block of the whole network.

Every layer here computes ``activation(norm(x) [+ residual])``. Keeping the three together is what allows them to be
fused later; each class subclasses the PyTorch or Detectron2 normalisation of which it is a form, so that weight-decay
rules which go by class (Detectron2's WEIGHT_DECAY_NORM) and checkpoints see the usual layer with the usual names.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_gather
from torch import Tensor, nn

from ..errors import UserError
from .ops.inplace_norm import Activation, InPlaceNormAct

NORMS = ("BN", "SyncBN", "FrozenBN", "GN", "Affine")


class _FixedStatistics:
    """Mixin: tells the affine function that a norm layer with fixed statistics computes."""

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return (C,) float64 ``scale`` and ``shift`` with which inference computes ``scale * x + shift``."""
        scale = self.weight.double() * (self.running_var.double() + self.eps).rsqrt()
        return scale, self.bias.double() - self.running_mean.double() * scale


class _NormAct:
    """Mixin: adds the activation and the residual addition to a normalisation layer.

    The activation may be replaced after construction (``layer.act = Activation("identity")``), which is how the last
    normalisation of a residual branch gets none.
    """

    act: Activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``x``: (N, C, ...) float; ``residual``: same shape, added before the activation."""
        if not self.training or x.numel():
            y = super().forward(x)
        else:
            # DistributedDataParallel demands a gradient of every parameter, be it zero.
            shape = [1, -1] + [1] * (x.dim() - 2)
            y = (x * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)
        return self.act(y if residual is None else y + residual)


class BatchNormAct(_FixedStatistics, _NormAct, nn.BatchNorm2d):
    """Batch normalisation over all axes but the second; also takes (N, C) features of fully connected layers.

    A batch with a single value per channel has no variance: its running statistics are used instead.
    """

    def __init__(self, channels: int, act: Activation, inplace: bool = False) -> None:
        """
        Args:
            channels: The number C of channels.
            act: The activation after the normalization.
            inplace: Whether to keep only the output for the backward pass (``InPlaceNormAct``), which needs an
                invertible activation.
        """
        super().__init__(channels)
        self.act = act
        self.inplace = inplace

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
            return self.act(y if residual is None else y + residual)
        if self.inplace and self.training and torch.is_grad_enabled() and x.numel():
            return self._forward_inplace(x, residual)
        return super().forward(x, residual)

    def _forward_inplace(self, x: Tensor, residual: Tensor | None) -> Tensor:
        with torch.no_grad():
            mean, var, total = self._statistics(x if x.dtype == torch.float64 else x.float())
            self._update(mean, var, total)
            inverse_std = (var + self.eps).rsqrt()
        world = isinstance(self, SyncBatchNormAct) and comm.get_world_size() > 1
        return InPlaceNormAct.apply(
            x, self.weight, self.bias, residual, mean, inverse_std, self.act, total.clamp(min=1), world
        )

    def _statistics(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (C,) mean and biased variance, and the (1,) number of values that they were computed from."""
        var, mean = torch.var_mean(values, [d for d in range(values.dim()) if d != 1], correction=0)
        return mean, var, values.new_full((1,), values.numel() // values.shape[1])

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, total: Tensor) -> None:
        """Move the running statistics; they stay if no process has any value."""
        momentum = self.momentum * total.clamp(max=1)
        self.running_mean += momentum * (mean - self.running_mean)
        self.running_var += momentum * (var * total / (total - 1).clamp(min=1) - self.running_var)
        self.num_batches_tracked += 1


class SyncBatchNormAct(BatchNormAct):
    """Batch normalisation with the statistics of the joint batch of all processes, on GPU (nccl) and CPU (gloo).

    Every pixel of every process weighs the same, whatever the sizes of the local batches (an empty one included), and
    the running variance is the unbiased one of the joint batch.
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not self.training or comm.get_world_size() == 1:
            return super().forward(x, residual)
        if self.inplace and torch.is_grad_enabled():
            return self._forward_inplace(x, residual)
        values = x.float()
        mean, var, total = self._statistics(values)
        self._update(mean, var, total)
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = self.weight * (var + self.eps).rsqrt()
        y = (values * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)
        return self.act(y if residual is None else y + residual)

    def _statistics(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if comm.get_world_size() == 1:
            return super()._statistics(values)
        channels = values.shape[1]
        axes = [d for d in range(values.dim()) if d != 1]
        if values.numel():
            local_var, local_mean = torch.var_mean(values, axes, correction=0)
        else:
            local_var = local_mean = values.sum(axes)
        count = values.new_full((1,), values.numel() // channels)
        # Merging means and variances loses no digits where the mean is large, as sums of squares would.
        gathered = torch.stack(differentiable_all_gather(torch.cat([local_mean, local_var, count])))
        means, variances, counts = gathered.split([channels, channels, 1], dim=1)
        total = counts.sum(dim=0).detach()
        share = counts.detach() / total.clamp(min=1)
        mean = (share * means).sum(dim=0)
        return mean, (share * (variances + (means - mean) ** 2)).sum(dim=0), total


class AffineAct(_FixedStatistics, _NormAct, nn.BatchNorm2d):
    """Trainable scale and shift on fixed statistics: batch normalisation that always uses its running statistics."""

    def __init__(self, channels: int, act: Activation, inplace: bool = False) -> None:
        """Arguments are those of ``BatchNormAct``."""
        super().__init__(channels)
        self.act = act
        self.inplace = inplace

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.inplace and self.training and torch.is_grad_enabled() and x.numel():
            inverse_std = (self.running_var + self.eps).rsqrt()
            return InPlaceNormAct.apply(
                x, self.weight, self.bias, residual, self.running_mean, inverse_std, self.act, None, False
            )
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        y = x * scale.to(x.dtype).view(shape) + shift.to(x.dtype).view(shape)
        return self.act(y if residual is None else y + residual)


class FrozenBatchNormAct(_FixedStatistics, _NormAct, FrozenBatchNorm2d):
    """Fixed scale, shift and statistics (Detectron2's FrozenBN)."""

    def __init__(self, channels: int, act: Activation) -> None:
        super().__init__(channels)
        self.act = act

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() == 2:  # features of a fully connected layer
            residual = None if residual is None else residual[:, :, None, None]
            return self.forward(x[:, :, None, None], residual).flatten(1)
        return super().forward(x, residual)


class GroupNormAct(_NormAct, nn.GroupNorm):
    """Group normalisation; also of (N, C) features."""

    def __init__(self, channels: int, act: Activation, groups: int) -> None:
        super().__init__(groups, channels)
        self.act = act


def make_norm_act(norm: str, channels: int, act: Activation, gn_groups: int = 16, inplace: bool = False) -> nn.Module:
    """Build the layer that a NORM key names.

    Args:
        norm: One of ``NORMS``.
        channels: The number C of channels.
        act: The activation after the normalization.
        gn_groups: The number of groups of "GN"; must divide ``channels``.
        inplace: Whether to keep only the output for the backward pass. "GN" and "FrozenBN" have nothing to gain and
            ignore it.

    Raises:
        UserError: unknown name, channels that the groups do not divide, or ``inplace`` with an activation of which the
            input does not follow from the output.
    """
    if inplace and not act.invertible:
        raise UserError(
            f"MODEL.SEAMLESS.INPLACE_NORM needs an activation that can be inverted, not {act.name}; use leaky_relu "
            "with a slope above 0, or elu"
        )
    if norm == "GN":
        if channels % gn_groups:
            raise UserError(
                f"group normalisation with MODEL.SEAMLESS.GN_GROUPS={gn_groups} needs channels divisible by it, "
                f"not {channels}"
            )
        return GroupNormAct(channels, act, gn_groups)
    classes = {"BN": BatchNormAct, "SyncBN": SyncBatchNormAct, "FrozenBN": FrozenBatchNormAct, "Affine": AffineAct}
    if norm not in classes:
        raise UserError(f"normalisation {norm!r} is unknown; use one of {', '.join(NORMS)}")
    if norm == "FrozenBN":
        return FrozenBatchNormAct(channels, act)
    return classes[norm](channels, act, inplace)


NormFactory = Callable[[int], nn.Module]


def norm_act_from_config(cfg: CfgNode, norm: str) -> NormFactory:
    """Return a factory ``channels -> layer`` with the activation of ``cfg``; Detectron2's ``get_norm`` takes it."""
    act = Activation(cfg.MODEL.SEAMLESS.ACTIVATION, cfg.MODEL.SEAMLESS.ACTIVATION_SLOPE)

    def factory(channels: int) -> nn.Module:
        return make_norm_act(norm, channels, act, cfg.MODEL.SEAMLESS.GN_GROUPS, cfg.MODEL.SEAMLESS.INPLACE_NORM)

    return factory


def init_xavier(layer: nn.Module, gain: float = 1.0) -> None:
    """Initialize a layer as the original does: Xavier-normal weights with ``gain``, and a zero bias."""
    nn.init.xavier_normal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
