"""mIoU and its relatives: of the semantic head's output, or of the fused map as the original measures it."""

from collections import OrderedDict
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from ..structures.classes import VOID_LABEL, Classes
from ..structures.id_maps import SegmentInfo
from .ground_truth import SemanticGroundTruth
from .model_output import read_panoptic_seg

# The width of a boundary as a fraction of the image's diagonal, as in Detectron2.
_BOUNDARY_RATIO = 0.02


def fused_labels(
    panoptic_seg: Tensor,
    segments_info: list[SegmentInfo],
    semantic: Tensor | None,
    *,
    classes: Classes,
    area_limit: float,
) -> Tensor:
    """Return the semantic labels of a fused map.

    Args:
        panoptic_seg: (H, W) integer map of segment ids, 0 = void.
        segments_info: The segments of the map.
        semantic: (H, W) labels of the semantic head. If they are given, thing pixels that no instance covers keep their
            class in regions of at least ``area_limit`` pixels, as in the original; otherwise these pixels are void.
        classes: The C classes.
        area_limit: The smallest number of pixels of such a class.

    Returns:
        (H, W) int64 labels in 0..C, C = void.
    """
    void = len(classes.names)
    table = torch.full((max([s["id"] for s in segments_info], default=0) + 1,), void, dtype=torch.int64)
    for segment in segments_info:
        table[segment["id"]] = classes.to_label(segment)
    labels = table.to(panoptic_seg.device)[panoptic_seg.long()]
    if semantic is not None:
        uncovered = torch.where((panoptic_seg == 0) & (semantic >= classes.num_stuff), semantic, void)
        areas = torch.bincount(uncovered.flatten(), minlength=void + 1)
        areas[void] = 0
        labels = torch.where((areas >= max(area_limit, 1))[uncovered], uncovered, labels)
    return labels


def mask_boundary(labels: np.ndarray) -> np.ndarray:
    """Return what erosion removes from a label map: 0 inside the regions of equal label, not 0 along their borders.

    This is the boundary of Detectron2's ``SemSegEvaluator``. A value is the difference between the label of a pixel and
    the smallest label within the boundary's width; outside the image the label counts as 0.

    Args:
        labels: (H, W) uint8 or uint16 labels.

    Returns:
        (H, W) differences of the same type.
    """
    width = max(1, round(_BOUNDARY_RATIO * float(np.hypot(*labels.shape))))
    padded = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return labels - cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]


def _count_pairs(ground_truth: np.ndarray, predicted: np.ndarray, size: int) -> np.ndarray:
    """Return the (size, size) int64 numbers of pixels of each pair (true label, predicted label)."""
    pairs = size * ground_truth.astype(np.int64) + predicted
    return np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=where)


def _mean(values: np.ndarray, known: np.ndarray) -> float:
    return float(np.sum(values[known]) / np.sum(known)) if known.any() else float("nan")


