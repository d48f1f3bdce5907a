"""Any network of timm as the backbone: hierarchical ones under our feature pyramid, plain ViTs under a simple one."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import UserError
from ..tensor_files import check_finite, load_file
from ..timm_description import check_name, has_weights, import_timm
from .backbone import ExtraLevels, build_seamless_fpn
from .norm import norm_act_from_config

# The name of the only feature map of a network whose feature maps have one stride.
_PLAIN = "last_feat"
_RESUMES = ContextVar("resumes", default=False)


@contextmanager
def resume_without_pretrained() -> Iterator[None]:
    """Build networks without MODEL.TIMM.PRETRAINED within the block: those of a training that resumes, whose checkpoint
    has all weights, may be on a machine that has neither the file nor a way to the hub.
    """
    token = _RESUMES.set(True)
    try:
        yield
    finally:
        _RESUMES.reset(token)


class TimmBackbone(Backbone):
    """A ``features_only`` model of timm in Detectron2's interface.

    Feature maps are called as those of a ResNet: "res2" has stride 4, "res5" stride 32. The network of a plain ViT,
    whose feature maps all have one stride, has "last_feat" alone.
    """

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

    @property
    def size_divisibility(self) -> int:
        """What the sides of images are padded to a multiple of: the coarsest stride, at least that of the pyramid."""
        return max(32, *self._out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {name: (N, C, h, w)}."""
        features = self.net(x)
        if self.is_channels_last:
            features = [f.permute(0, 3, 1, 2).contiguous() for f in features]
        return {name: features[k] for name, k in self._index.items()}

    def freeze(self, freeze_at: int) -> None:
        """Freeze the stem (``freeze_at`` >= 1) and what leads to the feature maps res2..res``freeze_at``; 5 means all.

        Raises:
            UserError: The network has no such stage; a plain one has none at all.
        """
        count = self._count_frozen(freeze_at)
        if count is None:
            possible = [str(k) for k in range(6) if self._count_frozen(k) is not None]
            raise UserError(
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but the network has no stage of that number"
                f"{', as a plain ViT has none' if self.is_plain else ''}; use {', '.join(possible[:-1])}, or "
                f"{possible[-1]} for all of it"
            )
        for parameter in list(self.net.parameters())[:count]:
            parameter.requires_grad_(False)

    def _count_frozen(self, freeze_at: int) -> int | None:
        """Return how many of the first parameters ``freeze_at`` freezes; None if there is no such stage."""
        names = [name.replace(".", "_") for name, _ in self.net.named_parameters()]
        if freeze_at in (0, 5):
            return len(names) * (freeze_at == 5)
        stage = self._modules_of.get(f"res{max(freeze_at, 2)}")
        inside = [k for k, name in enumerate(names) if stage and name.startswith(f"{stage}_")]
        if not inside:
            return None
        return inside[-1] + 1 if freeze_at >= 2 else inside[0]


class SimplePyramid(SimpleFeaturePyramid):
    """Detectron2's simple feature pyramid, which says what it pads images to a multiple of."""

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility


def _reads_pretrained(cfg: CfgNode) -> bool:
    """Whether MODEL.TIMM.PRETRAINED is needed: a checkpoint of the whole model has the weights of the network, too."""
    return bool(cfg.MODEL.TIMM.PRETRAINED) and not (cfg.MODEL.WEIGHTS or cfg.MODEL.INIT_FROM or _RESUMES.get())


def _create(timm: Any, cfg: CfgNode, **options: Any) -> nn.Module:
    """Create the network with what it takes of the settings and of timm's ``options``."""
    keys = cfg.MODEL.TIMM
    if keys.DROP_PATH_RATE > 0:
        options["drop_path_rate"] = keys.DROP_PATH_RATE
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


def _read_weights(timm: Any, path: str) -> dict[str, Tensor]:
    """Read the weights of a file of timm's training, of its hub, or of torch.save.

    Raises:
        UserError: The file is missing, damaged or of another format.
    """
    what = "file of MODEL.TIMM.PRETRAINED"
    if not Path(path).is_file():
        raise UserError(
            f'MODEL.TIMM.PRETRAINED: there is no file {path}; give a file of weights, "hub" to download those of '
            'MODEL.TIMM.NAME, or "" for random ones'
        )
    content = load_file(path, what)
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    weights = {k: v for k, v in content.items() if isinstance(v, Tensor)}
    if not weights:
        raise UserError(f"{what} {path} has no weights; give one that timm or torch.save has written")
    try:
        check_finite(weights)
    except UserError as error:
        raise UserError(f"{what} {path}: {error}") from None
    return timm.models.clean_state_dict(weights)


