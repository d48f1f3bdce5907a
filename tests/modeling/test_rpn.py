"""Labels of anchors, losses and selection of proposals on a handful of boxes."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor

from seamless_d2.errors import UserError
from seamless_d2.modeling.rpn import SeamlessRPN
from seamless_d2.structures.segment_masks import SegmentMasks

STRIDES = {f"p{i}": 2**i for i in range(2, 7)}


def make_rpn(cfg: CfgNode) -> SeamlessRPN:
    return build_proposal_generator(cfg, {k: ShapeSpec(channels=16, stride=s) for k, s in STRIDES.items()})


@pytest.fixture
def rpn(toy_cfg: CfgNode) -> SeamlessRPN:
    return make_rpn(toy_cfg)


def make_targets(
    boxes: list[list[float]], size: tuple[int, int] = (40, 60), crowd: tuple[int, int, int, int] | None = None
) -> Instances:
    """Instances that fill their boxes; ``crowd`` is a region x0, y0, x1, y1."""
    segment_map = torch.full(size, 100, dtype=torch.int32)
    if crowd:
        segment_map[crowd[1] : crowd[3], crowd[0] : crowd[2]] = 99
    for i, (x0, y0, x1, y1) in enumerate(boxes, 1):
        segment_map[int(y0) : int(y1), int(x0) : int(x1)] = i
    targets = Instances(size)
    targets.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4).float())
    targets.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    crowd_ids = torch.tensor([99] if crowd else [], dtype=torch.int32)
    targets.gt_masks = SegmentMasks(segment_map, torch.arange(1, len(boxes) + 1, dtype=torch.int32), crowd_ids)
    return targets


def labels_of(rpn: SeamlessRPN, anchors: list[list[float]], targets: Instances) -> tuple[list[int], Tensor]:
    label, matched = rpn._label_anchors(Boxes(torch.tensor(anchors).float()), targets)
    return label.tolist(), torch.cat([targets.gt_boxes.tensor, torch.zeros(1, 4)])[matched]


def test_labels_by_overlap(rpn: SeamlessRPN) -> None:
    targets = make_targets([[10, 10, 20, 20]])
    anchors = [[10, 10, 20, 20], [10, 10, 20, 17], [10, 10, 20, 16.9], [10, 10, 20, 13], [10, 10, 20, 12.9]]
    label, matched = labels_of(rpn, anchors, targets)
    assert label == [1, 1, -1, -1, 0]  # IoU 1, 0.7, 0.69, 0.3, 0.29
    assert matched[:2].tolist() == [[10, 10, 20, 20]] * 2


def test_anchors_must_lie_inside_the_image(rpn: SeamlessRPN) -> None:
    targets = make_targets([[0, 0, 20, 20], [40, 20, 60, 40]])
    anchors = [[0, 0, 20, 20], [-0.1, 0, 20, 20], [0, -0.1, 20, 20], [40, 20, 60, 40], [40, 20, 60.1, 40]]
    anchors += [[40, 20, 60, 40.1]]
    assert labels_of(rpn, anchors, targets)[0] == [1, -1, -1, 1, -1, -1]


def test_a_box_gets_its_best_anchor_alone(rpn: SeamlessRPN) -> None:
    """No anchor reaches 0.7: the best becomes positive, even one below 0.3; one of equal overlap does not follow."""
    targets = make_targets([[10, 10, 30, 20], [40, 10, 50, 20]])
    anchors = [[10, 10, 22, 20], [18, 10, 30, 20], [40, 10, 42, 20], [40, 10, 41, 20], [0, 30, 5, 35]]
    label, matched = labels_of(rpn, anchors, targets)
    assert label == [1, -1, 1, 0, 0]
    assert matched[[0, 2]].tolist() == targets.gt_boxes.tensor.tolist()


def test_best_anchor_belongs_to_the_box_that_has_no_other(rpn: SeamlessRPN) -> None:
    """The anchor overlaps box 0 more, which has a better one; it is the best of box 1."""
    targets = make_targets([[10, 10, 20, 20], [16, 10, 26, 20]])
    anchors = [[10, 10, 20, 20], [12, 10, 22, 20]]
    iou = pairwise_iou(targets.gt_boxes, Boxes(torch.tensor(anchors).float()))
    assert iou[0, 1] > iou[1, 1] > iou[1, 0]
    label, matched = labels_of(rpn, anchors, targets)
    assert label == [1, 1]
    assert matched.tolist() == targets.gt_boxes.tensor.tolist()


def test_a_box_that_no_anchor_touches_gets_none(rpn: SeamlessRPN) -> None:
    assert labels_of(rpn, [[0, 0, 5, 5], [30, 30, 40, 40]], make_targets([[10, 10, 20, 20]]))[0] == [0, 0]


def test_anchors_in_crowd_regions_are_ignored(rpn: SeamlessRPN) -> None:
    targets = make_targets([[0, 0, 10, 10]], crowd=(20, 0, 40, 20))
    anchors = [[0, 0, 10, 10], [20, 0, 40, 20], [33, 0, 43, 10], [34, 0, 44, 10], [50, 20, 60, 30]]
    assert labels_of(rpn, anchors, targets)[0] == [1, -1, -1, 0, 0]  # shares 0, 1, 0.7, 0.6, 0
    # Also with crowd alone, and an instance inside of it.
    assert labels_of(rpn, anchors, make_targets([], crowd=(20, 0, 40, 20)))[0] == [0, -1, -1, 0, 0]
    targets = make_targets([[25, 5, 35, 15]], crowd=(20, 0, 40, 20))
    assert labels_of(rpn, [[25, 5, 35, 15]], targets)[0] == [1]


def test_image_without_instances_is_background(rpn: SeamlessRPN) -> None:
    label, matched = labels_of(rpn, [[0, 0, 10, 10], [-5, 0, 10, 10]], make_targets([]))
    assert label == [0, -1] and matched.shape == (2, 4)


def test_nothing_valid(rpn: SeamlessRPN) -> None:
    assert labels_of(rpn, [[-5, 0, 10, 10]], make_targets([[0, 0, 10, 10]]))[0] == [-1]


def test_sampling(rpn: SeamlessRPN) -> None:
    rpn.batch_size_per_image, rpn.positive_fraction = 10, 0.3
    targets = make_targets([[10, 10, 20, 20]])
    near = torch.tensor([[10.0, 10, 20, 20]]).repeat(8, 1)
    far = torch.tensor([[40.0, 20, 50, 30]]).repeat(30, 1)
    outside = torch.tensor([[-4.0, 0, 8, 8]]).repeat(5, 1)
    anchors = [Boxes(near), Boxes(torch.cat([far, outside]))]
    labels, matched = rpn.label_and_sample_anchors(anchors, [targets, make_targets([])])
    assert [[(label == v).sum().item() for v in (-1, 0, 1)] for label in labels] == [[33, 7, 3], [33, 10, 0]]
    assert matched[0][labels[0] == 1].tolist() == [[10, 10, 20, 20]] * 3
    assert (labels[0][:8] == 1).sum() == 3 and not (labels[1][-5:] == 0).any()


def make_losses(rpn: SeamlessRPN, labels: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Losses of random predictions, with logits, deltas and the true boxes."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 5, 25, 15], [20, 10, 40, 40], [1, 1, 5, 5]])
    logits = torch.randn(2, 4, requires_grad=True)
    deltas = torch.randn(2, 4, 4, requires_grad=True)
    gt_boxes = anchors + torch.rand(2, 4, 4) * 4
    levels = [Boxes(anchors[:3]), Boxes(anchors[3:])]
    with EventStorage():
        losses = rpn.losses(
            levels, [logits[:, :3], logits[:, 3:]], list(labels), [deltas[:, :3], deltas[:, 3:]], list(gt_boxes)
        )
    return losses, logits, deltas, rpn.box2box_transform.get_deltas(anchors.repeat(2, 1), gt_boxes.flatten(0, 1))


def test_losses_are_means_over_the_sampled_anchors(rpn: SeamlessRPN) -> None:
    labels = torch.tensor([[1, 0, -1, 0], [-1, 1, 0, -1]], dtype=torch.int8)
    rpn.loss_weight = {"loss_rpn_cls": 1.0, "loss_rpn_loc": 2.0}
    losses, logits, deltas, targets = make_losses(rpn, labels)
    positive, valid = labels == 1, labels >= 0
    x, y = logits[valid], labels[valid].float()
    probability = x.sigmoid()
    objectness = -(y * probability.log() + (1 - y) * (1 - probability).log()).sum() / 5
    error = (deltas.flatten(0, 1) - targets)[positive.flatten()].abs()
    beta = 1 / 9
    smooth = torch.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta).sum() / 5
    assert torch.allclose(losses["loss_rpn_cls"], objectness, rtol=1e-5)
    assert torch.allclose(losses["loss_rpn_loc"], 2 * smooth, rtol=1e-5)
    sum(losses.values()).backward()
    assert torch.equal(logits.grad != 0, valid)
    assert torch.equal((deltas.grad != 0).any(dim=2), positive)


def test_losses_without_a_sample(rpn: SeamlessRPN) -> None:
    losses, logits, deltas, _ = make_losses(rpn, torch.full((2, 4), -1, dtype=torch.int8))
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    assert not logits.grad.any() and not deltas.grad.any()


def propose(rpn: SeamlessRPN, boxes: list[Tensor], logits: list[Tensor], size: tuple[int, int] = (40, 60)) -> Instances:
    """Proposals of one image, of anchors that are the boxes already."""
    deltas = [torch.zeros(1, len(b), 4) for b in boxes]
    return rpn.eval().predict_proposals([Boxes(b) for b in boxes], [x[None] for x in logits], deltas, [size])[0]


def test_levels_are_selected_and_suppressed_together(rpn: SeamlessRPN) -> None:
    fine = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 0, 50, 10]])
    coarse = torch.tensor([[0.0, 0, 10, 9], [20, 20, 30, 32], [0, 30, 9, 39]])
    result = propose(rpn, [fine, coarse], [torch.tensor([3.0, 1, 0]), torch.tensor([2.0, 5, -1])])
    # The better of two that overlap stays, whichever its level.
    assert result.objectness_logits.tolist() == [5, 3, 0, -1]
    assert torch.equal(result.proposal_boxes.tensor, torch.stack([coarse[1], fine[0], fine[2], coarse[2]]))
    rpn.post_nms_topk[False] = 3
    assert len(propose(rpn, [fine, coarse], [torch.tensor([3.0, 1, 0]), torch.tensor([2.0, 5, -1])])) == 3
    # The best two of all levels, not of each.
    rpn.pre_nms_topk[False] = 2
    result = propose(rpn, [fine, coarse], [torch.tensor([3.0, 1, 0]), torch.tensor([-2.0, -5, -1])])
    assert torch.equal(result.proposal_boxes.tensor, fine[:2])


def test_deltas_are_decoded_and_clipped(rpn: SeamlessRPN) -> None:
    anchors = torch.tensor([[10.0, 10, 20, 30], [50, 30, 60, 40]])
    deltas = torch.tensor([[[0.5, -0.25, 0.6931472, 0.0], [1.0, 1.0, 0.0, 0.0]]])
    result = rpn.eval().predict_proposals([Boxes(anchors)], [torch.tensor([[2.0, 1.0]])], [deltas], [(35, 58)])[0]
    # Centre + delta * size, size * exp(delta).
    assert result.proposal_boxes.tensor[0].tolist() == pytest.approx([10, 5, 30, 25])
    assert result.image_size == (35, 58) and len(result) == 1  # the other one has no area left


def test_boxes_without_area(rpn: SeamlessRPN, toy_cfg: CfgNode) -> None:
    boxes = torch.tensor([[5.0, 5, 15, 15], [60, 0, 80, 20], [0, 40, 20, 60], [20, 10, 35, 20]])
    logits = torch.tensor([1.0, 4, 3, 2])
    assert propose(rpn, [boxes], [logits]).objectness_logits.tolist() == [2, 1]
    toy_cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS = True
    original = make_rpn(toy_cfg)
    assert propose(original, [boxes], [logits]).objectness_logits.tolist() == [4, 3, 2, 1]
    for model in (rpn, original):
        model.min_box_size = 10
        assert propose(model, [boxes], [logits]).objectness_logits.tolist() == [2, 1]
        # The size is asked for before the best are chosen, so that small boxes do not use up the places.
        model.pre_nms_topk[False] = 1
        assert propose(model, [boxes], [logits]).objectness_logits.tolist() == [2]
        model.min_box_size = 10.5
        assert propose(model, [boxes], [logits]).objectness_logits.tolist() == []


def test_overlap_at_the_threshold(rpn: SeamlessRPN, toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.RPN.NMS_THRESH = rpn.nms_thresh = 0.5
    toy_cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS = True
    boxes, logits = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]]), torch.tensor([1.0, 2.0])
    assert propose(rpn, [boxes], [logits]).objectness_logits.tolist() == [2, 1]
    assert propose(make_rpn(toy_cfg), [boxes], [logits]).objectness_logits.tolist() == [2]


def test_undefined_predictions(rpn: SeamlessRPN) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    logits = torch.tensor([float("inf"), 1.0])
    assert propose(rpn, [boxes], [logits]).objectness_logits.tolist() == [1]
    # In training the losses tell, also where the anchor is not in the sample.
    rpn.train()
    (kept,) = rpn.predict_proposals([Boxes(boxes)], [logits[None]], [torch.zeros(1, 2, 4)], [(40, 60)])
    assert kept.objectness_logits.tolist() == [1]
    labels, targets = [torch.tensor([-1, 0])], [torch.zeros(2, 4)]
    with EventStorage():
        losses = rpn.losses([Boxes(boxes)], [logits[None]], labels, [torch.zeros(1, 2, 4)], targets)
        assert losses["loss_rpn_cls"].isnan() and losses["loss_rpn_loc"].isfinite()
        deltas = torch.tensor([[[0.0, 0, float("nan"), 0], [0, 0, 0, 0]]])
        losses = rpn.losses([Boxes(boxes)], [torch.ones(1, 2)], labels, [deltas], targets)
        assert losses["loss_rpn_cls"].isfinite() and losses["loss_rpn_loc"].isnan()


def test_head_is_shared_and_has_norm_and_activation(rpn: SeamlessRPN) -> None:
    head = rpn.rpn_head
    assert head.conv.bias is None and head.objectness_logits.bias is not None and head.anchor_deltas.bias is not None
    x = [torch.randn(2, 16, 5, 7), torch.randn(2, 16, 3, 4)]
    logits, deltas = head(x)
    for features, objectness, delta in zip(x, logits, deltas, strict=True):
        hidden = F.conv2d(features, head.conv.weight, padding=1)
        hidden = F.leaky_relu(F.group_norm(hidden, 4, head.conv.norm.weight, head.conv.norm.bias), 0.01)
        assert torch.allclose(objectness, head.objectness_logits(hidden), atol=1e-6)
        assert torch.allclose(delta, head.anchor_deltas(hidden), atol=1e-6)
        assert objectness.shape[1] == 3 and delta.shape[1] == 12


def test_user_error(toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.RPN.CONV_DIMS = [16, 16]
    with pytest.raises(UserError, match="must name one convolution"):
        make_rpn(toy_cfg)


def test_anchors_have_the_originals_places(rpn: SeamlessRPN) -> None:
    """Centres at half a stride, side lengths by ratio = height / width, ratios in the order of the config."""
    anchors = rpn.anchor_generator([torch.zeros(1, 16, 2, 3) for _ in STRIDES])
    assert [len(a) for a in anchors] == [18] * 5
    for stride, size, level in zip(STRIDES.values(), (12, 24, 48, 96, 192), anchors, strict=True):
        for i, (row, column, ratio) in enumerate(
            (r, c, q) for r in range(2) for c in range(3) for q in (0.5, 1.0, 2.0)
        ):
            height, width = size * ratio**0.5, size / ratio**0.5
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            assert level.tensor[i].tolist() == pytest.approx(expected, abs=1e-4)


def test_training_and_inference(rpn: SeamlessRPN) -> None:
    images = ImageList.from_tensors([torch.zeros(3, 40, 60), torch.zeros(3, 37, 50)])
    features = {k: torch.randn(2, 16, -(-40 // s), -(-60 // s)) for k, s in STRIDES.items()}
    targets = [make_targets([[10, 10, 20, 20]]), make_targets([], (37, 50))]
    with EventStorage():
        proposals, losses = rpn.train()(images, features, targets)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"} and all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in rpn.parameters())
    proposals, losses = rpn.eval()(images, features)
    assert losses == {} and [p.image_size for p in proposals] == [(40, 60), (37, 50)]
    for result in proposals:
        height, width = result.image_size
        boxes = result.proposal_boxes.tensor
        assert 0 < len(boxes) <= 50 and not boxes.requires_grad
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height, width, height])).all()
        assert torch.equal(result.objectness_logits, result.objectness_logits.sort(descending=True).values)


def test_crop_aware_loss(toy_cfg: CfgNode) -> None:
    """The open sides of the matched boxes reach the loss; with none open it is the ordinary one."""
    anchors = [Boxes(torch.tensor([[10.0, 10, 20, 20], [30, 8, 46, 24], [0, 30, 5, 35]]))]
    logits, deltas = [torch.randn(1, 3)], [0.3 * torch.randn(1, 3, 4)]
    targets = make_targets([[11, 10, 21, 20], [30, 10, 45, 24]])

    def box_loss(kind: str, open_sides: list[list[int]] | None) -> float:
        toy_cfg.MODEL.RPN.BBOX_REG_LOSS_TYPE = kind
        rpn = make_rpn(toy_cfg).train()
        if open_sides is not None:
            targets.gt_open_sides = torch.tensor(open_sides).bool()
        with EventStorage():
            labels, *matched = rpn.label_and_sample_anchors(anchors, [targets], [0])
            return rpn.losses(anchors, logits, labels, deltas, *matched)["loss_rpn_loc"].item()

    ordinary = box_loss("smooth_l1", None)
    with pytest.raises(UserError, match="needs gt_open_sides"):
        box_loss("crop_aware_smooth_l1", None)
    assert box_loss("crop_aware_smooth_l1", [[0] * 4, [0] * 4]) == pytest.approx(ordinary, rel=1e-6)
    first, second = (box_loss("crop_aware_smooth_l1", rows) for rows in ([[1] * 4, [0] * 4], [[0] * 4, [1] * 4]))
    both = box_loss("crop_aware_smooth_l1", [[1] * 4, [1] * 4])
    assert both < min(first, second) and max(first, second) < ordinary
    assert ordinary - both == pytest.approx((ordinary - first) + (ordinary - second), rel=1e-4)
