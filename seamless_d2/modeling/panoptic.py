"""The complete model."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import PanopticFPN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from ..data.metadata import register_classes
from ..errors import UserError
from .fusion import SegmentInfo, fuse_panoptic, resize_panoptic
from .ground_truth import ensure_segment_masks
from .upsample import upsampled_labels

OUTPUTS = ("instances", "sem_seg", "panoptic_seg")
Size = tuple[int, int]


@dataclass
class NetworkOutput:
    """What the network says of one image, at its own resolution.

    Attributes:
        logits: (1, C, h, w) semantic logits at a quarter of the padded size; None where not computed.
        detections: ``Instances`` with pred_boxes, scores, pred_classes, pred_masks and mask_logits (N, 28, 28), in
            pixels of the image; None where not computed.
        padded_size: (height, width) of the batch.
        image_size: (height, width) of the image inside it.
    """

    logits: Tensor | None
    detections: Instances | None
    padded_size: Size
    image_size: Size

    def scores(self) -> Tensor:
        """(1, C, H, W) logits at the image's size."""
        scores = F.interpolate(self.logits.float(), size=self.padded_size, mode="bilinear", align_corners=False)
        return scores[:, :, : self.image_size[0], : self.image_size[1]]

    def labels(self) -> Tensor:
        """(H, W) semantic labels at the image's size, an integer type."""
        return upsampled_labels(self.logits, self.padded_size, self.image_size)


