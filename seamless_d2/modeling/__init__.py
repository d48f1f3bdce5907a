"""The method: every component, registered in Detectron2's registries."""

from .backbone import build_seamless_fpn, build_seamless_resnet_fpn_backbone
from .box_head import SeamlessBoxHead
from .fusion import fuse_panoptic, resize_panoptic
from .panoptic import SeamlessPanoptic
from .roi_heads import SeamlessMaskHead, SeamlessROIHeads
from .rpn import SeamlessRPN, SeamlessRPNHead
from .semantic_head import SeamlessSemSegHead
from .timm_backbone import TimmBackbone, build_timm_fpn_backbone

__all__ = [
    "SeamlessBoxHead",
    "SeamlessMaskHead",
    "SeamlessPanoptic",
    "SeamlessROIHeads",
    "SeamlessRPN",
    "SeamlessRPNHead",
    "SeamlessSemSegHead",
    "TimmBackbone",
    "build_seamless_fpn",
    "build_seamless_resnet_fpn_backbone",
    "build_timm_fpn_backbone",
    "fuse_panoptic",
    "resize_panoptic",
]
