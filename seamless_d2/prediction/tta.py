"""Test-time augmentation of the panoptic result: several scales, each also mirrored.

Semantic probabilities are averaged. Detections of all views are merged by NMS; each survivor is then scored and masked
again in every view, and these are averaged too: a box that only one view believes in does not pass by that view alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, ImageList, Instances
from PIL import Image
from torch import Tensor

from ..data.transforms import to_tensor
from ..modeling.ops.nms import batched_nms
from ..modeling.panoptic import NetworkOutput, SeamlessPanoptic

DEFAULT_SCALES = (0.75, 1.0, 1.25)
Size = tuple[int, int]


@dataclass
class _View:
    """One scale, mirrored or not: its pyramid, and how boxes of the reference lie in it."""

    images: ImageList
    features: dict[str, Tensor]
    scale: Tensor  # (4,) from reference to view
    mirrored: bool

    def from_reference(self, boxes: Tensor) -> Tensor:
        return self._mirror(boxes * self.scale)

    def to_reference(self, boxes: Tensor) -> Tensor:
        return self._mirror(boxes) / self.scale

    def _mirror(self, boxes: Tensor) -> Tensor:
        if not self.mirrored:
            return boxes
        width = self.images.tensor.shape[-1]
        return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)


@torch.no_grad()
def averaged_output(
    model: SeamlessPanoptic, image: np.ndarray, size: Size, scales: Sequence[float], channel_order: str
) -> NetworkOutput:
    """The average of what the network says of several views of an image.

    Args:
        model: in evaluation mode.
        image: (H, W, 3) uint8 RGB.
        size: (height, width) of the image at scale 1.
        scales: of the views.
        channel_order: INPUT.FORMAT.

    Returns:
        As for one view of ``size``, ready for ``model.postprocess``.
    """
    probabilities = None
    views, detections = [], []
    for scale in scales:
        view_size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        resized = np.asarray(Image.fromarray(image).resize(view_size[::-1], Image.Resampling.BILINEAR))
        for mirrored in (False, True):
            view = _look(model, resized[:, ::-1] if mirrored else resized, size, mirrored, channel_order)
            logits = model.sem_seg_head.layers(view.features).float()
            logits = logits.flip(3) if mirrored else logits
            if probabilities is None:
                quarter = -(-size[0] // 4), -(-size[1] // 4)
                probabilities = logits.new_zeros((1, logits.shape[1], *quarter))
            probabilities += F.interpolate(
                logits, size=probabilities.shape[-2:], mode="bilinear", align_corners=False
            ).softmax(dim=1)
            proposals, _ = model.proposal_generator(view.images, view.features, None)
            found = model.roi_heads.detect_boxes(view.features, proposals, tuple(view.images.tensor.shape[-2:]))[0]
            found.pred_boxes = Boxes(view.to_reference(found.pred_boxes.tensor))
            views.append(view)
            detections.append(found)
    merged = _merge(model, detections, size)
    return NetworkOutput(
        (probabilities / len(views)).clamp_(min=1e-12).log_(), _rescore(model, merged, views), size, size
    )


def _look(model: SeamlessPanoptic, image: np.ndarray, size: Size, mirrored: bool, channel_order: str) -> _View:
    images = model.preprocess_image([{"image": to_tensor(image, channel_order)}])
    height, width = images.tensor.shape[-2:]
    scale = torch.tensor([width / size[1], height / size[0]] * 2, device=model.device)
    return _View(images, model.backbone(images.tensor), scale, mirrored)


def _merge(model: SeamlessPanoptic, detections: list[Instances], size: Size) -> Instances:
    """NMS per class over the detections of all views."""
    predictor = model.roi_heads.box_predictor
    boxes = torch.cat([d.pred_boxes.tensor for d in detections])
    scores = torch.cat([d.scores for d in detections])
    classes = torch.cat([d.pred_classes for d in detections])
    kept = batched_nms(boxes, scores, classes, predictor.test_nms_thresh, predictor.original_conventions)
    if predictor.test_topk_per_image >= 0:
        kept = kept[: predictor.test_topk_per_image]
    return Instances(size, pred_boxes=Boxes(boxes[kept]), scores=scores[kept], pred_classes=classes[kept])


def _rescore(model: SeamlessPanoptic, merged: Instances, views: list[_View]) -> Instances:
    """The mean over all views of the class's probability and of the mask's."""
    scores = torch.zeros_like(merged.scores)
    masks = None
    for view in views:
        boxes = Boxes(view.from_reference(merged.pred_boxes.tensor))
        padded_size = tuple(view.images.tensor.shape[-2:])
        probabilities = model.roi_heads.class_probabilities(view.features, [boxes], padded_size)
        scores += probabilities.gather(1, merged.pred_classes[:, None])[:, 0]
        instances = Instances(padded_size, pred_boxes=boxes, pred_classes=merged.pred_classes)
        logits = model.roi_heads.forward_with_given_boxes(view.features, [instances], padded_size)[0].mask_logits
        probability = logits.float().sigmoid()
        probability = probability.flip(2) if view.mirrored else probability
        masks = probability if masks is None else masks + probability
    mean = (masks / len(views)).clamp(1e-6, 1 - 1e-6)
    merged.scores = scores / len(views)
    merged.mask_logits, merged.pred_masks = mean.logit(), mean[:, None]
    return merged
