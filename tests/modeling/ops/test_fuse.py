"""The fast forms of the fusion against the plain rule: thousands of random scenes, and the original program's cases."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from seamless_d2.modeling.fusion import fuse_tensors
from seamless_d2.modeling.ops.fuse_blocks import claim_in_blocks
from seamless_d2.modeling.ops.fuse_cpu import fuse_on_cpu
from seamless_d2.modeling.ops.fuse_gpu import fuse_on_gpu

from ...helpers.devices import DEVICES
from ...helpers.reference import fusion_case, load_infos, load_numbers, xyxy

FORMS = [fuse_on_cpu, fuse_on_gpu, partial(fuse_tensors, claim=claim_in_blocks)]


def check_equal(*arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    expected = fuse_tensors(*arguments)
    for fuse in FORMS:
        found = fuse(*arguments)
        for plain, fast in zip(expected, found, strict=True):
            assert plain.dtype == fast.dtype and torch.equal(plain, fast)
    return expected


def random_scene(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, int, float, int]:
    """A small crowded scene; boxes leave the image, lie outside, or have no area; hidden shares meet the threshold."""

    def draw(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, size or (1,), generator=generator)

    height, width, count = int(draw(1, 40)), int(draw(1, 50)), int(draw(0, 12))
    num_stuff = int(draw(0, 5))
    rows, columns = -(-height // 4), -(-width // 4)
    labels = draw(0, num_stuff + 3, rows, columns).repeat_interleave(4, 0).repeat_interleave(4, 1)[:height, :width]
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([width + 10, height + 10]) - 5
    sides = torch.rand(count, 2, generator=generator) ** 2 * torch.tensor([width, height])
    if draw(0, 2):  # whole pixels and full masks: shares such as 1/2 are met exactly
        corners, sides = corners.round(), sides.round()
    boxes = torch.cat([corners, corners + sides], dim=1)
    logits = torch.randn(count, 28, 28, generator=generator) * 4 + 2
    masks = torch.where(draw(0, 2, count)[:, None, None] == 1, torch.ones(()), logits.sigmoid())
    overlap = (0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0)[int(draw(0, 6))]
    return labels.contiguous(), boxes, masks, num_stuff, overlap, int(draw(0, 60))


@pytest.mark.slow
def test_thousands_of_random_scenes() -> None:
    generator = torch.Generator().manual_seed(7)
    kept = dropped = stuff = 0
    for _ in range(1500):
        panoptic_seg, things, stuff_areas = check_equal(*random_scene(generator))
        assert panoptic_seg.dtype == torch.int32
        kept, dropped = kept + int((things > 0).sum()), dropped + int((things == 0).sum())
        stuff += int((stuff_areas > 0).sum())
    assert min(kept, dropped, stuff) > 1000


@pytest.mark.parametrize("info", load_infos("fusion_cases"), ids=lambda info: str(info["case"]))
def test_cases_of_the_original(info: dict) -> None:
    case, _, _ = fusion_case(info, load_numbers("fusion_cases"))
    score_thresh, overlap_thresh, stuff_area_thresh = info["thresholds"]
    boxes, masks = torch.zeros(0, 4), torch.zeros(0, 28, 28)
    if "bbx_pred" in case:
        scores = torch.from_numpy(case["obj_pred"])
        order = torch.argsort(scores, descending=True, stable=True)
        order = order[scores[order] > score_thresh]
        boxes, masks = (
            xyxy(case["bbx_pred"])[order].float(),
            torch.from_numpy(case["msk_pred"])[order].float().sigmoid(),
        )
    sem_seg = torch.from_numpy(case["sem_pred"]).long()
    check_equal(sem_seg, boxes, masks, info["num_stuff"], overlap_thresh, stuff_area_thresh)


@pytest.mark.parametrize("num_stuff", [255, 256, 300])
def test_more_classes_than_a_byte_holds(num_stuff: int) -> None:
    sem_seg = torch.arange(400).view(20, 20)
    _, things, stuff = check_equal(sem_seg, torch.tensor([[0.0, 0, 2, 2]]), torch.ones(1, 28, 28), num_stuff, 0.5, 1)
    assert things.tolist() == [4] and int((stuff > 0).sum()) == num_stuff - 4


def test_an_empty_map() -> None:
    check_equal(torch.zeros(0, 5, dtype=torch.int64), torch.zeros(0, 4), torch.zeros(0, 28, 28), 3, 0.5, 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fuse", FORMS[1:])
def test_devices_agree(device: str, fuse: Callable) -> None:
    generator = torch.Generator().manual_seed(8)
    for _ in range(50):
        sem_seg, boxes, masks, *rest = random_scene(generator)
        expected = fuse_on_cpu(sem_seg, boxes, masks, *rest)
        moved = (sem_seg.to(device), boxes.to(device), masks.to(device), *rest)
        found = fuse(*moved)
        # A GPU may round a product otherwise: single pixels at the very threshold may differ.
        assert (found[0].cpu() != expected[0]).sum() <= (0 if device == "cpu" else 2)
