"""The numbers of the original program, end to end and part by part.

    pytest -s tests/test_parity.py

also prints what was measured: tables of cases and quantities. "rel" is the largest absolute difference as a share of
the largest value; two runs of the original with different convolution kernels differ by up to 6e-6 in the features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor

from seamless_d2.modeling import SeamlessPanoptic, SeamlessSemSegHead, fuse_panoptic
from seamless_d2.modeling.norm import make_norm_act
from seamless_d2.modeling.ops.fold import fold_norms
from seamless_d2.modeling.ops.inplace_norm import Activation
from seamless_d2.modeling.ops.semantic_loss import hard_pixel_loss
from seamless_d2.modeling.semantic_head import sliding_mean
from seamless_d2.seamseg.names import NormMode, our_layer, to_ours
from seamless_d2.structures.segment_masks import SegmentMasks

from .helpers.reference import (
    ASSETS,
    Case,
    Differences,
    build_original,
    change_ini,
    filled_state,
    find_cases,
    fusion_case,
    load_case,
    load_image,
    load_infos,
    load_numbers,
    original_deltas,
    relative_difference,
    semantic_classes,
    visible_segments,
    xyxy,
)

pytestmark = pytest.mark.slow

# Box 5 of the probes leaves the image, which clipped boxes never do: the original repeats the border there, ROIAlign
# returns zeros.
OUTSIDE_PROBE = 5


@dataclass
class Run:
    """A case, and what our model makes of its images."""

    case: Case
    model: SeamlessPanoptic
    stages: dict[str, Tensor]
    pyramid: dict[str, Tensor]
    rpn: tuple[list[Tensor], list[Tensor]]
    sem_logits: Tensor
    proposals: list[Instances]
    detections: list[Instances]
    outputs: list[dict[str, Any]]
    padded_size: tuple[int, int]


@contextmanager
def watch(owner: object, method: str) -> Iterator[dict[str, Any]]:
    """Keeps what ``owner.method`` returns, under "result"."""
    seen, original = {}, getattr(owner, method)

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen["result"] = original(*args, **kwargs)
        return seen["result"]

    with mock.patch.object(owner, method, watched):
        yield seen


def run_case(case: Case, folded: bool) -> Run:
    """One ordinary inference, watched from outside; ``folded`` with the norms in the convolutions, as ``Predictor``."""
    model, _ = case.build()
    if folded:
        fold_norms(model)
    seen: dict[str, Any] = {}

    def keep(module: torch.nn.Module, name: str) -> None:
        module.register_forward_hook(lambda _module, _inputs, output: seen.update({name: output}))

    keep(model.backbone.bottom_up, "stages")
    keep(model.backbone, "pyramid")
    keep(model.proposal_generator.rpn_head, "rpn")
    keep(model.proposal_generator, "proposals")
    keep(model.roi_heads, "detections")
    model.backbone.register_forward_pre_hook(lambda _module, inputs: seen.update(images=inputs[0]))
    with watch(model.sem_seg_head, "layers") as sem_seg:
        outputs = model([{"image": image} for image in case.images])
    return Run(
        case=case,
        model=model,
        stages=seen["stages"],
        pyramid=seen["pyramid"],
        rpn=seen["rpn"],
        sem_logits=sem_seg["result"],
        proposals=seen["proposals"][0],
        detections=seen["detections"][0],
        outputs=outputs,
        padded_size=tuple(seen["images"].shape[-2:]),
    )


@pytest.fixture(
    scope="module",
    params=[(path, folded) for path in find_cases() for folded in (False, True)[: 1 + ("synthetic" in path.stem)]],
    ids=lambda param: param[0].stem + ("-folded" if param[1] else ""),
)
def run(request: pytest.FixtureRequest) -> Run:
    path, folded = request.param
    return run_case(load_case(path), folded)


class TestCase:
    """Complete models."""

    @pytest.fixture
    def add(self, run: Run, differences: Differences) -> Any:
        def add(quantity: str, value: float) -> float:
            return differences.add("complete models", run.case.name, quantity, value)

        return add

    def test_features(self, run: Run, add: Any) -> None:
        numbers = run.case.numbers
        for k in range(2, 6):
            x = run.stages[f"res{k}"]
            step = max(1, x.shape[2] // 12)
            part = x[:, :: max(1, x.shape[1] // 8), ::step, ::step]
            assert add("ResNet rel", relative_difference(part, numbers[f"backbone_mod{k}_sub"])) <= 1e-4
        for level, x in enumerate(run.pyramid.values()):
            assert list(x.shape) == numbers[f"fpn{level}_shape"].tolist()
            step = (8, 4, 2, 1, 1, 1)[level]
            part = x[:, ::16, ::step, ::step]
            assert add("FPN rel", relative_difference(part, numbers[f"fpn{level}_sub"])) <= 1e-4
        assert f"fpn{len(run.pyramid)}_sub" not in numbers

    def test_rpn_logits(self, run: Run, add: Any) -> None:
        numbers = run.case.numbers
        for level, (logits, deltas) in enumerate(zip(*run.rpn, strict=True)):
            step = (4, 2, 1, 1, 1, 1)[level]
            part = logits[:, :, ::step, ::step]
            assert add("RPN rel", relative_difference(part, numbers[f"rpn_obj{level}_sub"])) <= 1e-4
            step = (8, 4, 2, 1, 1, 1)[level]
            part = original_deltas(deltas)[:, :, ::step, ::step]
            assert add("RPN rel", relative_difference(part, numbers[f"rpn_bbx{level}_sub"])) <= 1e-4

    def test_semantic_logits(self, run: Run, add: Any) -> None:
        numbers = run.case.numbers
        assert list(run.sem_logits.shape) == numbers["sem_logits_shape"].tolist()
        part = run.sem_logits[:, :, ::8, ::8]
        assert add("sem rel", relative_difference(part, numbers["sem_logits_sub"])) <= 1e-4
        for i, output in enumerate(run.outputs):
            part = output["sem_seg"][None, :, ::32, ::32]
            expected = numbers[f"sem_logits_up_sub_{i}"].reshape(part.shape)
            assert add("sem rel", relative_difference(part, expected)) <= 1e-4

    @torch.no_grad()
    def test_roi_logits_of_given_boxes(self, run: Run, add: Any) -> None:
        numbers, heads = run.case.numbers, run.model.roi_heads
        boxes, image = xyxy(numbers["probe_boxes"]), torch.from_numpy(numbers["probe_img"])
        boxes_of_images = [Boxes(boxes[image == i]) for i in range(len(run.outputs))]
        # The pooler goes image by image.
        back = image.argsort(stable=True).argsort()
        features = [run.pyramid[name] for name in heads.box_in_features]
        inside = [i for i in range(len(boxes)) if i != OUTSIDE_PROBE]

        small = heads.box_pooler(features, boxes_of_images, run.padded_size)[back]
        scores, deltas = heads.box_predictor(heads.box_head(small))
        scores = scores.roll(1, dims=1)[inside]  # background first
        deltas = original_deltas(deltas).unflatten(1, (-1, 4))[inside]
        assert add("ROI rel", relative_difference(scores, numbers["probe_cls_logits"][inside])) <= 1e-4
        assert add("ROI rel", relative_difference(deltas, numbers["probe_bbx_logits"][inside])) <= 1e-4

        large = heads.mask_pooler(features, boxes_of_images, run.padded_size)[back]
        part = large[inside][:, ::64]
        assert add("ROI rel", relative_difference(part, numbers["probe_roi_feat_sub"][inside])) <= 1e-4
        first = [i for i in inside if i < 8]
        masks = heads.mask_head.layers(large)[:, :: max(1, run.case.info["num_thing"] // 4)][first]
        assert add("ROI rel", relative_difference(masks, numbers["probe_msk_logits_sub"][first])) <= 1e-4

    def test_proposals(self, run: Run, add: Any) -> None:
        for i, proposals in enumerate(run.proposals):
            ours = proposals.proposal_boxes.tensor
            theirs = xyxy(run.case.numbers[f"proposals_{i}"])
            assert len(ours) == len(theirs)
            scores = torch.from_numpy(run.case.numbers[f"proposal_obj_logits_{i}"])
            # Equal scores may swap places, so each box is compared with the nearest one, both ways.
            apart = (ours[:, None] - theirs[None]).abs().amax(dim=2)
            # An overlap that equals the threshold of NMS but for rounding may be judged either way, depending on the
            # processor. Such a box frees a slot, which the next best box of the other side takes.
            missing, extra = apart.amin(dim=0) > 0.02, apart.amin(dim=1) > 0.02
            if missing.any():
                overlap = pairwise_iou(Boxes(theirs[missing]), proposals.proposal_boxes)
                assert (
                    (overlap - run.model.proposal_generator.nms_thresh).abs().amin(dim=1) < 1e-4
                ).all() and missing.sum() == 1
                assert extra.nonzero()[:, 0].tolist() == [len(ours) - 1]
            kept = apart[~extra][:, ~missing]
            worst = torch.stack([kept.amin(dim=0), kept.amin(dim=1)]).max().item()
            assert add("proposals px", worst) <= 0.02
            assert (proposals.objectness_logits[~extra] - scores[~missing]).abs().max() <= 1e-3

    def test_detections(self, run: Run, add: Any) -> None:
        for i, detections in enumerate(run.detections):
            numbers = {k: run.case.numbers[f"{k}_{i}"] for k in ("bbx_pred", "cls_pred", "obj_pred", "msk_pred")}
            boxes, scores = xyxy(numbers["bbx_pred"]), torch.from_numpy(numbers["obj_pred"])
            assert len(detections) == len(boxes)
            apart = (detections.pred_boxes.tensor[:, None] - boxes[None]).abs().amax(dim=2)
            apart[detections.pred_classes[:, None] != torch.from_numpy(numbers["cls_pred"])[None]] = torch.inf
            distance, index = apart.min(dim=0)  # of each detection of the original
            assert len(set(index.tolist())) == len(index)
            assert add("det. px", distance.max().item()) <= 0.02
            assert add("det. score", (detections.scores[index] - scores).abs().max().item()) <= 1e-3
            # Where scores are not tied the order is the same too.
            tied = (scores[:, None] - scores[None]).abs() <= 1e-3
            moved = (index != torch.arange(len(index))).nonzero()[:, 0]
            assert all(tied[j, index[j]] for j in moved)
            # Masks see differences of the boxes, thousandths of a pixel, as well.
            masks = detections.mask_logits[index]
            count = len(numbers["msk_pred"])
            assert add("masks rel", relative_difference(masks[:count], numbers["msk_pred"])) <= 5e-3
            means = masks.double().mean(dim=(1, 2)).numpy()
            assert np.allclose(means, run.case.numbers[f"msk_pred_mean_{i}"], atol=2e-3 * masks.abs().max().item())

    def test_semantic_labels(self, run: Run, add: Any) -> None:
        for i, output in enumerate(run.outputs):
            expected = run.case.numbers[f"sem_pred_{i}"]
            labels = output["sem_seg"].argmax(dim=0).numpy()
            assert labels.shape == expected.shape
            close = np.unpackbits(run.case.numbers[f"sem_close_{i}"])[: labels.size].reshape(labels.shape)
            different = labels != expected
            add("sem pixels", float(different.sum()))
            assert not different[close == 0].any()

    def test_panoptic(self, run: Run, add: Any) -> None:
        for i, output in enumerate(run.outputs):
            numbers = {k: run.case.numbers[f"{k}_{i}"] for k in ("pan_msk", "pan_cat", "pan_iscrowd")}
            expected, categories = visible_segments(*numbers.values())
            panoptic_seg, segments_info = output["panoptic_seg"]
            assert semantic_classes(segments_info, run.case.info["num_stuff"]) == categories
            different = panoptic_seg.numpy() != expected
            add("panoptic pixels", float(different.sum()))
            assert different.mean() <= 0.0005


def test_cases_of_the_repository_are_found() -> None:
    assert len([path for path in find_cases() if path.is_relative_to(ASSETS)]) == 3


def test_fill_rule() -> None:
    """The weights are those that the original was given."""
    case = load_case(find_cases()[0])
    state = filled_state(case.info["params"], case.info["seed"], case.info["fill_rules"])
    for name, (total, magnitude) in case.info["param_checks"].items():
        values = state[name].double()
        assert values.sum().item() == pytest.approx(total, rel=1e-6, abs=1e-6 * magnitude)
        assert values.abs().sum().item() == pytest.approx(magnitude, rel=1e-6)


@pytest.fixture(scope="module")
def fusion_numbers() -> dict[str, np.ndarray]:
    return load_numbers("fusion_cases")


@pytest.mark.parametrize("info", load_infos("fusion_cases"), ids=lambda info: f"{info['case']:02d}")
def test_fusion(info: dict, fusion_numbers: dict[str, np.ndarray], differences: Differences) -> None:
    numbers, expected, categories = fusion_case(info, fusion_numbers)
    if "bbx_pred" in numbers:
        boxes = xyxy(numbers["bbx_pred"])
        classes, scores, masks = (torch.from_numpy(numbers[k]) for k in ("cls_pred", "obj_pred", "msk_pred"))
    else:
        boxes, classes = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        scores, masks = torch.zeros(0), torch.zeros(0, 28, 28)
    score_thresh, overlap_thresh, stuff_area_thresh = info["thresholds"]
    panoptic_seg, segments_info = fuse_panoptic(
        torch.from_numpy(numbers["sem_pred"].astype(np.int64)),
        boxes,
        classes,
        scores,
        masks,
        num_stuff=info["num_stuff"],
        score_thresh=score_thresh,
        overlap_thresh=overlap_thresh,
        stuff_area_thresh=stuff_area_thresh,
    )
    assert semantic_classes(segments_info, info["num_stuff"]) == categories
    different = int((panoptic_seg.numpy() != expected).sum())
    assert differences.add("fusion", "all cases", "pixels", different) == 0


SEMLOSS_CASES = sorted(int(k.split("_")[0]) for k in load_numbers("semloss_cases") if k.endswith("_n"))


@pytest.mark.parametrize("case", SEMLOSS_CASES)
def test_semantic_loss(case: int, differences: Differences) -> None:
    numbers = load_numbers("semloss_cases")
    count = int(numbers[f"{case}_n"])
    logits = [torch.from_numpy(numbers[f"{case}_logits{i}"]).requires_grad_() for i in range(count)]
    labels = [torch.from_numpy(numbers[f"{case}_labels{i}"].astype(np.int64)) for i in range(count)]
    for key, fraction in (("0.25", 0.25), ("1.0", 1.0), ("None", 1.0)):
        losses = [hard_pixel_loss(x[None], y, y.shape, 255, fraction) for x, y in zip(logits, labels, strict=True)]
        loss = torch.stack(losses).mean()
        gradients = torch.autograd.grad(loss, logits)
        expected = float(numbers[f"{case}_loss_{key}"])
        difference = abs(loss.item() - expected) / max(abs(expected), 1e-12)
        assert differences.add("semantic loss", f"case {case}", "loss rel", difference) <= 1e-5
        norms = np.array([gradient.double().norm().item() for gradient in gradients])
        assert np.allclose(norms, numbers[f"{case}_gradnorm_{key}"], rtol=1e-5, atol=1e-12)
        expected = numbers[f"{case}_grad0_{key}"]
        difference = np.abs(gradients[0].numpy() - expected).max() / max(np.abs(expected).max(), 1e-12)
        assert differences.add("semantic loss", f"case {case}", "gradient rel", float(difference)) <= 1e-5


@pytest.mark.parametrize("info", load_infos("semhead_cases"), ids=lambda info: str(info["case"]))
@torch.no_grad()
def test_semantic_head(info: dict, differences: Differences) -> None:
    numbers = {
        k.split("_", 1)[1]: v for k, v in load_numbers("semhead_cases").items() if k.split("_")[0] == str(info["case"])
    }
    levels, channels, hidden = info["levels"], info["in_channels"], info["hidden"]
    window = info["pooling_size"] if isinstance(info["pooling_size"], list) else [info["pooling_size"]] * 2
    shapes: dict[str, tuple[int, ...]] = {
        "sem_head.conv_sem.weight": (info["classes"], levels * hidden, 1, 1),
        "sem_head.conv_sem.bias": (info["classes"],),
    }
    for level in range(levels):
        stem = f"sem_head.output.{level}"
        shapes[f"{stem}.conv1_3x3.weight"] = shapes[f"{stem}.conv1_dil.weight"] = (hidden, channels, 3, 3)
        shapes[f"{stem}.conv1_glb.weight"] = (hidden, channels, 1, 1)
        shapes[f"{stem}.conv2.weight"] = (hidden, 3 * hidden, 1, 1)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{stem}.bn1.{leaf}"] = (3 * hidden,)
            shapes[f"{stem}.bn2.{leaf}"] = (hidden,)
    state, unknown = to_ours(filled_state(shapes, info["seed"], info["rules"]), NormMode.parse("syncbn"))
    assert not unknown
    names = [f"p{level + 2}" for level in range(levels)]
    head = SeamlessSemSegHead(
        {name: ShapeSpec(channels=channels, stride=4 * 2**i) for i, name in enumerate(names)},
        in_features=names,
        num_classes=info["classes"],
        channels=hidden,
        window=tuple(window),
        dilation=6,
        norm=lambda c: make_norm_act("BN", c, Activation()),
    ).eval()
    head.load_state_dict({k.removeprefix("sem_seg_head."): v for k, v in state.items()}, strict=False)
    random = np.random.RandomState(4000 + info["case"])
    features = {
        name: torch.from_numpy(random.standard_normal((1, channels, *size)).astype(np.float32))
        for name, size in zip(names, info["sizes"], strict=True)
    }

    def add(quantity: str, actual: Tensor, expected: np.ndarray) -> float:
        row = f"case {info['case']}, window {tuple(window)}"
        return differences.add("semantic head", row, quantity, relative_difference(actual, expected))

    for level, x in enumerate(features.values()):
        pooled = sliding_mean(x, tuple(window))[:, ::8, ::2, ::2]
        assert add("pooled rel", pooled, numbers[f"pool{level}_sub"]) <= 1e-5
        # The original pools first and convolves then; ours does it the other way round.
        output = head.levels[level](x)[:, ::16, ::2, ::2]
        assert add("level rel", output, numbers[f"level{level}_sub"]) <= 1e-5
    logits = head.layers(features)
    assert add("logits rel", logits[:, :, ::3, ::3], numbers["out_sub"]) <= 1e-5
    moments = [logits.double().mean().item(), logits.double().std().item()]
    assert moments == pytest.approx(numbers["out_moments"].tolist(), rel=1e-4, abs=1e-6)


def train_model(info: dict) -> tuple[SeamlessPanoptic, CfgNode]:
    """The case's model in the state of the original's run: losses are computed, statistics do not move."""
    base = load_case(find_cases()[0]).info
    model, cfg = build_original(
        change_ini(base["config"], info["overrides"]), filled_state(base["params"], info["seed"], info["rules"])
    )
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    heads = model.roi_heads
    for module in (model, model.proposal_generator, heads, heads.mask_head, heads.box_predictor, model.sem_seg_head):
        module.training = True
    rpn = model.proposal_generator
    rpn.pre_nms_topk[True], rpn.post_nms_topk[True] = rpn.pre_nms_topk[False], rpn.post_nms_topk[False]
    return model, cfg


def train_targets(info: dict, numbers: dict[str, np.ndarray]) -> tuple[Instances, Tensor]:
    """Ground truth of a training case: ``instances`` and ``sem_seg`` of Detectron2's dicts."""
    segment_map, categories = numbers["msk"][0].astype(np.int32), numbers["cat"]
    crowd, boxes = numbers["iscrowd"], numbers["bbx"]
    is_thing = (categories >= info["num_stuff"]) & (categories != 255)
    ids = [i for i in range(1, len(categories)) if is_thing[i] and not crowd[i]]
    instances = Instances(segment_map.shape)
    instances.gt_boxes = Boxes(xyxy(boxes[ids]))
    instances.gt_classes = torch.tensor([int(categories[i]) - info["num_stuff"] for i in ids])
    instances.gt_masks = SegmentMasks(
        torch.from_numpy(segment_map),
        torch.tensor(ids, dtype=torch.int32),
        torch.tensor([i for i in range(1, len(categories)) if crowd[i]], dtype=torch.int32),
    )
    return instances, torch.from_numpy(categories[segment_map])


