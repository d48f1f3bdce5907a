"""The panoptic fusion on maps small enough to be counted by hand, and against a plain formulation."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seamless_d2.modeling.fusion import axis_weights, claim_pixels, fuse_panoptic, resize_panoptic

STUFF = 3  # classes; things follow


def full(count: int) -> Tensor:
    """Masks that fill their boxes."""
    return torch.full((count, 28, 28), 100.0)


def fuse(
    sem_seg: Tensor, boxes: list[list[float]], scores: list[float], classes: list[int] | None = None, **kwargs: Any
) -> tuple[Tensor, list[dict[str, Any]]]:
    """``fuse_panoptic`` of full masks; stuff of any size counts."""
    count = len(boxes)
    arguments = {"num_stuff": STUFF, "stuff_area_thresh": 1, "mask_logits": full(count)} | kwargs
    return fuse_panoptic(
        sem_seg,
        torch.tensor(boxes).reshape(count, 4).float(),
        torch.tensor(classes or [0] * count, dtype=torch.int64),
        torch.tensor(scores),
        **arguments,
    )


def check_consistent(panoptic_seg: Tensor, segments_info: list[dict[str, Any]]) -> None:
    """What holds for every result: ids 1..K, true areas, plain types, no segment without a pixel."""
    assert panoptic_seg.dtype == torch.int32
    areas = torch.bincount(panoptic_seg.flatten(), minlength=len(segments_info) + 1)
    assert len(areas) == len(segments_info) + 1
    for i, segment in enumerate(segments_info, 1):
        assert segment["id"] == i
        assert segment["area"] == areas[i] > 0
        things = {"score": float, "instance_id": int} if segment["isthing"] else {}
        types = {"id": int, "isthing": bool, "category_id": int, "area": int} | things
        assert {k: type(v) for k, v in segment.items()} == types


def stuff_map(height: int = 8, width: int = 10, label: int = 1) -> Tensor:
    return torch.full((height, width), label)


def test_one_thing_on_stuff() -> None:
    panoptic_seg, info = fuse(stuff_map(), [[2, 3, 6, 5]], [0.75], [4])
    expected = torch.full((8, 10), 2)
    expected[3:5, 2:6] = 1
    assert torch.equal(panoptic_seg, expected.int())
    assert info == [
        {"id": 1, "isthing": True, "category_id": 4, "area": 8, "score": 0.75, "instance_id": 0},
        {"id": 2, "isthing": False, "category_id": 1, "area": 72},
    ]
    check_consistent(panoptic_seg, info)


def test_thing_labels_without_an_instance_are_void() -> None:
    sem_seg = stuff_map()
    sem_seg[:4] = STUFF
    sem_seg[6:] = STUFF + 5
    panoptic_seg, info = fuse(sem_seg, [[0, 0, 5, 4]], [0.9])
    assert (panoptic_seg[:4, 5:] == 0).all() and (panoptic_seg[6:] == 0).all()
    assert [s["area"] for s in info] == [20, 20]
    check_consistent(panoptic_seg, info)


def test_only_the_free_part_of_an_instance_is_taken() -> None:
    panoptic_seg, info = fuse(stuff_map(), [[0, 0, 4, 4], [2, 0, 7, 4]], [0.6, 0.9], [1, 2])
    assert [(s["category_id"], s["area"], s["instance_id"]) for s in info[:2]] == [(2, 20, 1), (1, 8, 0)]
    assert (panoptic_seg[:4, 2:7] == 1).all() and (panoptic_seg[:4, :2] == 2).all()


def test_score_must_exceed_its_threshold() -> None:
    boxes = [[0, 0, 2, 2], [4, 0, 6, 2]]
    _, info = fuse(stuff_map(), boxes, [0.5, 0.5000001], score_thresh=0.5)
    assert [s["instance_id"] for s in info if s["isthing"]] == [1]


@pytest.mark.parametrize("hidden, kept", [(2, True), (3, False)])
def test_half_of_an_instance_may_be_hidden(hidden: int, kept: bool) -> None:
    """4 columns wide, of which 2 (or 3) are taken; a share of exactly the threshold is still allowed."""
    boxes = [[0, 0, 4, 4], [4 - hidden, 0, 8 - hidden, 4]]
    _, info = fuse(stuff_map(), boxes, [0.9, 0.8], overlap_thresh=0.5)
    assert sum(s["isthing"] for s in info) == (2 if kept else 1)


@pytest.mark.parametrize("thresh, kept", [(80, True), (81, False), (0, True)])
def test_stuff_needs_its_area(thresh: int, kept: bool) -> None:
    panoptic_seg, info = fuse(stuff_map(), [], [], stuff_area_thresh=thresh)
    assert [s["area"] for s in info] == ([80] if kept else [])
    assert (panoptic_seg == (1 if kept else 0)).all()


def test_area_of_stuff_counts_free_pixels_only() -> None:
    boxes = [[0, 0, 10, 4]]
    assert len(fuse(stuff_map(), boxes, [0.9], stuff_area_thresh=40)[1]) == 2
    assert len(fuse(stuff_map(), boxes, [0.9], stuff_area_thresh=41)[1]) == 1


def test_no_segment_without_a_pixel() -> None:
    empty = torch.full((1, 28, 28), -100.0)
    for boxes, masks, overlap in [
        ([[0, 0, 8, 8]], empty, 0.5),  # nothing in its mask
        ([[3.6, 3.6, 4.4, 4.4]], full(1), 0.5),  # no pixel's centre in its box
        ([[3, 3, 3, 6]], full(1), 0.5),  # no area
        ([[6, 6, 3, 3]], full(1), 0.5),
        ([[-9, -9, -2, -2]], full(1), 0.5),  # outside
        ([[20, 2, 30, 9]], full(1), 0.5),
        ([[1, 1, 4, 4], [1, 1, 4, 4]], full(2), 1.0),  # hidden altogether, though all may be hidden
    ]:
        panoptic_seg, info = fuse(
            stuff_map(), boxes, [0.9] * len(boxes), mask_logits=masks, overlap_thresh=overlap, stuff_area_thresh=0
        )
        check_consistent(panoptic_seg, info)
        assert sum(s["isthing"] for s in info) == len(boxes) - 1
        assert [s["category_id"] for s in info if not s["isthing"]] == [1]  # absent classes are none either


def test_equal_scores_keep_their_order() -> None:
    boxes = [[i, 0, i + 1, 8] for i in range(10)]
    order = [8, 3, 3, 3, 8, 3, 3, 8, 3, 3]
    _, info = fuse(stuff_map(), boxes, [s / 10 for s in order], score_thresh=0.1)
    assert [s["instance_id"] for s in info] == [0, 4, 7, 1, 2, 3, 5, 6, 8, 9]


def test_boxes_leaving_the_image() -> None:
    """Only the part inside is painted, at the same places as on a larger canvas."""
    masks = torch.randn(3, 28, 28) * 3
    boxes = torch.tensor([[-4.5, -3.25, 7.5, 6.0], [6.2, 2.0, 15.0, 11.0], [-2.0, -3.0, 13.0, 12.0]])
    for i in range(3):
        small, _ = fuse(stuff_map(), boxes[i : i + 1].tolist(), [0.9], mask_logits=masks[i : i + 1])
        large, _ = fuse(stuff_map(20, 30), (boxes[i : i + 1] + 6).tolist(), [0.9], mask_logits=masks[i : i + 1])
        assert torch.equal(small == 1, large[6:14, 6:16] == 1)
        assert (small == 1).any()


@pytest.mark.parametrize("num_stuff", [0, STUFF])
def test_without_stuff_or_things(num_stuff: int) -> None:
    panoptic_seg, info = fuse(stuff_map(), [], [], num_stuff=num_stuff)
    assert [s["category_id"] for s in info] == ([1] if num_stuff else [])
    check_consistent(panoptic_seg, info)
    panoptic_seg, info = fuse(stuff_map(), [[1, 1, 5, 5]], [0.9], num_stuff=num_stuff)
    assert info[0]["isthing"] and len(info) == (2 if num_stuff else 1)
    check_consistent(panoptic_seg, info)


def test_inputs_stay_as_they_are() -> None:
    sem_seg, masks = stuff_map(), full(2)
    boxes, scores, classes = torch.rand(2, 4).cumsum(1) * 3, torch.tensor([0.7, 0.9]), torch.tensor([0, 1])
    kept = [t.clone() for t in (sem_seg, boxes, classes, scores, masks)]
    fuse_panoptic(sem_seg, boxes, classes, scores, masks, num_stuff=STUFF)
    assert all(torch.equal(a, b) for a, b in zip((sem_seg, boxes, classes, scores, masks), kept, strict=True))


def pasted_probabilities(mask: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """(height, width) float64 probabilities by PyTorch's sampling with zero padding."""
    x0, y0, x1, y1 = box.double().tolist()
    rows = ((torch.arange(height).double() + 0.5 - y0) / (y1 - y0)) * 2 - 1
    columns = ((torch.arange(width).double() + 0.5 - x0) / (x1 - x0)) * 2 - 1
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    return F.grid_sample(mask.double()[None, None], grid[None], align_corners=False)[0, 0]


