"""Box and mask AP of the detections, or of the instances of the fused map as the original measures it."""

import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from ..structures.classes import Classes
from ..structures.id_maps import SegmentInfo
from .model_output import read_panoptic_seg


def fused_instances(panoptic_seg: Tensor, segments_info: list[SegmentInfo]) -> Instances:
    """Return the things of a fused map as detections; things without a score get the score 1.

    Args:
        panoptic_seg: (H, W) integer map of segment ids.
        segments_info: The segments of the map.

    Returns:
        ``Instances`` on the CPU with pred_masks (what is visible of each thing), pred_boxes (their tight boxes), scores
        and pred_classes.
    """
    things = [s for s in segments_info if s["isthing"]]
    ids = torch.tensor([s["id"] for s in things], dtype=panoptic_seg.dtype, device=panoptic_seg.device)
    instances = Instances(tuple(panoptic_seg.shape))
    instances.pred_masks = panoptic_seg[None] == ids[:, None, None]
    instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
    instances.scores = torch.tensor([s.get("score", 1.0) for s in things], dtype=torch.float32)
    instances.pred_classes = torch.tensor([s["category_id"] for s in things], dtype=torch.int64)
    return instances.to("cpu")


def resize_instances(instances: Instances, size: tuple[int, int]) -> Instances:
    """Resize detections to the (height, width) ``size``: boxes in proportion, masks by nearest sampling."""
    if instances.image_size == tuple(size):
        return instances
    height, width = instances.image_size
    resized = Instances(tuple(size), **instances.get_fields())
    resized.pred_boxes = Boxes(instances.pred_boxes.tensor.clone())
    resized.pred_boxes.scale(size[1] / width, size[0] / height)
    if not instances.has("pred_masks"):
        return resized
    if len(instances):
        masks = instances.pred_masks[None].to(torch.uint8)
        resized.pred_masks = F.interpolate(masks, size=tuple(size), mode="nearest-exact")[0].bool()
    else:
        resized.pred_masks = torch.zeros((0, *size), dtype=torch.bool)
    return resized


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` for box and mask AP, always at the size of the image."""

    def __init__(self, dataset_name: str, *, fused: bool, masks: bool = True, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: The name of a registered data set whose metadata have an instance json.
            fused: Whether the instances of "panoptic_seg" are evaluated instead of "instances".
            masks: Whether the detections have masks; otherwise only box AP is measured.
            output_dir: The folder to which Detectron2 writes all detections; default none.
        """
        tasks = ("bbox", "segm") if masks else ("bbox",)
        super().__init__(dataset_name, tasks, output_dir=output_dir, use_fast_impl=False)
        self.fused = fused
        self.classes = Classes.from_metadata(MetadataCatalog.get(dataset_name))
        self.sizes = {r["image_id"]: (r["height"], r["width"]) for r in DatasetCatalog.get(dataset_name)}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add the results of some images."""
        for entry, output in zip(inputs, outputs, strict=True):
            if self.fused:
                found = fused_instances(*read_panoptic_seg(output, self.classes))
            else:
                found = output["instances"].to("cpu")
            super().process([entry], [{"instances": resize_instances(found, self.sizes[entry["image_id"]])}])
