"""ROIAlign with exactly placed ROIs, in threads on a CPU.

It equals torchvision's ``roi_align`` of the whole batch of ROIs; a test compares both.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor
from torchvision.ops import roi_align

Size = tuple[int, int]


# With fewer ROIs per thread, starting threads costs more than it saves.
_MIN_ROIS = 16


@lru_cache(maxsize=1)
def _thread_pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "roi_align")


class SeamlessROIPooler(ROIPooler):
    """ROIAlign whose scale is the true ratio of map and image along each axis, not 1 / stride.

    Maps of images that are no multiple of the stride are slightly larger than image / stride; the nominal stride would
    misplace the samples by up to a feature pixel. Sample points follow the original: corner p -> (p - 0.5) * ratio.
    """

    def __init__(
        self,
        output_size: int,
        strides: list[int],
        sampling_ratio: int,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ) -> None:
        scales = [1 / s for s in strides]
        super().__init__(output_size, scales, sampling_ratio, "ROIAlignV2", canonical_box_size, canonical_level)
        self.strides = strides
        self.sampling_ratio = sampling_ratio

    def forward(self, x: list[Tensor], box_lists: list[Boxes], padded_size: Size | None = None) -> Tensor:
        """
        Args:
            x: The (N, C, h, w) feature maps, one per level.
            box_lists: The boxes of each of the N images, in pixels of the padded batch.
            padded_size: The (height, width) of the padded batch; default the nominal stride times the finest map's
                size.

        Returns:
            (M, C, output, output) features of all M boxes, in the order of the lists.
        """
        if padded_size is None:
            padded_size = (x[0].shape[-2] * self.strides[0], x[0].shape[-1] * self.strides[0])
        if len(box_lists) == 1:  # nothing to count, for which a GPU would be waited for
            return self.pool(x, box_lists[0].tensor, padded_size)
        rois = convert_boxes_to_pooler_format(box_lists)
        return self.pool(x, rois[:, 1:], padded_size, rois[:, 0])

    def pool(self, x: list[Tensor], boxes: Tensor, padded_size: Size, images: Tensor | None = None) -> Tensor:
        """Pool boxes that are tensors.

        Args:
            x, padded_size: See ``forward``.
            boxes: (M, 4) float x0, y0, x1, y1.
            images: (M,) the number of each box's image; default 0.
        """
        levels = assign_boxes_to_levels(
            [Boxes(boxes)], self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        boxes = boxes.to(x[0].dtype if x[0].dtype == torch.float64 else torch.float32)
        images = torch.zeros_like(boxes[:, 0]) if images is None else images.to(boxes.dtype)
        output = x[0].new_zeros((boxes.shape[0], x[0].shape[1], *self.output_size))
        for level, features in enumerate(x):
            index = (levels == level).nonzero()[:, 0]
            ratio_y, ratio_x = features.shape[-2] / padded_size[0], features.shape[-1] / padded_size[1]
            corners = boxes[index].view(-1, 2, 2) - 0.5
            corners = torch.stack([corners[..., 0] * ratio_x, corners[..., 1] * ratio_y], dim=-1)
            # aligned=True subtracts half a feature pixel again.
            rois = torch.cat([images[index, None], corners.flatten(1) + 0.5], dim=1)
            output = output.index_put((index,), self._align(features, rois))
        return output

    def _align(self, features: Tensor, boxes: Tensor) -> Tensor:
        if features.dtype in (torch.bfloat16, torch.float16):
            # The kernel wants one type for both, and 8 bits cannot say where a box lies.
            return self._align(features.float(), boxes).to(features.dtype)

        def align(part: Tensor) -> Tensor:
            return roi_align(features, part, self.output_size, 1.0, self.sampling_ratio, True)

        if torch.compiler.is_compiling():
            return align(boxes)
        threads = torch.get_num_threads()
        if features.is_cuda or features.requires_grad or len(boxes) < _MIN_ROIS * threads or threads == 1:
            return align(boxes)
        # torchvision's kernel for CPUs works in one thread.
        return torch.cat(list(_thread_pool(threads).map(align, boxes.chunk(threads))))
