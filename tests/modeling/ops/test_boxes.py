"""Non-maximum suppression against a plain loop, and its two conventions at the threshold."""

import pytest
import torch
from torch import Tensor

from seamless_d2.modeling.ops.boxes import batched_nms

# Two boxes whose intersection is exactly half of their union, and one apart.
HALF = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]])
SCORES = torch.tensor([0.9, 0.8, 0.7])


def iou(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def plain_nms(boxes: Tensor, scores: Tensor, groups: Tensor, thresh: float) -> list[int]:
    """The definition: best first, drop what overlaps a better one of its group."""
    rows, kept = boxes.double().tolist(), []
    for i in scores.argsort(descending=True).tolist():
        if all(groups[i] != groups[j] or iou(rows[i], rows[j]) <= thresh for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("thresh", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("num_groups", [1, 4])
@pytest.mark.parametrize("inclusive", [False, True])
def test_against_the_definition(thresh: float, num_groups: int, inclusive: bool) -> None:
    corners = torch.rand(300, 2) * 60
    boxes = torch.cat([corners, corners + torch.rand(300, 2) * 40 + 1], dim=1)
    scores, groups = torch.rand(300), torch.randint(num_groups, (300,))
    kept = batched_nms(boxes, scores, groups if num_groups > 1 else None, thresh, inclusive)
    assert kept.tolist() == plain_nms(boxes, scores, groups, thresh)


@pytest.mark.parametrize("groups", [None, torch.zeros(3, dtype=torch.int64)], ids=["one set", "groups"])
def test_overlap_exactly_at_the_threshold(groups: Tensor | None) -> None:
    assert batched_nms(HALF, SCORES, groups, 0.5, inclusive=True).tolist() == [0, 2]
    assert batched_nms(HALF, SCORES, groups, 0.5, inclusive=False).tolist() == [0, 1, 2]
    # The inclusive threshold gives way by no more than a rounding.
    assert batched_nms(HALF, SCORES, groups, 0.500001, inclusive=True).tolist() == [0, 1, 2]


def test_groups_far_from_the_origin() -> None:
    """Classes are kept apart without rounding the overlaps of large coordinates."""
    # Fractions that float32 cannot hold at the shifted places.
    boxes = HALF / 16 + torch.tensor([8192.0, 4096.0, 8192.0, 4096.0])
    scores = torch.tensor([0.9, 0.8, 0.7])
    for group in (0, 150):
        groups = torch.full((3,), group)
        assert batched_nms(boxes, scores, groups, 0.5, inclusive=False).tolist() == [0, 1, 2]
        assert batched_nms(boxes, scores, groups, 0.5, inclusive=True).tolist() == [0, 2]
    negative = HALF - 100
    assert batched_nms(negative, scores, torch.tensor([0, 1, 0]), 0.1, inclusive=True).tolist() == [0, 1, 2]


def test_boxes_without_area_suppress_nothing() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 9], [5, 5, 5, 9], [0, 0, 10, 10]])
    for inclusive in (False, True):
        assert batched_nms(boxes, SCORES, None, 0.5, inclusive).tolist() == [0, 1, 2]


@pytest.mark.parametrize("groups", [None, torch.zeros(0, dtype=torch.int64)], ids=["one set", "groups"])
def test_nothing(groups: Tensor | None) -> None:
    kept = batched_nms(torch.zeros(0, 4), torch.zeros(0), groups, 0.5, inclusive=False)
    assert kept.shape == (0,) and kept.dtype == torch.int64
