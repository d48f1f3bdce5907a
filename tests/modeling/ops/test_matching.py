"""Bounded matching against Detectron2's matcher on the full matrix."""

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

from seamless_d2.modeling.ops import matching
from seamless_d2.modeling.ops.matching import best_matches, match_boxes


def random_boxes(count: int) -> Boxes:
    corners = torch.randint(0, 40, (count, 2)).float()  # whole numbers: many overlaps are equal
    return Boxes(torch.cat([corners, corners + torch.randint(1, 20, (count, 2))], dim=1))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MAX_ENTRIES", 200)


@pytest.mark.parametrize(("ground_truths", "count"), [(1, 1), (7, 500), (30, 61), (300, 10), (2, 3)])
def test_chunks_change_nothing(small_chunks, ground_truths: int, count: int) -> None:
    ground_truth, boxes = random_boxes(ground_truths), random_boxes(count)
    iou = pairwise_iou(ground_truth, boxes)
    best_iou, best_ground_truth, gt_iou, rows = best_matches(ground_truth, boxes)
    assert torch.equal(best_iou, iou.amax(dim=0)) and torch.equal(gt_iou, iou.amax(dim=1))
    for k in range(count):  # among equals the first
        assert best_ground_truth[k] == iou[:, k].tolist().index(max(iou[:, k].tolist()))
    for k in range(ground_truths):
        assert rows[k] == iou[k].tolist().index(max(iou[k].tolist()))
    matcher = Matcher([0.5], [0, 1], allow_low_quality_matches=False)
    for ours, theirs in zip(match_boxes(matcher, ground_truth, boxes), matcher(iou), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_to_match() -> None:
    matcher = Matcher([0.5], [0, 1], allow_low_quality_matches=False)
    for ground_truths, count in ((0, 4), (3, 0), (0, 0)):
        matched, labels = match_boxes(matcher, random_boxes(ground_truths), random_boxes(count))
        assert matched.tolist() == [0] * count and labels.tolist() == [0] * count


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    # 3,000 instances and 30,000 anchors: the full matrix has 9e7 entries.
    gt_boxes, boxes, sizes = random_boxes(3000), random_boxes(30_000), []

    def count(a: Boxes, b: Boxes) -> torch.Tensor:
        sizes.append(len(a) * len(b))
        return torch.zeros(len(a), len(b))

    monkeypatch.setattr(matching, "pairwise_iou", count)
    best_matches(gt_boxes, boxes)
    assert max(sizes) <= matching.MAX_ENTRIES and sum(sizes) == 3000 * 30_000