def random_detections(count: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes of all sizes, some leaving the image, classes, scores on a coarse grid, and blobs for masks."""
    centre, size = torch.rand(count, 2), torch.rand(count, 2) ** 2 * 0.8 + 0.001
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=1) * torch.tensor([width, height, width, height])
    blobs = F.interpolate(torch.randn(count, 1, 4, 4) * 4 + 1, size=(28, 28), mode="bicubic")[:, 0]
    return boxes, torch.randint(0, 4, (count,)), torch.randint(0, 20, (count,)) / 20, blobs


def paste(mask: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """(height, width) bool: the pixels that one instance claims on an empty map."""
    empty = torch.zeros(height, width, dtype=torch.int32)
    panoptic_seg, count, area = claim_pixels(empty, torch.zeros((), dtype=torch.int32), box, mask, 0.0)
    assert area == panoptic_seg.sum() and count == (area > 0)
    return panoptic_seg == 1


def test_masks_are_sampled_bilinearly_with_zero_padding() -> None:
    boxes, _, _, masks = random_detections(200, 40, 60)
    foreground = 0
    for box, mask in zip(boxes, masks.sigmoid(), strict=True):
        exact = pasted_probabilities(mask, box, 40, 60)
        pasted = paste(mask, box, 40, 60)
        assert ((exact - 0.5).abs()[pasted != (exact > 0.5)] < 1e-4).all()  # float32 against float64
        foreground += int(pasted.sum())
    assert foreground > 10_000


def test_weights_of_an_axis_sum_to_one_inside_the_mask() -> None:
    weights = axis_weights(torch.tensor(3.0), torch.tensor(31.0), 40, 28)
    assert torch.equal(weights[3:31], torch.eye(28)) and not weights[:3].any() and not weights[31:].any()
    weights = axis_weights(torch.tensor(-5.5), torch.tensor(50.0), 40, 28)
    assert torch.allclose(weights.sum(dim=1), torch.ones(40))


def test_saturated_mask_fills_an_integer_box_exactly() -> None:
    expected = torch.zeros(6, 10, dtype=torch.bool)
    expected[2:4, 3:8] = True
    assert torch.equal(paste(torch.ones(28, 28), torch.tensor([3.0, 2, 8, 4]), 6, 10), expected)
    # At exactly one half a pixel is not foreground.
    assert not paste(torch.full((28, 28), 0.5), torch.tensor([3.0, 2, 8, 4]), 6, 10).any()


def test_autocast_changes_nothing() -> None:
    boxes, classes, scores, logits = random_detections(40, 60, 80)
    arguments = (torch.zeros(60, 80, dtype=torch.int64), boxes, classes, scores, logits)
    expected = fuse_panoptic(*arguments, num_stuff=STUFF, score_thresh=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = fuse_panoptic(*arguments, num_stuff=STUFF, score_thresh=0.1)
    assert torch.equal(expected[0], found[0]) and expected[1] == found[1]


def test_many_classes_and_other_label_types() -> None:
    """Labels beyond a byte take another way; bytes are as good as 64 bits."""
    sem_seg = torch.arange(400).view(20, 20)
    panoptic_seg, info = fuse(sem_seg, [[0, 0, 2, 2]], [0.9], num_stuff=300)
    assert [s["category_id"] for s in info[1:]] == [i for i in range(300) if i not in (0, 1, 20, 21)]
    assert (panoptic_seg.view(-1)[300:] == 0).all()
    for dtype in (torch.uint8, torch.int32):
        small = stuff_map().to(dtype)
        expected, infos = fuse(stuff_map(), [[2, 3, 6, 5]], [0.75])
        found, same = fuse(small, [[2, 3, 6, 5]], [0.75])
        assert torch.equal(expected, found) and infos == same


def plain_fusion(
    sem_seg: Tensor,
    boxes: Tensor,
    classes: Tensor,
    scores: Tensor,
    logits: Tensor,
    thresholds: tuple[float, float, int],
) -> tuple[Tensor, list[tuple[bool, int]]]:
    """The definition with full-size masks: (isthing, category) of each segment."""
    score_thresh, overlap_thresh, stuff_area_thresh = thresholds
    result, segments = torch.zeros_like(sem_seg), []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        mask = pasted_probabilities(logits[i].sigmoid(), boxes[i], *sem_seg.shape) > 0.5
        free = mask & (result == 0)
        if scores[i] > score_thresh and free.any() and (mask & ~free).sum() / mask.sum() <= overlap_thresh:
            segments.append((True, classes[i].item()))
            result[free] = len(segments)
    for label in range(STUFF):
        free = (result == 0) & (sem_seg == label)
        if free.sum() >= max(stuff_area_thresh, 1):
            segments.append((False, label))
            result[free] = len(segments)
    return result, segments


@pytest.mark.parametrize("thresholds", [(0.5, 0.5, 100), (0.1, 0.2, 500), (0.0, 0.8, 0), (0.3, 0.0, 50)], ids=str)
@pytest.mark.parametrize("count", [3, 40, 200])
def test_against_the_definition(count: int, thresholds: tuple[float, float, int]) -> None:
    sem_seg = torch.randint(0, STUFF + 3, (6, 8)).repeat_interleave(10, 0).repeat_interleave(10, 1)
    boxes, classes, scores, logits = random_detections(count, 60, 80)
    panoptic_seg, info = fuse_panoptic(
        sem_seg,
        boxes,
        classes,
        scores,
        logits,
        num_stuff=STUFF,
        score_thresh=thresholds[0],
        overlap_thresh=thresholds[1],
        stuff_area_thresh=thresholds[2],
    )
    check_consistent(panoptic_seg, info)
    expected, segments = plain_fusion(sem_seg, boxes, classes, scores, logits, thresholds)
    assert [(s["isthing"], s["category_id"]) for s in info] == segments
    assert (panoptic_seg != expected).sum() <= 2  # pixels at one half but for rounding
    assert all(s["score"] == scores[s["instance_id"]].item() for s in info if s["isthing"])


def test_resize_counts_again_and_drops_what_vanished() -> None:
    panoptic_seg = torch.tensor([[1, 1, 2, 3], [1, 1, 3, 3], [0, 4, 4, 4], [0, 4, 4, 4]], dtype=torch.int32)
    info = [
        {"id": 1, "isthing": True, "category_id": 0, "area": 4, "score": 0.9, "instance_id": 7},
        {"id": 2, "isthing": True, "category_id": 1, "area": 1, "score": 0.8, "instance_id": 3},
        {"id": 3, "isthing": False, "category_id": 0, "area": 3},
        {"id": 4, "isthing": False, "category_id": 2, "area": 6},
    ]
    kept = [dict(s) for s in info]
    # Centres of the new pixels lie in rows and columns 1 and 3.
    resized, new = resize_panoptic(panoptic_seg, info, 2, 2)
    assert resized.tolist() == [[1, 2], [3, 3]] and resized.dtype == torch.int32
    assert new == [kept[0] | {"area": 1}, kept[2] | {"id": 2, "area": 1}, kept[3] | {"id": 3, "area": 2}]
    check_consistent(resized, new)
    assert info == kept

    resized, new = resize_panoptic(panoptic_seg, info, 8, 12)
    assert torch.equal(resized, panoptic_seg.repeat_interleave(2, 0).repeat_interleave(3, 1))
    assert [s["area"] for s in new] == [24, 6, 18, 36]
    check_consistent(resized, new)

    same, same_info = resize_panoptic(panoptic_seg, info, 4, 4)
    assert torch.equal(same, panoptic_seg) and same_info == kept


@pytest.mark.parametrize("size", [(5, 7), (13, 3), (1, 1), (29, 41)], ids=str)
def test_resize_takes_the_nearest_pixel(size: tuple[int, int]) -> None:
    panoptic_seg = torch.arange(1, 78, dtype=torch.int32).view(7, 11)
    info = [{"id": i, "isthing": False, "category_id": i, "area": 1} for i in range(1, 78)]
    resized, new = resize_panoptic(panoptic_seg, info, *size)
    expected = F.interpolate(panoptic_seg[None, None].double(), size=size, mode="nearest-exact")[0, 0]
    category = torch.tensor([0] + [s["category_id"] for s in new])
    assert torch.equal(category[resized.long()], expected.long())
    check_consistent(resized, new)
