"""The box regression loss for training on crops (Porzi, Rota Bulo, Kontschieder, CVPR 2021, section 3.1).

An object that the crop cuts has a box of which only a part is known: its target is the set of all boxes whose crop is
the visible one, and the loss is the least loss over that set.
"""

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Instances
from fvcore.nn import smooth_l1_loss
from torch import Tensor

from ...errors import UserError

#: The value of the BBOX_REG_LOSS_TYPE keys that chooses this loss.
CROP_AWARE = "crop_aware_smooth_l1"

# Predicted sides are taken to be at most e^50 times those of the box, so that they stay finite.
_MAX_LOG_SCALE = 50.0
# Cells per piece in which the minimum is first looked for, and halvings of the cell that has it.
_CELLS, _HALVINGS = 8, 40


def crop_aware_box_loss(
    pred_deltas: Tensor,
    boxes: Tensor,
    gt_boxes: Tensor,
    open_sides: Tensor,
    *,
    weights: tuple[float, float, float, float],
    beta: float,
) -> Tensor:
    """Return the smooth L1 loss of box deltas, minimised over the boxes that the crop leaves possible.

    It is the minimum of ``smooth_l1_loss(pred_deltas, Box2BoxTransform(weights).get_deltas(boxes, g), beta)``, summed
    over the four deltas, over all boxes g that equal ``gt_boxes`` on closed sides and reach at least as far outward on
    open ones. Rows without an open side have the ordinary loss, bit for bit. The gradient is that of the ordinary loss
    at the minimiser, which is the gradient of the minimum.

    Args:
        pred_deltas: (N, 4) float predicted deltas dx, dy, dw, dh.
        boxes: (N, 4) anchors or proposals x0, y0, x1, y1, with sides above 0.
        gt_boxes: (N, 4) visible parts of the ground-truth boxes.
        open_sides: (N, 4) bool: whether the crop may have cut the object on the side x0, y0, x1, y1.
        weights: The weights of the four deltas, as in ``Box2BoxTransform``.
        beta: The difference at which smooth L1 becomes linear.

    Returns:
        (N,) losses.
    """
    target = Box2BoxTransform(weights).get_deltas(boxes, gt_boxes)
    rows, axes = (open_sides[:, :2] | open_sides[:, 2:]).nonzero(as_tuple=True)
    if len(rows):
        weight = torch.tensor(weights, dtype=torch.float64, device=boxes.device)
        with torch.no_grad():
            shift, scale = _best_targets(
                torch.stack([pred_deltas[rows, axes + k].double() for k in (0, 2)], dim=1),
                torch.stack([boxes[rows, axes + k].double() for k in (0, 2)], dim=1),
                torch.stack([gt_boxes[rows, axes + k].double() for k in (0, 2)], dim=1),
                torch.stack([open_sides[rows, axes + k] for k in (0, 2)], dim=1),
                torch.stack([weight[axes], weight[axes + 2]], dim=1),
                beta,
            )
        target = target.index_put((rows, axes), shift.to(target.dtype))
        target = target.index_put((rows, axes + 2), scale.to(target.dtype))
    return smooth_l1_loss(pred_deltas, target, beta, reduction="none").sum(dim=1)


def open_sides_of(instances: Instances) -> Tensor:
    """Return the (N, 4) bool ``gt_open_sides`` of ground truth.

    Raises:
        UserError: The mapper has not recorded them.
    """
    if not instances.has("gt_open_sides"):
        raise UserError(
            f"BBOX_REG_LOSS_TYPE {CROP_AWARE} needs gt_open_sides in the ground truth, which SeamlessMapper records; "
            "use it, or another loss"
        )
    return instances.gt_open_sides


