"""Normalization, residual addition and activation as one function that keeps only its output for the backward pass.

Rota Bulo et al., "In-place activated BatchNorm" (CVPR 2018): the input of the normalisation is computed back from the
output, which the next convolution keeps anyway. Here in plain PyTorch, with the residual addition inside (the residual
too is kept by others) and with statistics over all processes.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from ...errors import UserError

# Scales nearer to zero than this cannot be divided by; such a channel's gradient is that of this scale.
_MIN_SCALE = 1e-3


@dataclass(frozen=True)
class Activation:
    """An activation function by name; ``slope`` is leaky_relu's negative slope or elu's alpha."""

    name: str = "leaky_relu"
    slope: float = 0.01

    def __post_init__(self) -> None:
        if self.name not in ("leaky_relu", "elu", "relu", "identity"):
            raise UserError(f"activation {self.name!r} is unknown; use leaky_relu, elu, relu or identity")

    def __call__(self, x: Tensor) -> Tensor:
        """Apply in place; ``x`` must be a fresh tensor that nothing else reads."""
        if self.name == "leaky_relu":
            return F.leaky_relu(x, self.slope, inplace=True)
        if self.name == "elu":
            return F.elu(x, self.slope, inplace=True)
        return F.relu_(x) if self.name == "relu" else x

    @property
    def invertible(self) -> bool:
        """Whether the input can be computed back from the output."""
        return self.name == "identity" or (self.name in ("leaky_relu", "elu") and self.slope > 0)

    def inverse(self, y: Tensor) -> Tensor:
        """A new tensor of which ``y`` is the activation."""
        if self.name == "leaky_relu":
            return torch.where(y > 0, y, y / self.slope)
        if self.name == "elu":
            # Saturated outputs do not tell how far below their input was.
            return torch.where(y > 0, y, torch.log1p((y / self.slope).clamp(min=-1 + 1e-6)))
        return y.clone()

    def backward(self, y: Tensor, grad: Tensor) -> Tensor:
        """Gradient of the input, from the output ``y`` and its gradient."""
        if self.name == "leaky_relu":
            return torch.where(y > 0, grad, grad * self.slope)
        return torch.where(y > 0, grad, grad * (y + self.slope)) if self.name == "elu" else grad

    @property
    def gain(self) -> float:
        """Gain for variance-preserving initialisation (He et al. 2015)."""
        if self.name == "identity":
            return 1.0
        return nn.init.calculate_gain("leaky_relu", self.slope if self.name == "leaky_relu" else 0.0)


class InPlaceNormAct(torch.autograd.Function):
    """``act(xhat * weight + bias + residual)`` with ``xhat`` = (x - mean) / std per channel."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        mean: Tensor,
        inverse_std: Tensor,
        act: Activation,
        count: Tensor | None,
        world: bool,
    ) -> Tensor:
        """
        Args:
            x: (N, C, ...) float input.
            weight, bias: (C,) float32 scale and shift.
            residual: A tensor of the shape of ``x`` that is added before the activation, or None.
            mean, inverse_std: (C,) float32 statistics, computed from ``x`` in training or fixed.
            act: An invertible activation.
            count: The number of values per channel that the statistics were computed from; None if they are fixed.
            world: Whether the statistics are those of all processes.
        """
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = weight * inverse_std
        y = x * scale.to(x.dtype).view(shape)
        y += (bias - mean * scale).to(x.dtype).view(shape)
        if residual is not None:
            y += residual
        y = act(y)
        ctx.save_for_backward(y, residual, weight, bias, inverse_std, count)
        ctx.act, ctx.world = act, world
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and residual."""
        y, residual, weight, bias, inverse_std, count = ctx.saved_tensors
        act: Activation = ctx.act
        shape = [1, -1] + [1] * (y.dim() - 2)
        axes = [d for d in range(y.dim()) if d != 1]
        grad = act.backward(y, grad)  # of the sum before the activation, and of the residual
        safe = torch.where(weight.abs() < _MIN_SCALE, torch.where(weight < 0, -_MIN_SCALE, _MIN_SCALE), weight)
        xhat = act.inverse(y).sub_(bias.to(y.dtype).view(shape))
        if residual is not None:
            xhat -= residual
        xhat *= safe.reciprocal().to(y.dtype).view(shape)
        dtype = torch.promote_types(y.dtype, torch.float32)
        sums = torch.stack([grad.sum(axes, dtype=dtype), (grad * xhat).sum(axes, dtype=dtype)])
        grad_bias, grad_weight = sums
        grad_x = None
        if ctx.needs_input_grad[0]:
            scale = weight * inverse_std
            if count is not None:
                if ctx.world:
                    sums = sums.clone()
                    dist.all_reduce(sums)
                mean_grad, mean_product = sums / count
                xhat *= -mean_product.to(y.dtype).view(shape)
                xhat += grad
                xhat -= mean_grad.to(y.dtype).view(shape)
                grad_x = xhat.mul_(scale.to(y.dtype).view(shape))
            else:
                grad_x = grad * scale.to(y.dtype).view(shape)
        return grad_x, grad_weight, grad_bias, grad if residual is not None else None, *[None] * 5
