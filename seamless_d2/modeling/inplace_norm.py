"""Normalisation, residual addition and activation as one function that keeps only its output for the backward pass.

Rota Bulo et al., "In-place activated BatchNorm" (CVPR 2018): the input of the normalisation is computed back from the
output, which the next convolution keeps anyway. Here in plain PyTorch, with the residual addition inside (the residual
too is kept by others) and with statistics over all processes.
"""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

if TYPE_CHECKING:
    from .norm import Activation

# Scales nearer to zero than this cannot be divided by; such a channel's gradient is that of this scale.
_MIN_SCALE = 1e-3


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
        act: "Activation",
        count: Tensor | None,
        world: bool,
    ) -> Tensor:
        """
        Args:
            x: (N, C, ...) float.
            weight, bias: (C,) float32.
            residual: as ``x``, or None.
            mean, inverse_std: (C,) float32, computed of ``x`` (training) or fixed.
            act: an invertible activation.
            count: values per channel that mean and deviation were computed of; None where they are fixed.
            world: whether these are those of all processes.
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
