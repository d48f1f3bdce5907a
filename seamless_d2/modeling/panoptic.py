"""The complete model: one backbone, a semantic head, an RPN with ROI heads, and the fusion of both outputs."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import PanopticFPN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from ..errors import UserError
from ..structures.classes import Classes
from ..structures.id_maps import SegmentInfo
from ..structures.segment_masks import ensure_segment_masks
from .fusion import fuse_panoptic, resize_panoptic
from .ops.optional_arguments import optional_arguments
from .ops.upsample import upsampled_labels

OUTPUTS = ("instances", "sem_seg", "panoptic_seg")
Size = tuple[int, int]


@dataclass
class NetworkOutput:
    """The outputs of both heads for one image, at the resolution of the network.

    Attributes:
        logits: (1, C, h, w) float semantic logits, or None if they were not computed.
        detections: ``Instances`` in pixels of the image with ``pred_boxes``, ``scores``, ``pred_classes`` and
            ``pred_masks``, or None if they were not computed.
        image_size: (height, width) of the image.
        upsample_size: (height, width) that ``logits`` are still to be brought to; the image is its top left part. None
            if they have their full size, of which the image is the top left part.
    """

    logits: Tensor | None
    detections: Instances | None
    image_size: Size
    upsample_size: Size | None

    def scores(self) -> Tensor:
        """Return (1, C, H, W) float32 logits at the image's size."""
        scores = self.logits.float()
        if self.upsample_size is not None:
            scores = F.interpolate(scores, size=self.upsample_size, mode="bilinear", align_corners=False)
        return scores[:, :, : self.image_size[0], : self.image_size[1]]

    def labels(self) -> Tensor:
        """Return (H, W) integer semantic labels at the image's size; the best class of ``scores``."""
        if self.upsample_size is None:
            return self.scores()[0].argmax(dim=0)
        return upsampled_labels(self.logits, self.upsample_size, self.image_size)