class SemanticEvaluator(DatasetEvaluator):
    """Evaluate semantic labels by a confusion matrix.

    The metrics have the keys and values of Detectron2's ``SemSegEvaluator``: mIoU, fwIoU, mACC, pACC, IoU-CLASS and
    ACC-CLASS in percent, with ``boundary`` also BoundaryIoU-CLASS and min(IoU, B-Iou)-CLASS. Memory does not grow with
    the number of images.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        fused: bool,
        resize_ground_truth: bool,
        boundary: bool,
        fuse_at: str,
        area_limit: int,
    ) -> None:
        """
        Args:
            dataset_name: The name of a registered panoptic data set.
            fused: Whether the classes of "panoptic_seg" are evaluated instead of "sem_seg"; its void pixels count
                against the true class. If there is a "sem_seg" too, it gives the class of thing pixels that no instance
                covers.
            resize_ground_truth: Whether the ground truth is resized to the prediction by nearest sampling.
            boundary: Whether the IoU along the borders of regions is measured too.
            fuse_at: The value of MODEL.SEAMLESS.FUSE_AT, the resolution at which ``area_limit`` counts pixels.
            area_limit: The smallest number of pixels of a stuff segment.
        """
        self.classes = Classes.from_metadata(MetadataCatalog.get(dataset_name))
        self.fused = fused
        self.resize_ground_truth = resize_ground_truth
        self.boundary = boundary
        self.fuse_at = fuse_at
        self.area_limit = area_limit
        self._load_labels = SemanticGroundTruth(dataset_name)
        self._gt_files = {r["file_name"]: r["sem_seg_file_name"] for r in DatasetCatalog.get(dataset_name)}
        self.reset()

    def reset(self) -> None:
        num_classes = len(self.classes.names)
        # True label by predicted label, the last of both is void.
        self._confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)
        # Detectron2's boundary depends on the number of the true void label; in the fused mode, C is the predicted one.
        self._boundary_void = num_classes + 1 if self.fused else num_classes
        self._boundary_confusion = np.zeros((self._boundary_void + 1, self._boundary_void + 1), np.int64)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add the results of some images."""
        void = len(self.classes.names)
        for entry, output in zip(inputs, outputs, strict=True):
            labels = self._fuse_labels(entry, output) if self.fused else output["sem_seg"].argmax(dim=0)
            predicted = labels.cpu().numpy()
            size = predicted.shape if self.resize_ground_truth else None
            ground_truth = self._load_labels(self._gt_files[entry["file_name"]], size=size)
            is_void = ground_truth == VOID_LABEL
            ground_truth[is_void] = void
            self._confusion += _count_pairs(ground_truth, predicted, void + 1)
            if self.boundary:
                ground_truth[is_void] = self._boundary_void
                boundaries = (mask_boundary(labels.astype(np.uint16)) for labels in (ground_truth, predicted))
                self._boundary_confusion += _count_pairs(*boundaries, self._boundary_void + 1)

    def _fuse_labels(self, entry: dict, output: dict) -> Tensor:
        panoptic_seg, segments_info = read_panoptic_seg(output, self.classes)
        semantic = output["sem_seg"].argmax(dim=0) if "sem_seg" in output else None
        limit = self.area_limit
        if self.fuse_at == "input":
            limit *= panoptic_seg.numel() / entry["image"][0].numel()
        return fused_labels(panoptic_seg, segments_info, semantic, classes=self.classes, area_limit=limit)

    def evaluate(self) -> OrderedDict[str, Any] | None:
        """Return {"sem_seg": metrics in percent, NaN where undefined} on rank 0, None on the others."""
        gathered = comm.gather((self._confusion, self._boundary_confusion))
        if not comm.is_main_process():
            return None
        confusion, boundary_confusion = (sum(parts) for parts in zip(*gathered, strict=True))
        hits, true_pixels = confusion.diagonal()[:-1], confusion[:-1].sum(axis=1)
        union = true_pixels + confusion[:-1, :-1].sum(axis=0) - hits
        occurs = true_pixels > 0
        iou, accuracy = _ratio(hits, union, occurs), _ratio(hits, true_pixels, occurs)
        total = max(int(true_pixels.sum()), 1)
        metrics = {"mIoU": _mean(iou, occurs), "fwIoU": float(np.sum(iou[occurs] * (true_pixels[occurs] / total)))}
        boundary_iou = self._boundary_iou(boundary_confusion)
        for k, name in enumerate(self.classes.names):
            metrics[f"IoU-{name}"] = iou[k]
            if self.boundary:
                metrics[f"BoundaryIoU-{name}"] = boundary_iou[k]
                metrics[f"min(IoU, B-Iou)-{name}"] = min(iou[k], boundary_iou[k])
        metrics |= {"mACC": _mean(accuracy, occurs), "pACC": hits.sum() / total if occurs.any() else float("nan")}
        metrics |= {f"ACC-{name}": accuracy[k] for k, name in enumerate(self.classes.names)}
        return OrderedDict({"sem_seg": {key: 100 * float(value) for key, value in metrics.items()}})

    def _boundary_iou(self, confusion: np.ndarray) -> np.ndarray:
        """Return the (C,) IoU of the boundaries, NaN for classes without any."""
        known = confusion[:-1, :-1]
        hits = known.diagonal()
        union = known.sum(axis=1) + known.sum(axis=0) - hits
        return _ratio(hits, union, union > 0)[: len(self.classes.names)]
