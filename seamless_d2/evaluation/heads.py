"""AP and mIoU by Detectron2's evaluators: of the heads' outputs, or of the fused map as the original does."""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator, SemSegEvaluator
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from ..data.metadata import Classes
from ..modeling.fusion import SegmentInfo
from .ground_truth import SemanticTruth


def fused_instances(panoptic_seg: Tensor, segments_info: list[SegmentInfo]) -> Instances:
    """The things of a fused map as detections: what is visible of each, its tight box, its detection's score.

    Args:
        panoptic_seg: (H, W) integer map.
        segments_info: its segments.
    """
    things = [s for s in segments_info if s["isthing"]]
    ids = torch.tensor([s["id"] for s in things], dtype=panoptic_seg.dtype, device=panoptic_seg.device)
    instances = Instances(tuple(panoptic_seg.shape))
    instances.pred_masks = panoptic_seg[None] == ids[:, None, None]
    instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
    instances.scores = torch.tensor([s["score"] for s in things], dtype=torch.float32)
    instances.pred_classes = torch.tensor([s["category_id"] for s in things], dtype=torch.int64)
    return instances.to("cpu")


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


def resize_instances(instances: Instances, size: tuple[int, int]) -> Instances:
    """Bring detections to another size: boxes in proportion, masks by nearest sampling."""
    if instances.image_size == tuple(size):
        return instances
    height, width = instances.image_size
    resized = Instances(tuple(size), **instances.get_fields())
    resized.pred_boxes = Boxes(instances.pred_boxes.tensor.clone())
    resized.pred_boxes.scale(size[1] / width, size[0] / height)
    if len(instances):
        masks = instances.pred_masks[None].to(torch.uint8)
        resized.pred_masks = F.interpolate(masks, size=tuple(size), mode="nearest-exact")[0].bool()
    else:
        resized.pred_masks = torch.zeros((0, *size), dtype=torch.bool)
    return resized


class InstanceEvaluator(COCOEvaluator):
    """Box and mask AP, at the picture's size whatever the size of the model's results."""

    def __init__(self, dataset_name: str, *, fused: bool, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: a registered data set whose metadata name an instance json.
            fused: take the instances of "panoptic_seg" instead of "instances".
            output_dir: where Detectron2 writes all detections; None = nowhere.
        """
        super().__init__(dataset_name, ("bbox", "segm"), output_dir=output_dir, use_fast_impl=False)
        self.fused = fused
        self.sizes = {r["image_id"]: (r["height"], r["width"]) for r in DatasetCatalog.get(dataset_name)}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take the results of some images."""
        for entry, output in zip(inputs, outputs, strict=True):
            found = fused_instances(*output["panoptic_seg"]) if self.fused else output["instances"].to("cpu")
            super().process([entry], [{"instances": resize_instances(found, self.sizes[entry["image_id"]])}])


class _Labels:
    """Stands for scores where labels are known: ``SemSegEvaluator`` asks for nothing but the best class."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def argmax(self, dim: int) -> Tensor:
        return self.labels


class SemanticEvaluator(SemSegEvaluator):
    """mIoU; remembers a confusion matrix and no image."""

    def __init__(
        self, dataset_name: str, *, fused: bool, resize_truth: bool, boundary: bool, fuse_at: str, area_limit: int
    ) -> None:
        """
        Args:
            dataset_name: a registered panoptic data set.
            fused: take the classes of "panoptic_seg"; its void pixels count against the true class. Where "sem_seg" is
                there too, it says the class of thing pixels that no instance covers.
            resize_truth: bring the truth to the prediction's size by nearest sampling.
            boundary: also measure IoU along borders.
            fuse_at: MODEL.SEAMLESS.FUSE_AT, where ``area_limit`` counts.
            area_limit: least pixels of a stuff segment.
        """
        truth = SemanticTruth(dataset_name)
        super().__init__(dataset_name, sem_seg_loading_fn=truth)
        classes = Classes.from_metadata(dataset_name)
        self.truth, self.num_stuff, self.num_labels = truth, classes.num_stuff, len(classes.names)
        self.fused, self.resize_truth, self.fuse_at, self.area_limit = fused, resize_truth, fuse_at, area_limit
        self._compute_boundary_iou = boundary
        if fused:
            # Void is one more class that is predicted but never true, so that it is an error wherever it is predicted.
            self._num_classes += 1
            self._class_names = [*self._class_names, "void"]

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take the results of some images."""
        for entry, output in zip(inputs, outputs, strict=True):
            labels = self._fused(entry, output) if self.fused else output["sem_seg"].argmax(dim=0)
            self.truth.size = tuple(labels.shape) if self.resize_truth else None
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