@META_ARCH_REGISTRY.register()
class SeamlessPanoptic(PanopticFPN):
    """Seamless Scene Segmentation (Porzi et al., CVPR 2019).

    It takes and returns the dicts of Detectron2's ``PanopticFPN``, and is made of any registered backbone, proposal
    generator, ROI heads and semantic head. What ours offer beyond Detectron2's interfaces (see ``optional_arguments``)
    is used if a component offers it and never required.
    """

    @configurable
    def __init__(
        self,
        *,
        num_stuff: int,
        fuse_at: str = "input",
        outputs: list[str] | tuple[str, ...] = OUTPUTS,
        channels_last: bool = False,
        ignore_value: int = 255,
        size_divisibility: int = 0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            num_stuff: The number S of stuff classes; semantic labels from S on are things.
            fuse_at: The resolution of the fusion: "input" (the network's) or "output" (the requested size).
            outputs: Which of ``OUTPUTS`` inference computes and returns.
            channels_last: Keep weights, and with them features, in the memory format that tensor cores want.
            ignore_value: The semantic label of void.
            size_divisibility: The batch is padded to a multiple of this if the semantic head needs it, besides what the
                backbone asks for.
            kwargs: The arguments of ``PanopticFPN``.

        Raises:
            UserError: ``fuse_at`` or an output is unknown, there are fewer semantic than thing classes, or an output
                needs masks and the ROI heads compute none.
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
        if "panoptic_seg" in outputs and not getattr(self.roi_heads, "mask_on", True):
            raise UserError(
                "a panoptic map needs instance masks; set MODEL.MASK_ON True or take panoptic_seg out of "
                "MODEL.SEAMLESS.OUTPUTS"
            )
        self.num_stuff = num_stuff
        self.fuse_at = fuse_at
        self.outputs = tuple(outputs)
        self.ignore_value = ignore_value
        #: Whether parts of the network write their outputs to the same memory in each call (``compile_network``).
        self.uses_cuda_graphs = False
        # Heads that accept any size are those that can leave their logits as they are.
        self.size_divisibility = 0 if optional_arguments(self.sem_seg_head, upsample=False) else size_divisibility
        if channels_last:
            self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        register_classes(cfg)
        try:
            arguments = super().from_config(cfg)
        except KeyError as error:
            # Heads look their features up among those of the backbone.
            for section in ("RPN", "ROI_HEADS", "SEM_SEG_HEAD"):
                if error.args[0] in cfg.MODEL[section].IN_FEATURES:
                    raise UserError(
                        f"MODEL.{section}.IN_FEATURES lists {error.args[0]!r}, which the backbone "
                        f"{cfg.MODEL.BACKBONE.NAME} does not have; see its output_shape()"
                    ) from None
            raise
        shapes = arguments["backbone"].output_shape()
        strides = [shapes[name].stride for name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES if name in shapes]
        return {
            **arguments,
            "num_stuff": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "fuse_at": cfg.MODEL.SEAMLESS.FUSE_AT,
            "outputs": cfg.MODEL.SEAMLESS.OUTPUTS,
            "channels_last": cfg.MODEL.SEAMLESS.CHANNELS_LAST,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "size_divisibility": max(strides, default=0),
        }

    @property
    def pads_images(self) -> bool:
        """Whether a single image may be padded, because of what the backbone or the semantic head accepts."""
        return self.pads_to_squares or self.divisor > 1

    @property
    def pads_to_squares(self) -> bool:
        """Whether the backbone takes square images only."""
        return (self.backbone.padding_constraints or {}).get("square_size", 0) > 1

    @property
    def divisor(self) -> int:
        """What the sides of images are padded to a multiple of, for backbone or semantic head; 0 and 1 mean nothing."""
        return max(self.backbone.size_divisibility, self.size_divisibility)

    def _pad(self, tensors: list[Tensor], value: float) -> ImageList:
        """Pad tensors of (..., H, W) at the bottom and right to one size that backbone and heads accept."""
        return ImageList.from_tensors(tensors, self.divisor, value, self.backbone.padding_constraints)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalize the images and pad them to one size."""
        images = [self._move_to_current_device(x["image"]) for x in batched_inputs]
        return self._pad([self.normalize_image(image) for image in images], 0.0)

    def normalize_image(self, image: Tensor) -> Tensor:
        """Return a (3, H, W) image with values in 0..255, normalized."""
        return (image - self.pixel_mean) / self.pixel_std

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Train or predict on a batch.

        Args:
            batched_inputs: One dict per image:

                * "image": (3, H, W) tensor, 0..255, channels in the order of ``INPUT.FORMAT``.
                * "height", "width": inference only; size of the outputs, default the image's.
                * "instances": training only; ``Instances`` with gt_boxes, gt_classes (0..T-1) and gt_masks
                  (``SegmentMasks`` as our mapper makes them, or ``BitMasks``, ``PolygonMasks``).
                * "sem_seg": training only; (H, W) int64, stuff 0..S-1, things S..C-1, or the ignore value.
                * "seed": training only, optional; int 0..2^63-1 that decides which anchors and ROIs are sampled.

        Returns:
            Training: the losses of all components; with ours loss_rpn_cls, loss_rpn_loc, loss_cls, loss_box_reg,
            loss_mask and loss_sem_seg. Inference: one dict per image with those of these keys that ``OUTPUTS`` lists:

                * "instances": ``Instances`` at the output size with pred_boxes, scores, pred_classes, pred_masks.
                * "sem_seg": (C, height, width) float scores.
                * "panoptic_seg": ((height, width) int32 map, segments_info), see ``fuse_panoptic``.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        instances = [
            ensure_segment_masks(x["instances"], x["sem_seg"], self.ignore_value).to(self.device)
            for x in batched_inputs
        ]
        targets = self._pad([x["sem_seg"].to(self.device) for x in batched_inputs], self.ignore_value).tensor
        seeds = [x["seed"] for x in batched_inputs] if all("seed" in x for x in batched_inputs) else None
        proposals, losses = self.proposal_generator(
            images, features, instances, **optional_arguments(self.proposal_generator, image_seeds=seeds)
        )
        extras = optional_arguments(self.roi_heads, image_seeds=seeds)
        losses.update(self.roi_heads(images, features, proposals, instances, **extras)[1])
        extras = optional_arguments(self.sem_seg_head, image_sizes=images.image_sizes)
        losses.update(self.sem_seg_head(features, targets, **extras)[1])
        return losses

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict], do_postprocess: bool = True) -> list[dict] | tuple:
        """Predict a batch; see ``forward``.

        Without ``do_postprocess``, the detections of each image and the semantic logits of the batch are returned as
        the heads give them, at the network's resolution.
        """
        outputs = self.run_network(batched_inputs, all_outputs=not do_postprocess)
        if not do_postprocess:
            return [o.detections for o in outputs], torch.cat([o.logits for o in outputs])
        return [
            self.postprocess(o, (x.get("height", o.image_size[0]), x.get("width", o.image_size[1])))
            for x, o in zip(batched_inputs, outputs, strict=True)
        ]

    @torch.no_grad()
    def run_network(self, batched_inputs: list[dict], all_outputs: bool = False) -> list[NetworkOutput]:
        """Run the part of inference that works on the batch as a whole.

        Args:
            batched_inputs: See ``forward``.
            all_outputs: Compute the complete outputs of both heads, whatever ``OUTPUTS`` lists.

        Returns:
            One output per image, for ``postprocess``.
        """
        if self.uses_cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        fuse = all_outputs or "panoptic_seg" in self.outputs
        logits, detections, upsample_size = [None] * len(images), [None] * len(images), None
        if fuse or "sem_seg" in self.outputs:
            batch_logits, upsample_size = self.predict_semantic(features, tuple(images.tensor.shape[-2:]))
            logits = (batch_logits.clone() if self.uses_cuda_graphs else batch_logits).split(1)
        if fuse or "instances" in self.outputs:
            proposals, _ = self.proposal_generator(images, features, None)
            extras: dict[str, Any] = {}
            if self.outputs == ("panoptic_seg",) and not all_outputs:
                # What cannot enter the map needs no mask.
                thresh = self.combine_instances_score_thresh
                extras = optional_arguments(self.roi_heads, mask_score_thresh=thresh)
            detections, _ = self.roi_heads(images, features, proposals, None, **extras)
        return [
            NetworkOutput(*heads, image_size, upsample_size)
            for *heads, image_size in zip(logits, detections, images.image_sizes, strict=True)
        ]

    def predict_semantic(self, features: dict[str, Tensor], padded_size: Size) -> tuple[Tensor, Size | None]:
        """Run the semantic head on the features of a batch of (height, width) ``padded_size``.

        Returns:
            The (N, C, h, w) logits of the batch, and the (height, width) that they are still to be brought to; None if
            they have their full size.
        """
        extras = optional_arguments(self.sem_seg_head, upsample=False)
        logits, _ = self.sem_seg_head(features, None, **extras)
        return logits, padded_size if extras else None

    @torch.no_grad()
    def postprocess(self, output: NetworkOutput, size: Size, **fusion_options: Any) -> dict[str, Any]:
        """Return what ``forward`` returns for one image.

        Args:
            output: An output of ``run_network``.
            size: (height, width) of the results.
            fusion_options: Thresholds that replace the model's, see ``fuse``.
        """
        result: dict[str, Any] = {}
        fuse = "panoptic_seg" in self.outputs
        scores = None
        if "sem_seg" in self.outputs or (fuse and self.fuse_at == "output"):
            scores = output.scores()
        if fuse and self.fuse_at == "input":
            labels = output.labels() if scores is None else scores[0].argmax(dim=0)
            result["panoptic_seg"] = resize_panoptic(*self.fuse(labels, output.detections, **fusion_options), *size)
        if scores is not None and size != output.image_size:
            scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        if fuse and self.fuse_at == "output":
            result["panoptic_seg"] = self.fuse(scores[0].argmax(dim=0), output.detections, **fusion_options)
        if "sem_seg" in self.outputs:
            result["sem_seg"] = scores[0]
        if "instances" in self.outputs:
            fields = {k: v for k, v in output.detections.get_fields().items() if k != "mask_logits"}
            # detector_postprocess scales the boxes in place.
            fields["pred_boxes"] = Boxes(output.detections.pred_boxes.tensor.clone())
            result["instances"] = detector_postprocess(Instances(output.detections.image_size, **fields), *size)
        return result

    def fusion_labels(self, output: NetworkOutput, size: Size) -> Tensor:
        """Return the (h, w) semantic labels that ``fuse`` takes: at the network's resolution, or at ``size``."""
        if self.fuse_at == "input" or size == output.image_size:
            return output.labels()
        return F.interpolate(output.scores(), size=size, mode="bilinear", align_corners=False)[0].argmax(dim=0)

    def fuse(
        self,
        labels: Tensor,
        detections: Instances,
        *,
        score_thresh: float | None = None,
        overlap_thresh: float | None = None,
        stuff_area_thresh: int | None = None,
    ) -> tuple[Tensor, list[SegmentInfo]]:
        """Merge labels and detections into a panoptic map; override this to change the rule everywhere.

        Args:
            labels: (H, W) integer semantic labels.
            detections: Detections of an image of any size; their boxes are scaled to (H, W).
            score_thresh, overlap_thresh, stuff_area_thresh: See ``fuse_panoptic``; default the model's.

        Returns:
            See ``fuse_panoptic``.
        """
        height, width = detections.image_size
        scale = [labels.shape[1] / width, labels.shape[0] / height]
        boxes = detections.pred_boxes.tensor
        return fuse_panoptic(
            labels,
            boxes * boxes.new_tensor(scale).repeat(2) if scale != [1.0, 1.0] else boxes,
            detections.pred_classes,
            detections.scores,
            mask_logits(detections),
            num_stuff=self.num_stuff,
            score_thresh=self.combine_instances_score_thresh if score_thresh is None else score_thresh,
            overlap_thresh=self.combine_overlap_thresh if overlap_thresh is None else overlap_thresh,
            stuff_area_thresh=self.combine_stuff_area_thresh if stuff_area_thresh is None else stuff_area_thresh,
        )


def mask_logits(detections: Instances) -> Tensor:
    """Return (N, h, w) float mask logits of ``detections``, from their probabilities if they bring no logits."""
    if detections.has("mask_logits"):
        return detections.mask_logits
    return detections.pred_masks[:, 0].float().clamp(1e-6, 1 - 1e-6).logit()


def register_classes(cfg: CfgNode) -> None:
    """Put the config's class lists into ``MetadataCatalog`` under its first test (else training) data set.

    Nothing is done if the config has no lists or the data set itself is registered.
    """
    classes = Classes.from_config(cfg)
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if classes is None or not names:
        return
    metadata = MetadataCatalog.get(names[0])
    if not hasattr(metadata, "thing_classes"):
        metadata.set(**classes.to_metadata())
