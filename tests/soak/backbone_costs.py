#!/usr/bin/env python
"""Parameters, multiply-adds and kept activations of the shipped backbones, without computing anything.

    python tests/soak/backbone_costs.py [CONFIG ...]

The networks live on PyTorch's "meta" device, so that the largest ones take seconds and no memory. Multiply-adds are
those of backbone and feature pyramid for one image of 1024x2048; activations are what autograd keeps of them in bf16.
"""

import sys

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from seamless_d2.config import get_config
from seamless_d2.modeling import SeamlessPanoptic

SIZE = (1024, 2048)
CONFIGS = [
    f"cityscapes/seamless_{name}"
    for name in ("R_50_FPN", "ConvNeXt_T_FPN", "ConvNeXt_B_FPN", "ConvNeXt_L_FPN", "Swin_L_FPN", "DINOv3_ViT_L")
]


def measure(config: str) -> list[object]:
    """Return the name, millions of parameters, billions of multiply-adds, and gigabytes (10^9) of activations."""
    cfg = get_config(config)
    cfg.MODEL.DEVICE, cfg.MODEL.TIMM.PRETRAINED = "cpu", ""
    with torch.device("meta"):
        model = SeamlessPanoptic(cfg)
        parameters = sum(p.numel() for p in model.parameters())
        image = torch.zeros(1, 3, *SIZE)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.backbone.eval()(image)
        backbone = model.backbone.train().bfloat16()
        weights = {p.untyped_storage()._cdata for p in backbone.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor  # and alive, so that no other takes its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = backbone(image.bfloat16())
        assert outputs
    size = sum(t.untyped_storage().nbytes() for storage, t in kept.items() if storage not in weights)
    return [config, f"{parameters / 1e6:.1f}", f"{counter.get_total_flops() / 2e9:.0f}", f"{size / 1e9:.1f}"]


def main() -> None:
    rows = [measure(config) for config in sys.argv[1:] or CONFIGS]
    print(tabulate(rows, ["", "M parameters", "G multiply-adds", "GB of activations"], disable_numparse=True))


if __name__ == "__main__":
    main()
