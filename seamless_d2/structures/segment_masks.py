"""Ground-truth masks of one image as a single map of segment ids, which also knows void and crowd pixels."""

from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor

# Masks that are expanded to (H, W) together; bounds the temporaries of ``crop_and_resize``.
_EXPANDED = 8


class SegmentMasks:
    """Instance masks that share one map of segment ids; takes the place of Detectron2's ``BitMasks``.

    N masks of an image cost one (H, W) map instead of N. The map also holds what N masks cannot express: which pixels
    are void (id 0) and which belong to crowd regions. Indexing selects masks; the map is shared.
    """

    def __init__(self, segment_map: Tensor, ids: Tensor, crowd_ids: Tensor | None = None) -> None:
        """
        Args:
            segment_map: (H, W) integer ids, 0 is void.
            ids: (N,) ids of the N instances.
            crowd_ids: (M,) ids of thing regions that merge several instances; default none.
        """
        self.segment_map = segment_map
        self.ids = ids
        self.crowd_ids = ids.new_zeros(0) if crowd_ids is None else crowd_ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | Tensor | slice) -> "SegmentMasks":
        """Select masks by an integer, a slice, a boolean mask or integer indices, as ``BitMasks`` does."""
        ids = self.ids[index]
        return SegmentMasks(self.segment_map, ids.reshape(-1), self.crowd_ids)

    def to(self, *args: Any, **kwargs: Any) -> "SegmentMasks":
        """Move or convert all tensors, with the arguments of ``Tensor.to``."""
        return SegmentMasks(*(t.to(*args, **kwargs) for t in (self.segment_map, self.ids, self.crowd_ids)))

    @property
    def device(self) -> torch.device:
        """The device of the map."""
        return self.segment_map.device

    def bitmasks(self) -> Tensor:
        """Return the (N, H, W) bool masks."""
        return self.segment_map[None] == self.ids[:, None, None]

    def nonempty(self) -> Tensor:
        """Return (N,) bool: whether each mask has a pixel."""
        return torch.isin(self.ids, self.segment_map)

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight boxes of the N masks; all zero for masks without a pixel."""
        boxes = torch.zeros(len(self), 4, device=self.device)
        for k in range(0, len(self), _EXPANDED):
            boxes[k : k + _EXPANDED] = BitMasks(self[k : k + _EXPANDED].bitmasks()).get_bounding_boxes().tensor
        return Boxes(boxes)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Crop each mask by its box and resize it bilinearly, exactly as ``BitMasks.crop_and_resize``.

        Args:
            boxes: (N, 4) float x0, y0, x1, y1; box i belongs to mask i.
            mask_size: The number of cells per side.

        Returns:
            (N, mask_size, mask_size) bool.
        """
        crops = [boxes.new_zeros((0, mask_size, mask_size), dtype=torch.bool)]
        for k in range(0, len(self), _EXPANDED):
            part = slice(k, k + _EXPANDED)
            crops.append(BitMasks(self[part].bitmasks()).crop_and_resize(boxes[part], mask_size))
        return torch.cat(crops)

    def crop(self, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Sample the map at the centers of ``size`` x ``size`` cells of each box (nearest neighbor).

        Args:
            boxes: (N, 4) float x0, y0, x1, y1; box i belongs to mask i.
            size: The number of cells per side.

        Returns:
            target: (N, size, size) bool, True on the instance's own pixels.
            void: (N, size, size) bool, True on pixels without a label.
        """
        height, width = self.segment_map.shape
        cells = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
        x = (boxes[:, 0, None] + cells * (boxes[:, 2] - boxes[:, 0])[:, None]).floor().long().clamp(0, width - 1)
        y = (boxes[:, 1, None] + cells * (boxes[:, 3] - boxes[:, 1])[:, None]).floor().long().clamp(0, height - 1)
        sampled = self.segment_map[y[:, :, None], x[:, None, :]]
        return sampled == self.ids[:, None, None], sampled == 0

    def crowd_overlap(self, boxes: Tensor) -> Tensor:
        """Return the share of each box that lies in crowd regions.

        Args:
            boxes: (N, 4) float x0, y0, x1, y1.

        Returns:
            (N,) float in 0..1. Corners are truncated to whole pixels, so it may slightly exceed 1. If the image has
            crowd regions, a box without area gives NaN, which is below no threshold, as in the original program.
        """
        if not len(self.crowd_ids):
            return boxes.new_zeros(len(boxes))
        crowd = torch.isin(self.segment_map, self.crowd_ids)
        height, width = crowd.shape
        integral = torch.zeros((height + 1, width + 1), dtype=torch.int64, device=crowd.device)
        integral[1:, 1:] = crowd.long().cumsum(0).cumsum(1)
        corners = boxes.long()  # truncates, as the original does
        x0, x1 = corners[:, 0].clamp(0, width), corners[:, 2].clamp(0, width)
        y0, y1 = corners[:, 1].clamp(0, height), corners[:, 3].clamp(0, height)
        inside = integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return inside / area


def crowd_overlap(instances: Instances, boxes: Tensor) -> Tensor:
    """Return the share of each (N, 4) box in crowd regions; 0 if the masks of ``instances`` do not know of crowd."""
    if instances.has("gt_masks") and isinstance(instances.gt_masks, SegmentMasks):
        return instances.gt_masks.crowd_overlap(boxes)
    return boxes.new_zeros(len(boxes))


def crop_masks(masks: Any, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the targets and the void cells of ``SegmentMasks.crop``; stock masks have no void.

    Args:
        masks: N masks: ``SegmentMasks``, ``BitMasks``, ``PolygonMasks`` or others with ``crop_and_resize``.
        boxes: (N, 4) float x0, y0, x1, y1.
        size: The number of cells per side.
    """
    if isinstance(masks, SegmentMasks):
        return masks.crop(boxes, size)
    target = masks.crop_and_resize(boxes, size).to(boxes.device)
    return target, torch.zeros_like(target)


def ensure_segment_masks(instances: Instances, sem_seg: Tensor | None, ignore_value: int) -> Instances:
    """Give ``instances`` a ``SegmentMasks`` field, for training dicts made by Detectron2's stock mappers.

    Args:
        instances: The ground truth of one image; ``gt_masks`` may be ``BitMasks``, ``PolygonMasks`` or already ours.
        sem_seg: (H, W) semantic labels; pixels with ``ignore_value`` outside all instances become void.
        ignore_value: The label of void.

    Returns:
        The same object if nothing is to be done, otherwise a new one.
    """
    masks = instances.gt_masks if instances.has("gt_masks") else None
    if isinstance(masks, SegmentMasks):
        return instances
    height, width = instances.image_size
    # Background that is not void needs an id of its own: N + 1.
    segment_map = torch.full((height, width), len(instances) + 1, dtype=torch.int32)
    if sem_seg is not None:
        segment_map[sem_seg.cpu() == ignore_value] = 0
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, height, width)
    ids = torch.arange(1, len(instances) + 1, dtype=torch.int32)
    if masks is not None:
        bits = masks.tensor if isinstance(masks, BitMasks) else masks
        for i, mask in enumerate(bits.bool().cpu()):
            segment_map[mask] = i + 1
    result = Instances(instances.image_size, **{k: v for k, v in instances.get_fields().items() if k != "gt_masks"})
    result.gt_masks = SegmentMasks(segment_map, ids).to(instances.gt_boxes.device)
    return result
