"""Placement of ROIs, sampling, selection of detections and the mask loss."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from seamless_d2.errors import UserError
from seamless_d2.modeling.ops.crop_aware_box_loss import crop_aware_box_loss
from seamless_d2.modeling.roi_heads import SeamlessBoxPredictor, SeamlessMaskHead, SeamlessROIHeads, SeamlessROIPooler
from seamless_d2.structures.segment_masks import SegmentMasks

STRIDES = [4, 8, 16, 32]
THINGS = 3


def feature_maps(height: int, width: int, channels: int = 3, batch: int = 1) -> list[Tensor]:
    return [torch.randn(batch, channels, math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]


def original_level(box: np.ndarray) -> int:
    """Level of the original for a box y0, x0, y1, x1: 0 is the finest."""
    scale = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    return min(max(math.floor(2 + math.log2(scale / 224 + 1e-6)), 0), 3)


def original_rois(feature: np.ndarray, box: np.ndarray, size: int, padded: tuple[int, int]) -> np.ndarray:
    """The original's sampling: one bilinear value at the centre of each cell, the border repeated.

    Args:
        feature: (C, h, w).
        box: y0, x0, y1, x1 in pixels of the image.
        size: cells per side.
        padded: height and width of the image of which ``feature`` is the map.

    Returns:
        (C, size, size).
    """
    h, w = feature.shape[1:]
    index = []
    for low, high, cells, pixels in ((box[0], box[2], h, padded[0]), (box[1], box[3], w, padded[1])):
        low, high = ((p - 0.5) * cells / pixels + 0.5 for p in (low, high))
        centre = low + (np.arange(size) + 0.5) * (high - low) / size
        index.append((centre - 0.5).clip(0, cells - 1))
    (y, x), y0, x0 = index, np.floor(index[0]).astype(int), np.floor(index[1]).astype(int)
    y1, x1 = np.minimum(y0 + 1, h - 1), np.minimum(x0 + 1, w - 1)
    v, u = (y - y0)[:, None], (x - x0)[None, :]
    f = feature.astype(np.float64)
    top = f[:, y0][:, :, x0] * (1 - u) + f[:, y0][:, :, x1] * u
    bottom = f[:, y1][:, :, x0] * (1 - u) + f[:, y1][:, :, x1] * u
    return top * (1 - v) + bottom * v


def random_boxes(count: int, height: int, width: int) -> Tensor:
    """Boxes inside the image, of all levels, the whole image and thin ones among them."""
    corners = torch.rand(count, 2, 2) * torch.tensor([width, height])
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    return torch.cat([boxes, torch.tensor([[0.0, 0, width, height], [3, 3, 3.5, 60], [width - 1, 0, width, 2]])])


@pytest.mark.parametrize("size, sampling_ratio", [(14, 1), (7, 2)])
@pytest.mark.parametrize("padded", [(427, 640), (512, 544), (267, 401)], ids=str)
def test_pooler_follows_the_originals_rule(padded: tuple[int, int], size: int, sampling_ratio: int) -> None:
    features, boxes = feature_maps(*padded), random_boxes(40, *padded)
    pooler = SeamlessROIPooler(size, STRIDES, sampling_ratio)
    pooled = pooler(features, [Boxes(boxes)], padded)
    levels = set()
    for box, roi in zip(boxes[:, [1, 0, 3, 2]].double().numpy(), pooled.numpy(), strict=True):
        level = original_level(box)
        levels.add(level)
        expected = original_rois(features[level][0].numpy(), box, 14, padded)
        if size == 7:
            # The box head averages 2x2 cells.
            expected = expected.reshape(3, 7, 2, 7, 2).mean(axis=(2, 4))
        assert np.allclose(roi, expected, atol=2e-4)
    assert levels == ({0, 1, 2, 3} if max(padded) > 500 else {0, 1, 2})


def test_pooler_keeps_images_and_order_apart() -> None:
    padded = (64, 96)
    features, pooler = feature_maps(*padded, batch=2), SeamlessROIPooler(7, STRIDES, 2)
    boxes = [random_boxes(4, *padded), random_boxes(2, *padded)]
    both = pooler(features, [Boxes(b) for b in boxes], padded)
    alone = [pooler([f[i : i + 1] for f in features], [Boxes(boxes[i])], padded) for i in range(2)]
    assert torch.allclose(both, torch.cat(alone), atol=1e-6)
    # Without a size, images are multiples of the finest stride.
    assert torch.equal(pooler(features, [Boxes(b) for b in boxes]), both)


def test_pooler_without_boxes() -> None:
    features = [f.requires_grad_() for f in feature_maps(64, 96)]
    pooled = SeamlessROIPooler(7, STRIDES, 2)(features, [Boxes(torch.zeros(0, 4))], (64, 96))
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert all(f.grad is not None and not f.grad.any() for f in features)


def test_pooler_gradient() -> None:
    features = [f.double().requires_grad_() for f in feature_maps(40, 52, channels=1)]
    pooler = SeamlessROIPooler(3, STRIDES, 1)
    boxes = torch.tensor([[3.0, 4, 30, 37], [0, 0, 52, 40]], dtype=torch.float64)
    # All boxes are small: only the finest level is read.
    assert torch.autograd.gradcheck(lambda x: pooler([x, *features[1:]], [Boxes(boxes)], (40, 52)), features[0])


def make_heads(cfg: CfgNode) -> SeamlessROIHeads:
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = THINGS
    shapes = {f"p{i + 2}": ShapeSpec(channels=16, stride=s) for i, s in enumerate(STRIDES)}
    return build_roi_heads(cfg, shapes)


@pytest.fixture
def heads(toy_cfg: CfgNode) -> SeamlessROIHeads:
    return make_heads(toy_cfg)


def test_box_head_formula(heads: SeamlessROIHeads) -> None:
    head, x = heads.box_head, torch.randn(5, 16, 7, 7)
    hidden = x.flatten(1)
    for layer in (head.fc1, head.fc2):
        assert layer.bias is None
        hidden = F.group_norm(hidden @ layer.weight.T, 4, layer.norm.weight, layer.norm.bias)
        hidden = F.leaky_relu(hidden, 0.01)
    assert torch.allclose(head(x), hidden, atol=1e-6)
    assert head.output_shape.channels == 32


def test_mask_head_formula(heads: SeamlessROIHeads) -> None:
    head, x = heads.mask_head, torch.randn(4, 16, 14, 14)
    hidden = F.conv2d(x, head.convs.mask_fcn1.weight, padding=1)
    norm = head.convs.mask_fcn1.norm
    hidden = F.leaky_relu(F.group_norm(hidden, 4, norm.weight, norm.bias), 0.01)
    hidden = F.conv_transpose2d(hidden, head.deconv.weight, stride=2)
    hidden = F.leaky_relu(F.group_norm(hidden, 4, head.deconv_norm.weight, head.deconv_norm.bias), 0.01)
    expected = F.conv2d(hidden, head.predictor.weight, head.predictor.bias)
    assert torch.allclose(head.layers(x), expected, atol=1e-6)
    # At inference only the predicted class is computed.
    instances = [Instances((64, 96), pred_classes=c) for c in (torch.tensor([2, 0, 1]), torch.tensor([1]))]
    head.eval()(x, instances)
    logits = torch.stack([expected[i, c] for i, c in enumerate([2, 0, 1, 1])])
    assert torch.allclose(torch.cat([i.mask_logits for i in instances]), logits, atol=1e-6)
    assert torch.equal(instances[0].pred_masks, instances[0].mask_logits.sigmoid()[:, None])
    assert [len(i.pred_masks) for i in instances] == [3, 1]


def make_targets(
    boxes: list[list[float]], classes: list[int], crowd: tuple[int, int, int, int] | None = None
) -> Instances:
    """Instances that fill their boxes in a 64x96 image with a void left margin; ``crowd`` is x0, y0, x1, y1."""
    segment_map = torch.full((64, 96), 100, dtype=torch.int32)
    segment_map[:, :4] = 0
    if crowd:
        segment_map[crowd[1] : crowd[3], crowd[0] : crowd[2]] = 99
    for i, (x0, y0, x1, y1) in enumerate(boxes, 1):
        segment_map[int(y0) : int(y1), int(x0) : int(x1)] = i
    crowd_ids = torch.tensor([99] if crowd else [], dtype=torch.int32)
    return Instances(
        (64, 96),
        gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4).float()),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
        gt_masks=SegmentMasks(segment_map, torch.arange(1, len(boxes) + 1, dtype=torch.int32), crowd_ids),
    )


def make_proposals(boxes: list[list[float]]) -> Instances:
    tensor = torch.tensor(boxes).reshape(-1, 4).float()
    return Instances((64, 96), proposal_boxes=Boxes(tensor), objectness_logits=torch.zeros(len(tensor)))


def sample(heads: SeamlessROIHeads, boxes: list[list[float]], targets: Instances) -> Instances:
    with EventStorage():
        return heads.label_and_sample_proposals([make_proposals(boxes)], [targets])[0]


def rows(result: Instances) -> dict[tuple[float, ...], int]:
    """Box -> class of a sample."""
    return dict(zip(map(tuple, result.proposal_boxes.tensor.tolist()), result.gt_classes.tolist(), strict=True))


def test_proposals_are_labelled_by_overlap(heads: SeamlessROIHeads) -> None:
    targets = make_targets([[10, 10, 30, 30], [50, 10, 70, 50]], [2, 0])
    proposals = [[10, 10, 30, 20], [10, 10, 30, 19.5], [50, 10, 70, 45], [80, 50, 90, 60]]
    result = sample(heads, proposals, targets)
    labels = [rows(result)[tuple(map(float, box))] for box in proposals]
    assert labels == [2, THINGS, 0, THINGS]  # IoU 0.5, less, 0.875, 0
    # The true boxes are samples too.
    assert len(result) == 6 and rows(result)[(10, 10, 30, 30)] == 2 and rows(result)[(50, 10, 70, 50)] == 0
    for box, label, matched in zip(result.proposal_boxes.tensor, result.gt_classes, result.gt_masks.ids, strict=True):
        if label < THINGS:
            assert matched == (1 if box[0] == 10 else 2)


def test_sampling_keeps_the_share_of_positives(heads: SeamlessROIHeads) -> None:
    heads.batch_size_per_image, heads.positive_fraction = 8, 0.25
    near = [[10, 10, 30, 30 + i / 100] for i in range(10)]
    far = [[60, 10 + i, 80, 30 + i] for i in range(10)]
    result = sample(heads, near + far, make_targets([[10, 10, 30, 30]], [1]))
    assert sorted(result.gt_classes.tolist()) == [1, 1] + [THINGS] * 6


def test_proposals_in_crowd_regions_are_dropped(heads: SeamlessROIHeads) -> None:
    targets = make_targets([[10, 10, 30, 30]], [1], crowd=(40, 0, 80, 40))
    proposals = [[40, 0, 80, 40], [66, 10, 86, 20], [67, 10, 87, 20], [20, 40, 30, 50]]
    # Shares of crowd: 1, 0.7, 0.65, 0.
    assert set(rows(sample(heads, proposals, targets))) == {(10, 10, 30, 30), (67, 10, 87, 20), (20, 40, 30, 50)}


def test_true_boxes_may_be_left_out(heads: SeamlessROIHeads) -> None:
    heads.proposal_append_gt = False
    targets = make_targets([[10, 10, 30, 30]], [1])
    assert rows(sample(heads, [[10, 10, 30, 28]], targets)) == {(10, 10, 30, 28): 1}


@pytest.mark.parametrize("crowd", [None, (0, 0, 96, 64)])
def test_images_without_instances_give_no_sample(heads: SeamlessROIHeads, crowd: tuple | None) -> None:
    result = sample(heads, [[10, 10, 30, 30]], make_targets([], [], crowd))
    assert len(result) == 0 and result.has("gt_classes") and result.has("gt_masks")


def test_instance_covered_by_crowd_gives_no_sample(heads: SeamlessROIHeads) -> None:
    targets = make_targets([[10, 10, 30, 30]], [1])
    targets.gt_masks.segment_map[:] = 99
    targets.gt_masks.crowd_ids = torch.tensor([99], dtype=torch.int32)
    assert len(sample(heads, [[10, 10, 30, 30]], targets)) == 0


def make_predictor(cfg: CfgNode, **kwargs: object) -> SeamlessBoxPredictor:
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = THINGS
    predictor = SeamlessBoxPredictor(cfg, ShapeSpec(channels=8))
    for name, value in kwargs.items():
        setattr(predictor, name, value)
    return predictor.eval()


def detect(predictor: SeamlessBoxPredictor, boxes: Tensor, probabilities: Tensor) -> tuple[Instances, Tensor]:
    """Detections of proposals with the given class probabilities (R, T), all boxes where the proposals are."""
    rest = (1 - probabilities.sum(dim=1, keepdim=True)).clamp(min=1e-9)
    scores = torch.cat([probabilities, rest], dim=1).clamp(min=1e-9).log()
    proposals = [Instances((64, 96), proposal_boxes=Boxes(boxes))]
    results, index = predictor.inference((scores, torch.zeros(len(boxes), 4 * THINGS)), proposals)
    return results[0], index[0]


# Three places; two proposals at the first.
BOXES = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [40, 0, 60, 20], [70, 40, 90, 60]])
PROBABILITIES = torch.tensor([[0.3, 0.6, 0.0], [0.5, 0.4, 0.0], [0.0, 0.0, 0.9], [0.2, 0.1, 0.04]])


def test_detections_are_sorted_by_score(toy_cfg: CfgNode) -> None:
    result, index = detect(make_predictor(toy_cfg), BOXES, PROBABILITIES)
    # Suppression is per class; one proposal may give several detections.
    assert result.scores.tolist() == pytest.approx([0.9, 0.6, 0.5, 0.2, 0.1])
    assert result.pred_classes.tolist() == [2, 1, 0, 0, 1]
    assert index.tolist() == [2, 0, 1, 3, 3]
    assert torch.equal(result.pred_boxes.tensor, BOXES[index])


def test_original_order_is_by_class(toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS = True
    predictor = make_predictor(toy_cfg)
    result, index = detect(predictor, BOXES, PROBABILITIES)
    assert result.pred_classes.tolist() == [0, 0, 1, 1, 2]
    assert result.scores.tolist() == pytest.approx([0.5, 0.2, 0.6, 0.1, 0.9])
    assert index.tolist() == [1, 3, 0, 3, 2]
    # By score only where there are too many.
    predictor.test_topk_per_image = 5
    assert detect(predictor, BOXES, PROBABILITIES)[0].pred_classes.tolist() == [0, 0, 1, 1, 2]
    predictor.test_topk_per_image = 4
    assert detect(predictor, BOXES, PROBABILITIES)[0].pred_classes.tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize("original, kept", [(False, [0.8, 0.7]), (True, [0.8])])
def test_overlap_at_the_threshold(toy_cfg: CfgNode, original: bool, kept: list[float]) -> None:
    toy_cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS = original
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 10]])
    result, _ = detect(make_predictor(toy_cfg), boxes, torch.tensor([[0.8, 0, 0], [0.7, 0, 0]]))
    assert result.scores.tolist() == pytest.approx(kept)


def test_score_threshold_is_strict(toy_cfg: CfgNode) -> None:
    predictor = make_predictor(toy_cfg, test_score_thresh=0.25)
    scores = torch.tensor([[0.25, 0.25, 0.25], [0.26, 0.24, 0.25]])
    boxes = torch.stack([BOXES[0], BOXES[2]]).repeat(1, THINGS)
    scores = torch.cat([scores, 1 - scores.sum(1, keepdim=True)], dim=1)
    assert predictor.select(boxes, scores, (64, 96))[1].tolist() == pytest.approx([0.26])


def test_detections_are_clipped_and_have_area(toy_cfg: CfgNode) -> None:
    boxes = torch.tensor([[-5.0, -5, 20, 70], [100, 0, 120, 20], [10, 64, 20, 80], [90, 10, 99, 20], [30, 5, 30, 9]])
    result, index = detect(make_predictor(toy_cfg), boxes, torch.tensor([[0.9, 0, 0]]).repeat(5, 1))
    assert sorted(index.tolist()) == [0, 3]
    assert sorted(result.pred_boxes.tensor.tolist()) == [[0, 0, 20, 64], [90, 10, 96, 20]]


def test_undefined_scores_drop_out(toy_cfg: CfgNode) -> None:
    predictor = make_predictor(toy_cfg)
    scores = torch.tensor([[float("nan"), 0.5, 0, 0.5], [0.5, 0, 0, 0.5]])
    boxes = BOXES[[0, 2]].repeat(1, THINGS)
    boxes[1, 0] = float("nan")
    assert predictor.select(boxes, scores, (64, 96))[2].tolist() == [1]


def test_no_proposals(toy_cfg: CfgNode) -> None:
    result, index = detect(make_predictor(toy_cfg), torch.zeros(0, 4), torch.zeros(0, THINGS))
    assert len(result) == len(index) == 0
    assert result.pred_boxes.tensor.shape == (0, 4) and result.pred_classes.dtype == torch.int64


def test_box_losses(toy_cfg: CfgNode) -> None:
    """Cross entropy over all samples; smooth L1 of the positives, divided by the number of all."""
    toy_cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT = 3.0
    predictor = make_predictor(toy_cfg)
    scores, deltas = torch.randn(4, THINGS + 1), torch.randn(4, 4 * THINGS)
    classes = torch.tensor([1, THINGS, 0, THINGS])
    proposals = make_proposals(BOXES.tolist())
    proposals.gt_classes = classes
    proposals.gt_boxes = Boxes(BOXES + torch.tensor([1.0, -2, 4, 3]))
    with EventStorage():
        losses = predictor.losses((scores, deltas), [proposals])
    log_softmax = scores - scores.logsumexp(dim=1, keepdim=True)
    expected = -sum(log_softmax[i, c] for i, c in enumerate(classes)) / 4
    assert torch.allclose(losses["loss_cls"], 3 * expected)
    targets = predictor.box2box_transform.get_deltas(BOXES, proposals.gt_boxes.tensor)
    error = torch.cat([deltas[0, 4:8] - targets[0], deltas[2, 0:4] - targets[2]]).abs()
    assert torch.allclose(losses["loss_box_reg"], torch.where(error < 1, error**2 / 2, error - 0.5).sum() / 4)


def mask_loss(head: SeamlessMaskHead, x: Tensor, instances: list[Instances]) -> Tensor:
    with EventStorage():
        return head.train()(x, instances)["loss_mask"]


def mask_samples() -> Instances:
    """Two positives: one reaches into the void margin (columns 0..3), one into the other instance."""
    targets = make_targets([[2, 10, 30, 38], [30, 10, 58, 38]], [2, 1])
    samples = make_proposals([[0, 10, 28, 38], [16, 10, 44, 38]])
    samples.gt_classes, samples.gt_masks = targets.gt_classes, targets.gt_masks
    samples.gt_masks.segment_map[:, :4] = 0
    return samples


@pytest.mark.parametrize("void_is_background", [False, True])
def test_mask_loss_leaves_void_out(heads: SeamlessROIHeads, void_is_background: bool) -> None:
    head, x = heads.mask_head, torch.randn(2, 16, 14, 14)
    head.void_is_background = void_is_background
    head.loss_weight = 2.0
    samples = mask_samples()
    logits = head.layers(x)
    total, count = 0.0, 0
    for n, (label, left, number) in enumerate([(2, 0, 1), (1, 16, 2)]):
        # A cell is a pixel here.
        pixels = samples.gt_masks.segment_map[10:38, left : left + 28]
        loss = F.binary_cross_entropy_with_logits(logits[n, label], (pixels == number).float(), reduction="none")
        counted = torch.ones_like(pixels, dtype=torch.bool) if void_is_background else pixels != 0
        total, count = total + loss[counted].sum(), count + counted.sum()
    assert count == 2 * 784 - (0 if void_is_background else 4 * 28)
    assert torch.allclose(mask_loss(head, x, [samples]), 2 * total / count, rtol=1e-5)
    # The same over several images.
    parts = [samples[:1], samples[:0], samples[1:]]
    assert torch.allclose(mask_loss(head, x, parts), 2 * total / count, rtol=1e-5)


def test_mask_loss_of_void_alone_is_zero(heads: SeamlessROIHeads) -> None:
    samples = mask_samples()
    samples.gt_masks.segment_map[:] = 0
    loss = mask_loss(heads.mask_head, torch.randn(2, 16, 14, 14), [samples])
    loss.backward()
    assert loss == 0 and all(not p.grad.any() for p in heads.mask_head.parameters())


def test_mask_loss_without_positives_touches_every_parameter(heads: SeamlessROIHeads) -> None:
    x = torch.zeros(0, 16, 14, 14, requires_grad=True)
    loss = mask_loss(heads.mask_head, x, [mask_samples()[:0]])
    loss.backward()
    assert loss == 0 and x.grad is not None
    assert all(p.grad is not None and not p.grad.any() for p in heads.mask_head.parameters())


@pytest.mark.parametrize("case", ["usual", "no proposals", "no instances", "crowd only", "nothing"])
def test_training_step(heads: SeamlessROIHeads, case: str) -> None:
    """Losses and gradients are finite whatever the ground truth, and no parameter is left out."""
    proposals = make_proposals([[10, 10, 30, 30], [60, 20, 80, 60]] if case not in ("no proposals", "nothing") else [])
    targets = make_targets([[12, 10, 30, 28]], [1])
    if case in ("no instances", "crowd only", "nothing"):
        targets = make_targets([], [], (0, 0, 60, 40) if case == "crowd only" else None)
    features = {f"p{i + 2}": f.requires_grad_() for i, f in enumerate(feature_maps(64, 96, 16))}
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    with EventStorage():
        samples, losses = heads.train()(images, features, [proposals], [targets])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"}
    assert len(samples[0]) == {"usual": 3, "no proposals": 1}.get(case, 0)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all((loss > 0) == (len(samples[0]) > 0) for loss in losses.values())
    sum(losses.values()).backward()
    for tensor in (*heads.parameters(), *features.values()):
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("count", [0, 3])
def test_inference(heads: SeamlessROIHeads, count: int) -> None:
    heads.box_predictor.test_score_thresh = 0.0
    proposals = make_proposals([[10, 10, 30, 30], [60, 20, 80, 60], [1, 1, 90, 60]][:count])
    features = {f"p{i + 2}": f for i, f in enumerate(feature_maps(64, 96, 16))}
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    with torch.no_grad():
        (result,), losses = heads.eval()(images, features, [proposals])
    assert losses == {} and len(result) == count * THINGS
    assert result.pred_masks.shape == (len(result), 1, 28, 28) and result.mask_logits.shape == (len(result), 28, 28)


def test_without_masks(toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.MASK_ON = False
    heads = make_heads(toy_cfg)
    features = {f"p{i + 2}": f for i, f in enumerate(feature_maps(64, 96, 16))}
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    with EventStorage():
        _, losses = heads.train()(images, features, [make_proposals([])], [make_targets([[12, 10, 30, 28]], [1])])
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    (result,), _ = heads.eval()(images, features, [make_proposals([[10, 10, 30, 30]])])
    assert not result.has("pred_masks")


def test_levels_follow_the_canonical_size(toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.ROI_HEADS.CANONICAL_BOX_SIZE, toy_cfg.MODEL.ROI_HEADS.CANONICAL_LEVEL = 20, 3
    pooler = make_heads(toy_cfg).box_pooler
    features = [torch.full((1, 16, math.ceil(64 / s), math.ceil(96 / s)), float(i)) for i, s in enumerate(STRIDES)]
    boxes = torch.tensor([[0.0, 0, 19, 19], [0, 0, 20, 20], [0, 0, 39, 39], [0, 0, 40, 40], [0, 0, 96, 64]])
    pooled = pooler(features, [Boxes(boxes)], (64, 96))
    assert pooled[:, 0, 3, 3].tolist() == [0, 1, 1, 2, 2]


def test_threads_of_roi_align_change_nothing() -> None:
    pooler = SeamlessROIPooler(7, [4, 8], 2)
    features = [torch.randn(2, 5, 32, 48), torch.randn(2, 5, 16, 24)]
    corners = torch.rand(90, 2) * 100
    boxes = [Boxes(torch.cat([corners, corners + 5 + torch.rand(90, 2) * 200], dim=1)) for _ in range(2)]
    with torch.no_grad():
        expected = pooler(features, boxes)
        torch.set_num_threads(2)
        try:
            found = pooler(features, boxes)
        finally:
            torch.set_num_threads(1)
    assert torch.equal(expected, found)


@pytest.mark.parametrize("threads", [1, 2])
def test_boxes_keep_their_precision_under_autocast(threads: int) -> None:
    """A ramp tells where it was sampled; bfloat16 itself resolves 4 pixels at 1000."""
    pooler = SeamlessROIPooler(2, [4], 2)
    ramp = torch.linspace(0, 1, 256).expand(1, 1, 64, 256)
    starts = torch.arange(40.0) * 9 + 301.3
    boxes = [Boxes(torch.stack([starts, starts * 0 + 20, starts + 16, starts * 0 + 60], dim=1))]
    with torch.no_grad():
        expected = pooler([ramp], boxes)
        torch.set_num_threads(threads)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                found = pooler([ramp.bfloat16()], boxes)
        finally:
            torch.set_num_threads(1)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.005  # rounding of the features; a box off by 2 pixels adds 0.002
    slope = (found.float() - expected).mean(dim=(1, 2, 3))
    assert slope.abs().mean() < 0.001


@pytest.mark.parametrize("agnostic", [False, True])
def test_crop_aware_box_loss(toy_cfg: CfgNode, agnostic: bool) -> None:
    """It is the loss of the operation on the foreground, over the number of samples."""
    toy_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = "crop_aware_smooth_l1"
    toy_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = agnostic
    toy_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 3.0
    predictor = SeamlessBoxPredictor(toy_cfg, ShapeSpec(channels=16)).train()
    proposals = Instances((64, 96), proposal_boxes=Boxes(random_boxes(3, 64, 96)))
    proposals.gt_classes = torch.tensor([0, THINGS, 2, 1, THINGS, 0])
    proposals.gt_boxes = Boxes(random_boxes(3, 64, 96))
    predictions = torch.randn(6, THINGS + 1), torch.randn(6, 4 if agnostic else 4 * THINGS, requires_grad=True)
    with EventStorage(), pytest.raises(UserError, match="needs gt_open_sides"):
        predictor.losses(predictions, [proposals])
    proposals.gt_open_sides = torch.rand(6, 4) < 0.5
    with EventStorage():
        loss = predictor.losses(predictions, [proposals])["loss_box_reg"]
    rows = torch.tensor([0, 2, 3, 5])
    deltas = predictions[1] if agnostic else predictions[1].view(6, THINGS, 4)[range(6), proposals.gt_classes % THINGS]
    expected = crop_aware_box_loss(
        deltas[rows],
        proposals.proposal_boxes.tensor[rows],
        proposals.gt_boxes.tensor[rows],
        proposals.gt_open_sides[rows],
        weights=(10.0, 10.0, 5.0, 5.0),
        beta=1.0,
    )
    assert loss.item() == pytest.approx(3 * expected.sum().item() / 6, rel=1e-6)
    loss.backward()
    assert predictions[1].grad.any()
    with EventStorage():  # no sample at all
        assert predictor.losses(tuple(p[:0] for p in predictions), [proposals[:0]])["loss_box_reg"] == 0
