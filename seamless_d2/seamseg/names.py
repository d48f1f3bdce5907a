"""How the tensors of an original seamseg model correspond to ours, in both directions."""

import re
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

# InPlaceABN computes with |weight| + EPSILON (its source, every version).
EPSILON = 1e-5

# (pattern of the original's layer, our layer). Layers of normalisations come after their convolution.
_LAYERS = [
    (r"body\.backbone\.mod1\.conv1", "backbone.bottom_up.stem.conv1"),
    (r"body\.backbone\.mod1\.bn1", "backbone.bottom_up.stem.conv1.norm"),
    (r"body\.backbone\.mod(\d)\.block(\d+)\.convs\.conv(\d)", "backbone.bottom_up.res{0}.{1-1}.conv{2}"),
    (r"body\.backbone\.mod(\d)\.block(\d+)\.convs\.bn(\d)", "backbone.bottom_up.res{0}.{1-1}.conv{2}.norm"),
    (r"body\.backbone\.mod(\d)\.block(\d+)\.proj_conv", "backbone.bottom_up.res{0}.{1-1}.shortcut"),
    (r"body\.backbone\.mod(\d)\.block(\d+)\.proj_bn", "backbone.bottom_up.res{0}.{1-1}.shortcut.norm"),
    (r"body\.fpn\.(lateral|output)\.(\d)\.conv", "backbone.fpn_{0}{1+2}"),
    (r"body\.fpn\.(lateral|output)\.(\d)\.bn", "backbone.fpn_{0}{1+2}.norm"),
    (r"body\.fpn\.extra\.(\d)\.conv", "backbone.top_block.p{0+6}"),
    (r"body\.fpn\.extra\.(\d)\.bn", "backbone.top_block.p{0+6}.norm"),
    (r"rpn_head\.conv1", "proposal_generator.rpn_head.conv"),
    (r"rpn_head\.bn1", "proposal_generator.rpn_head.conv.norm"),
    (r"rpn_head\.conv_obj", "proposal_generator.rpn_head.objectness_logits"),
    (r"rpn_head\.conv_bbx", "proposal_generator.rpn_head.anchor_deltas"),
    (r"roi_head\.fc\.fc(\d)", "roi_heads.box_head.fc{0}"),
    (r"roi_head\.fc\.bn(\d)", "roi_heads.box_head.fc{0}.norm"),
    (r"roi_head\.roi_cls", "roi_heads.box_predictor.cls_score"),
    (r"roi_head\.roi_bbx", "roi_heads.box_predictor.bbox_pred"),
    (r"roi_head\.conv\.conv(\d)", "roi_heads.mask_head.convs.mask_fcn{0}"),
    (r"roi_head\.conv\.bn(\d)", "roi_heads.mask_head.convs.mask_fcn{0}.norm"),
    (r"roi_head\.conv\.conv_up", "roi_heads.mask_head.deconv"),
    (r"roi_head\.conv\.bn_up", "roi_heads.mask_head.deconv_norm"),
    (r"roi_head\.roi_msk", "roi_heads.mask_head.predictor"),
    (r"sem_head\.output\.(\d)\.conv1_3x3", "sem_seg_head.levels.{0}.local"),
    (r"sem_head\.output\.(\d)\.conv1_dil", "sem_seg_head.levels.{0}.dilated"),
    (r"sem_head\.output\.(\d)\.conv1_glb", "sem_seg_head.levels.{0}.pooled"),
    (r"sem_head\.output\.(\d)\.bn1", "sem_seg_head.levels.{0}.norm"),
    (r"sem_head\.output\.(\d)\.conv2", "sem_seg_head.levels.{0}.reduce"),
    (r"sem_head\.output\.(\d)\.bn2", "sem_seg_head.levels.{0}.reduce.norm"),
    (r"sem_head\.conv_sem", "sem_seg_head.predictor"),
]
_PATTERNS = [(re.compile(pattern), ours) for pattern, ours in _LAYERS]
_NORM = re.compile(r"\.(bn\d|bn|bn_up|proj_bn)$")
# The normalisations of these modules are the "dynamic" ones of the modes syncbn+bn and syncbn+gn.
_DYNAMIC = ("rpn_head.", "roi_head.")


