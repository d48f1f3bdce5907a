"""Any network of timm as the backbone: hierarchical ones under our feature pyramid, plain ViTs under a simple one."""

import math
import re
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import UserError
from ..timm_description import check_name, import_timm
from .backbone import ExtraLevels, build_seamless_fpn
from .norm import norm_act_from_config

# The name of the only feature map of a network whose feature maps have one stride.
_PLAIN = "last_feat"


class TimmBackbone(Backbone):
    """A ``features_only`` model of timm in Detectron2's interface.

    Feature maps are called as those of a ResNet: "res2" has stride 4, "res5" stride 32. The network of a plain ViT,
    whose feature maps all have one stride, has "last_feat" alone.
    """

    #: What the sides of images are padded to a multiple of: the coarsest stride.
    size_divisibility = 32

    def __init__(self, net: nn.Module) -> None:
        """
        Args:
            net: What ``timm.create_model(..., features_only=True)`` returns.
        """
        super().__init__()
        self.net = net
        self.is_channels_last = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")
        channels, strides = net.feature_info.channels(), net.feature_info.reduction()
        modules = [name.replace(".", "_") for name in net.feature_info.module_name()]
        self.is_plain = len(set(strides)) == 1
        last = len(strides) - 1
        # Of several feature maps of one stride the last one counts.
        self._index = {_PLAIN: last} if self.is_plain else {f"res{int(math.log2(s))}": k for k, s in enumerate(strides)}
        self._modules_of = {name: modules[k] for name, k in self._index.items()}
        self._out_features = list(self._index)
        self._out_feature_channels = {name: channels[k] for name, k in self._index.items()}
        self._out_feature_strides = {name: strides[k] for name, k in self._index.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {name: (N, C, h, w)}."""
        features = self.net(x)
        if self.is_channels_last:
            features = [f.permute(0, 3, 1, 2).contiguous() for f in features]
        return {name: features[k] for name, k in self._index.items()}

    def freeze(self, freeze_at: int) -> None:
        """Freeze the stem (``freeze_at`` >= 1) and what leads to the feature maps res2..res``freeze_at``; 5 means all.

        Raises:
            UserError: A plain network, which has no stages, is to be frozen in part.
        """
        if freeze_at == 0:
            return
        named = list(self.net.named_parameters())
        count = len(named)
        if freeze_at < 5:
            if self.is_plain:
                raise UserError(
                    f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but a plain ViT has no stages; use 0, or 5 for all of it"
                )
            stage = self._modules_of.get(f"res{max(freeze_at, 2)}", "")
            inside = [k for k, (name, _) in enumerate(named) if f"{name.replace('.', '_')}_".startswith(f"{stage}_")]
            if not stage or not inside:
                raise UserError(f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but the network has no stage of that number")
            count = inside[-1] + 1 if freeze_at >= 2 else inside[0]
        for _, parameter in named[:count]:
            parameter.requires_grad_(False)


class SimplePyramid(SimpleFeaturePyramid):
    """Detectron2's simple feature pyramid, which says what it pads images to a multiple of."""

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility


def _reads_pretrained(cfg: CfgNode) -> bool:
    """Whether MODEL.TIMM.PRETRAINED is needed: a checkpoint of the whole model has the weights of the network, too."""
    return bool(cfg.MODEL.TIMM.PRETRAINED) and not (cfg.MODEL.WEIGHTS or cfg.MODEL.INIT_FROM)


def _create(timm: Any, cfg: CfgNode) -> nn.Module:
    """Create the network with what it takes of the settings, and its pretrained weights."""
    options, keys = {}, cfg.MODEL.TIMM
    if keys.DROP_PATH_RATE > 0:
        options["drop_path_rate"] = keys.DROP_PATH_RATE
    if _reads_pretrained(cfg):
        options["pretrained"] = True
        if keys.PRETRAINED != "hub":
            if not Path(keys.PRETRAINED).is_file():
                raise UserError(
                    f'MODEL.TIMM.PRETRAINED: there is no file {keys.PRETRAINED}; give a file of weights, "hub" to '
                    'download those of MODEL.TIMM.NAME, or "" for random ones'
                )
            options["pretrained_cfg_overlay"] = {"file": keys.PRETRAINED}
    # Transformers say by one of these that images may have any size; other networks know neither.
    for sizes in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        try:
            net = timm.create_model(keys.NAME, features_only=True, **sizes, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            if not sizes:
                raise UserError(f"MODEL.TIMM.NAME: {keys.NAME} does not take MODEL.TIMM.DROP_PATH_RATE") from None
            continue
        if not sizes and net.pretrained_cfg.get("fixed_input_size"):
            raise UserError(f"MODEL.TIMM.NAME: {keys.NAME} takes images of one size only; choose another network")
        return net
    raise AssertionError("the last attempt returns or raises")


def build_timm_backbone(cfg: CfgNode) -> TimmBackbone:
    """Build the network that ``MODEL.TIMM`` describes.

    Raises:
        UserError: timm is missing or has no such model, its weights cannot be had, or a setting does not suit it.
    """
    timm, keys = import_timm(), cfg.MODEL.TIMM
    check_name(keys.NAME)
    try:
        net = _create(timm, cfg)
    except UserError:
        raise
    except Exception as error:  # timm and its hub raise many kinds
        reason = re.sub(r"\s+", " ", str(error))[:200]
        wanted = keys.PRETRAINED if _reads_pretrained(cfg) else ""
        if wanted == "hub" and isinstance(error, OSError):  # so are the errors of networks and of the hub
            raise UserError(
                f"the weights of {keys.NAME} cannot be downloaded ({type(error).__name__}: {reason}); without a "
                "network, set MODEL.TIMM.PRETRAINED to a file of weights"
            ) from None
        if wanted and wanted != "hub":
            raise UserError(
                f"MODEL.TIMM.PRETRAINED: {keys.PRETRAINED} does not hold weights of {keys.NAME} ({reason})"
            ) from None
        raise UserError(f"MODEL.TIMM.NAME: {keys.NAME} cannot be a backbone ({reason}); choose another") from None
    if keys.NORM == "FrozenBN":
        net = timm.layers.freeze_batch_norm_2d(net)
    elif keys.NORM == "SyncBN":
        if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1:
            raise UserError("MODEL.TIMM.NORM SyncBN works on GPUs only; set it to FrozenBN, or use one process")
        net = timm.layers.convert_sync_batchnorm(net)
    if keys.GRAD_CHECKPOINTING:
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()):
            raise UserError(
                f"MODEL.TIMM.GRAD_CHECKPOINTING: {keys.NAME} has batch normalization, whose statistics would move "
                "twice a step; set it False, or MODEL.TIMM.NORM FrozenBN"
            )
        try:
            getattr(net, "model", net).set_grad_checkpointing(True)  # plain transformers come wrapped
        except (AttributeError, AssertionError):
            raise UserError(
                f"MODEL.TIMM.GRAD_CHECKPOINTING: {keys.NAME} cannot recompute its activations; set it False"
            ) from None
    backbone = TimmBackbone(net)
    backbone.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    return backbone


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build ``MODEL.TIMM.NAME`` under the feature pyramid of the paper; a plain ViT under Detectron2's simple feature
    pyramid (Li et al., ECCV 2022), with ``MODEL.FPN.EXTRA_LEVELS`` levels on top.

    Raises:
        UserError: See ``build_timm_backbone``; or the network lacks a feature map of ``MODEL.FPN.IN_FEATURES``.
    """
    bottom_up = build_timm_backbone(cfg)
    if not bottom_up.is_plain:
        return build_seamless_fpn(cfg, bottom_up)
    stride = bottom_up.output_shape()[_PLAIN].stride
    if stride != 16:
        raise UserError(
            f"MODEL.TIMM.NAME: the patches of {cfg.MODEL.TIMM.NAME} have {stride} pixels, from which the simple "
            "feature pyramid cannot make strides of 4 to 32; choose a ViT with patches of 16"
        )
    channels, fpn = cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN
    top_block = None
    if fpn.EXTRA_LEVELS:
        top_block = ExtraLevels("p5", channels, channels, fpn.EXTRA_LEVELS, norm_act_from_config(cfg, fpn.NORM))
    scales = tuple(stride / s for s in (4, 8, 16, 32))
    return SimplePyramid(bottom_up, _PLAIN, channels, scales, top_block, norm="LN")
