"""Instance head: box and mask branches on exactly placed ROI features, void-aware mask loss (paper, section 4.3)."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, cat
from detectron2.modeling import ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, StandardROIHeads, build_box_head
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..structures.segment_masks import crop_masks, crowd_overlap
from .box_head import SeamlessBoxPredictor
from .norm import NormFactory, init_xavier, norm_act_from_config
from .ops.fold import FoldedNorm, fold_into, is_foldable
from .ops.image_seeds import image_seed
from .ops.matching import match_boxes
from .ops.roi_pooler import SeamlessROIPooler

Size = tuple[int, int]


@ROI_MASK_HEAD_REGISTRY.register()
class SeamlessMaskHead(BaseMaskRCNNHead):
    """Convolutions and a 2x up-sampling one with norm + activation, then one mask per class."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: list[int],
        norm: NormFactory,
        void_is_background: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.void_is_background = void_is_background
        channels = input_shape.channels
        self.convs = nn.Sequential()
        for i, conv_dim in enumerate(conv_dims[:-1]):
            conv = Conv2d(channels, conv_dim, 3, padding=1, bias=False, norm=norm(conv_dim))
            init_xavier(conv, conv.norm.act.gain)
            self.convs.add_module(f"mask_fcn{i + 1}", conv)
            channels = conv_dim
        self.deconv = nn.ConvTranspose2d(channels, conv_dims[-1], 2, stride=2, bias=False)
        self.deconv_norm = norm(conv_dims[-1])
        init_xavier(self.deconv, self.deconv_norm.act.gain)
        self.predictor = Conv2d(conv_dims[-1], num_classes, 1)
        init_xavier(self.predictor, 0.01)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [head.CONV_DIM] * (head.NUM_CONV + 1),
            "norm": norm_act_from_config(cfg, head.NORM),
            "void_is_background": head.VOID_IS_BACKGROUND,
            "loss_weight": head.LOSS_WEIGHT,
        }

    def fold_norms(self) -> None:
        """See ``ops.fold.fold_norms``."""
        if is_foldable(self.deconv_norm):
            fold_into(self.deconv, *self.deconv_norm.scale_and_shift(), axis=1)
            self.deconv_norm = FoldedNorm(self.deconv_norm.act)

    def layers(self, x: Tensor) -> Tensor:
        """(M, C, 14, 14) -> (M, T, 28, 28) logits of all classes."""
        return self.predictor(self._embed(x))

    def _embed(self, x: Tensor) -> Tensor:
        return self.deconv_norm(self.deconv(self.convs(x)))

    def class_logits(self, x: Tensor, classes: Tensor) -> Tensor:
        """Return (M, 28, 28) logits of one class per ROI; masks of the other classes are never computed."""
        embedding = self._embed(x)
        classes = classes if self.predictor.out_channels > 1 else torch.zeros_like(classes)
        weight, bias = self.predictor.weight[classes, :, 0, 0], self.predictor.bias[classes]
        logits = torch.bmm(weight[:, None].to(embedding.dtype), embedding.flatten(2)) + bias[:, None, None]
        return logits.view(x.shape[0], *embedding.shape[-2:]).float()

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Training: {"loss_mask": scalar}. Inference: the instances with ``pred_masks`` (N, 1, 28, 28)
        probabilities and ``mask_logits`` (N, 28, 28)."""
        if self.training:
            return {"loss_mask": self.losses(x, instances) * self.loss_weight}
        logits = self.class_logits(x, cat([i.pred_classes for i in instances]))
        for i, image_logits in zip(instances, logits.split([len(i) for i in instances]), strict=True):
            i.mask_logits = image_logits
            i.pred_masks = image_logits[:, None].sigmoid()
        return instances

    def losses(self, x: Tensor, instances: list[Instances]) -> Tensor:
        """Return the mean binary cross entropy over the cells that are not void."""
        instances = [i for i in instances if len(i)]
        if not instances:
            return x.sum() * 0.0 + sum(p.sum() * 0.0 for p in self.parameters())
        logits = self.class_logits(x, cat([i.gt_classes for i in instances]))
        crops = [crop_masks(i.gt_masks, i.proposal_boxes.tensor, logits.shape[-1]) for i in instances]
        target, void = cat([t for t, _ in crops]).float(), cat([v for _, v in crops])
        weight = torch.ones_like(target) if self.void_is_background else (~void).float()
        wrong = (((logits > 0) != (target > 0.5)) * weight).sum() / weight.sum().clamp(min=1)
        get_event_storage().put_scalar("mask_rcnn/accuracy", 1 - wrong.item())
        loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
        return loss / weight.sum().clamp(min=1)


@ROI_HEADS_REGISTRY.register()
class SeamlessROIHeads(StandardROIHeads):
    """Detectron2's ROI heads with exact placement of the ROIs and crowd-aware sampling."""

    @configurable
    def __init__(self, *, crowd_thresh: float, **kwargs) -> None:
        """
        Args:
            crowd_thresh: The share of a proposal, in 0..1, inside crowd regions from which on it is dropped.
            kwargs: The arguments of ``StandardROIHeads``.
        """
        super().__init__(**kwargs)
        self.crowd_thresh = crowd_thresh

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {**super().from_config(cfg, input_shape), "crowd_thresh": cfg.MODEL.ROI_HEADS.CROWD_THRESH}

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        head, in_features = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS.IN_FEATURES
        size, channels = head.POOLER_RESOLUTION, input_shape[in_features[0]].channels
        box_head = build_box_head(cfg, ShapeSpec(channels=channels, height=size, width=size))
        return {
            "box_in_features": in_features,
            "box_pooler": cls._make_pooler(cfg, input_shape, size, head.POOLER_SAMPLING_RATIO),
            "box_head": box_head,
            "box_predictor": SeamlessBoxPredictor(cfg, box_head.output_shape),
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        ret = super()._init_mask_head(cfg, input_shape)
        if ret:
            head = cfg.MODEL.ROI_MASK_HEAD
            ret["mask_pooler"] = cls._make_pooler(cfg, input_shape, head.POOLER_RESOLUTION, head.POOLER_SAMPLING_RATIO)
        return ret

    @staticmethod
    def _make_pooler(
        cfg: CfgNode, input_shape: dict[str, ShapeSpec], size: int, sampling_ratio: int
    ) -> SeamlessROIPooler:
        heads = cfg.MODEL.ROI_HEADS
        strides = [input_shape[f].stride for f in heads.IN_FEATURES]
        return SeamlessROIPooler(size, strides, sampling_ratio, heads.CANONICAL_BOX_SIZE, heads.CANONICAL_LEVEL)

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances], image_seeds: list[int] | None = None
    ) -> list[Instances]:
        """Label and sample proposals as Detectron2 does, without those that lie in crowd regions.

        Ground-truth boxes come first, as in the original. Images without instances give no samples.

        Args:
            proposals: The proposals of each image, with ``proposal_boxes``.
            targets: The ground truth of each image, with ``gt_boxes``, ``gt_classes`` and optionally ``gt_masks``.
            image_seeds: One seed per image that decides which proposals are sampled; default PyTorch's global random
                numbers.

        Returns:
            The samples of each image with ``proposal_boxes``, ``gt_classes`` and the other ground-truth fields.
        """
        sampled, num_fg, num_bg = [], 0, 0
        for number, (image_proposals, image_targets) in enumerate(zip(proposals, targets, strict=True)):
            result = Instances(image_targets.image_size)
            gt_boxes = image_targets.gt_boxes
            boxes = image_proposals.proposal_boxes
            if self.proposal_append_gt:
                boxes = Boxes.cat([gt_boxes, boxes])
            if len(image_targets) == 0:
                boxes = boxes[:0]
            else:
                boxes = boxes[crowd_overlap(image_targets, boxes.tensor) < self.crowd_thresh]
            matched, labels = match_boxes(self.proposal_matcher, gt_boxes, boxes)
            with image_seed(image_seeds, number, labels.device):
                index, classes = self._sample_proposals(matched, labels, image_targets.gt_classes)
            result.proposal_boxes, result.gt_classes = boxes[index], classes
            for name, value in image_targets.get_fields().items():
                if name.startswith("gt_") and not result.has(name):
                    result.set(name, value[matched[index]])
            background = int((classes == self.num_classes).sum())
            num_bg, num_fg = num_bg + background, num_fg + len(classes) - background
            sampled.append(result)
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", num_fg / len(targets))
        storage.put_scalar("roi_head/num_bg_samples", num_bg / len(targets))
        return sampled

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        image_seeds: list[int] | None = None,
        mask_score_thresh: float | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Detectron2's interface of ROI heads, with two optional arguments.

        Args:
            images: The batch; its padded size places the ROIs exactly.
            features: One (N, C, h, w) map per name in ``in_features``.
            proposals: The proposals of each image, with ``proposal_boxes``.
            targets: In training, the ground truth of each image.
            image_seeds: In training, see ``label_and_sample_proposals``.
            mask_score_thresh: In inference, detections with a score of at most this are dropped before masks are
                computed: those that cannot enter a panoptic map cost nothing.

        Returns:
            Training: the samples and the losses. Inference: the detections of each image with ``pred_boxes``,
            ``scores``, ``pred_classes``, ``pred_masks`` and ``mask_logits``, and no losses.
        """
        padded_size = tuple(images.tensor.shape[-2:])
        if self.training:
            proposals = self.label_and_sample_proposals(proposals, targets, image_seeds)
            losses = self._forward_box(features, proposals, padded_size)
            losses.update(self._forward_mask(features, proposals, padded_size))
            losses.update(self._forward_keypoint(features, proposals))
            return proposals, losses
        # ROIAlign would bring channels-last maps into its layout once per head.
        features = {name: features[name].contiguous() for name in self.in_features}
        instances = self.detect_boxes(features, proposals, padded_size)
        if mask_score_thresh is not None:
            instances = [i[i.scores > mask_score_thresh] for i in instances]
        return self.forward_with_given_boxes(features, instances, padded_size), {}

    def detect_tensors(
        self,
        features: dict[str, Tensor],
        proposals: Tensor,
        image_size: Size,
        padded_size: Size,
        mask_score_thresh: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect the instances of one image as ``forward`` does, in tensors alone, for exported models.

        Args:
            features: One (1, C, h, w) map per name in ``in_features``.
            proposals: (R, 4) boxes.
            image_size: (height, width) of the image.
            padded_size: (height, width) of the padded image that ``features`` were made of.
            mask_score_thresh: See ``forward``.

        Returns:
            (N, 4) boxes, (N,) scores, (N,) classes and (N, h, w) mask logits.
        """
        # Layers need not work without ROIs: one more is appended to theirs and dropped from their outputs.
        spare = proposals.new_tensor([[0.0, 0.0, 1.0, 1.0]])
        maps = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler.pool(maps, torch.cat([proposals, spare]), padded_size)
        logits, deltas = (x[:-1].float() for x in self.box_predictor(self.box_head(pooled)))
        decoded = self.box_predictor.decode(logits, deltas, proposals)
        boxes, scores, classes, _ = self.box_predictor.select(*decoded, image_size)
        chosen = scores > mask_score_thresh
        boxes, scores, classes = boxes[chosen], scores[chosen], classes[chosen]
        maps = [features[name] for name in self.mask_in_features]
        pooled = self.mask_pooler.pool(maps, torch.cat([boxes, spare]), padded_size)
        masks = self.mask_head.class_logits(pooled, torch.cat([classes, classes.new_zeros(1)]))[:-1]
        return boxes, scores, classes, masks

    def detect_boxes(
        self, features: dict[str, Tensor], proposals: list[Instances], padded_size: Size | None = None
    ) -> list[Instances]:
        """Return the detections of each image without masks: ``pred_boxes``, ``scores``, ``pred_classes``."""
        return self._forward_box(features, proposals, padded_size)

    def class_probabilities(
        self, features: dict[str, Tensor], boxes: list[Boxes], padded_size: Size | None = None
    ) -> Tensor:
        """Return (M, T + 1) class probabilities, background last, of M given boxes in pixels of the padded batch."""
        scores, _ = self._box_outputs(features, boxes, padded_size)
        return scores.softmax(dim=1)

    def forward_with_given_boxes(
        self, features: dict[str, Tensor], instances: list[Instances], padded_size: Size | None = None
    ) -> list[Instances]:
        """Add masks (and key points) to detections, as Detectron2's method of this name.

        ``padded_size``, the (height, width) of the padded batch, places the ROIs exactly.
        """
        return self._forward_keypoint(features, self._forward_mask(features, instances, padded_size))

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances], padded_size: Size | None = None
    ) -> dict[str, Tensor] | list[Instances]:
        predictions = self._box_outputs(features, [p.proposal_boxes for p in proposals], padded_size)
        if self.training:
            return self.box_predictor.losses(predictions, proposals)
        return self.box_predictor.inference(predictions, proposals)[0]

    def _box_outputs(
        self, features: dict[str, Tensor], boxes: list[Boxes], padded_size: Size | None
    ) -> tuple[Tensor, Tensor]:
        """Return float32 class logits and box deltas of given boxes."""
        pooled = self.box_pooler([features[f] for f in self.box_in_features], boxes, padded_size)
        scores, deltas = self.box_predictor(self.box_head(pooled))
        return scores.float(), deltas.float()

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances], padded_size: Size | None = None
    ) -> dict[str, Tensor] | list[Instances]:
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        boxes = [i.proposal_boxes if self.training else i.pred_boxes for i in instances]
        pooled = self.mask_pooler([features[f] for f in self.mask_in_features], boxes, padded_size)
        return self.mask_head(pooled, instances)
