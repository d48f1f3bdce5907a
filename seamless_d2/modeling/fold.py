"""A model made faster for inference: norms folded into convolutions, compilation."""

from typing import Any

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

from .norm import Activation, AffineAct, BatchNormAct, FrozenBatchNormAct
from .roi_heads import NormLinear, SeamlessMaskHead
from .semantic_head import MiniDeepLab

# SyncBN is a BatchNormAct. Group normalisation depends on the data and cannot be folded.
_FIXED = (BatchNormAct, AffineAct, FrozenBatchNormAct)


class FoldedNorm(nn.Module):
    """What is left of a norm layer: the residual addition and the activation."""

    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """As the norm layers' ``forward``; works in place."""
        return self.act(x if residual is None else x.add_(residual))


@torch.no_grad()
def fold_norms(model: nn.Module) -> nn.Module:
    """Fold every norm layer with fixed statistics into the layer before it, in place.

    The outputs stay the same but for rounding; the model cannot be trained afterwards, and its checkpoint has other
    keys.

    Returns:
        ``model``.
    """
    for module in list(model.modules()):
        if isinstance(module, MiniDeepLab) and isinstance(module.norm, _FIXED):
            scale, shift = _scale_and_shift(module.norm)
            branches = (module.local, module.dilated, module.pooled)
            # The mean of a constant is the constant: the pooled branch's shift may come before its pooling.
            for conv, s, b in zip(branches, scale.chunk(3), shift.chunk(3), strict=True):
                _scale(conv, s, b, axis=0)
            module.norm = FoldedNorm(module.norm.act)
        elif isinstance(module, SeamlessMaskHead) and isinstance(module.deconv_norm, _FIXED):
            _scale(module.deconv, *_scale_and_shift(module.deconv_norm), axis=1)
            module.deconv_norm = FoldedNorm(module.deconv_norm.act)
        elif isinstance(module, (Conv2d, NormLinear)) and isinstance(module.norm, _FIXED):
            _scale(module, *_scale_and_shift(module.norm), axis=0)
            module.norm = FoldedNorm(module.norm.act)
    return model


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Float64: y = scale x + shift."""
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _scale(layer: nn.Module, scale: Tensor, shift: Tensor, axis: int) -> None:
    weight = layer.weight
    shape = [1] * weight.dim()
    shape[axis] = -1
    bias = shift if layer.bias is None else shift + layer.bias.double() * scale
    layer.weight = nn.Parameter((weight.double() * scale.view(shape)).to(weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)


def prepare_for_inference(model: nn.Module) -> nn.Module:
    """Fold the norms, and keep weights and features with the channels last, which is faster on CPUs and GPUs; in place.

    See ``fold_norms``.
    """
    return fold_norms(model).to(memory_format=torch.channels_last)


def compile_network(model: nn.Module, **options: Any) -> nn.Module:
    """Compile the trunk and the semantic head, where nearly all of the work is, with ``torch.compile``; in place.

    Args:
        model: a ``SeamlessPanoptic``.
        options: for ``torch.compile``; by default each size of picture is compiled on its own, which suits a camera or
            a data set of one size.

    Returns:
        ``model``.
    """
    options = {"dynamic": False} | options
    model.backbone.compile(**options)
    model.sem_seg_head.layers = torch.compile(model.sem_seg_head.layers, **options)
    return model
