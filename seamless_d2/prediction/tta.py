"""Test-time augmentation of the panoptic result: several scales, each also mirrored.

Semantic probabilities are averaged. Detections of all views are merged by NMS; each survivor is then given a mask in
every view, and a score too if the ROI heads offer ``class_probabilities``, and these are averaged: a box that only one
view believes in does not pass by that view alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, ImageList, Instances
from PIL import Image
from torch import Tensor, nn

from ..data.transforms import to_tensor
from ..errors import UserError
from ..modeling.ops.boxes import batched_nms
from ..modeling.ops.optional_arguments import optional_arguments
from ..modeling.panoptic import NetworkOutput, SeamlessPanoptic, mask_logits

Size = tuple[int, int]


@dataclass
class _View:
    """One scale of the image, mirrored or not: its features, and how boxes of the reference lie in it."""

    images: ImageList
    features: dict[str, Tensor]
    scale: Tensor  # (4,) from the reference to the view
    mirrored: bool

    @property
    def padded_size(self) -> Size:
        return tuple(self.images.tensor.shape[-2:])

    def from_reference(self, boxes: Tensor) -> Tensor:
        return self._mirror(boxes * self.scale)

    def to_reference(self, boxes: Tensor) -> Tensor:
        return self._mirror(boxes) / self.scale

    def _mirror(self, boxes: Tensor) -> Tensor:
        if not self.mirrored:
            return boxes
        width = self.images.image_sizes[0][1]
        return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)


@torch.no_grad()
def average_views(
    model: SeamlessPanoptic,
    image: np.ndarray,
    size: Size,
    scales: Sequence[float],
    channel_order: str,
    interp: Image.Resampling = Image.Resampling.BILINEAR,
) -> NetworkOutput:
    """Average the network's outputs over several views of an image.

    Args:
        model: The model in evaluation mode.
        image: (H, W, 3) uint8 RGB.
        size: The (height, width) of the image at scale 1.
        scales: The scales of the views.
        channel_order: INPUT.FORMAT.
        interp: How the image is resized.

    Returns:
        An output as of one view of ``size``, ready for ``model.postprocess``.

    Raises:
        UserError: The model's ROI heads cannot compute masks for given boxes.
    """
    if not hasattr(model.roi_heads, "forward_with_given_boxes"):
        raise UserError(f"tta (--tta) needs ROI heads that take given boxes; {type(model.roi_heads).__name__} do not")
    views, detections, probabilities, upsample_size = [], [], None, None
    for scale in scales:
        view_size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        resized = np.asarray(Image.fromarray(image).resize(view_size[::-1], interp))
        for mirrored in (False, True):
            view = _make_view(model, resized[:, ::-1] if mirrored else resized, size, mirrored, channel_order)
            logits, upsample_size = _predict_logits(model, view, size)
            logits = logits.softmax(dim=1)
            probabilities = logits if probabilities is None else probabilities + logits
            views.append(view)
            detections.append(_detect(model, view))
    merged = _merge(model.roi_heads, detections, size)
    mean = (probabilities / len(views)).clamp_(min=1e-12)
    return NetworkOutput(mean.log_(), _average_instances(model.roi_heads, merged, views), size, upsample_size)


def _make_view(model: SeamlessPanoptic, image: np.ndarray, size: Size, mirrored: bool, channel_order: str) -> _View:
    """Run the backbone on a view of an image of ``size``."""
    images = model.preprocess_image([{"image": to_tensor(image, channel_order)}])
    height, width = image.shape[:2]
    scale = torch.tensor([width / size[1], height / size[0]] * 2, device=model.device)
    return _View(images, model.backbone(images.tensor), scale, mirrored)


def _predict_logits(model: SeamlessPanoptic, view: _View, size: Size) -> tuple[Tensor, Size | None]:
    """Return a view's semantic logits on the grid of the average, and what that grid is to be brought to.

    The grid is a quarter of ``size`` for heads that leave their logits at the resolution of the features, as long as
    the view has no padding; otherwise it is ``size`` itself.
    """
    logits, upsample_size = model.predict_semantic(view.features, view.padded_size)
    if upsample_size is None or model.pads_images:
        output = NetworkOutput(logits, None, view.images.image_sizes[0], upsample_size)
        logits, grid, upsample_size = output.scores(), size, None
    else:
        grid, upsample_size = (-(-size[0] // 4), -(-size[1] // 4)), size
    logits = logits.float().flip(3) if view.mirrored else logits.float()
    return F.interpolate(logits, size=grid, mode="bilinear", align_corners=False), upsample_size


def _detect(model: SeamlessPanoptic, view: _View) -> Instances:
    """Return the detections of a view, with boxes in the reference."""
    proposals, _ = model.proposal_generator(view.images, view.features, None)
    if hasattr(model.roi_heads, "detect_boxes"):  # masks of a single view are not needed
        found = model.roi_heads.detect_boxes(view.features, proposals, view.padded_size)[0]
    else:
        found = model.roi_heads(view.images, view.features, proposals, None)[0][0]
    boxes = Boxes(view.to_reference(found.pred_boxes.tensor))
    return Instances(found.image_size, pred_boxes=boxes, scores=found.scores, pred_classes=found.pred_classes)


def _merge(roi_heads: nn.Module, detections: list[Instances], size: Size) -> Instances:
    """Merge the detections of all views by NMS per class."""
    # Cascades have a predictor per stage; its test-time settings are the same in all of them.
    predictor = roi_heads.box_predictor
    predictor = predictor[-1] if isinstance(predictor, nn.ModuleList) else predictor
    boxes = torch.cat([d.pred_boxes.tensor for d in detections])
    scores = torch.cat([d.scores for d in detections])
    classes = torch.cat([d.pred_classes for d in detections])
    inclusive = getattr(predictor, "original_conventions", False)
    kept = batched_nms(boxes, scores, classes, predictor.test_nms_thresh, inclusive)
    if predictor.test_topk_per_image >= 0:
        kept = kept[: predictor.test_topk_per_image]
    return Instances(size, pred_boxes=Boxes(boxes[kept]), scores=scores[kept], pred_classes=classes[kept])


def _average_instances(roi_heads: nn.Module, merged: Instances, views: list[_View]) -> Instances:
    """Return ``merged`` with the mean mask probability over all views, and the mean score if the heads offer it."""
    scores, masks = torch.zeros_like(merged.scores), 0.0
    for view in views:
        boxes = Boxes(view.from_reference(merged.pred_boxes.tensor))
        extras = {"padded_size": view.padded_size}
        if hasattr(roi_heads, "class_probabilities"):
            probabilities = roi_heads.class_probabilities(view.features, [boxes], **extras)
            scores += probabilities.gather(1, merged.pred_classes[:, None])[:, 0]
        else:
            scores += merged.scores
        instances = Instances(view.images.image_sizes[0], pred_boxes=boxes, pred_classes=merged.pred_classes)
        extras = optional_arguments(roi_heads.forward_with_given_boxes, **extras)
        found = roi_heads.forward_with_given_boxes(view.features, [instances], **extras)[0]
        probability = mask_logits(found).float().sigmoid()
        masks = masks + (probability.flip(2) if view.mirrored else probability)
    mean = (masks / len(views)).clamp(1e-6, 1 - 1e-6)
    merged.scores = scores / len(views)
    merged.mask_logits, merged.pred_masks = mean.logit(), mean[:, None]
    return merged
