"""Ground truth of one image as a map of segment ids: instance masks, void and crowd in a single (H, W) tensor."""

import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor


class SegmentMasks:
    """Instance masks that share one map of segment ids, in the role of Detectron2's ``BitMasks``.

    N masks of a photo cost one (H, W) map instead of N, and the map knows what N masks do not: which pixels are void
    (id 0) and which belong to crowd regions. Indexing selects masks, the map is shared.
    """

    def __init__(self, segment_map: Tensor, ids: Tensor, crowd_ids: Tensor | None = None) -> None:
        """
        Args:
            segment_map: (H, W) integer ids, 0 = void.
            ids: (N,) ids of the N instances.
            crowd_ids: (M,) ids of thing regions that merge several instances; default none.
        """
        self.segment_map = segment_map
        self.ids = ids
        self.crowd_ids = ids.new_zeros(0) if crowd_ids is None else crowd_ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor | slice) -> "SegmentMasks":
        return SegmentMasks(self.segment_map, self.ids[index], self.crowd_ids)

    def to(self, *args, **kwargs) -> "SegmentMasks":
        """As ``Tensor.to``."""
        return SegmentMasks(*(t.to(*args, **kwargs) for t in (self.segment_map, self.ids, self.crowd_ids)))

    @property
    def device(self) -> torch.device:
        return self.segment_map.device

    def bitmasks(self) -> Tensor:
        """(N, H, W) bool."""
        return self.segment_map[None] == self.ids[:, None, None]

    def crop(self, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Nearest sampling of the ids at the centres of ``size`` x ``size`` cells of each box.

        Args:
            boxes: (N, 4) float x0, y0, x1, y1; box i belongs to mask i.
            size: cells per side.

        Returns:
            target: (N, size, size) bool, the instance's own pixels.
            void: (N, size, size) bool, pixels without a label.
        """
        height, width = self.segment_map.shape
        cells = (torch.arange(size, device=boxes.device, dtype=boxes.dtype) + 0.5) / size
        x = (boxes[:, 0, None] + cells * (boxes[:, 2] - boxes[:, 0])[:, None]).floor().long().clamp(0, width - 1)
        y = (boxes[:, 1, None] + cells * (boxes[:, 3] - boxes[:, 1])[:, None]).floor().long().clamp(0, height - 1)
        sampled = self.segment_map[y[:, :, None], x[:, None, :]]
        return sampled == self.ids[:, None, None], sampled == 0

    def crowd_overlap(self, boxes: Tensor) -> Tensor:
        """Share of each box that lies in crowd regions.

        Args:
            boxes: (N, 4) float x0, y0, x1, y1.

        Returns:
            (N,) float in 0..1 (corners are truncated to whole pixels, so that it may exceed 1 slightly). Where the
            image has crowd regions, a box without area gives NaN: below no threshold, hence not used, as in the
            original.
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


def ensure_segment_masks(instances: Instances, sem_seg: Tensor | None, ignore_value: int) -> Instances:
    """Give ``instances`` a ``SegmentMasks`` field, for training dicts made by Detectron2's stock mappers.

    Args:
        instances: ground truth of one image; ``gt_masks`` may be ``BitMasks``, ``PolygonMasks`` or already ours.
        sem_seg: (H, W) semantic labels; pixels with ``ignore_value`` outside all instances become void.
        ignore_value: label of void.

    Returns:
        The same object where nothing is to do, else a new one.
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
