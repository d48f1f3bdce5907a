"""Box branch of the instance head: fully connected layers, and the selection of detections."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat, nonzero_tuple
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from .norm import NormFactory, init_xavier, norm_act_from_config
from .ops.boxes import batched_nms, box_sides, clip_boxes
from .ops.crop_aware_box_loss import CROP_AWARE, crop_aware_box_loss, open_sides_of
from .ops.fold import fold_own_norm

Size = tuple[int, int]


class NormLinear(nn.Linear):
    """Fully connected layer without bias, followed by norm + activation."""

    def __init__(self, in_features: int, out_features: int, norm: nn.Module) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.norm = norm
        init_xavier(self, norm.act.gain)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features) -> (N, out_features)."""
        return self.norm(super().forward(x))

    def fold_norms(self) -> None:
        """See ``ops.fold.fold_norms``."""
        fold_own_norm(self)


@ROI_BOX_HEAD_REGISTRY.register()
class SeamlessBoxHead(nn.Sequential):
    """Flattened ROI features -> fully connected layers with norm + activation.

    The paper averages 14x14 ROI features to 7x7; a 7x7 ROIAlign with 2x2 samples per cell gives the same numbers.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, fc_dims: list[int], norm: NormFactory) -> None:
        super().__init__(nn.Flatten())
        in_features = input_shape.channels * input_shape.height * input_shape.width
        for i, fc_dim in enumerate(fc_dims):
            self.add_module(f"fc{i + 1}", NormLinear(in_features, fc_dim, norm(fc_dim)))
            in_features = fc_dim
        self.output_shape = ShapeSpec(channels=in_features)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "norm": norm_act_from_config(cfg, head.NORM),
        }


class SeamlessBoxPredictor(FastRCNNOutputLayers):
    """Detectron2's box predictor with the original's selection of detections."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, original_conventions: bool, **kwargs) -> None:
        # Detectron2's class knows the other losses.
        self.crop_aware = kwargs.get("box_reg_loss_type") == CROP_AWARE
        if self.crop_aware:
            kwargs["box_reg_loss_type"] = "smooth_l1"
        super().__init__(input_shape, **kwargs)
        self.original_conventions = original_conventions
        init_xavier(self.cls_score, 0.01)
        init_xavier(self.bbox_pred, 0.001)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        ret = super().from_config(cfg, input_shape)
        ret["original_conventions"] = cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS
        ret["loss_weight"]["loss_cls"] = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT
        return ret

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        """Return Detectron2's loss, which is undefined without thing classes, or then 0."""
        if self.num_classes == 0:
            return pred_deltas.sum()
        return super().box_reg_loss(proposal_boxes, gt_boxes, pred_deltas, gt_classes)

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """Return Detectron2's losses; with the crop-aware box loss, ``proposals`` must have ``gt_open_sides``."""
        losses = super().losses(predictions, proposals)
        if self.crop_aware and proposals and self.num_classes:
            classes = cat([p.gt_classes for p in proposals])
            chosen = nonzero_tuple((classes >= 0) & (classes < self.num_classes))[0]
            deltas = predictions[1].unflatten(1, (-1, 4))[chosen]
            rows = torch.arange(len(chosen), device=chosen.device)
            loss = crop_aware_box_loss(
                deltas[rows, classes[chosen] if deltas.shape[1] > 1 else 0],
                cat([p.proposal_boxes.tensor for p in proposals])[chosen],
                cat([p.gt_boxes.tensor for p in proposals])[chosen],
                cat([open_sides_of(p) for p in proposals])[chosen],
                weights=self.box2box_transform.weights,
                beta=self.smooth_l1_beta,
            )
            losses["loss_box_reg"] = loss.sum() / max(len(classes), 1) * self.loss_weight.get("loss_box_reg", 1.0)
        return losses

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Return the detections (``pred_boxes``, ``scores``, ``pred_classes``) and the rows of their proposals."""
        results, rows = [], []
        counts = [len(p) for p in proposals]
        for logits, deltas, image in zip(*(p.split(counts) for p in predictions), proposals, strict=True):
            decoded = self.decode(logits, deltas, image.proposal_boxes.tensor)
            boxes, scores, classes, kept = self.select(*decoded, image.image_size)
            results.append(Instances(image.image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes))
            rows.append(kept)
        return results, rows

    def decode(self, logits: Tensor, deltas: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boxes and the (R, T + 1) probabilities of (R, 4) proposals, both as the predictor gives them."""
        scores = logits.sigmoid() if self.use_sigmoid_ce else logits.softmax(dim=1)
        return self.box2box_transform.apply_deltas(deltas, proposals), scores

    def select(self, boxes: Tensor, scores: Tensor, image_size: Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Select the detections of one image: score threshold, boxes with area, NMS per class, the best of all.

        Args:
            boxes: (R, 4) or (R, 4 T) boxes.
            scores: (R, T + 1) probabilities, background last.
            image_size: (height, width) of the image.

        Returns:
            (N, 4) boxes, (N,) scores, (N,) classes and the (N,) rows of their proposals. The order is by descending
            score; with the original's conventions by class if all detections are kept.
        """
        scores = scores[:, :-1]
        boxes = clip_boxes(boxes.float().unflatten(1, (-1, 4)), image_size).expand(-1, scores.shape[1], -1)
        # Comparisons with NaN are false, so that undefined boxes and scores drop out here too.
        rows, classes = ((scores > self.test_score_thresh) & (box_sides(boxes) > 0)).nonzero(as_tuple=True)
        boxes, scores = boxes[rows, classes], scores[rows, classes].float()
        kept = batched_nms(boxes, scores, classes, self.test_nms_thresh, self.original_conventions)
        if self.original_conventions:
            is_whole = self.test_topk_per_image < 0 or torch.ones_like(kept).sum() <= self.test_topk_per_image
            kept = kept[(classes[kept] * is_whole).argsort(stable=True)]
        if self.test_topk_per_image >= 0:
            kept = kept[: self.test_topk_per_image]
        return boxes[kept], scores[kept], classes[kept], rows[kept]