def check_matching(
    numbers: dict[str, np.ndarray],
    num_things: int,
    instances: Instances,
    labels: Tensor,
    matched_boxes: Tensor,
    rois: Instances,
) -> None:
    """Each anchor and each region of interest belongs to the same box, to the background or to nothing."""
    gt_boxes = instances.gt_boxes.tensor
    match = torch.from_numpy(numbers["anchor_match"]).long()  # -2 void, -1 negative, else the box
    assert torch.equal(labels.long(), match.clamp(max=0) + 1)
    assert torch.equal(matched_boxes[match >= 0], gt_boxes[match[match >= 0]])
    boxes, match = xyxy(numbers["roi_proposals"]), torch.from_numpy(numbers["roi_match"]).long()
    distance, index = (boxes[:, None] - rois.proposal_boxes.tensor[None]).abs().amax(dim=2).min(dim=1)
    assert len(boxes) == len(rois) == len(index.unique()) and distance.max() <= 0.02
    classes = rois.gt_classes[index]
    assert torch.equal(classes[match >= 0], instances.gt_classes[match[match >= 0]])
    assert (classes[match < 0] == num_things).all()
    assert torch.equal(rois.gt_boxes.tensor[index][match >= 0], gt_boxes[match[match >= 0]])


LOSS_NAMES = {
    "loss_rpn_cls": "obj_loss",
    "loss_rpn_loc": "bbx_loss",
    "loss_cls": "roi_cls_loss",
    "loss_box_reg": "roi_bbx_loss",
    "loss_mask": "roi_msk_loss",
    "loss_sem_seg": "sem_loss",
}


