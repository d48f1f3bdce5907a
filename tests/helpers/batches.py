"""Training batches drawn by hand: two things, a crowd, stuff and a void corner on 64x96 pixels."""

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor

from seamless_d2.structures.segment_masks import SegmentMasks

STUFF, THINGS = 5, 3


def make_image(height: int = 64, width: int = 96, seed: int = 0) -> Tensor:
    """(3, height, width) uint8 blobs."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 255).byte()


# Ground truth drawn by hand: sky above, road below, two things, a crowd, a void corner.
def scene() -> Tensor:
    segment_map = torch.full((64, 96), 1, dtype=torch.int32)
    segment_map[30:] = 2
    segment_map[20:50, 10:40] = 3
    segment_map[25:45, 60:75] = 4
    segment_map[5:25, 70:95] = 5
    segment_map[:8, :8] = 0
    return segment_map


SEMANTIC = torch.tensor([255, 0, 1, STUFF, STUFF + 2, STUFF + 1])


def make_ground_truth(kind: str) -> tuple[Instances, Tensor]:
    """``instances`` and ``sem_seg`` of a training dict."""
    segment_map = scene()
    ids, crowd = [3, 4], [5]
    if kind == "no instances":
        segment_map[segment_map > 2] = 1
        ids, crowd = [], []
    elif kind == "crowd only":
        segment_map[:] = 5
        ids = []
    elif kind == "all void":
        segment_map[:] = 0
        ids, crowd = [], []
    elif kind == "instances under crowd":
        segment_map[:] = 5
        segment_map[20:22, 10:40] = 3
        segment_map[25, 60:75] = 4
    boxes = torch.tensor([[10.0, 20, 40, 50], [60, 25, 75, 45]])
    instances = Instances(segment_map.shape)
    instances.gt_boxes = Boxes(boxes[: len(ids)])
    instances.gt_classes = torch.tensor([0, 2])[: len(ids)]
    if kind == "bitmasks":
        instances.gt_masks = BitMasks(torch.stack([segment_map == i for i in ids]))
    elif kind == "polygons":
        corners = [np.array([x0, y0, x1, y0, x1, y1, x0, y1]) for x0, y0, x1, y1 in boxes.double().tolist()]
        instances.gt_masks = PolygonMasks([[c] for c in corners])
    else:
        instances.gt_masks = SegmentMasks(
            segment_map, torch.tensor(ids, dtype=torch.int32), torch.tensor(crowd, dtype=torch.int32)
        )
    return instances, SEMANTIC[segment_map.long()]


def make_batch(*kinds: str) -> list[dict]:
    batch = []
    for seed, kind in enumerate(kinds):
        instances, sem_seg = make_ground_truth(kind)
        batch.append({"image": make_image(seed=seed), "instances": instances, "sem_seg": sem_seg})
    return batch
