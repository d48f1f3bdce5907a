"""AP and mIoU of the heads and of the fused map, at both resolutions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image

from seamless_d2 import get_config, register_panoptic
from seamless_d2.data.derived_files import write_instance_json
from seamless_d2.errors import UserError
from seamless_d2.evaluation import PanopticEvaluator, build_evaluators
from seamless_d2.evaluation.ground_truth import SemanticGroundTruth
from seamless_d2.evaluation.instance_evaluator import fused_instances, resize_instances
from seamless_d2.evaluation.semantic_evaluator import fused_labels
from seamless_d2.structures.classes import Classes

from ..helpers.panoptic_files import scene, unique_name, write_dataset
from .test_ground_truth import perfect_output


def test_fused_instances() -> None:
    panoptic = torch.zeros((6, 8), dtype=torch.int32)
    panoptic[1:3, 2:7], panoptic[2:5, 0:3], panoptic[5] = 1, 2, 3
    info = [
        {"id": 1, "isthing": True, "category_id": 1, "score": 0.75},
        {"id": 2, "isthing": True, "category_id": 0, "score": 0.5},
        {"id": 3, "isthing": False, "category_id": 0},
    ]
    instances = fused_instances(panoptic, info)
    assert instances.pred_boxes.tensor.tolist() == [[2, 1, 7, 3], [0, 2, 3, 5]]
    assert instances.scores.tolist() == [0.75, 0.5] and instances.pred_classes.tolist() == [1, 0]
    assert torch.equal(instances.pred_masks[1], panoptic == 2)
    assert len(fused_instances(panoptic, info[2:])) == 0


def test_fused_labels_keep_large_uncovered_things() -> None:
    # 2 stuff, 2 thing classes; id 1 is a car, id 2 road; the rest is free.
    panoptic = torch.tensor([[1, 1, 0, 0, 0], [2, 2, 0, 0, 0]], dtype=torch.int32)
    semantic = torch.tensor([[2, 0, 3, 3, 1], [0, 0, 3, 2, 1]])
    info = [{"id": 1, "isthing": True, "category_id": 0, "score": 1.0}, {"id": 2, "isthing": False, "category_id": 0}]
    classes = Classes.numbered(4, 2)
    labels = fused_labels(panoptic, info, semantic, classes=classes, area_limit=3)
    assert labels.tolist() == [[2, 2, 3, 3, 4], [0, 0, 3, 4, 4]]  # the single 2 is too small, 1 is stuff too small
    assert fused_labels(panoptic, info, None, classes=classes, area_limit=3).tolist() == [
        [2, 2, 4, 4, 4],
        [0, 0, 4, 4, 4],
    ]
    assert (fused_labels(panoptic * 0, [], None, classes=classes, area_limit=0) == 4).all()


def test_instances_at_another_size() -> None:
    masks = torch.zeros((1, 4, 6), dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    found = Instances((4, 6), pred_masks=masks, pred_boxes=Boxes(torch.tensor([[2.0, 1, 5, 3]])))
    larger = resize_instances(found, (8, 18))
    assert larger.image_size == (8, 18) and larger.pred_boxes.tensor.tolist() == [[6, 2, 15, 6]]
    expected = Image.fromarray(masks[0].numpy()).resize((18, 8), Image.Resampling.NEAREST)
    assert np.array_equal(larger.pred_masks[0].numpy(), np.asarray(expected))
    assert resize_instances(found, (4, 6)) is found and found.pred_boxes.tensor.tolist() == [[2, 1, 5, 3]]
    assert resize_instances(found[:0], (8, 18)).pred_masks.shape == (0, 8, 18)


def register(tmp_path: Path) -> str:
    name = unique_name()
    register_panoptic(name, **write_dataset(tmp_path / "d", {"a": scene(), "b": scene()}))
    return name


def evaluate(name: str, tmp_path: Path, outputs: list[dict], **test_keys) -> dict:
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    for key, value in test_keys.items():
        cfg.TEST[key] = value
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 10
    evaluator = build_evaluators(cfg, name, str(tmp_path / "out"))
    evaluator.reset()
    for record, output in zip(DatasetCatalog.get(name), outputs, strict=True):
        size = output["panoptic_seg"][0].shape
        evaluator.process([{**record, "image": torch.zeros((3, *size))}], [output])
    return evaluator.evaluate()


def imperfect_output(semantic_void: bool = False) -> dict:
    """As the ground truth, but the fused map lacks the second car and the persons; the heads have all."""
    output = perfect_output()
    panoptic, info = output["panoptic_seg"]
    for segment, score in zip(info[2:], (0.9, 0.8), strict=True):
        segment["score"] = score
    panoptic[panoptic == 4] = 0
    if semantic_void:  # no head says that cars are there
        output["sem_seg"][2] = 0
    return {**output, "panoptic_seg": (panoptic, info[:3])}


def test_modes_judge_heads_or_the_fused_map(tmp_path: Path) -> None:
    name = register(tmp_path)
    separate = evaluate(name, tmp_path, [imperfect_output() for _ in range(2)])
    assert separate["sem_seg"]["mIoU"] == 100 and round(separate["segm"]["AP-car"]) == 100
    fused = evaluate(name, tmp_path, [imperfect_output() for _ in range(2)], EVAL_MODE="panoptic")
    assert fused["panoptic_seg"] == separate["panoptic_seg"]
    # One of two cars is found, precisely.
    assert fused["segm"]["AP-car"] == pytest.approx(50.5, abs=0.1)
    # Uncovered cars and persons keep their semantic class, as in the original.
    assert fused["sem_seg"]["mIoU"] == 100 and not any("void" in key for key in fused["sem_seg"])
    # Where they have none, they are void, which counts against the true class: 80 of 340 pixels are left.
    fused = evaluate(name, tmp_path, [imperfect_output(True) for _ in range(2)], EVAL_MODE="panoptic")
    assert fused["sem_seg"]["IoU-car"] == pytest.approx(100 * 80 / 340, abs=1e-9)


def test_network_resolution(tmp_path: Path) -> None:
    name = register(tmp_path)
    ids, _ = scene()
    size = (32, 44)  # no sample falls on the border of two pixels
    rows, columns = (((np.arange(n) + 0.5) * (m / n)).astype(int) for n, m in zip(size, ids.shape, strict=True))
    outputs = []
    for _ in range(2):
        output = imperfect_output()
        panoptic, info = output["panoptic_seg"]
        output["panoptic_seg"] = panoptic[rows][:, columns], info
        output["sem_seg"] = output["sem_seg"][:, rows][:, :, columns]
        outputs.append({**output, "instances": resize_instances(output["instances"], size)})
    results = evaluate(name, tmp_path, outputs, EVAL_RESOLUTION="input")
    # Ground truth is sampled at the same places, so that what is there is perfect; one of two cars is missing.
    assert results["panoptic_seg"]["PQ_st"] == 100 and results["sem_seg"]["mIoU"] == 100
    assert results["panoptic_seg"]["PQ-car"] == pytest.approx(100 / 1.5)
    # AP is measured at the image's size.
    assert results["segm"]["AP50"] == pytest.approx(100)
    with pytest.raises(UserError, match="44 x 32 pixels and the ground truth 60 x 40"):
        evaluator = PanopticEvaluator(name)
        evaluator.process(DatasetCatalog.get(name), outputs)
        evaluator.evaluate()


def test_given_instance_json_with_crowd(tmp_path: Path) -> None:
    """With a json of the data set's own: detections inside a crowd are not false, and cost without the crowd."""
    results = []
    for crowd in (1, None):
        files = write_dataset(tmp_path / str(crowd), {"a": scene(), "b": scene()})
        name, source = unique_name(), unique_name()
        register_panoptic(source, **files)
        derived = json.loads(write_instance_json(source, tmp_path).read_text())
        kept = [a for a in derived["annotations"] if not a["iscrowd"] or crowd]
        # One person that is found with a lower score than what lies in the crowd.
        for image in derived["images"]:
            person = {"id": 100 + image["id"], "image_id": image["id"], "category_id": 90, "iscrowd": 0, "area": 16}
            square = {"bbox": [20, 2, 4, 4], "segmentation": [[20, 2, 24, 2, 24, 6, 20, 6]]}
            kept = [*kept, {**person, **square}]
        path = tmp_path / f"instances_{crowd}.json"
        path.write_text(json.dumps({**derived, "annotations": kept}))
        register_panoptic(name, **files, instance_json=path)
        outputs = []
        for _ in range(2):
            output = imperfect_output()
            masks = torch.zeros((2, 40, 60), dtype=torch.bool)
            masks[0, 16:24, 53:57], masks[1, 2:6, 20:24] = True, True
            boxes = Boxes(torch.tensor([[53.0, 16, 57, 24], [20, 2, 24, 6]]))
            fields = {"scores": torch.tensor([0.9, 0.8]), "pred_classes": torch.tensor([1, 1])}
            output["instances"] = Instances((40, 60), pred_masks=masks, pred_boxes=boxes, **fields)
            outputs.append(output)
        results.append(evaluate(name, tmp_path, outputs)["segm"]["AP-person"])
    assert results[0] == pytest.approx(100) and results[1] < 60


