"""torchvision's ImageNet ResNets -> initial weights of our backbone."""

import re
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..modeling.backbone import BLOCKS
from .checkpointer import load_file, write_checkpoint

_PREFIX = "backbone.bottom_up."


def _our_name(name: str) -> str:
    name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
    name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    return _PREFIX + name


def resnet_depth(state: dict[str, Tensor], source: str) -> int:
    """Depth of a torchvision ResNet by its tensors.

    Raises:
        UserError: not a torchvision ResNet-18/34/50/101/152.
    """
    blocks = tuple(len({k.split(".")[1] for k in state if k.startswith(f"layer{i}.")}) for i in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in state
    for depth, expected in BLOCKS.items():
        if blocks == expected and bottleneck == (depth >= 50):
            width = state["layer1.0.conv2.weight"].shape[0]
            if width != 64:
                raise UserError(f"{source} is a wide or grouped ResNet ({width} channels); only the plain ones convert")
            return depth
    raise UserError(f"{source} is not a torchvision ResNet-18, 34, 50, 101 or 152")


def convert_torchvision(source: str, output: str | Path, depth: int | None = None) -> int:
    """Write the backbone weights of a torchvision ResNet as a Detectron2 checkpoint.

    Args:
        source: a state-dict file, or the name resnet18 ... resnet152, which torchvision fetches (ImageNet, version 1).
        output: the .pth file.
        depth: the depth that is expected; checked when given.

    Returns:
        The depth.

    Raises:
        UserError: no such name or file, no network, another depth, or tensors missing.
    """
    if re.fullmatch(r"resnet\d+", source):
        if int(source.removeprefix("resnet")) not in BLOCKS:
            raise UserError(f"torchvision has no {source}; use resnet18, 34, 50, 101 or 152")
        import torchvision

        try:
            state = torchvision.models.get_model_weights(source).IMAGENET1K_V1.get_state_dict(check_hash=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"torchvision could not fetch {source} ({error}); give a downloaded file instead") from None
    else:
        state = load_file(source)
    state = {k: v for k, v in state.items() if isinstance(v, Tensor) and not k.endswith("num_batches_tracked")}
    found = resnet_depth(state, source)
    if depth is not None and depth != found:
        raise UserError(f"{source} is a ResNet-{found}, not a ResNet-{depth}; give the file of the right depth")
    converted = {_our_name(k): v.float() for k, v in state.items() if not k.startswith("fc.")}
    layers = {k.rsplit(".", 1)[0] for k in converted}
    lacking = [
        f"{k}.{leaf}"
        for k in layers
        if k.endswith("norm")
        for leaf in ("weight", "bias", "running_mean", "running_var")
        if f"{k}.{leaf}" not in converted
    ]
    if lacking:
        raise UserError(f"{source} lacks {len(lacking)} tensors ({lacking[0]}, ...); it is not a complete state dict")
    write_checkpoint(converted, output, "torchvision")
    return found
