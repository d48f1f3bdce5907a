"""Region proposals: one selection and one NMS over all pyramid levels together, crowd-aware anchor labels."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, cat
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..errors import UserError
from ..structures.segment_masks import crowd_overlap
from .norm import NormFactory, init_xavier, norm_act_from_config
from .ops.boxes import batched_nms, box_sides, clip_boxes
from .ops.crop_aware_box_loss import CROP_AWARE, crop_aware_box_loss, open_sides_of
from .ops.image_seeds import image_seed
from .ops.matching import best_matches
from .ops.symbolic import smaller


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Return the rows of ``values`` (N, 4) that ``index`` names, and zeros for -1."""
    return torch.cat([values, values.new_zeros(1, 4)])[index]


@RPN_HEAD_REGISTRY.register()
class SeamlessRPNHead(StandardRPNHead):
    """Detectron2's RPN head with norm + activation after the shared 3x3 convolution."""

    @configurable
    def __init__(self, *, norm: NormFactory, in_channels: int, conv_dims: list[int], **kwargs) -> None:
        if len(conv_dims) != 1:
            raise UserError(f"MODEL.RPN.CONV_DIMS must name one convolution, not {conv_dims}")
        super().__init__(in_channels=in_channels, conv_dims=conv_dims, **kwargs)
        channels = self.conv.out_channels
        self.conv = Conv2d(in_channels, channels, 3, padding=1, bias=False, norm=norm(channels))
        init_xavier(self.conv, self.conv.norm.act.gain)
        init_xavier(self.objectness_logits, 0.01)
        init_xavier(self.anchor_deltas, 0.01)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        return {**super().from_config(cfg, input_shape), "norm": norm_act_from_config(cfg, cfg.MODEL.RPN.NORM)}