@pytest.mark.parametrize("boundary", [False, True])
@pytest.mark.parametrize("mode", ["separate", "panoptic"])
def test_semantic_metrics_are_detectron2s(tmp_path: Path, mode: str, boundary: bool) -> None:
    """Keys and values of ``SemSegEvaluator``; void of the fused map is one more class there."""
    name = register(tmp_path)
    classes = Classes.from_metadata(MetadataCatalog.get(name))
    outputs = []
    for seed in range(2):
        output = imperfect_output()
        noise = torch.rand(output["sem_seg"].shape, generator=torch.Generator().manual_seed(seed))
        outputs.append({**output, "sem_seg": output["sem_seg"] + 1.2 * noise})
    results = evaluate(name, tmp_path, outputs, EVAL_MODE=mode, BOUNDARY_IOU=boundary)["sem_seg"]
    for reported in json.loads((tmp_path / "out" / "metrics.json").read_text())["per_class"].values():
        for key, metric in (("iou", "IoU"), ("boundary_iou", "BoundaryIoU")):
            if boundary or key == "iou":
                assert 100 * reported[key] == pytest.approx(results[f"{metric}-{reported['class']}"])
            else:
                assert key not in reported
    metadata = MetadataCatalog.get(unique_name())
    metadata.set(
        stuff_classes=[*classes.names, *(["void"] if mode == "panoptic" else [])], ignore_label=255, thing_classes=[]
    )
    DatasetCatalog.register(metadata.name, lambda: DatasetCatalog.get(name))
    reference = SemSegEvaluator(metadata.name, False, sem_seg_loading_fn=SemanticGroundTruth(name))
    reference.reset()
    for record, output in zip(DatasetCatalog.get(name), outputs, strict=True):
        scores = output["sem_seg"]
        if mode == "panoptic":
            labels = fused_labels(*output["panoptic_seg"], scores.argmax(dim=0), classes=classes, area_limit=10)
            scores = torch.nn.functional.one_hot(labels, len(classes.names) + 1).permute(2, 0, 1)
            assert (labels == len(classes.names)).any()
        reference.process([record], [{"sem_seg": scores}])
    expected = {key: value for key, value in reference.evaluate()["sem_seg"].items() if not key.endswith("-void")}
    assert any("Boundary" in key for key in expected)
    if not boundary:
        expected = {key: value for key, value in expected.items() if "Boundary" not in key and "min(" not in key}
    assert list(results) == list(expected) and 0 < results["mIoU"] < 100
    assert results == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_mistakes(tmp_path: Path) -> None:
    name = register(tmp_path)
    for key in ("EVAL_MODE", "EVAL_RESOLUTION", "PQ_RULES"):
        with pytest.raises(UserError, match=f"TEST.{key} is .x.; it must be one of"):
            evaluate(name, tmp_path, [], **{key: "x"})
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    cfg.TEST.EVAL_MODE, cfg.MODEL.SEAMLESS.OUTPUTS = "panoptic", ["sem_seg"]
    with pytest.raises(UserError, match="needs panoptic_seg"):
        build_evaluators(cfg, name, str(tmp_path))