@META_ARCH_REGISTRY.register()
class SeamlessPanoptic(PanopticFPN):
    """Seamless Scene Segmentation (Porzi et al., CVPR 2019): one trunk, a semantic and an instance head, fusion.

    Takes and returns the dicts of Detectron2's ``PanopticFPN``.
    """

    @configurable
    def __init__(
        self, *, num_stuff: int, fuse_at: str, outputs: list[str], channels_last: bool = False, **kwargs
    ) -> None:
        """
        Args:
            num_stuff: number of stuff classes S; semantic labels from S on are things.
            fuse_at: "input" (the network's resolution) or "output" (the requested size).
            outputs: which of ``OUTPUTS`` inference computes and returns.
            channels_last: keep weights, and with them features, in the memory format that tensor cores want.

        Raises:
            UserError: an unknown ``fuse_at`` or output, or fewer semantic than thing classes.
        """
        super().__init__(**kwargs)
        if fuse_at not in ("input", "output"):
            raise UserError(f'MODEL.SEAMLESS.FUSE_AT is {fuse_at!r}; use "input" or "output"')
        if not outputs or set(outputs) - set(OUTPUTS):
            raise UserError(f"MODEL.SEAMLESS.OUTPUTS is {outputs}; list one or more of {', '.join(OUTPUTS)}")
        if num_stuff < 0:
            raise UserError(
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES counts stuff and thing classes; it cannot be smaller than "
                "MODEL.ROI_HEADS.NUM_CLASSES, which counts things"
            )
        self.num_stuff = num_stuff
        self.fuse_at = fuse_at
        self.outputs = tuple(outputs)
        if channels_last:
            self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        register_classes(cfg)
        return {
            **super().from_config(cfg),
            "num_stuff": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "fuse_at": cfg.MODEL.SEAMLESS.FUSE_AT,
            "outputs": cfg.MODEL.SEAMLESS.OUTPUTS,
            "channels_last": cfg.MODEL.SEAMLESS.CHANNELS_LAST,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: one dict per image:

                * "image": (3, H, W) tensor, 0..255, channels in the order of ``INPUT.FORMAT``.
                * "height", "width": inference only; size of the outputs, default the image's.
                * "instances": training only; ``Instances`` with gt_boxes, gt_classes (0..T-1) and gt_masks
                  (``SegmentMasks`` as our mapper makes them, or ``BitMasks``, ``PolygonMasks``).
                * "sem_seg": training only; (H, W) int64, stuff 0..S-1, things S..C-1, or the ignore value.
                * "seed": training only, optional; int 0..2^63-1 that decides which anchors and ROIs are sampled.

        Returns:
            Training: the six losses loss_rpn_cls, loss_rpn_loc, loss_cls, loss_box_reg, loss_mask, loss_sem_seg.
            Inference: one dict per image with those of the following keys that ``OUTPUTS`` lists:

                * "instances": ``Instances`` at the output size with pred_boxes, scores, pred_classes, pred_masks.
                * "sem_seg": (C, height, width) float scores.
                * "panoptic_seg": ((height, width) int32 map, segments_info), see ``fuse_panoptic``.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        ignore = self.sem_seg_head.ignore_value
        instances = [ensure_segment_masks(x["instances"], x["sem_seg"], ignore).to(self.device) for x in batched_inputs]
        targets = ImageList.from_tensors([x["sem_seg"].to(self.device) for x in batched_inputs], 0, ignore).tensor
        seeds = [x["seed"] for x in batched_inputs] if all("seed" in x for x in batched_inputs) else None
        self.proposal_generator.image_seeds = self.roi_heads.image_seeds = seeds
        proposals, losses = self.proposal_generator(images, features, instances)
        losses.update(self.roi_heads(images, features, proposals, instances)[1])
        losses.update(self.sem_seg_head(features, targets, images.image_sizes)[1])
        return losses

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict], do_postprocess: bool = True) -> list[dict] | tuple:
        """See ``forward``; without ``do_postprocess`` raw detections and (N, C, h, w) logits at 1/4 of the size."""
        outputs = self.network(batched_inputs, everything=not do_postprocess)
        if not do_postprocess:
            return [o.detections for o in outputs], torch.cat([o.logits for o in outputs])
        return [
            self.postprocess(o, (x.get("height", o.image_size[0]), x.get("width", o.image_size[1])))
            for x, o in zip(batched_inputs, outputs, strict=True)
        ]

    @torch.no_grad()
    def network(self, batched_inputs: list[dict], everything: bool = False) -> list[NetworkOutput]:
        """All of inference that runs on the batch as a whole.

        Args:
            batched_inputs: see ``forward``.
            everything: compute both heads' complete outputs whatever ``OUTPUTS`` lists.

        Returns:
            One per image, for ``postprocess``.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        fuse = everything or "panoptic_seg" in self.outputs
        logits, detections = [None] * len(images), [None] * len(images)
        if fuse or "sem_seg" in self.outputs:
            logits = self.sem_seg_head.layers(features).split(1)
        padded_size = tuple(images.tensor.shape[-2:])
        if fuse or "instances" in self.outputs:
            proposals, _ = self.proposal_generator(images, features, None)
            # ROIAlign would bring channels-last maps into its layout once per head.
            features = {name: features[name].contiguous() for name in self.roi_heads.in_features}
            if self.outputs == ("panoptic_seg",) and not everything:
                # What does not enter the map needs no mask.
                detections = self.roi_heads.detect_boxes(features, proposals, padded_size)
                detections = [d[d.scores > self.combine_instances_score_thresh] for d in detections]
                detections = self.roi_heads.forward_with_given_boxes(features, detections, padded_size)
            else:
                detections, _ = self.roi_heads(images, features, proposals, None)
        return [
            NetworkOutput(image_logits, image_detections, padded_size, image_size)
            for image_logits, image_detections, image_size in zip(logits, detections, images.image_sizes, strict=True)
        ]

    @torch.no_grad()
    def postprocess(self, output: NetworkOutput, size: Size, stuff_area_thresh: int | None = None) -> dict:
        """What ``forward`` returns for one image.

        Args:
            output: of ``network``.
            size: (height, width) of the results.
            stuff_area_thresh: least pixels of a stuff segment; default the model's.
        """
        result = {}
        detections, image_size = output.detections, output.image_size
        fuse = "panoptic_seg" in self.outputs
        scores = None
        if "sem_seg" in self.outputs or (fuse and self.fuse_at == "output"):
            scores = output.scores()
        if fuse and self.fuse_at == "input":
            labels = output.labels() if scores is None else scores[0].argmax(dim=0)
            panoptic = self._fuse(labels, detections, detections.pred_boxes.tensor, stuff_area_thresh)
            result["panoptic_seg"] = resize_panoptic(*panoptic, *size)
        if scores is not None and size != image_size:
            scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        if fuse and self.fuse_at == "output":
            scale = detections.pred_boxes.tensor.new_tensor([size[1] / image_size[1], size[0] / image_size[0]])
            boxes = detections.pred_boxes.tensor * scale.repeat(2)
            result["panoptic_seg"] = self._fuse(scores[0].argmax(dim=0), detections, boxes, stuff_area_thresh)
        if "sem_seg" in self.outputs:
            result["sem_seg"] = scores[0]
        if "instances" in self.outputs:
            fields = {k: v for k, v in detections.get_fields().items() if k != "mask_logits"}
            # detector_postprocess scales the boxes in place.
            fields["pred_boxes"] = Boxes(detections.pred_boxes.tensor.clone())
            result["instances"] = detector_postprocess(Instances(detections.image_size, **fields), *size)
        return result

    def _fuse(
        self, labels: Tensor, detections: Instances, boxes: Tensor, stuff_area_thresh: int | None
    ) -> tuple[Tensor, list[SegmentInfo]]:
        return fuse_panoptic(
            labels,
            boxes,
            detections.pred_classes,
            detections.scores,
            detections.mask_logits,
            num_stuff=self.num_stuff,
            score_thresh=self.combine_instances_score_thresh,
            overlap_thresh=self.combine_overlap_thresh,
            stuff_area_thresh=self.combine_stuff_area_thresh if stuff_area_thresh is None else stuff_area_thresh,
        )
