"""The original program's raw prediction: the outputs of both heads before the fusion, one .pth.tar per image.

A dict of ``sem_pred`` (H, W) int64 labels, ``bbx_pred`` (N, 4) float y0, x0, y1, x1, ``cls_pred`` (N,) int64 thing
classes 0..T-1, ``obj_pred`` (N,) float scores, ``msk_pred`` (N, 28, 28) float logits, all at the network's resolution;
the last four are None where nothing was found. Neither the classes nor the image's own size are in it.
"""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..io import atomic_write
from ..limits import check_pixels
from ..modeling.fusion import fuse_panoptic
from ..prediction.formats import register_format
from ..prediction.result import HeadOutputs, PanopticResult
from ..structures.id_maps import SegmentInfo
from ..tensor_files import load_file

SUFFIX = ".pth.tar"
Raw = dict[str, Tensor | None]
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_DIMENSIONS = {"bbx_pred": 2, "cls_pred": 1, "obj_pred": 1, "msk_pred": 3}


def make_raw(outputs: HeadOutputs) -> Raw:
    """Put the outputs of both heads into the original's layout."""
    found = len(outputs.boxes) > 0
    raw = {
        "sem_pred": outputs.sem_seg,
        "bbx_pred": outputs.boxes[:, [1, 0, 3, 2]].float() if found else None,
        "cls_pred": outputs.classes if found else None,
        "obj_pred": outputs.scores.float() if found else None,
        "msk_pred": outputs.mask_logits.float() if found else None,
    }
    # Clones, since a stored tensor takes its whole storage along.
    return {key: None if value is None else value.cpu().clone() for key, value in raw.items()}


@register_format("raw", "{}" + SUFFIX)
def _write_raw(result: PanopticResult, name: str, path: Path) -> None:
    if result.raw is None:
        raise UserError("this result has no raw outputs; make the Predictor with raw=True")
    buffer = io.BytesIO()  # torch.save hides what the system reports of a failed write
    torch.save(make_raw(result.raw), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_raw(path: str | Path) -> Raw:
    """Read a raw prediction of this program or of the original.

    Raises:
        UserError: The file is missing, damaged, or no raw prediction, or its map has more than ``MAX_PIXELS``.
    """
    raw = load_file(path, "raw prediction")
    _check(raw, path)
    return raw


def _check(raw: dict[str, Any], path: str | Path) -> None:
    def fail(reason: str) -> None:
        raise UserError(f"{path} is no raw prediction ({reason}); it needs the keys sem_pred, {', '.join(_DIMENSIONS)}")

    if not isinstance(raw.get("sem_pred"), Tensor) or raw["sem_pred"].dim() != 2:
        fail("sem_pred, a map of labels, is missing")
    if raw["sem_pred"].dtype not in _INTEGERS or not raw["sem_pred"].numel():
        fail(f"sem_pred is {tuple(raw['sem_pred'].shape)} {raw['sem_pred'].dtype}, not a map of whole numbers")
    check_pixels(raw["sem_pred"].shape[1], raw["sem_pred"].shape[0], f"the map of {path}")
    if any(key not in raw for key in _DIMENSIONS):
        fail(f"{next(key for key in _DIMENSIONS if key not in raw)} is missing")
    detections = {key: raw[key] for key in _DIMENSIONS}
    if all(value is None for value in detections.values()):
        return
    for key, value in detections.items():
        if not isinstance(value, Tensor) or value.dim() != _DIMENSIONS[key] or len(value) != len(raw["obj_pred"]):
            fail(f"{key} does not fit the others")
        finite = key == "msk_pred" or bool(value.isfinite().all())  # logits may be infinite
        if (value.dtype in _INTEGERS) != (key == "cls_pred") or value.is_complex() or not finite:
            fail(f"{key} has values that are no numbers of its kind")
    if raw["bbx_pred"].shape[1] != 4:
        fail(f"bbx_pred has {raw['bbx_pred'].shape[1]} columns instead of 4")


def fuse_raw(
    raw: Raw,
    source: str | Path,
    *,
    num_stuff: int,
    num_classes: int,
    score_thresh: float,
    overlap_thresh: float,
    stuff_area_thresh: int,
) -> tuple[Tensor, list[SegmentInfo]]:
    """Merge a raw prediction into a panoptic map by the rule of ``fuse_panoptic``.

    Args:
        raw: A raw prediction, as ``load_raw`` returns it.
        source: Its file, for error messages.
        num_stuff, num_classes: The numbers S of stuff and C of all classes that it was made with.
        score_thresh, overlap_thresh, stuff_area_thresh: See ``fuse_panoptic``.

    Raises:
        UserError: A label or class is beyond the given classes.
    """
    sem_seg = raw["sem_pred"].long()
    things = num_classes - num_stuff
    detected = raw["cls_pred"]
    in_range = 0 <= int(sem_seg.min()) and int(sem_seg.max()) < num_classes
    if detected is not None and len(detected):
        in_range &= 0 <= int(detected.min()) and int(detected.max()) < things
    if not in_range:
        raise UserError(
            f"{source} has labels beyond the {num_classes} classes given, {things} of them things; give the metadata "
            "or config of the model that made it"
        )
    found = raw["bbx_pred"] is not None
    return fuse_panoptic(
        sem_seg,
        raw["bbx_pred"][:, [1, 0, 3, 2]] if found else torch.zeros(0, 4),
        raw["cls_pred"].long() if found else torch.zeros(0, dtype=torch.int64),
        raw["obj_pred"] if found else torch.zeros(0),
        raw["msk_pred"] if found else torch.zeros(0, 28, 28),
        num_stuff=num_stuff,
        score_thresh=score_thresh,
        overlap_thresh=overlap_thresh,
        stuff_area_thresh=stuff_area_thresh,
    )
