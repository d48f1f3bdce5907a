"""Models that another engine than PyTorch's eager mode runs, in the place of ``SeamlessPanoptic``."""

import logging
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..config import list_keys, load_config_text
from ..errors import UserError
from ..export.session import ENGINES, ExportedModel
from ..modeling.fusion import resize_panoptic
from ..structures.id_maps import SegmentInfo

logger = logging.getLogger(__name__)
Size = tuple[int, int]
# The format that a checkpoint is exported to for each engine.
_FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}
# Keys that a configuration may have other than the file: where it runs, and how images get their size.
_FREE = {"MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.SEAMLESS.OUTPUTS", "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT"}


def is_exported(weights: str | Path) -> bool:
    """Return whether a file has the suffix of an exported model."""
    return Path(weights).suffix in ENGINES


def is_eager(engine: str | None, weights: str | Path) -> bool:
    """Return whether PyTorch's eager mode runs a model: a checkpoint, and no other engine was asked for."""
    return engine in (None, "torch") and not is_exported(weights)


class ExportedPanoptic(nn.Module):
    """An exported model with the part of ``SeamlessPanoptic``'s interface that predictions and evaluators use.

    Attributes:
        exported: The file and its engine.
        combine_stuff_area_thresh: The least pixels of a stuff segment of a map that was put together from tiles.
    """

    device = torch.device("cpu")
    outputs = ("panoptic_seg",)

    def __init__(self, exported: ExportedModel, channel_order: str, stuff_area_thresh: int) -> None:
        """
        Args:
            exported: The file.
            channel_order: ``INPUT.FORMAT``, in which the images come.
            stuff_area_thresh: See above.
        """
        super().__init__()
        self.exported = exported
        self.flip = channel_order == "BGR"
        self.combine_stuff_area_thresh = stuff_area_thresh

    def run_network(
        self, batched_inputs: list[dict], all_outputs: bool = False
    ) -> list[tuple[np.ndarray, list[SegmentInfo]]]:
        """Return the maps of the images at their own size, and the maps' segments."""
        images = (x["image"].flip(0) if self.flip else x["image"] for x in batched_inputs)
        return [self.exported.run(image.cpu().byte().numpy()) for image in images]

    def postprocess(
        self, output: tuple[np.ndarray, list[SegmentInfo]], size: Size, **fusion_options: Any
    ) -> dict[str, tuple[Tensor, list[SegmentInfo]]]:
        """Bring a map to ``size``; the fusion is part of the file, whose thresholds ``fusion_options`` must repeat."""
        panoptic_seg, segments = output
        return {"panoptic_seg": resize_panoptic(torch.from_numpy(panoptic_seg), segments, *size)}

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Predict a batch; takes and returns the dicts of ``SeamlessPanoptic``, with "panoptic_seg" only."""
        return [
            self.postprocess(o, (x.get("height", o[0].shape[0]), x.get("width", o[0].shape[1])))
            for x, o in zip(batched_inputs, self.run_network(batched_inputs), strict=True)
        ]


# Loading takes seconds, and configuration and model are asked for one after the other.
_load = lru_cache(maxsize=1)(ExportedModel)


def read_exported_config(weights: str | Path, engine: str | None = None, *, amp: bool = False) -> CfgNode:
    """Return the configuration inside an exported file; arguments and errors are those of ``ExportedModel``."""
    return load_config_text(_load(str(weights), engine, amp=amp).metadata.config, weights)


def build_exported(cfg: CfgNode, engine: str, *, amp: bool = False, tiles: bool = False) -> ExportedPanoptic:
    """Build the model of a configuration for an engine.

    If MODEL.WEIGHTS is a checkpoint, it is exported into a temporary folder first.

    Args:
        cfg: The configuration; its MODEL keys must be those of the file.
        engine: "onnxruntime", "openvino", or "torch" for a .pt2 file.
        amp: See ``ExportedModel``.
        tiles: Whether maps will be put together from tiles, so that small pieces of stuff are to be kept.

    Raises:
        UserError: ``ExportedModel`` or ``export_model`` raises it, or the configuration is not the file's.
    """
    area = cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT
    if not is_exported(cfg.MODEL.WEIGHTS):
        return ExportedPanoptic(_export(cfg, engine, amp, tiles), cfg.INPUT.FORMAT, area)
    exported = _load(cfg.MODEL.WEIGHTS, engine, amp=amp)
    _load.cache_clear()  # the next one may be another file of this name
    stored = load_config_text(exported.metadata.config, cfg.MODEL.WEIGHTS)
    ours, theirs = ({k: v for k, v in list_keys(c).items() if not isinstance(v, CfgNode)} for c in (cfg, stored))
    different = sorted(
        k
        for k in ours
        if k.startswith("MODEL.")
        and k not in _FREE
        and _plain(ours[k]) != _plain(theirs.get(k))
        # A file without class names takes those of the data set.
        and not (k.startswith("MODEL.SEAMLESS.CLASS_") and not theirs.get(k))
    )
    inside = int(exported.metadata.thresholds["stuff_area"])
    if area != inside and not tiles:
        different.append("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT")
    if different:
        key = different[0]
        raise UserError(
            f"{key} is {ours[key]!r}, but {cfg.MODEL.WEIGHTS} was exported with {theirs.get(key)!r}; leave it as it "
            "was, or export the model again"
        )
    if tiles and inside:
        raise UserError(
            f"{cfg.MODEL.WEIGHTS} drops stuff of less than {inside} pixels, of which each tile may have a part; export "
            "the model again with MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT 0, and predict with --stuff-area-thresh"
        )
    return ExportedPanoptic(exported, cfg.INPUT.FORMAT, area)


def _export(cfg: CfgNode, engine: str, amp: bool, tiles: bool) -> ExportedModel:
    from ..export.exporter import (
        ExportOptions,
        export_model,
    )  # all of torch.export, which other predictions do not need

    if engine not in _FORMATS:
        raise UserError(f"engine {engine!r} is unknown; use torch, {', '.join(_FORMATS)}")
    logger.info(
        f"{cfg.MODEL.WEIGHTS} is exported for {engine}, which takes about two minutes; tools/export_model.py does it "
        "once and for all"
    )
    cfg = cfg.clone()
    if tiles:
        cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 0
    with tempfile.TemporaryDirectory(prefix="seamless_d2_") as folder:
        options = ExportOptions((_FORMATS[engine],))
        (path,) = export_model(cfg, Path(folder) / "model", options)
        return ExportedModel(path, engine, amp=amp)


def _plain(value: Any) -> Any:
    """Return lists for tuples, which yaml does not know."""
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value
