"""The complete model: forms of output, training on unusual ground truth, Detectron2's evaluators and drawings."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from detectron2.utils.visualizer import Visualizer

from seamless_d2 import register_panoptic
from seamless_d2.data.mapper import SeamlessMapper
from seamless_d2.data.toy_streets import write_toy_streets
from seamless_d2.errors import UserError
from seamless_d2.evaluation.ground_truth import SemanticGroundTruth
from seamless_d2.modeling import SeamlessPanoptic, fuse_panoptic
from seamless_d2.modeling.panoptic import OUTPUTS
from seamless_d2.structures.classes import Classes
from seamless_d2.structures.segment_masks import SegmentMasks

from ..helpers.batches import STUFF, THINGS, make_batch, make_image

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg"}


def make_model(cfg: CfgNode, **options: Any) -> SeamlessPanoptic:
    """An untrained model; every class has about the same score, so that all thresholds are lowered."""
    for key, value in options.items():
        cfg.MODEL.SEAMLESS[key] = value
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    combine.INSTANCES_CONFIDENCE_THRESH, combine.STUFF_AREA_LIMIT = 0.0, 1
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 30
    model = build_model(cfg).eval()
    # Semantic labels of several classes, things among them, and masks with holes.
    torch.nn.init.normal_(model.sem_seg_head.predictor.weight)
    torch.nn.init.normal_(model.roi_heads.mask_head.predictor.weight)
    return model


def check_output(output: dict, height: int, width: int) -> None:
    """All three parts in Detectron2's forms."""
    assert set(output) == set(OUTPUTS)
    panoptic_seg, segments_info = output["panoptic_seg"]
    assert panoptic_seg.shape == (height, width) and panoptic_seg.dtype == torch.int32
    areas = torch.bincount(panoptic_seg.flatten(), minlength=len(segments_info) + 1).tolist()
    assert [s["id"] for s in segments_info] == list(range(1, len(areas)))
    assert [s["area"] for s in segments_info] == areas[1:] and all(areas[1:])
    for segment in segments_info:
        assert 0 <= segment["category_id"] < (THINGS if segment["isthing"] else STUFF)
    assert output["sem_seg"].shape == (STUFF + THINGS, height, width) and output["sem_seg"].dtype == torch.float32
    instances = output["instances"]
    count = len(instances)
    assert instances.image_size == (height, width)
    assert set(instances.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert instances.pred_masks.shape == (count, height, width) and instances.pred_masks.dtype == torch.bool
    assert instances.pred_boxes.tensor.shape == (count, 4) and instances.pred_classes.dtype == torch.int64
    assert ((0 <= instances.pred_classes) & (instances.pred_classes < THINGS)).all()
    limits = torch.tensor([width, height, width, height])
    assert (instances.pred_boxes.tensor >= 0).all() and (instances.pred_boxes.tensor <= limits).all()


@pytest.mark.parametrize("size", [(64, 96), (67, 101), (33, 40)], ids=str)
def test_output_forms(toy_cfg: CfgNode, size: tuple[int, int]) -> None:
    output = make_model(toy_cfg)([{"image": make_image(*size)}])[0]
    check_output(output, *size)
    assert len(output["instances"]) == 30
    segments_info = output["panoptic_seg"][1]
    assert any(s["isthing"] for s in segments_info) and any(not s["isthing"] for s in segments_info)
    # Score and row of a thing are those of the detections.
    for segment in segments_info:
        if segment["isthing"]:
            row = output["instances"][segment["instance_id"]]
            assert (segment["score"], segment["category_id"]) == (row.scores.item(), row.pred_classes.item())


@pytest.mark.parametrize("size", [(128, 192), (45, 61), (10, 300)], ids=str)
@pytest.mark.parametrize("fuse_at", ["input", "output"])
def test_requested_size(toy_cfg: CfgNode, fuse_at: str, size: tuple[int, int]) -> None:
    model = make_model(toy_cfg, FUSE_AT=fuse_at)
    image = make_image(67, 101)
    output = model([{"image": image, "height": size[0], "width": size[1]}])[0]
    check_output(output, *size)
    plain = model([{"image": image}])[0]
    check_output(plain, 67, 101)
    assert torch.allclose(
        output["sem_seg"], F.interpolate(plain["sem_seg"][None], size=size, mode="bilinear")[0], atol=1e-5
    )
    scale = torch.tensor([size[1] / 101, size[0] / 67]).repeat(2)
    boxes = plain["instances"].pred_boxes.tensor * scale
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    assert torch.allclose(output["instances"].pred_boxes.tensor, boxes[kept], atol=1e-3)

    panoptic_seg, segments_info = output["panoptic_seg"]
    if fuse_at == "input":
        expected = F.interpolate(plain["panoptic_seg"][0][None, None].double(), size=size, mode="nearest-exact")[0, 0]
        # Ids count anew, categories and scores stay.
        old_ids = [0, *(s["id"] for s in plain["panoptic_seg"][1] if (expected == s["id"]).any())]
        assert torch.equal(torch.tensor(old_ids)[panoptic_seg.long()], expected.long())
        for new, old in zip(segments_info, old_ids[1:], strict=True):
            old_segment = plain["panoptic_seg"][1][old - 1]
            assert new | {"area": 0, "id": 0} == old_segment | {"area": 0, "id": 0}
    else:
        (detections,), _ = model.inference([{"image": image}], do_postprocess=False)
        expected, expected_info = fuse_panoptic(
            output["sem_seg"].argmax(dim=0),
            detections.pred_boxes.tensor * scale,
            detections.pred_classes,
            detections.scores,
            detections.mask_logits,
            num_stuff=STUFF,
            score_thresh=0.0,
            stuff_area_thresh=1,
        )
        assert torch.equal(panoptic_seg, expected) and segments_info == expected_info


def test_thresholds_come_from_the_config(toy_cfg: CfgNode) -> None:
    image = [{"image": make_image()}]
    model = make_model(toy_cfg)
    sem_seg = model(image)[0]["sem_seg"].argmax(dim=0)
    (detections,), _ = model.inference(image, do_postprocess=False)
    rows = [detections.get(k) for k in ("pred_boxes", "pred_classes", "scores", "mask_logits")]

    def fuse(score: float, overlap: float, area: int) -> list[dict]:
        thresholds = {"score_thresh": score, "overlap_thresh": overlap, "stuff_area_thresh": area}
        return fuse_panoptic(sem_seg, rows[0].tensor, *rows[1:], num_stuff=STUFF, **thresholds)[1]

    score, overlap = detections.scores.median().item(), 0.4
    area = 1 + max(s["area"] for s in fuse(score, overlap, 1) if not s["isthing"])
    expected = fuse(score, overlap, area)
    # Each of the three has an effect here.
    assert expected not in (fuse(0.0, overlap, area), fuse(score, 0.9, area), fuse(score, overlap, 1))
    combine = toy_cfg.MODEL.PANOPTIC_FPN.COMBINE
    combine.INSTANCES_CONFIDENCE_THRESH, combine.OVERLAP_THRESH, combine.STUFF_AREA_LIMIT = score, overlap, area
    other = build_model(toy_cfg).eval()
    other.load_state_dict(model.state_dict())
    assert other(image)[0]["panoptic_seg"][1] == expected


@pytest.mark.parametrize(
    "outputs", [list(c) for n in (1, 2, 3) for c in itertools.combinations(OUTPUTS, n)], ids=" ".join
)
def test_only_what_is_listed_is_computed(toy_cfg: CfgNode, outputs: list[str]) -> None:
    complete = make_model(toy_cfg)
    toy_cfg.MODEL.SEAMLESS.OUTPUTS = outputs
    model = build_model(toy_cfg).eval()
    model.load_state_dict(complete.state_dict())
    called = set()
    parts = {
        "semantic": model.sem_seg_head.levels[0],
        "proposals": model.proposal_generator,
        "boxes": model.roi_heads.box_head,
        "masks": model.roi_heads.mask_head,
    }
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    inputs = [{"image": make_image(), "height": 40, "width": 50}]
    result, expected = model(inputs)[0], complete(inputs)[0]
    assert set(result) == set(outputs)
    needs_masks = "instances" in outputs or "panoptic_seg" in outputs
    needs_labels = "sem_seg" in outputs or "panoptic_seg" in outputs
    assert called == ({"semantic"} if needs_labels else set()) | (
        {"proposals", "boxes", "masks"} if needs_masks else set()
    )
    if "sem_seg" in outputs:
        assert torch.equal(result["sem_seg"], expected["sem_seg"])
    if "instances" in outputs:
        assert torch.equal(result["instances"].pred_masks, expected["instances"].pred_masks)
    if "panoptic_seg" in outputs:
        assert torch.equal(result["panoptic_seg"][0], expected["panoptic_seg"][0])
        assert result["panoptic_seg"][1] == expected["panoptic_seg"][1]


def check_equal(a: dict, b: dict) -> None:
    """Two runs on one image that may differ by rounding only."""
    assert torch.allclose(a["sem_seg"], b["sem_seg"], atol=1e-4)
    assert torch.allclose(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor, atol=1e-2)
    assert torch.equal(a["instances"].pred_classes, b["instances"].pred_classes)
    assert (a["panoptic_seg"][0] != b["panoptic_seg"][0]).float().mean() < 0.002
    assert [s["category_id"] for s in a["panoptic_seg"][1]] == [s["category_id"] for s in b["panoptic_seg"][1]]


def test_images_of_one_size_do_not_see_each_other(toy_cfg: CfgNode) -> None:
    model = make_model(toy_cfg)
    inputs = [{"image": make_image(67, 101, seed)} for seed in range(3)]
    for output, single in zip(model(inputs), inputs, strict=True):
        check_equal(output, model([single])[0])


def test_images_of_different_sizes(toy_cfg: CfgNode) -> None:
    """Each has its own size; the largest, which gets no padding, is as if it were alone."""
    model = make_model(toy_cfg)
    inputs = [
        {"image": make_image(50, 96), "height": 100, "width": 192},
        {"image": make_image(67, 101)},
        {"image": make_image(67, 40, 2), "height": 33, "width": 20},
    ]
    outputs = model(inputs)
    for output, size in zip(outputs, [(100, 192), (67, 101), (33, 20)], strict=True):
        check_output(output, *size)
    check_equal(outputs[1], model([inputs[1]])[0])
    # The scores are those of the padded batch, without the padding.
    _, logits = model.inference(inputs, do_postprocess=False)
    padded = F.interpolate(logits, size=(67, 101), mode="bilinear")
    for i, (output, (h, w)) in enumerate(zip(outputs, [(50, 96), (67, 101), (67, 40)], strict=True)):
        expected = F.interpolate(padded[i : i + 1, :, :h, :w], size=output["sem_seg"].shape[1:], mode="bilinear")
        assert torch.allclose(output["sem_seg"], expected[0], atol=1e-5)
    # The padding is no multiple of anything, and zero after normalisation.
    padded = model.preprocess_image(inputs)
    assert padded.tensor.shape == (3, 3, 67, 101)
    assert not padded.tensor[0, :, 50:].any() and not padded.tensor[2, :, :, 40:].any()


def test_no_detections(toy_cfg: CfgNode) -> None:
    model = make_model(toy_cfg)
    model.roi_heads.box_predictor.test_score_thresh = 1.0
    for size in ((64, 96), (50, 120)):
        output = model([{"image": make_image(), "height": size[0], "width": size[1]}])[0]
        check_output(output, *size)
        assert len(output["instances"]) == 0
        assert not any(s["isthing"] for s in output["panoptic_seg"][1])
        # What is labelled as a thing is void.
        void = output["panoptic_seg"][0] == 0
        if size == (64, 96):
            assert torch.equal(void, output["sem_seg"].argmax(dim=0) >= STUFF) and void.any()


def test_no_proposals(toy_cfg: CfgNode) -> None:
    model = make_model(toy_cfg)
    model.proposal_generator.min_box_size = 1000
    check_output(model([{"image": make_image()}])[0], 64, 96)


def test_many_detections(toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = toy_cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 600
    toy_cfg.MODEL.RPN.NMS_THRESH = toy_cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    model = make_model(toy_cfg)
    model.roi_heads.box_predictor.test_topk_per_image = 1000
    output = model([{"image": make_image()}])[0]
    check_output(output, 64, 96)
    assert len(output["instances"]) == 1000


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("FUSE_AT", "middle", "FUSE_AT is 'middle'"),
        ("OUTPUTS", [], r"OUTPUTS is \[\]; list one or more of instances, sem_seg, panoptic_seg"),
        ("OUTPUTS", ["panoptic_seg", "depth"], "depth"),
    ],
)
def test_user_errors(toy_cfg: CfgNode, key: str, value: Any, message: str) -> None:
    toy_cfg.MODEL.SEAMLESS[key] = value
    with pytest.raises(UserError, match=message):
        build_model(toy_cfg)


