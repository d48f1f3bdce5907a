"""AP and mIoU by Detectron2's evaluators: of the heads' outputs, or of the fused map as the original does."""

from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from torch import Tensor

from ..structures.classes import Classes
from ..structures.id_maps import SegmentInfo
from .ground_truth import SemanticGroundTruth


def fused_labels(
    panoptic_seg: Tensor,
    segments_info: list[SegmentInfo],
    semantic: Tensor | None,
    *,
    num_stuff: int,
    num_classes: int,
    area_limit: float,
) -> Tensor:
    """Semantic labels of a fused map.

    Args:
        panoptic_seg: (H, W) integer map.
        segments_info: its segments.
        semantic: (H, W) labels of the semantic head; where they are given, thing pixels that no instance covers keep
            their class in regions of at least ``area_limit`` pixels, as in the original; otherwise they are void.
        num_stuff, num_classes: S and C.
        area_limit: least pixels of such a class.

    Returns:
        (H, W) int64 labels, C = void.
    """
    table = torch.full((max([s["id"] for s in segments_info], default=0) + 1,), num_classes, dtype=torch.int64)
    for segment in segments_info:
        table[segment["id"]] = segment["category_id"] + (num_stuff if segment["isthing"] else 0)
    labels = table.to(panoptic_seg.device)[panoptic_seg.long()]
    if semantic is not None:
        uncovered = torch.where((panoptic_seg == 0) & (semantic >= num_stuff), semantic, num_classes)
        areas = torch.bincount(uncovered.flatten(), minlength=num_classes + 1)
        areas[num_classes] = 0
        labels = torch.where((areas >= max(area_limit, 1))[uncovered], uncovered, labels)
    return labels


class _Labels:
    """Stands for scores where labels are known: ``SemSegEvaluator`` asks for nothing but the best class."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def argmax(self, dim: int) -> Tensor:
        return self.labels


class SemanticEvaluator(SemSegEvaluator):
    """mIoU; remembers a confusion matrix and no image."""

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
            dataset_name: a registered panoptic data set.
            fused: take the classes of "panoptic_seg"; its void pixels count against the true class. Where "sem_seg" is
                there too, it says the class of thing pixels that no instance covers.
            resize_ground_truth: bring the ground truth to the prediction's size by nearest sampling.
            boundary: also measure IoU along borders.
            fuse_at: MODEL.SEAMLESS.FUSE_AT, where ``area_limit`` counts.
            area_limit: least pixels of a stuff segment.
        """
        ground_truth = SemanticGroundTruth(dataset_name)
        super().__init__(dataset_name, sem_seg_loading_fn=ground_truth)
        classes = Classes.from_metadata(MetadataCatalog.get(dataset_name))
        self.ground_truth, self.num_stuff, self.num_labels = ground_truth, classes.num_stuff, len(classes.names)
        self.fused, self.resize_ground_truth, self.fuse_at, self.area_limit = (
            fused,
            resize_ground_truth,
            fuse_at,
            area_limit,
        )
        self._compute_boundary_iou = boundary
        if fused:
            # Void is one more class that is predicted but never true, so that it is an error wherever it is predicted.
            self._num_classes += 1
            self._class_names = [*self._class_names, "void"]

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take the results of some images."""
        for entry, output in zip(inputs, outputs, strict=True):
            labels = self._fused(entry, output) if self.fused else output["sem_seg"].argmax(dim=0)
            self.ground_truth.size = tuple(labels.shape) if self.resize_ground_truth else None
            super().process([entry], [{"sem_seg": _Labels(labels)}])

    def _fused(self, entry: dict, output: dict) -> Tensor:
        panoptic_seg, segments_info = output["panoptic_seg"]
        semantic = output["sem_seg"].argmax(dim=0) if "sem_seg" in output else None
        limit = self.area_limit
        if self.fuse_at == "input":
            limit *= panoptic_seg.numel() / entry["image"][0].numel()
        return fused_labels(
            panoptic_seg,
            segments_info,
            semantic,
            num_stuff=self.num_stuff,
            num_classes=self.num_labels,
            area_limit=limit,
        )

    def encode_json_sem_seg(self, sem_seg: Any, input_file_name: str) -> list[dict]:
        """Nothing: Detectron2 would keep the run lengths of all images until the end."""
        return []

    def evaluate(self) -> dict[str, Any] | None:
        """Detectron2's metrics on rank 0, None elsewhere."""
        results = super().evaluate()
        if results is not None and self.fused:
            for key in [key for key in results["sem_seg"] if key.endswith("-void")]:
                del results["sem_seg"][key]
        return results
