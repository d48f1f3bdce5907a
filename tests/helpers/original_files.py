"""Files as the original seamseg writes them, made from a small random model of ours."""

from pathlib import Path

import msgspec
import torch
from detectron2.modeling import build_model
from torch import nn

from seamless_d2.seamseg.ini import convert_ini
from seamless_d2.seamseg.names import NormMode, original_names, to_original
from seamless_d2.seamseg.weights import MODULES, settings_to_config

NUM_STUFF, NUM_THINGS = 3, 2


def ini_text(mode: str = "syncbn", body: str = "resnet18") -> str:
    return f"""
[body]
body = {body}
normalization_mode = {mode}
[fpn]
out_channels = 32
extra_scales = 1
[rpn]
hidden_channels = 32
fpn_levels = 5
min_size = 0
num_post_nms_val = 100
[sem]
ohem = .25
[dataloader]
shortest_size = 64
rgb_mean = (0.41738699, 0.45732192, 0.46886091)
rgb_std = (0.25685097, 0.26509955, 0.29067996)
"""


def partial_ini(kind: str) -> str:
    """The ini of an original model without a semantic head: "instance_seg" or "detection"."""
    text = ini_text().replace("[sem]\nohem = .25\n", "").replace("[rpn]", "[rpn]\nanchor_scales = 8")
    return text + f"[optimizer]\nloss_weights = {(1.0,) * {'instance_seg': 5, 'detection': 4}[kind]}\n"


def small_model(mode: str = "syncbn", seed: int = 0, text: str | None = None) -> nn.Module:
    """A model of the ini above with random statistics, so that no tensor is trivial."""
    settings = convert_ini(text or ini_text(mode)).settings
    settings["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = NUM_STUFF + NUM_THINGS
    settings["MODEL.ROI_HEADS.NUM_CLASSES"] = NUM_THINGS
    cfg = settings_to_config(settings)
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(seed)
    model = build_model(cfg).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.1)
    return model


def snapshot_content(model: nn.Module, mode: str = "syncbn", depth: int = 18, text: str | None = None) -> dict:
    """The dictionary that the original saves."""
    state = model.state_dict()
    original = to_original(state, original_names(state, depth), NormMode.parse(mode))
    modules = {m: {k.removeprefix(f"{m}."): v for k, v in original.items() if k.startswith(f"{m}.")} for m in MODULES}
    modules = {name: tensors for name, tensors in modules.items() if tensors}
    return {
        "config": text or ini_text(mode),
        "state_dict": {**modules, "optimizer": {"state": {}, "param_groups": []}},
        "training_meta": {"epoch": 1, "last_score": 0, "best_score": 0.3, "global_step": 5},
    }


def save(content: dict, path: Path, legacy: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def metadata_bytes(num_stuff: int = NUM_STUFF, num_things: int = NUM_THINGS) -> bytes:
    total = num_stuff + num_things
    return msgspec.msgpack.encode(
        {
            "meta": {
                "num_stuff": num_stuff,
                "num_thing": num_things,
                "categories": [f"class-{i}" for i in range(total)],
                "palette": [[i, 2 * i, 3 * i] for i in range(total)],
                "original_ids": [10 + i for i in range(total)],
            }
        }
    )
