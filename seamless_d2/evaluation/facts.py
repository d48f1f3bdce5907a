"""What was evaluated: the facts at the head of a report, and in its metrics.json."""

import hashlib
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import detectron2
import numpy
import torch
from detectron2.config import CfgNode

from ..config import list_keys

#: The facts of an evaluation by their names; those of "config" are its keys and values.
Facts = dict[str, dict[str, Any]]


def describe_model(cfg: CfgNode) -> Facts:
    """Return the facts of the evaluation of a model: its config and MODEL.WEIGHTS, of which the file is hashed."""
    model, combine = cfg.MODEL, cfg.MODEL.PANOPTIC_FPN.COMBINE
    backbone = {"build_timm_fpn_backbone": model.TIMM.NAME}.get(model.BACKBONE.NAME, model.BACKBONE.NAME)
    depth = {"depth": model.RESNETS.DEPTH} if "resnet" in backbone else {}
    return {
        "model": {"architecture": model.META_ARCHITECTURE, "backbone": backbone, **depth},
        "weights": _describe_file(model.WEIGHTS),
        "thresholds": {
            "score": combine.INSTANCES_CONFIDENCE_THRESH,
            "overlap": combine.OVERLAP_THRESH,
            "stuff area": combine.STUFF_AREA_LIMIT,
        },
        **_describe_run(),
        "config": {key: value for key, value in list_keys(cfg).items() if not isinstance(value, CfgNode)},
    }


def describe_files(**files: Path) -> Facts:
    """Return the facts of the evaluation of files, which are hashed, by what they are."""
    return {what.replace("_", " "): _describe_file(path) for what, path in files.items()} | _describe_run()


def _describe_run() -> Facts:
    package = __name__.partition(".")[0]  # an import of it from inside would be a circle
    versions = {package: sys.modules[package].__version__, "detectron2": detectron2.__version__}
    versions |= {"torch": torch.__version__, "numpy": numpy.__version__, "python": platform.python_version()}
    return {"run": {"date": datetime.now(UTC).isoformat(timespec="seconds")}, "versions": versions}


def _describe_file(path: str | Path) -> dict[str, Any]:
    """Return the name of a file and the first 16 digits of its SHA-256; None for weights in no local file."""
    if not str(path) or not Path(path).is_file():
        return {"file": str(path) or None, "sha256": None}
    with open(path, "rb") as file:
        return {"file": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()[:16]}
