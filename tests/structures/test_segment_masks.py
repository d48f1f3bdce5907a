"""Ground truth as one map of segment ids."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from seamless_d2.structures.segment_masks import SegmentMasks, ensure_segment_masks

# Void, two instances (3 and 8), a crowd (5) and background (1).
MAP = torch.tensor(
    [
        [0, 0, 1, 1, 5, 5],
        [0, 3, 3, 1, 5, 5],
        [1, 3, 3, 8, 8, 5],
        [1, 1, 1, 8, 8, 1],
    ],
    dtype=torch.int32,
)


def segment_masks(crowd: bool = True) -> SegmentMasks:
    crowd_ids = torch.tensor([5], dtype=torch.int32) if crowd else None
    return SegmentMasks(MAP, torch.tensor([3, 8], dtype=torch.int32), crowd_ids)


def test_bitmasks_and_selection() -> None:
    masks = segment_masks()
    assert len(masks) == 2 and masks.device == MAP.device
    assert torch.equal(masks.bitmasks(), torch.stack([MAP == 3, MAP == 8]))
    for index in (torch.tensor([1, 1, 0]), torch.tensor([False, True]), slice(1, 2), torch.zeros(0, dtype=torch.int64)):
        selected = masks[index]
        assert torch.equal(selected.ids, masks.ids[index]) and len(selected) == len(masks.ids[index])
        assert selected.segment_map is masks.segment_map
        assert torch.equal(selected.crowd_ids, masks.crowd_ids)


def test_instances_handle_them_like_bitmasks() -> None:
    instances = Instances(MAP.shape, gt_masks=segment_masks(), gt_classes=torch.tensor([0, 1]))
    assert instances[torch.tensor([1])].gt_masks.ids.tolist() == [8]
    assert instances.to("cpu").gt_masks.crowd_ids.tolist() == [5]


def test_crop_takes_the_pixel_under_each_cells_centre() -> None:
    random = np.random.RandomState(0)
    segment_map = random.randint(0, 4, (30, 40))
    corners = random.uniform(-3, 30, (20, 2))
    boxes = np.concatenate([corners, corners + random.uniform(0.1, 15, (20, 2))], axis=1).astype(np.float32)
    ids = random.randint(1, 4, 20)
    masks = SegmentMasks(torch.from_numpy(segment_map), torch.from_numpy(ids))
    target, void = masks.crop(torch.from_numpy(boxes), 7)
    assert target.shape == void.shape == (20, 7, 7) and target.dtype == void.dtype == torch.bool
    for n, (x0, y0, x1, y1) in enumerate(boxes.astype(np.float64)):
        for i in range(7):
            for j in range(7):
                y, x = y0 + (i + 0.5) / 7 * (y1 - y0), x0 + (j + 0.5) / 7 * (x1 - x0)
                value = segment_map[min(max(int(np.floor(y)), 0), 29), min(max(int(np.floor(x)), 0), 39)]
                assert target[n, i, j] == (value == ids[n])
                assert void[n, i, j] == (value == 0)


def test_crop_of_nothing() -> None:
    target, void = segment_masks()[:0].crop(torch.zeros(0, 4), 28)
    assert target.shape == void.shape == (0, 28, 28)


def test_crowd_overlap_counts_pixels() -> None:
    boxes = torch.tensor([[4.0, 0, 6, 2], [3, 0, 6, 3], [0, 2, 3, 4], [5, 1, 6, 3], [0, 0, 6, 4]])
    assert segment_masks().crowd_overlap(boxes).tolist() == pytest.approx([1, 5 / 9, 0, 1, 5 / 24])
    assert segment_masks(crowd=False).crowd_overlap(boxes).tolist() == [0] * 5


def test_crowd_overlap_of_several_regions_and_odd_boxes() -> None:
    masks = SegmentMasks(MAP, torch.tensor([3]), torch.tensor([5, 8]))
    assert masks.crowd_overlap(torch.tensor([[3.0, 1, 6, 4]])).tolist() == pytest.approx([7 / 9])
    # Corners are truncated to whole pixels, the area is that of the box; what leaves the image counts as free.
    boxes = torch.tensor([[3.9, 0.9, 5.9, 2.9], [4.0, -10, 6, 2], [4, 0, 16, 2]])
    assert masks.crowd_overlap(boxes).tolist() == pytest.approx([2 / 4, 4 / 24, 4 / 24])
    # Without area there is no share: the comparison with any threshold is false.
    assert not masks.crowd_overlap(torch.tensor([[4.0, 1, 4, 2], [2, 2, 2, 2]])).lt(2).any()


def stock_instances(masks: BitMasks | PolygonMasks | None, count: int = 2) -> Instances:
    instances = Instances((4, 6))
    instances.gt_boxes = Boxes(torch.tensor([[1.0, 1, 3, 3], [3, 2, 5, 4]])[:count])
    instances.gt_classes = torch.arange(count)
    if masks is not None:
        instances.gt_masks = masks
    return instances


def polygon(x0: int, y0: int, x1: int, y1: int) -> list[np.ndarray]:
    return [np.array([x0, y0, x1, y0, x1, y1, x0, y1], np.float64)]


@pytest.mark.parametrize("kind", ["bits", "polygons"])
def test_stock_masks_become_one_map(kind: str) -> None:
    bits = torch.stack([MAP == 3, MAP == 8])
    masks = BitMasks(bits) if kind == "bits" else PolygonMasks([polygon(1, 1, 3, 3), polygon(3, 2, 5, 4)])
    sem_seg = torch.where(MAP == 0, 255, 1)
    sem_seg[1, 1] = 255  # an instance is never void
    instances = stock_instances(masks)
    result = ensure_segment_masks(instances, sem_seg, 255)
    assert torch.equal(result.gt_masks.bitmasks(), bits)
    assert torch.equal(result.gt_masks.segment_map == 0, MAP == 0)
    assert len(result.gt_masks.crowd_ids) == 0
    assert result.gt_boxes is instances.gt_boxes and result.gt_classes is instances.gt_classes
    assert instances.gt_masks is masks


def test_later_instances_cover_earlier_ones() -> None:
    bits = torch.zeros(2, 4, 6, dtype=torch.bool)
    bits[0, :, :4], bits[1, :, 2:] = True, True
    result = ensure_segment_masks(stock_instances(BitMasks(bits)), None, 255)
    assert result.gt_masks.segment_map.tolist() == [[1, 1, 2, 2, 2, 2]] * 4


def test_nothing_to_do() -> None:
    instances = stock_instances(None)
    instances.gt_masks = segment_masks()
    assert ensure_segment_masks(instances, None, 255) is instances


@pytest.mark.parametrize(
    "masks", [None, BitMasks(torch.zeros(0, 4, 6)), PolygonMasks([])], ids=["none", "bits", "poly"]
)
def test_no_instances(masks: BitMasks | PolygonMasks | None) -> None:
    sem_seg = torch.full((4, 6), 255)
    sem_seg[0] = 2
    result = ensure_segment_masks(stock_instances(masks, 0), sem_seg, 255)
    assert len(result.gt_masks) == 0 and result.gt_masks.bitmasks().shape == (0, 4, 6)
    assert torch.equal(result.gt_masks.segment_map == 0, sem_seg == 255)
