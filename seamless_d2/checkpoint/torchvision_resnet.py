"""Conversion of torchvision's ImageNet ResNets to initial weights of the backbone."""

import re
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..io import check_output_file
from ..modeling.backbone import BLOCKS
from ..tensor_files import load_file
from .checkpointer import write_checkpoint

_PREFIX = "backbone.bottom_up."


def _rename(name: str) -> str:
    """Return the name in this package of a tensor of torchvision."""
    name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
    name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    return _PREFIX + name


def find_depth(state: dict[str, Tensor], source: str) -> int:
    """Return the depth of a torchvision ResNet, which its tensors tell.

    Args:
        state: The tensors by name.
        source: The name of the file, for error messages.

    Raises:
        UserError: The tensors are not those of a ResNet-18, 34, 50, 101 or 152 of torchvision.
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
        source: A file with a state dict, or a name such as "resnet50", whose weights (ImageNet, version 1) torchvision
            downloads.
        output: The .pth file to write.
        depth: The expected depth; default any.

    Returns:
        The depth of the ResNet.

    Raises:
        UserError: There is no such name or file, the download fails, the depth is another one, or tensors are missing.
    """
    check_output_file(output, source)
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
    found = find_depth(state, source)
    if depth is not None and depth != found:
        raise UserError(f"{source} is a ResNet-{found}, not a ResNet-{depth}; give the file of the right depth")
    converted = {_rename(k): v.float() for k, v in state.items() if not k.startswith("fc.")}
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
