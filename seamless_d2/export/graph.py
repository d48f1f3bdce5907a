"""Inference as one function of one tensor, for export: from the image to the panoptic map and the table of segments."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..modeling.fusion import find_order, fuse_tensors
from ..modeling.ops.fuse_blocks import claim_in_blocks
from ..modeling.panoptic import NetworkOutput, SeamlessPanoptic


class ExportForm(nn.Module):
    """``SeamlessPanoptic`` for a single image, made of the functions that the model itself calls."""

    def __init__(self, model: SeamlessPanoptic, channel_order: str) -> None:
        """
        Args:
            model: A model that is ready for inference.
            channel_order: ``INPUT.FORMAT`` of its configuration, "RGB" or "BGR".

        Raises:
            UserError: A component of the model has no export form, or a setting none.
        """
        super().__init__()
        for part, method in (("proposal_generator", "propose_tensors"), ("roi_heads", "detect_tensors")):
            if not hasattr(getattr(model, part), method):
                raise UserError(
                    f"{type(getattr(model, part)).__name__} has no export form (no method {method}); export a model "
                    "with SeamlessRPN and SeamlessROIHeads"
                )
        if model.pads_to_squares:
            raise UserError(
                f"{type(model.backbone).__name__} takes square images only, which has no export form; export a model "
                "with build_seamless_fpn"
            )
        if model.fuse_at != "input":
            raise UserError(
                f"MODEL.SEAMLESS.FUSE_AT {model.fuse_at} has no export form: an exported model does not know another "
                'size than its input\'s; set it to "input"'
            )
        self.model = model
        self.flip = channel_order == "BGR"

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Predict one image.

        Args:
            image: (3, H, W) uint8 RGB at the size of the network.

        Returns:
            ``session.OUTPUTS``: (H, W) int32 map, 0 is void, otherwise ids 1..K; then of each of the K segments the
            category (K,) int32 (things 0..T-1, stuff 0..S-1), isthing (K,) bool, score (K,) float32 in 0..1 (0 for
            stuff), area (K,) int32 in pixels, and box (K, 4) float32 x0, y0, x1, y1 as predicted (all 0 for stuff).
        """
        model, size = self.model, image.shape[-2:]
        image, padded = model.normalize_image(image.flip(0) if self.flip else image)[None], size
        if model.divisor > 1:
            height, width = ((side + model.divisor - 1) // model.divisor * model.divisor for side in size)
            image, padded = F.pad(image, (0, width - size[1], 0, height - size[0])), (height, width)
        features = model.backbone(image)
        logits, upsample_size = model.predict_semantic(features, padded)
        labels = NetworkOutput(logits, None, size, upsample_size).labels()
        score_thresh = model.combine_instances_score_thresh
        proposals = model.proposal_generator.propose_tensors(features, size)
        boxes, scores, classes, mask_logits = model.roi_heads.detect_tensors(
            features, proposals, size, padded, score_thresh
        )
        order = find_order(scores, score_thresh)
        panoptic, thing_areas, stuff_areas = fuse_tensors(
            labels,
            boxes[order],
            mask_logits[order].sigmoid(),
            model.num_stuff,
            model.combine_overlap_thresh,
            model.combine_stuff_area_thresh,
            claim_in_blocks,
        )
        kept, stuff = (thing_areas > 0).nonzero()[:, 0], (stuff_areas > 0).nonzero()[:, 0]
        things = order[kept]
        area = torch.cat([thing_areas[kept], stuff_areas[stuff]]).int()
        category = torch.cat([classes[things], stuff]).int()
        isthing = torch.cat([torch.ones_like(things), torch.zeros_like(stuff)]).bool()
        score = torch.cat([scores[things], torch.zeros_like(stuff, dtype=torch.float32)])
        box = torch.cat([boxes[things], boxes.new_zeros((stuff.shape[0], 4))])
        return panoptic, category, isthing, score, area, box