def _placeholder(groups: tuple[str, ...], match: re.Match) -> str:
    """``{1-1}`` stands for group 1 as a number, less one."""
    group = groups[int(match[1])]
    return str(int(group) + int(match[2])) if match[2] else group


def our_layer(layer: str) -> str | None:
    """Return our name of one of the original's layers, or None if the model does not have it."""
    for pattern, template in _PATTERNS:
        match = pattern.fullmatch(layer)
        if match:
            return re.sub(r"\{(\d)([+-]\d)?\}", partial(_placeholder, match.groups()), template)
    return None


@dataclass(frozen=True)
class NormMode:
    """The original's ``normalization_mode``: which normalisation each part of the network has, in our names."""

    static: str
    dynamic: str

    @classmethod
    def parse(cls, mode: str) -> "NormMode":
        """
        Raises:
            KeyError: The mode is unknown.
        """
        return {
            "bn": cls("BN", "BN"),
            "syncbn": cls("SyncBN", "SyncBN"),
            "syncbn+bn": cls("SyncBN", "BN"),
            "gn": cls("GN", "GN"),
            "syncbn+gn": cls("SyncBN", "GN"),
            "off": cls("Affine", "Affine"),
        }[mode]

    def is_inplace_abn(self, layer: str) -> bool:
        """Return whether a layer, by the original's name, is a normalization by InPlaceABN."""
        norm = self.dynamic if layer.startswith(_DYNAMIC) else self.static
        return _NORM.search(layer) is not None and norm in ("BN", "SyncBN")


def reorder(layer: str, tensor: Tensor, to_ours: bool) -> Tensor:
    """Move rows between the original's and Detectron2's conventions.

    Box deltas are (dy, dx, dh, dw) there and (dx, dy, dw, dh) here; background is the first class there, the last here.
    """
    if layer in ("rpn_head.conv_bbx", "roi_head.roi_bbx"):
        return tensor.unflatten(0, (-1, 4))[:, [1, 0, 3, 2]].flatten(0, 1)
    if layer == "roi_head.roi_cls":
        return tensor.roll(-1 if to_ours else 1, dims=0)
    return tensor


def to_ours(state: dict[str, Tensor], mode: NormMode) -> tuple[dict[str, Tensor], list[str]]:
    """Convert the original's tensors.

    Args:
        state: The tensors by name, with the prefix of their module ("body.", "rpn_head.", "roi_head.", "sem_head.").
        mode: The normalization of the model.

    Returns:
        Our state dict, and the names that have no counterpart.
    """
    result, unknown = {}, []
    for name, tensor in state.items():
        layer, leaf = name.rsplit(".", 1)
        ours = our_layer(layer)
        if leaf == "num_batches_tracked" and ours is not None:
            continue  # only some versions of InPlaceABN store it; it has no effect
        if ours is None:
            unknown.append(name)
            continue
        tensor = tensor.detach().float()
        if leaf == "weight" and mode.is_inplace_abn(layer):
            tensor = tensor.abs() + EPSILON
        result[f"{ours}.{leaf}"] = reorder(layer, tensor, to_ours=True).contiguous()
    return result, unknown


