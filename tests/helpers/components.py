"""Components that are not ours: the smallest semantic head of Detectron2's interface, and backbones of Detectron2."""

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY, Backbone, MViT, SwinTransformer
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT
from torch import Tensor, nn

from seamless_d2.modeling.backbone import build_seamless_fpn


@SEM_SEG_HEADS_REGISTRY.register()
class MinimalSemSegHead(nn.Module):
    """One convolution on p3; nothing but what Detectron2 documents of a semantic head."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()
        self.predictor = nn.Conv2d(input_shape["p3"].channels, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 1)
        self.void = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE

    def forward(self, features: dict[str, Tensor], targets: Tensor | None = None) -> tuple[Tensor | None, dict]:
        logits = F.interpolate(self.predictor(features["p3"]), scale_factor=8, mode="bilinear")
        if self.training:
            return None, {"loss_sem_seg": F.cross_entropy(logits.float(), targets, ignore_index=self.void)}
        return logits, {}


@BACKBONE_REGISTRY.register()
def build_tiny_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Detectron2's Swin Transformer under our feature pyramid."""
    swin = SwinTransformer(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=4, drop_path_rate=0.0)
    return build_seamless_fpn(cfg, swin)


@BACKBONE_REGISTRY.register()
def build_tiny_mvit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Detectron2's multiscale ViT under our feature pyramid."""
    last = (0, 1, 2, 3)
    return build_seamless_fpn(cfg, MViT(embed_dim=8, depth=4, last_block_indexes=last, pretrain_use_cls_token=False))


@BACKBONE_REGISTRY.register()
def build_tiny_vitdet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Detectron2's plain ViT with its simple feature pyramid, which pads images to squares."""
    vit = ViT(img_size=112, patch_size=16, embed_dim=16, depth=1, num_heads=1, pretrain_img_size=112)
    return SimpleFeaturePyramid(
        vit, "last_feat", cfg.MODEL.FPN.OUT_CHANNELS, (4.0, 2.0, 1.0, 0.5), LastLevelMaxPool(), square_pad=112
    )


_MVIT = ["scale2", "scale3", "scale4", "scale5"]
BACKBONES = {
    "ours": (),
    "stock FPN": (
        *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
        *("MODEL.FPN.NORM", ""),
    ),
    "ViTDet": ("MODEL.BACKBONE.NAME", "build_tiny_vitdet_backbone"),
    "MViT": ("MODEL.BACKBONE.NAME", "build_tiny_mvit_backbone", "MODEL.FPN.IN_FEATURES", _MVIT),
    "Swin": ("MODEL.BACKBONE.NAME", "build_tiny_swin_backbone", "MODEL.FPN.IN_FEATURES", ["p0", "p1", "p2", "p3"]),
}
SEMANTIC_HEADS = {
    "ours": (),
    "stock": ("MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead", "MODEL.SEM_SEG_HEAD.NORM", ""),
    "minimal": ("MODEL.SEM_SEG_HEAD.NAME", "MinimalSemSegHead"),
}
_STOCK_ROI_HEADS = (
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    *("MODEL.ROI_BOX_HEAD.NORM", "", "MODEL.ROI_MASK_HEAD.NORM", ""),
    *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
)
ROI_HEADS = {
    "ours": (),
    "stock": _STOCK_ROI_HEADS,
    "cascade": (
        *_STOCK_ROI_HEADS,
        "MODEL.ROI_HEADS.NAME",
        "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        True,
    ),
}
RPNS = {"ours": (), "stock": ("MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "MODEL.RPN.HEAD_NAME", "StandardRPNHead")}