def _best_targets(
    pred: Tensor, box: Tensor, gt: Tensor, is_open: Tensor, weight: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Return the (M,) target deltas of center and side, along one axis, that have the least loss.

    Let the target be longer than the visible part by t >= 0. Its side differs from the predicted one by a factor, and
    its center is the possible one that is next to the predicted one; so the loss is a function of t alone:

        smooth_l1(k * gap(t)) + smooth_l1(weight * log((visible + t) / side)),   k = weight / (2 * side of the box),

    where gap(t) is |reach - t| with one open side, and max(reach - t, 0) with two, between which the target may move.
    Its minimum lies between t = reach, where the first term vanishes, and the predicted length, where the second does.

    Args:
        pred: (M, 2) predicted deltas of center and side.
        box: (M, 2) ends of the anchors or proposals.
        gt: (M, 2) ends of the visible parts.
        is_open: (M, 2) bool, which ends are open, at least one.
        weight: (M, 2) weights of both deltas.
        beta: See ``crop_aware_box_loss``.
    """
    side, visible = box[:, 1] - box[:, 0], gt[:, 1] - gt[:, 0]
    middle = gt.mean(dim=1)
    center = box.mean(dim=1) + pred[:, 0] / weight[:, 0] * side
    length = side * (pred[:, 1] / weight[:, 1]).clamp(max=_MAX_LOG_SCALE).exp()
    both = is_open.all(dim=1)
    outward = torch.where(is_open[:, 1], 1.0, -1.0)
    reach = 2 * torch.where(both, (center - middle).abs(), outward * (center - middle))
    # With two open sides, all that is longer than ``reach`` has no gap.
    reach = torch.where(both, torch.maximum(reach, length - visible), reach)
    extra = _minimize(reach, length, visible, weight[:, 0] / (2 * side), weight[:, 1], beta)
    free = torch.minimum(torch.maximum(center, middle - extra / 2), middle + extra / 2)
    best = torch.where(both, free, middle + outward * extra / 2)
    shift = weight[:, 0] * (best - box.mean(dim=1)) / side
    return shift, weight[:, 1] * ((visible + extra) / side).log()


def _minimize(reach: Tensor, length: Tensor, visible: Tensor, k: Tensor, weight: Tensor, beta: float) -> Tensor:
    """Return the (M,) t >= 0 with the least smooth_l1(k (reach - t)) + smooth_l1(weight log((visible + t) / length)).

    Where both terms are quadratic or linear can have a minimum each, so that each such piece is searched: first in
    equal cells, then by halving the best one by the sign of the derivative.
    """
    beta = max(beta, 1e-12)
    ends = torch.stack([reach, length - visible]).clamp(min=0)
    low, high = ends.amin(dim=0), ends.amax(dim=0)
    bends = [
        reach - beta / k,
        reach + beta / k,
        length * (-beta / weight).exp() - visible,
        length * (beta / weight).exp() - visible,
    ]
    bends = [torch.minimum(torch.maximum(t, low), high) for t in bends]
    bends = torch.stack([low, *bends, high], dim=1).sort(dim=1).values
    reach, length, visible, k, weight = (x[:, None] for x in (reach, length, visible, k, weight))

    def terms(t: Tensor) -> tuple[Tensor, Tensor]:
        return k * (t - reach), weight * ((visible + t) / length).log()

    def loss(t: Tensor) -> Tensor:
        gap, ratio = (x.abs() for x in terms(t))
        return sum(torch.where(x < beta, x * x / (2 * beta), x - beta / 2) for x in (gap, ratio))

    def slope(t: Tensor) -> Tensor:
        gap, ratio = ((x / beta).clamp(-1, 1) for x in terms(t))
        return gap * k + ratio * weight / (visible + t)

    cells = torch.linspace(0, 1, _CELLS + 1, dtype=reach.dtype, device=reach.device)
    grid = (bends[:, :-1, None] + (bends[:, 1:] - bends[:, :-1])[:, :, None] * cells).flatten(1)
    losses = loss(grid).unflatten(1, (-1, _CELLS + 1))
    best, grid = losses.argmin(dim=2, keepdim=True), grid.unflatten(1, (-1, _CELLS + 1))
    left = grid.gather(2, (best - 1).clamp(min=0))[:, :, 0]
    right = grid.gather(2, (best + 1).clamp(max=_CELLS))[:, :, 0]
    for _ in range(_HALVINGS):
        half = (left + right) / 2
        rising = slope(half) > 0
        left, right = torch.where(rising, left, half), torch.where(rising, half, right)
    found = torch.cat([(left + right) / 2, bends], dim=1)
    return found.gather(1, loss(found).argmin(dim=1, keepdim=True))[:, 0]
