"""The box loss of cut objects, against brute force over their possible boxes."""

import itertools

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import smooth_l1_loss
from torch import Tensor

from seamless_d2.modeling.ops.crop_aware_box_loss import crop_aware_box_loss

RPN = {"weights": (1.0, 1.0, 1.0, 1.0), "beta": 1 / 9}
BOX_HEAD = {"weights": (10.0, 10.0, 5.0, 5.0), "beta": 1.0}
ODD = {"weights": (1.0, 3.0, 2.0, 0.5), "beta": 4.0}


def random_case(count: int, seed: int, spread: float = 0.8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rand = torch.rand(4, count, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([100 * rand[0], 100 * rand[0] + 4 + 60 * rand[1]], dim=1)
    move = 30 * (rand[2] - 0.5)
    gt = torch.cat([100 * rand[0] + move, 100 * rand[0] + move + 4 + 60 * rand[3]], dim=1)
    deltas = torch.randn(count, 4, generator=generator, dtype=torch.float64) * spread
    return deltas, boxes, gt


def ordinary(deltas: Tensor, boxes: Tensor, gt: Tensor, weights: tuple, beta: float) -> Tensor:
    target = Box2BoxTransform(weights).get_deltas(boxes, gt)
    return smooth_l1_loss(deltas, target, beta, reduction="none").sum(dim=1)


def brute_force(deltas: Tensor, box: Tensor, gt: Tensor, is_open: Tensor, weights: tuple, beta: float) -> float:
    """The least loss of one row: each axis on a dense grid, which is refined around the best place."""
    total = 0.0
    for axis in (0, 1):
        low, high = gt[axis], gt[axis + 2]
        ranges = [[0.0, 3000.0] if is_open[side] else [0.0, 0.0] for side in (axis, axis + 2)]
        least = torch.inf
        for _ in range(10):
            steps = [torch.linspace(a, b, 151 if b > a else 1, dtype=torch.float64) for a, b in ranges]
            before, after = torch.meshgrid(*steps, indexing="ij")
            count = before.numel()
            g = torch.zeros(count, 4, dtype=torch.float64)
            g[:, 2:] = 1.0
            g[:, axis], g[:, axis + 2] = low - before.flatten(), high + after.flatten()
            b = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
            b[:, axis], b[:, axis + 2] = box[axis], box[axis + 2]
            d = torch.zeros(1, 4, dtype=torch.float64)
            d[0, axis], d[0, axis + 2] = deltas[axis], deltas[axis + 2]
            losses = ordinary(d.expand(count, 4), b.expand(count, 4), g, weights, beta)
            least = min(least, losses.min().item())
            best = [x.flatten()[losses.argmin()].item() for x in (before, after)]
            ranges = [
                [max(at - (b - a) / 15, 0.0), at + (b - a) / 15] if b > a else [a, b]
                for at, (a, b) in zip(best, ranges, strict=True)
            ]
        total += least
    return total


@pytest.mark.parametrize("settings", [RPN, BOX_HEAD, ODD], ids=["rpn", "box head", "odd"])
@pytest.mark.parametrize("open_sides", list(itertools.product([False, True], repeat=4)))
def test_equals_brute_force(settings: dict, open_sides: tuple) -> None:
    deltas, boxes, gt = random_case(3, seed=sum(2**k * side for k, side in enumerate(open_sides)))
    deltas = deltas * torch.tensor(settings["weights"], dtype=torch.float64)
    is_open = torch.tensor(open_sides).expand(3, 4)
    losses = crop_aware_box_loss(deltas, boxes, gt, is_open, **settings)
    for row in range(3):
        expected = brute_force(deltas[row], boxes[row], gt[row], is_open[row], **settings)
        assert losses[row].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_open_is_the_ordinary_loss(dtype: torch.dtype) -> None:
    deltas, boxes, gt = (x.to(dtype) for x in random_case(50, seed=1))
    closed = torch.zeros(50, 4, dtype=torch.bool)
    assert torch.equal(crop_aware_box_loss(deltas, boxes, gt, closed, **RPN), ordinary(deltas, boxes, gt, **RPN))
    mixed = closed.clone()
    mixed[::2, 1] = True
    losses = crop_aware_box_loss(deltas, boxes, gt, mixed, **RPN)
    assert torch.equal(losses[1::2], ordinary(deltas, boxes, gt, **RPN)[1::2])


def test_never_above_the_ordinary_loss_and_less_with_more_open() -> None:
    deltas, boxes, gt = random_case(400, seed=2, spread=2.0)
    before = ordinary(deltas, boxes, gt, **RPN)
    is_open = torch.zeros(400, 4, dtype=torch.bool)
    for side in (0, 3, 2, 1):
        is_open[:, side] = True
        losses = crop_aware_box_loss(deltas, boxes, gt, is_open, **RPN)
        assert (losses <= before + 1e-12).all()
        before = losses


def test_zero_where_the_prediction_covers_the_crop() -> None:
    _, boxes, gt = random_case(200, seed=3)
    all_open = torch.ones(200, 4, dtype=torch.bool)
    larger = torch.cat([gt[:, :2] - 3, gt[:, 2:] + 50], dim=1)
    deltas = Box2BoxTransform(BOX_HEAD["weights"]).get_deltas(boxes, larger)
    assert crop_aware_box_loss(deltas, boxes, gt, all_open, **BOX_HEAD).max() < 1e-20
    only_right = torch.tensor([False, False, True, True]).expand(200, 4)
    assert crop_aware_box_loss(deltas, boxes, gt, only_right, **BOX_HEAD).min() > 1e-4


@pytest.mark.parametrize("settings", [RPN, BOX_HEAD, ODD], ids=["rpn", "box head", "odd"])
def test_gradient(settings: dict) -> None:
    deltas, boxes, gt = random_case(16, seed=4)
    is_open = torch.tensor(list(itertools.product([False, True], repeat=4)))
    deltas = (deltas * torch.tensor(settings["weights"], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: crop_aware_box_loss(d, boxes, gt, is_open, **settings), deltas)


def test_extreme_predictions() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).expand(4, 4)
    deltas = torch.tensor([[0.0, 0.0, 300.0, -300.0], [1e6, -1e6, 0.0, 0.0], [0.0] * 4, [torch.nan] * 4])
    for is_open in (torch.ones(4, 4, dtype=torch.bool), torch.tensor([[True, False, False, True]]).expand(4, 4)):
        losses = crop_aware_box_loss(deltas, boxes, boxes, is_open, **RPN)
        assert torch.isfinite(losses[:3]).all() and losses[3].isnan()
        assert losses[2] == 0


def test_no_rows() -> None:
    empty = torch.zeros(0, 4, requires_grad=True)
    losses = crop_aware_box_loss(empty, empty, empty, torch.zeros(0, 4, dtype=torch.bool), **RPN)
    assert losses.shape == (0,) and losses.requires_grad