def _create_from_file(timm: Any, cfg: CfgNode) -> nn.Module:
    """Create the network with the weights of the file MODEL.TIMM.PRETRAINED, which must have all of them; what else it
    has, such as a classifier, is passed over.

    Raises:
        UserError: The file cannot be read, or lacks weights of the network.
    """
    keys = cfg.MODEL.TIMM
    weights = _read_weights(timm, keys.PRETRAINED)

    def create(state: dict[str, Tensor]) -> nn.Module:
        overlay = {"state_dict": state}
        net = _create(timm, cfg, pretrained=True, pretrained_strict=False, pretrained_cfg_overlay=overlay)
        for module in net.modules():  # or the weights would stay in memory, and in each copy of the model
            if isinstance(getattr(module, "pretrained_cfg", None), dict):
                module.pretrained_cfg.pop("state_dict", None)
        return net

    # timm renames, reshapes and splits weights on loading, and passes over what fits nowhere: what it takes from a file
    # is what becomes NaN with one of NaN.
    logger = logging.getLogger("timm")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with torch.random.fork_rng(devices=[]):
            probe = create(
                {k: torch.full_like(v, math.nan) if v.is_floating_point() else v for k, v in weights.items()}
            )
        values = {**dict(probe.named_parameters()), **{k: v for k, v in probe.named_buffers() if "running_" in k}}
        count, lacking = len(values), [name for name, value in values.items() if not value.isnan().any()]
        del probe, values
        net = create(weights)
    except UserError:
        raise
    except Exception as error:  # torch and timm raise many kinds
        count, lacking, net = 0, [_describe(error)], None
    finally:
        logger.setLevel(level)
    if lacking:
        listed = ", ".join(lacking[:3]) + ", ..." * (len(lacking) > 3)
        raise UserError(
            f"MODEL.TIMM.PRETRAINED: {keys.PRETRAINED} does not hold weights of {keys.NAME}"
            f"{f', it lacks {len(lacking)} of {count}' if count else ''} ({listed}); give a file of this network, "
            '"hub" to download one, or "" for random weights'
        )
    return net


def _describe(error: Exception) -> str:
    """Return the kind of an error, and the first 200 characters of its text in one line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}"


def build_timm_backbone(cfg: CfgNode) -> TimmBackbone:
    """Build the network that ``MODEL.TIMM`` describes.

    Raises:
        UserError: timm is missing or has no such model, its weights cannot be had, or a setting does not suit it.
    """
    timm, keys = import_timm(), cfg.MODEL.TIMM
    check_name(keys.NAME)
    source = keys.PRETRAINED if _reads_pretrained(cfg) else ""
    if source == "hub" and not has_weights(keys.NAME):
        raise UserError(
            f"MODEL.TIMM.PRETRAINED: timm has no weights of {keys.NAME}; choose another network, or set it to a file "
            'of weights, or to "" for random ones'
        )
    try:
        if source not in ("", "hub"):
            net = _create_from_file(timm, cfg)
        else:
            net = _create(timm, cfg, pretrained=bool(source))
    except UserError:
        raise
    except Exception as error:  # timm and its hub raise many kinds
        if source and isinstance(error, OSError):  # so are the errors of networks and of the hub
            raise UserError(
                f"the weights of {keys.NAME} cannot be downloaded ({_describe(error)}); "
                "without a network, set MODEL.TIMM.PRETRAINED to a file of weights"
            ) from None
        raise UserError(
            f"MODEL.TIMM.NAME: {keys.NAME} cannot be a backbone ({_describe(error)}); choose another"
        ) from None
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


@torch.no_grad()
def _check_maps(bottom_up: TimmBackbone, cfg: CfgNode) -> None:
    """Raise ``UserError`` if feature maps are not as large as their strides say, as those of unpadded convolutions."""
    height, width = 96, 160
    parameter = next(bottom_up.parameters())
    image = torch.zeros(1, 3, height, width, dtype=parameter.dtype, device=parameter.device)
    try:
        maps = bottom_up.eval()(image)
    except Exception as error:  # networks raise many kinds
        raise UserError(
            f"MODEL.TIMM.NAME: {cfg.MODEL.TIMM.NAME} cannot take images of any size, such as {height}x{width} "
            f"({_describe(error)}); choose another network"
        ) from None
    bottom_up.train()
    for name, shape in bottom_up.output_shape().items():
        wanted, size = (-(-height // shape.stride), -(-width // shape.stride)), tuple(maps[name].shape[-2:])
        if size != wanted and name in cfg.MODEL.FPN.IN_FEATURES:
            raise UserError(
                f"MODEL.TIMM.NAME: the feature map {name} of {cfg.MODEL.TIMM.NAME} has {size} values for an image of "
                f"{height}x{width} instead of {wanted}, so that boxes would be misplaced; choose another network"
            )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build ``MODEL.TIMM.NAME`` under the feature pyramid of the paper; a plain ViT under Detectron2's simple feature
    pyramid (Li et al., ECCV 2022), with ``MODEL.FPN.EXTRA_LEVELS`` levels on top.

    Raises:
        UserError: See ``build_timm_backbone``; or the network lacks a feature map of ``MODEL.FPN.IN_FEATURES``, or its
            maps do not fit the image.
    """
    bottom_up = build_timm_backbone(cfg)
    if not bottom_up.is_plain:
        _check_maps(bottom_up, cfg)
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
