"""A model made ready for inference: norms folded into the layers before them, memory format, compilation, memory.

A layer that knows how to fold its norms offers a method ``fold_norms``; Detectron2's ``Conv2d`` is folded here. Layers
that offer nothing stay as they are. A folded model equals the plain one but for rounding.
"""

import ctypes
import sys
from typing import Any

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

from .inplace_norm import Activation

# Of glibc's malloc.h.
_M_MMAP_THRESHOLD = -3
# Bytes; glibc's own limit at the start of a process.
_LARGE_BLOCK = 128 * 1024


class FoldedNorm(nn.Module):
    """What remains of a folded norm layer: the residual addition and the activation."""

    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Add ``residual`` to ``x`` and apply the activation, in place."""
        return self.act(x if residual is None else x.add_(residual))


def is_foldable(norm: nn.Module | None) -> bool:
    """Return whether ``norm`` has fixed statistics and offers them (``scale_and_shift``)."""
    return hasattr(norm, "scale_and_shift")


@torch.no_grad()
def fold_into(layer: nn.Module, scale: Tensor, shift: Tensor, axis: int = 0) -> None:
    """Scale and shift the output of a convolution or fully connected layer by changing its weights in place.

    Args:
        layer: The layer; a bias is added if it has none.
        scale, shift: (C,) float64, one value per output channel.
        axis: The axis of the output channels in the layer's weight.
    """
    weight = layer.weight
    shape = [1] * weight.dim()
    shape[axis] = -1
    bias = shift if layer.bias is None else shift + layer.bias.double() * scale
    layer.weight = nn.Parameter((weight.double() * scale.view(shape)).to(weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)


def fold_own_norm(layer: nn.Module) -> None:
    """Fold ``layer.norm`` into ``layer`` in place, if it is foldable."""
    if is_foldable(layer.norm):
        fold_into(layer, *layer.norm.scale_and_shift())
        layer.norm = FoldedNorm(layer.norm.act)


def fold_norms(model: nn.Module) -> nn.Module:
    """Fold every norm layer with fixed statistics into the layer before it, in place.

    The model cannot be trained afterwards, and its checkpoint has other keys.

    Returns:
        ``model``.
    """
    for module in list(model.modules()):
        if hasattr(module, "fold_norms"):
            module.fold_norms()
        elif isinstance(module, Conv2d):
            fold_own_norm(module)
    return model


def prepare_for_inference(model: nn.Module) -> nn.Module:
    """Fold the norms and store weights channels last, which is faster on CPUs and GPUs; in place.

    The memory of this process is limited, too, see ``limit_heap``.

    Returns:
        ``model``.
    """
    limit_heap()
    return fold_norms(model).to(memory_format=torch.channels_last)


def limit_heap() -> None:
    """Make glibc return the memory of large tensors to the system when they are freed.

    By default glibc moves such blocks to its heap after the first one was freed. Between them oneDNN keeps what it
    compiles for each new image size, so that the heap grows with every size. Other systems stay as they are.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def compile_network(model: nn.Module, **options: Any) -> nn.Module:
    """Compile backbone, semantic head and RPN head, where nearly all of the work is; in place.

    Args:
        model: A ``SeamlessPanoptic``.
        options: Options of ``torch.compile``. By default each image size is compiled on its own, which suits a camera
            or a data set of one size, and on a GPU as CUDA graphs: one launch instead of hundreds.

    Returns:
        ``model``.
    """
    if model.device.type == "cuda":
        options = {"mode": "reduce-overhead"} | options
        model.uses_cuda_graphs = True
    options = {"dynamic": False} | options
    for part in (model.backbone, model.sem_seg_head, getattr(model.proposal_generator, "rpn_head", None)):
        if part is not None:
            part.compile(**options)
    return model
