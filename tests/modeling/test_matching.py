"""Bounded matching against Detectron2's matcher on the full matrix, and seeds of images."""

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

from seamless_d2.modeling import matching
from seamless_d2.modeling.matching import best_matches, image_seed, in_chunks, match_boxes


def random_boxes(count: int) -> Boxes:
    corners = torch.randint(0, 40, (count, 2)).float()  # whole numbers: many overlaps are equal
    return Boxes(torch.cat([corners, corners + torch.randint(1, 20, (count, 2))], dim=1))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MAX_ENTRIES", 200)
    monkeypatch.setattr(matching, "_LEAST_CHUNK", 3)


@pytest.mark.parametrize(("truths", "count"), [(1, 1), (7, 500), (30, 61), (300, 10), (2, 3)])
def test_chunks_change_nothing(small_chunks, truths: int, count: int) -> None:
    truth, boxes = random_boxes(truths), random_boxes(count)
    iou = pairwise_iou(truth, boxes)
    best_iou, best_truth, truth_iou, rows = best_matches(truth, boxes)
    assert torch.equal(best_iou, iou.amax(dim=0)) and torch.equal(truth_iou, iou.amax(dim=1))
    for k in range(count):  # among equals the first
        assert best_truth[k] == iou[:, k].tolist().index(max(iou[:, k].tolist()))
    for k in range(truths):
        assert rows[k] == iou[k].tolist().index(max(iou[k].tolist()))
    matcher = Matcher([0.5], [0, 1], allow_low_quality_matches=False)
    for ours, theirs in zip(match_boxes(matcher, truth, boxes), matcher(iou), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_to_match() -> None:
    matcher = Matcher([0.5], [0, 1], allow_low_quality_matches=False)
    for truths, count in ((0, 4), (3, 0), (0, 0)):
        matched, labels = match_boxes(matcher, random_boxes(truths), random_boxes(count))
        assert matched.tolist() == [0] * count and labels.tolist() == [0] * count


def test_memory_is_bounded() -> None:
    # 3,000 instances and 100,000 anchors: the full matrix has 3e8 entries.
    truth, boxes, largest = random_boxes(3000), random_boxes(100_000), 0

    def look(chunk: Boxes) -> tuple[torch.Tensor]:
        nonlocal largest
        largest = max(largest, len(truth) * len(chunk))
        return (chunk.tensor,)

    parts = in_chunks(look, truth, boxes)
    assert largest <= matching.MAX_ENTRIES
    assert torch.equal(torch.cat([p[0] for p in parts]), boxes.tensor)


def test_out_of_memory_halves_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, boxes = random_boxes(5), random_boxes(5000)
    expected = best_matches(truth, boxes)
    sizes = []

    def pairwise(a: Boxes, b: Boxes) -> torch.Tensor:
        sizes.append(len(b))
        if len(b) > 700:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return pairwise_iou(a, b)

    monkeypatch.setattr(matching, "pairwise_iou", pairwise)
    for ours, theirs in zip(best_matches(truth, boxes), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert sizes[:4] == [5000, 2500, 1250, 625] and len(sizes) == 3 + 8
    # Where not even a small portion fits, the error stays.
    monkeypatch.setattr(matching, "_LEAST_CHUNK", 1000)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        best_matches(truth, boxes)


def test_images_draw_for_themselves() -> None:
    def draw(seeds: list[int] | None, number: int) -> list[int]:
        with image_seed(seeds, number, torch.device("cpu")):
            return torch.randperm(100).tolist()

    assert draw([5, 6], 0) == draw([9, 5], 1) != draw([5, 6], 1)
    state = torch.get_rng_state()
    draw([5], 0)
    assert torch.equal(torch.get_rng_state(), state)  # and leave no trace
    draw(None, 0)
    assert not torch.equal(torch.get_rng_state(), state)
