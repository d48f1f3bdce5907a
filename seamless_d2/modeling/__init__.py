"""The method: every component, registered in Detectron2's registries."""

from .backbone import build_seamless_fpn, build_seamless_resnet_fpn_backbone
from .box_head import SeamlessBoxHead
from .fusion import fuse_panoptic, resize_panoptic
from .panoptic import SeamlessPanoptic
from .roi_heads import SeamlessMaskHead, SeamlessROIHeads
from .rpn import SeamlessRPN, SeamlessRPNHead
from .semantic_head import SeamlessSemSegHead

__all__ = [
    "SeamlessBoxHead",
    "SeamlessMaskHead",
    "SeamlessPanoptic",
    "SeamlessROIHeads",
    "SeamlessRPN",
    "SeamlessRPNHead",
    "SeamlessSemSegHead",
    "build_seamless_fpn",
    "build_seamless_resnet_fpn_backbone",
    "fuse_panoptic",
    "resize_panoptic",
]