def to_original(state: dict[str, Tensor], names: list[str], mode: NormMode) -> dict[str, Tensor]:
    """Convert our tensors back.

    InPlaceABN cannot express a scale below ``EPSILON``; the rows of the convolution before, and the running mean, take
    over the sign, and for tiny scales the remaining factor.

    Args:
        state: Our state dict.
        names: The original's names, as ``original_names`` returns them.
        mode: The normalization of the model.
    """
    state = {k: v.detach().float().clone() for k, v in state.items()}
    for name in names:
        layer, leaf = name.rsplit(".", 1)
        if leaf != "weight" or not mode.is_inplace_abn(layer):
            continue
        ours = our_layer(layer)
        gamma = state[f"{ours}.weight"]
        low = gamma < EPSILON
        if not low.any():
            continue
        # gamma (x - mean) = positive (factor x - factor mean)
        positive = gamma.abs().clamp(min=EPSILON)
        factor = torch.where(low, gamma / positive, torch.ones_like(gamma))
        state[f"{ours}.weight"] = torch.where(low, positive, gamma)
        state[f"{ours}.running_mean"] *= factor
        start = 0
        for source, axis in _inputs_of_norm(layer):
            weight = state[f"{our_layer(source)}.weight"]
            rows = weight.shape[axis]
            shape = [1] * weight.dim()
            shape[axis] = rows
            weight *= factor[start : start + rows].view(shape)
            start += rows
    result = {}
    for name in names:
        layer, leaf = name.rsplit(".", 1)
        tensor = state[f"{our_layer(layer)}.{leaf}"]
        if leaf == "weight" and mode.is_inplace_abn(layer):
            tensor = (tensor - EPSILON).clamp(min=0)
        result[name] = reorder(layer, tensor, to_ours=False).contiguous()
    return result


def _inputs_of_norm(layer: str) -> list[tuple[str, int]]:
    """The original's convolutions before a normalisation, each with the axis of its output channels."""
    if re.fullmatch(r"sem_head\.output\.\d\.bn1", layer):
        stem = layer.removesuffix("bn1")
        return [(f"{stem}conv1_3x3", 0), (f"{stem}conv1_dil", 0), (f"{stem}conv1_glb", 0)]
    if layer == "roi_head.conv.bn_up":
        return [("roi_head.conv.conv_up", 1)]
    if layer.startswith("roi_head.fc."):
        return [(layer.replace(".bn", ".fc"), 0)]
    return [(re.sub(r"bn(\d?)$", r"conv\1", layer), 0)]


def original_names(ours: dict[str, Tensor], depth: int) -> list[str]:
    """Return the original's names of all tensors of one of our models, in the order of the original's modules.

    Args:
        ours: Our state dict.
        depth: The depth of the ResNet.
    """
    convs = 3 if depth >= 50 else 2
    wanted = {k for k in ours if not k.endswith("num_batches_tracked")}
    layers = ["body.backbone.mod1.conv1", "body.backbone.mod1.bn1"]
    for stage in range(2, 6):
        blocks = {int(k.split(".")[3]) for k in wanted if k.startswith(f"backbone.bottom_up.res{stage}.")}
        for block in sorted(blocks):
            stem = f"body.backbone.mod{stage}.block{block + 1}"
            for i in range(1, convs + 1):
                layers += [f"{stem}.convs.conv{i}", f"{stem}.convs.bn{i}"]
            layers += [f"{stem}.proj_conv", f"{stem}.proj_bn"]
    for part in ("lateral", "output", "extra"):
        for i in range(8):
            layers += [f"body.fpn.{part}.{i}.conv", f"body.fpn.{part}.{i}.bn"]
    layers += [f"rpn_head.{x}" for x in ("conv1", "bn1", "conv_obj", "conv_bbx")]
    layers += [f"roi_head.{x}" for x in ("fc.fc1", "fc.bn1", "fc.fc2", "fc.bn2", "roi_cls", "roi_bbx")]
    for i in range(1, 5):
        layers += [f"roi_head.conv.conv{i}", f"roi_head.conv.bn{i}"]
    layers += ["roi_head.conv.conv_up", "roi_head.conv.bn_up", "roi_head.roi_msk"]
    for i in range(8):
        layers += [f"sem_head.output.{i}.{x}" for x in ("conv1_3x3", "conv1_dil", "conv1_glb", "bn1", "conv2", "bn2")]
    layers.append("sem_head.conv_sem")
    leaves = ("weight", "bias", "running_mean", "running_var")
    return [f"{layer}.{leaf}" for layer in layers for leaf in leaves if f"{our_layer(layer)}.{leaf}" in wanted]