@pytest.mark.parametrize("info", load_infos("train_cases"), ids=lambda info: str(info["case"]))
def test_training(info: dict, shared: Path, differences: Differences) -> None:
    prefix = f"{info['case']}_"
    numbers = {k.removeprefix(prefix): v for k, v in load_numbers("train_cases").items() if k.startswith(prefix)}
    model, _ = train_model(info)
    instances, sem_seg = train_targets(info, numbers)
    with EventStorage(), watch(model.proposal_generator, "label_and_sample_anchors") as anchors:
        with watch(model.roi_heads, "label_and_sample_proposals") as rois:
            losses = model([{"image": load_image(info["image"]), "instances": instances, "sem_seg": sem_seg}])
    labels, matched_boxes = (x[0] for x in anchors["result"])
    check_matching(numbers, info["num_thing"], instances, labels, matched_boxes, rois["result"][0])
    sum(losses.values()).backward()

    def add(quantity: str, actual: float, expected: float) -> float:
        return differences.add("training", f"case {info['case']}", f"{quantity} rel", abs(actual / expected - 1))

    assert set(losses) == set(LOSS_NAMES)
    for ours, theirs in LOSS_NAMES.items():
        assert add(ours, losses[ours].item(), info["losses"][theirs]) <= 1e-4
    parameters = dict(model.named_parameters())
    for name, norm in info["grad_norms"].items():
        layer, leaf = name.rsplit(".", 1)
        # In float64: a float32 norm of millions of values is itself off by more than the tolerance.
        ours = parameters.pop(f"{our_layer(layer)}.{leaf}").grad.double().norm().item()
        if norm == 0:
            assert ours == 0, name
        else:
            assert add("gradient norm", ours, norm) <= 1e-3, name
    assert not parameters