@PROPOSAL_GENERATOR_REGISTRY.register()
class SeamlessRPN(RPN):
    """Detectron2's RPN with the original's selection of proposals, labels of anchors and normalisation of losses."""

    @configurable
    def __init__(self, *, crowd_thresh: float, original_conventions: bool, **kwargs) -> None:
        """
        Args:
            crowd_thresh: The share of an anchor, in 0..1, inside crowd regions from which on it is ignored.
            original_conventions: Whether NMS suppresses at IoU >= threshold and proposals without area are kept.
            kwargs: The arguments of ``RPN``.
        """
        super().__init__(**kwargs)
        self.crowd_thresh = crowd_thresh
        self.original_conventions = original_conventions
        self._last_anchors: tuple | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "crowd_thresh": cfg.MODEL.RPN.CROWD_THRESH,
            "original_conventions": cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
        image_seeds: list[int] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Detectron2's interface of a proposal generator.

        Args:
            images: The batch; only the sizes of its images are used.
            features: One (N, C, h, w) map per name in ``in_features``.
            gt_instances: In training, the ground truth of each image (``gt_boxes``, optionally ``gt_masks``).
            image_seeds: In training, one seed per image that decides which anchors are sampled; default PyTorch's
                global random numbers.

        Returns:
            The proposals of each image (``proposal_boxes``, ``objectness_logits``), and the losses, which are empty in
            inference.
        """
        anchors, logits, deltas = self.run_head(features)
        losses: dict[str, Tensor] = {}
        if self.training:
            labels, *targets = self.label_and_sample_anchors(anchors, gt_instances, image_seeds)
            losses = self.losses(anchors, logits, labels, deltas, *targets)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    def run_head(self, features: dict[str, Tensor]) -> tuple[list[Boxes], list[Tensor], list[Tensor]]:
        """Return the anchors of each level with their (N, A) logits and (N, A, 4) deltas."""
        maps = [features[name] for name in self.in_features]
        logits, deltas = self.rpn_head(maps)
        # Anchors are numbered by row, column and then by their kind.
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        deltas = [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas]
        return self._make_anchors(maps), logits, deltas

    def _make_anchors(self, maps: list[Tensor]) -> list[Boxes]:
        """Return the anchors of each level; in inference those of the last size are kept: GPUs make them slowly."""
        if self.training or torch.compiler.is_compiling() or type(self.anchor_generator) is not DefaultAnchorGenerator:
            return self.anchor_generator(maps)
        cells = next(iter(self.anchor_generator.cell_anchors))
        key = [x.shape[-2:] for x in maps], cells.device, cells.dtype, torch.is_inference_mode_enabled()
        last = self._last_anchors  # another thread may replace it
        if last is None or last[0] != key:
            self._last_anchors = last = key, self.anchor_generator(maps)
        return last[1]

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances], image_seeds: list[int] | None = None
    ) -> tuple[list[Tensor], ...]:
        """Label anchors as Detectron2 does, but ignore those that leave the image or lie in crowd regions.

        Every ground-truth box is also matched with its best anchor, and only with that one if no anchor reaches the
        positive threshold.

        Args:
            anchors: The anchors of each level.
            gt_instances: The ground truth of each image.
            image_seeds: See ``forward``.

        Returns:
            For each image, (R,) int8 labels (-1 ignored, 0 negative, 1 positive) and (R, 4) matched boxes; for the
            crop-aware loss also the (R, 4) bool open sides of these.
        """
        anchors = Boxes.cat(anchors)
        labels, boxes, open_sides = [], [], []
        for number, targets in enumerate(gt_instances):
            label, matched = self._label_anchors(anchors, targets)
            with image_seed(image_seeds, number, label.device):
                labels.append(self._subsample_labels(label))
            boxes.append(_rows(targets.gt_boxes.tensor, matched))
            if self.box_reg_loss_type == CROP_AWARE:
                open_sides.append(_rows(open_sides_of(targets), matched))
        return (labels, boxes, open_sides) if open_sides else (labels, boxes)

    def _label_anchors(self, anchors: Boxes, targets: Instances) -> tuple[Tensor, Tensor]:
        """Return (R,) int8 labels -1, 0, 1 before sub-sampling, and the (R,) numbers of the matched boxes."""
        height, width = targets.image_size
        a = anchors.tensor
        valid = (a[:, 0] >= 0) & (a[:, 1] >= 0) & (a[:, 2] <= width) & (a[:, 3] <= height)
        valid &= crowd_overlap(targets, a) < self.crowd_thresh
        label = torch.full((len(a),), -1, dtype=torch.int8, device=a.device)
        matched = torch.full((len(a),), -1, device=a.device)
        inside = valid.nonzero()[:, 0]
        low, high = self.anchor_matcher.thresholds[1:3]
        if len(targets) == 0:
            label[inside] = 0
        elif len(inside):
            best_iou, best_box, box_iou, best_anchor = best_matches(targets.gt_boxes, anchors[inside])
            inner = torch.full_like(best_box, -1, dtype=torch.int8)
            inner[best_iou < low] = 0
            inner[best_iou >= high] = 1
            reached = (box_iou > 0).nonzero()[:, 0]
            inner[best_anchor[reached]] = 1
            # It belongs to that box even where it overlaps another one more.
            best_box[best_anchor[reached]] = reached
            label[inside] = inner
            matched[inside] = best_box
        return label, matched

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        gt_open_sides: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute Detectron2's losses, divided by the number of sampled anchors instead of a constant.

        ``gt_open_sides`` are the (R, 4) open sides of the matched boxes, which only the crop-aware loss takes.
        """
        labels = torch.stack(gt_labels)
        positive, valid = labels == 1, labels >= 0
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", positive.sum().item() / len(labels))
        storage.put_scalar("rpn/num_neg_anchors", (labels == 0).sum().item() / len(labels))
        localisation = self._box_loss(anchors, pred_anchor_deltas, gt_boxes, positive, gt_open_sides)
        objectness = F.binary_cross_entropy_with_logits(
            cat(pred_objectness_logits, dim=1)[valid].float(), labels[valid].float(), reduction="sum"
        )
        count = valid.sum().clamp(min=1)
        # An undefined prediction spoils the loss also where its anchor was not sampled: 0 * NaN is NaN.
        undefined = [0.0 * sum(p.float().sum() for p in x) for x in (pred_objectness_logits, pred_anchor_deltas)]
        losses = {
            "loss_rpn_cls": objectness / count + undefined[0].detach(),
            "loss_rpn_loc": localisation / count + undefined[1].detach(),
        }
        return {k: v * self.loss_weight.get(k, 1.0) for k, v in losses.items()}

    def _box_loss(
        self,
        anchors: list[Boxes],
        pred_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        positive: Tensor,
        gt_open_sides: list[Tensor] | None,
    ) -> Tensor:
        """Return the sum of the box losses of the anchors that the (N, R) mask ``positive`` selects."""
        if self.box_reg_loss_type != CROP_AWARE:
            return _dense_box_regression_loss(
                anchors,
                self.box2box_transform,
                pred_deltas,
                gt_boxes,
                positive,
                box_reg_loss_type=self.box_reg_loss_type,
                smooth_l1_beta=self.smooth_l1_beta,
            )
        return crop_aware_box_loss(
            cat(pred_deltas, dim=1)[positive],
            Boxes.cat(anchors).tensor.expand(*positive.shape, 4)[positive],
            torch.stack(gt_boxes)[positive],
            torch.stack(gt_open_sides)[positive],
            weights=self.box2box_transform.weights,
            beta=self.smooth_l1_beta,
        ).sum()

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Choose the best anchors of all levels together, decode and clip them, and apply one joint NMS.

        A minimal size is applied before the best are chosen, as in the original; without one, boxes without area are
        dropped afterwards.

        Returns:
            The proposals of each image by descending score (``proposal_boxes``, ``objectness_logits``).
        """
        anchors = Boxes.cat(anchors).tensor
        logits, deltas = cat(pred_objectness_logits, dim=1), cat(pred_anchor_deltas, dim=1)
        proposals = []
        for image_logits, image_deltas, image_size in zip(logits, deltas, image_sizes, strict=True):
            result = Instances(image_size)
            boxes, scores = self.select_proposals(anchors, image_logits, image_deltas, image_size)
            result.proposal_boxes, result.objectness_logits = Boxes(boxes), scores
            proposals.append(result)
        return proposals

    def propose_tensors(self, features: dict[str, Tensor], image_size: tuple[int, int]) -> Tensor:
        """Return the (N, 4) proposals of one image, as ``forward`` does, in tensors alone: the form of exported models.

        Args:
            features: One (1, C, h, w) map per name in ``in_features``.
            image_size: (height, width) of the image.
        """
        anchors, logits, deltas = self.run_head(features)
        logits, deltas = (cat(x, dim=1)[0] for x in (logits, deltas))
        return self.select_proposals(Boxes.cat(anchors).tensor, logits, deltas, image_size)[0]

    def select_proposals(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Select the proposals of one image, see ``predict_proposals``.

        Args:
            anchors: (A, 4) anchors of all levels.
            logits: (A,) objectness logits.
            deltas: (A, 4) box deltas.
            image_size: (height, width) of the image.

        Returns:
            (N, 4) float32 boxes and their (N,) logits, by descending score.
        """
        logits = logits.float()
        if self.min_box_size > 0:
            boxes = clip_boxes(self.box2box_transform.apply_deltas(deltas, anchors), image_size)
            logits = torch.where(box_sides(boxes) >= self.min_box_size, logits, -torch.inf)
        logits, index = logits.topk(smaller(self.pre_nms_topk[self.training], logits.shape[0]))
        boxes = clip_boxes(self.box2box_transform.apply_deltas(deltas[index], anchors[index]), image_size)
        # Detectron2 raises for undefined ones in training, in one process out of many; with us the losses tell all.
        keep = torch.isfinite(boxes).all(dim=1) & torch.isfinite(logits)
        if not self.original_conventions:
            keep &= box_sides(boxes) > 0
        boxes, logits = boxes[keep], logits[keep]
        kept = batched_nms(boxes, logits, None, self.nms_thresh, self.original_conventions)
        kept = kept[: self.post_nms_topk[self.training]]
        return boxes[kept], logits[kept]
