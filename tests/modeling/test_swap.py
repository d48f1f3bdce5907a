"""Any registered component of Detectron2 swaps into our model, and ours swap into Detectron2's models."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image

from seamless_d2 import Predictor, add_seamless_config, register_panoptic
from seamless_d2.data.mapper import SeamlessMapper
from seamless_d2.data.registration import register_from_config
from seamless_d2.errors import UserError
from seamless_d2.evaluation import build_evaluators
from seamless_d2.evaluation.tune import make_grid, tune_thresholds
from seamless_d2.modeling import SeamlessPanoptic
from seamless_d2.prediction.batch.run import predict_files

from ..helpers.batches import STUFF, THINGS, make_batch, make_image
from ..helpers.components import BACKBONES, ROI_HEADS, RPNS, SEMANTIC_HEADS

COMBINATIONS = list(itertools.product(BACKBONES.keys() - {"MViT"}, RPNS, ROI_HEADS, SEMANTIC_HEADS))
COMBINATIONS = sorted([*COMBINATIONS, ("MViT", "ours", "ours", "ours")])


def swap(
    cfg: CfgNode, backbone: str = "ours", rpn: str = "ours", roi_heads: str = "ours", head: str = "ours"
) -> CfgNode:
    """The configuration of a model of these components, whose untrained heads find something."""
    for options in (BACKBONES[backbone], RPNS[rpn], ROI_HEADS[roi_heads], SEMANTIC_HEADS[head]):
        cfg.merge_from_list(list(options))
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 8
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    combine.INSTANCES_CONFIDENCE_THRESH, combine.STUFF_AREA_LIMIT = 0.0, 1
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    return cfg


def take_step(model: torch.nn.Module, batch: list[dict]) -> dict[str, float]:
    """One forward and backward pass; every parameter that is trained gets a finite gradient."""
    with EventStorage():
        losses = model.train()(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert sum(g is None for g in gradients) <= 1  # Detectron2's ViT has a position embedding without use at one size
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)
    return {name: loss.item() for name, loss in losses.items()}


def check_output(output: dict[str, Any], height: int, width: int) -> None:
    panoptic_seg, info = output["panoptic_seg"]
    assert panoptic_seg.shape == (height, width) and panoptic_seg.dtype == torch.int32
    areas = torch.bincount(panoptic_seg.flatten(), minlength=len(info) + 1)[1:].tolist()
    assert [s["area"] for s in info] == areas and all(areas)
    assert output["sem_seg"].shape == (STUFF + THINGS, height, width)
    assert output["instances"].pred_masks.shape[1:] == (height, width)


@pytest.mark.parametrize(("backbone", "rpn", "roi_heads", "head"), COMBINATIONS)
def test_every_combination(toy_cfg: CfgNode, backbone: str, rpn: str, roi_heads: str, head: str) -> None:
    """It trains, and infers images of odd and different sizes."""
    cfg = swap(toy_cfg, backbone, rpn, roi_heads, head)
    model = build_model(cfg)
    assert isinstance(model, SeamlessPanoptic)
    losses = take_step(model, make_batch("usual", "bitmasks"))
    assert {"loss_rpn_cls", "loss_rpn_loc", "loss_mask", "loss_sem_seg"} <= set(losses) and losses["loss_sem_seg"] > 0
    with torch.no_grad():
        inputs = [{"image": make_image(67, 101)}, {"image": make_image(50, 61), "height": 80, "width": 90}]
        outputs = model.eval()(inputs)
    check_output(outputs[0], 67, 101)
    check_output(outputs[1], 80, 90)


# Every pair of components of different kinds occurs in one of these at least.
PAIRS = [
    (backbone, rpn, roi_heads, head)
    for k, backbone in enumerate(BACKBONES)
    for j, (roi_heads, head) in enumerate(
        zip(ROI_HEADS, [*SEMANTIC_HEADS][k % 3 :] + [*SEMANTIC_HEADS][: k % 3], strict=True)
    )
    for rpn in [[*RPNS][(k + j) % 2]]
]


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "rpn", "roi_heads", "head"), PAIRS)
def test_prediction_of_pairs(
    toy_cfg: CfgNode, tmp_path: Path, backbone: str, rpn: str, roi_heads: str, head: str
) -> None:
    """Predictor, test-time augmentation and tiling."""
    cfg = swap(toy_cfg, backbone, rpn, roi_heads, head)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    image = make_image(70, 90).permute(1, 2, 0).numpy()
    for options in ({}, {"tta": (1.0,)}, {"tile": (64, 48), "overlap": 16}):
        result = Predictor(cfg, tmp_path / "model.pth", "cpu", **options).predict(image)
        assert result.panoptic_seg.shape == (70, 90)
        assert {s.id for s in result.segments} == set(np.unique(result.panoptic_seg)) - {0}
    # The panoptic map does not depend on whether the other outputs are computed.
    whole = Predictor(cfg, tmp_path / "model.pth", "cpu", raw=True).predict(image)
    plain = Predictor(cfg, tmp_path / "model.pth", "cpu").predict(image)
    assert (whole.panoptic_seg != plain.panoptic_seg).mean() < 0.01


EXAMPLES = [
    ("stock FPN", "stock", "stock", "stock"),
    ("Swin", "ours", "cascade", "ours"),
    ("ViTDet", "stock", "ours", "minimal"),
    ("ours", "ours", "stock", "stock"),
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of two scenes below the data root."""
    from seamless_d2.data.toy_streets import write_toy_streets

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return write_toy_streets(tmp_path / "toy", num_train=1, num_val=2, height=64, width=96, workers=1, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "rpn", "roi_heads", "head"), EXAMPLES)
def test_evaluation_prediction_of_files_and_tuning(
    toy_cfg: CfgNode, files: Path, tmp_path: Path, backbone: str, rpn: str, roi_heads: str, head: str
) -> None:
    cfg = swap(toy_cfg, backbone, rpn, roi_heads, head)
    name = f"swap_{abs(hash((backbone, rpn, roi_heads, head, str(tmp_path))))}"
    cfg.DATASETS.PANOPTIC = [[name, "toy/val", "toy/panoptic_val", "toy/panoptic_val.json"]]
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (name,), str(tmp_path / "out")
    register_from_config(cfg, [name])
    model = build_model(cfg)
    from detectron2.data import build_detection_test_loader

    loader = build_detection_test_loader(cfg, name, mapper=SeamlessMapper(cfg, False), num_workers=0)
    results = inference_on_dataset(model, loader, build_evaluators(cfg, name))
    assert set(results) == {"panoptic_seg", "bbox", "segm", "sem_seg"}
    tuned = tune_thresholds(cfg, model, name, make_grid(cfg, [0.0, 0.3], [0.5], [0, 100]))
    assert tuned.images == 2 and tuned.before["PQ"] == pytest.approx(results["panoptic_seg"]["PQ"])
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    predictor = Predictor(cfg, tmp_path / "model.pth", "cpu", raw=True)
    Image.fromarray(make_image(70, 90).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    summary = predict_files(predictor, [tmp_path / "a.png"], tmp_path / "predicted", ["coco", "raw", "labelled"])
    assert len(summary.written) == 4 and not summary.failures


class UpsideDown(SeamlessPanoptic):
    """A model whose fusion lets the worst instances win."""

    def fuse(self, labels: torch.Tensor, detections: Any, **thresholds: Any) -> tuple:
        flipped = detections[detections.scores.argsort()]
        flipped.scores = torch.linspace(0.9, 0.4, len(flipped))
        return super().fuse(labels, flipped, **thresholds)


def test_a_fusion_rule_of_its_own_reaches_tuning_too(toy_cfg: CfgNode, files: Path, tmp_path: Path) -> None:
    cfg = swap(toy_cfg)
    name = f"swap_own_rule_{abs(hash(str(tmp_path)))}"
    register_panoptic(name, files / "val", files / "panoptic_val", files / "panoptic_val.json")
    cfg.DATASETS.TEST, cfg.TEST.REPORT = (name,), False
    cfg.MODEL.SEAMLESS.OUTPUTS = ["panoptic_seg"]
    model = UpsideDown(cfg).eval()
    from detectron2.data import build_detection_test_loader

    loader = build_detection_test_loader(cfg, name, mapper=SeamlessMapper(cfg, False), num_workers=0)
    measured = inference_on_dataset(model, loader, build_evaluators(cfg, name, str(tmp_path)))["panoptic_seg"]["PQ"]
    tuned = tune_thresholds(cfg, model, name, make_grid(cfg, [0.5], [0.5], [10]))
    assert tuned.before["PQ"] == pytest.approx(measured)


def test_keys_are_added_and_none_of_detectron2_is_changed() -> None:
    plain, ours = get_cfg(), get_cfg()
    add_seamless_config(ours)

    def compare(before: CfgNode, after: CfgNode) -> None:
        for key, value in before.items():
            if isinstance(value, CfgNode):
                compare(value, after[key])
            else:
                assert after[key] == value, key

    compare(plain, ours)


def test_without_masks_there_is_a_sentence(toy_cfg: CfgNode) -> None:
    cfg = swap(toy_cfg)
    cfg.MODEL.MASK_ON = False
    with pytest.raises(UserError, match="MODEL.MASK_ON True"):
        build_model(cfg)
    cfg.MODEL.SEAMLESS.OUTPUTS = ["instances", "sem_seg"]
    output = build_model(cfg).eval()([{"image": make_image()}])[0]
    assert set(output) == {"instances", "sem_seg"} and not output["instances"].has("pred_masks")


def test_feature_maps_that_the_backbone_lacks_are_named(toy_cfg: CfgNode) -> None:
    cfg = swap(toy_cfg, "Swin")
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    with pytest.raises(UserError, match="MODEL.FPN.IN_FEATURES .* p0, p1, p2, p3"):
        build_model(cfg)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("meta_architecture", ["PanopticFPN", "GeneralizedRCNN"])
def test_ours_in_detectron2_models_with_its_mapper(
    toy_cfg: CfgNode, tmp_path: Path, meta_architecture: str, mask_format: str
) -> None:
    """Our RPN, ROI heads, semantic head and backbone under the stock meta-architectures, with stock ground truth."""
    cfg = swap(toy_cfg)
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.INPUT.MASK_FORMAT = mask_format
    Image.fromarray(make_image().permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    labels = np.zeros((64, 96), np.uint8)
    labels[30:] = STUFF
    Image.fromarray(labels).save(tmp_path / "labels.png")
    polygon = [10, 20, 40, 20, 40, 50, 10, 50]
    annotation = {
        "bbox": [10, 20, 40, 50],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 1,
        "segmentation": [polygon],
        "iscrowd": 0,
    }
    record = {"file_name": str(tmp_path / "a.png"), "height": 64, "width": 96, "image_id": 0}
    records = [{**record, "annotations": [annotation]}, {**record, "annotations": []}]
    mapper = DatasetMapper(
        True,
        augmentations=[T.NoOpTransform()],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format=mask_format,
    )
    batch = [mapper({**r, "sem_seg_file_name": str(tmp_path / "labels.png")}) for r in records]
    losses = take_step(build_model(cfg), batch)
    assert losses["loss_mask"] > 0 and losses["loss_rpn_cls"] > 0
    model = build_model(cfg).eval()
    with torch.no_grad():
        output = model([{"image": make_image(), "height": 128, "width": 192}])[0]
    assert output["instances"].pred_masks.shape[1:] == (128, 192)


def test_detections_without_masks_of_the_stock_model(toy_cfg: CfgNode) -> None:
    """A detector alone, as the original's ``detection.ini``."""
    cfg = swap(toy_cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON = "GeneralizedRCNN", False
    batch = make_batch("usual", "no instances")
    for entry in batch:
        entry["instances"].remove("gt_masks")
    losses = take_step(build_model(cfg), batch)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}


def test_probabilities_alone_fuse_as_logits_do(toy_cfg: CfgNode) -> None:
    model = build_model(swap(toy_cfg)).eval()
    output = model.run_network([{"image": make_image()}])[0]
    expected = model.fuse(output.labels(), output.detections)
    output.detections.remove("mask_logits")
    found = model.fuse(output.labels(), output.detections)
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1]