def test_class_counts_must_fit(toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    with pytest.raises(UserError, match="cannot be smaller"):
        build_model(toy_cfg)


def test_things_only_and_stuff_only_labels(toy_cfg: CfgNode) -> None:
    """S = 0: every pixel outside of the instances is void."""
    toy_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = THINGS
    panoptic_seg, segments_info = make_model(toy_cfg)([{"image": make_image()}])[0]["panoptic_seg"]
    assert segments_info and all(s["isthing"] for s in segments_info)
    assert (panoptic_seg == 0).any()


def step(model: SeamlessPanoptic, batch: list[dict]) -> dict[str, float]:
    """Losses; gradients are in the parameters, every one of which has one."""
    torch.manual_seed(3)
    with EventStorage():
        losses = model.train()(batch)
    assert set(losses) == LOSSES
    assert all(loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())
    assert all(torch.isfinite(loss) for loss in losses.values())
    model.zero_grad()
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    return {k: v.item() for k, v in losses.items()}


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", "Affine"])
def test_training_step(toy_cfg: CfgNode, norm: str) -> None:
    m = toy_cfg.MODEL
    for node in (m.RESNETS, m.FPN, m.RPN, m.ROI_BOX_HEAD, m.ROI_MASK_HEAD, m.SEM_SEG_HEAD):
        node.NORM = norm
    model = build_model(toy_cfg)
    losses = step(model, make_batch("usual", "usual"))
    assert all(loss > 0 for loss in losses.values())
    assert all(p.grad.any() for name, p in model.named_parameters() if name.endswith("predictor.weight"))


@pytest.mark.parametrize("kind", ["no instances", "crowd only", "all void", "instances under crowd"])
@pytest.mark.parametrize("with_others", [False, True])
def test_training_on_unusual_ground_truths(toy_cfg: CfgNode, kind: str, with_others: bool) -> None:
    losses = step(build_model(toy_cfg), make_batch(kind, "usual") if with_others else make_batch(kind))
    if not with_others:
        zero = {"loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
        zero |= {"all void": {"loss_sem_seg"}, "crowd only": {"loss_rpn_cls"}}.get(kind, set())
        if kind == "instances under crowd":
            zero = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
        assert {k for k, v in losses.items() if v == 0} == zero


@pytest.mark.parametrize("kind", ["bitmasks", "polygons"])
def test_stock_dicts_train_as_well(toy_cfg: CfgNode, kind: str) -> None:
    model = build_model(toy_cfg)
    stock = step(model, make_batch(kind, kind))
    # The same ground truth in our form, without the crowd, which stock masks cannot express.
    batch = make_batch("usual", "usual")
    for record in batch:
        masks = record["instances"].gt_masks
        masks.crowd_ids = masks.crowd_ids[:0]
    ours = step(model, batch)
    # In training mode the statistics of a batch do not depend on the step before.
    for name in LOSSES:
        assert stock[name] == pytest.approx(ours[name], rel=1e-4), name


def test_training_on_different_sizes(toy_cfg: CfgNode) -> None:
    batch = make_batch("usual", "usual")
    smaller = batch[1]
    smaller["image"], smaller["sem_seg"] = smaller["image"][:, :57, :81], smaller["sem_seg"][:57, :81]
    instances = Instances((57, 81), **smaller["instances"].get_fields())
    instances.gt_masks = SegmentMasks(
        instances.gt_masks.segment_map[:57, :81], instances.gt_masks.ids, instances.gt_masks.crowd_ids
    )
    smaller["instances"] = instances
    step(build_model(toy_cfg), batch)


def test_inputs_stay_as_they_are(toy_cfg: CfgNode) -> None:
    for kind in ("usual", "bitmasks"):
        batch, same = make_batch(kind), make_batch(kind)
        step(build_model(toy_cfg), batch)
        assert batch[0].keys() == same[0].keys()
        assert torch.equal(batch[0]["image"], same[0]["image"]) and torch.equal(batch[0]["sem_seg"], same[0]["sem_seg"])
        assert torch.equal(batch[0]["instances"].gt_boxes.tensor, same[0]["instances"].gt_boxes.tensor)
        assert type(batch[0]["instances"].gt_masks) is type(same[0]["instances"].gt_masks)


def test_a_few_steps_learn(toy_cfg: CfgNode) -> None:
    """Gradients point the right way: the six losses of one image fall together."""
    model, batch = build_model(toy_cfg), make_batch("usual")
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    before = step(model, batch)
    for _ in range(15):
        step(model, batch)
        optimizer.step()
    after = step(model, batch)
    assert sum(after.values()) < 0.6 * sum(before.values())
    assert after["loss_sem_seg"] < 0.7 * before["loss_sem_seg"] and after["loss_cls"] < 0.7 * before["loss_cls"]


def test_bf16(toy_cfg: CfgNode) -> None:
    """Under autocast losses and outputs are in float32 and near those without."""
    model = make_model(toy_cfg)
    single = step(model, make_batch("usual"))
    with torch.autocast("cpu", torch.bfloat16):
        half = step(model, make_batch("usual"))
        output = model.eval()([{"image": make_image()}])[0]
    for name in ("loss_sem_seg", "loss_rpn_cls", "loss_cls"):
        assert half[name] == pytest.approx(single[name], rel=0.1), name
    check_output(output, 64, 96)


def test_channel_order_and_normalisation(toy_cfg: CfgNode) -> None:
    model = build_model(toy_cfg)
    image = make_image()
    mean, std = torch.tensor(toy_cfg.MODEL.PIXEL_MEAN), torch.tensor(toy_cfg.MODEL.PIXEL_STD)
    expected = (image - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(model.preprocess_image([{"image": image}]).tensor[0], expected)


NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training and two validation scenes of 64x128 pixels."""
    folder = tmp_path_factory.mktemp("toy") / "streets"
    return write_toy_streets(folder, num_train=4, num_val=2, height=64, width=128, workers=1, progress=False)


@pytest.fixture
def dataset(scenes: Path, toy_cfg: CfgNode) -> Iterator[str]:
    """The validation scenes, registered; the config and a model of it know the classes."""
    name = f"test_panoptic_{next(NUMBERS)}"
    register_panoptic(name, scenes / "val", scenes / "panoptic_val", scenes / "panoptic_val.json")
    Classes.from_metadata(MetadataCatalog.get(name)).to_config(toy_cfg)
    toy_cfg.DATASETS.TEST = (name,)
    toy_cfg.INPUT.MIN_SIZE_TEST, toy_cfg.INPUT.MAX_SIZE_TEST = 48, 96
    toy_cfg.DATALOADER.NUM_WORKERS = 0
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def evaluate(cfg: CfgNode, dataset: str, evaluator: Any) -> dict:
    loader = build_detection_test_loader(cfg, dataset, mapper=SeamlessMapper(cfg, False))
    return inference_on_dataset(make_model(cfg), loader, evaluator)


def test_stock_panoptic_evaluator(toy_cfg: CfgNode, dataset: str, tmp_path: Path) -> None:
    result = evaluate(toy_cfg, dataset, COCOPanopticEvaluator(dataset, str(tmp_path)))["panoptic_seg"]
    assert all(0 <= result[k] <= 100 for k in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"))
    written = json.loads((tmp_path / "predictions.json").read_text())
    is_thing = {c["id"]: c["isthing"] for c in written["categories"]}
    assert len(written["annotations"]) == 2
    for annotation in written["annotations"]:
        # Ids are the data set's, of the right kind.
        assert all(is_thing[s["category_id"]] == ("score" in s) for s in annotation["segments_info"])
        assert {is_thing[s["category_id"]] for s in annotation["segments_info"]} == {0, 1}


def test_stock_instance_evaluator(toy_cfg: CfgNode, dataset: str, tmp_path: Path) -> None:
    evaluator = COCOEvaluator(dataset, ("bbox", "segm"), False, str(tmp_path), use_fast_impl=False)
    result = evaluate(toy_cfg, dataset, evaluator)
    assert set(result) == {"bbox", "segm"} and all(0 <= result[k]["AP"] <= 100 for k in result)
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    ids = set(MetadataCatalog.get(dataset).thing_dataset_id_to_contiguous_id)
    assert len(written) == 60 and {r["category_id"] for r in written} <= ids
    assert all(r["segmentation"]["size"] == [64, 128] for r in written)


def test_stock_semantic_evaluator(toy_cfg: CfgNode, dataset: str, tmp_path: Path) -> None:
    evaluator = SemSegEvaluator(dataset, False, str(tmp_path))
    result = evaluate(toy_cfg, dataset, evaluator)["sem_seg"]
    assert 0 <= result["mIoU"] <= 100 and 0 <= result["pACC"] <= 100
    # Every labelled pixel of the two scenes was judged.
    ground_truth = [SemanticGroundTruth(dataset)(r["sem_seg_file_name"]) for r in DatasetCatalog.get(dataset)]
    assert evaluator._conf_matrix[:, :-1].sum() == sum((t != 255).sum() for t in ground_truth)


def test_stock_visualizer(toy_cfg: CfgNode, dataset: str) -> None:
    metadata = MetadataCatalog.get(dataset)
    pixels = make_image(384, 768).permute(1, 2, 0).numpy()
    output = make_model(toy_cfg)([{"image": make_image(64, 128), "height": 384, "width": 768}])[0]
    panoptic_seg, segments_info = output["panoptic_seg"]
    drawn = Visualizer(pixels, metadata).draw_panoptic_seg(panoptic_seg, segments_info, alpha=1.0).get_image()
    assert drawn.shape == pixels.shape
    # Each stuff segment shows the colour of its class, borders and captions aside.
    assert any(not s["isthing"] and s["area"] > 9000 for s in segments_info)
    for segment in segments_info:
        if not segment["isthing"] and segment["area"] > 9000:
            colors = drawn[(panoptic_seg == segment["id"]).numpy()].astype(int)
            distance = np.abs(colors - metadata.stuff_colors[segment["category_id"]]).max(axis=1)
            assert (distance <= 3).mean() > 0.5
    instances = output["instances"]
    drawn = Visualizer(pixels, metadata).draw_instance_predictions(instances[:5]).get_image()
    assert drawn.shape == pixels.shape and not np.array_equal(drawn, pixels)


def test_training_on_the_registered_set(toy_cfg: CfgNode, dataset: str) -> None:
    toy_cfg.INPUT.MIN_SIZE_TRAIN, toy_cfg.INPUT.MAX_SIZE_TRAIN = (48,), 96
    mapper = SeamlessMapper(toy_cfg, True)
    losses = step(build_model(toy_cfg), [mapper(record) for record in DatasetCatalog.get(dataset)])
    assert losses["loss_sem_seg"] > 0.3 * math.log(STUFF + THINGS)


def test_channels_last_changes_the_layout_only(toy_cfg: CfgNode) -> None:
    plain = make_model(toy_cfg)
    other = make_model(toy_cfg, CHANNELS_LAST=True)
    other.load_state_dict(plain.state_dict())
    assert other.backbone.bottom_up.stem.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    a, b = (m([{"image": make_image()}])[0] for m in (plain, other))
    assert torch.allclose(a["sem_seg"], b["sem_seg"], atol=1e-4 * a["sem_seg"].abs().max().item())
    assert (a["panoptic_seg"][0] == b["panoptic_seg"][0]).float().mean() > 0.99
