"""Ground truth derived from the panoptic ground truth, and perfect predictions scoring perfectly."""

import json

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from seamless_d2 import get_config, register_panoptic
from seamless_d2.data.derived_files import write_instance_json
from seamless_d2.evaluation import build_evaluators
from seamless_d2.evaluation.ground_truth import SemanticGroundTruth

from ..helpers.panoptic_files import scene, unique_name, write_dataset


def register(tmp_path) -> str:
    name = unique_name()
    register_panoptic(name, **write_dataset(tmp_path / "d", {"a": scene(), "b": scene()}))
    return name


def test_semantic_ground_truth(tmp_path) -> None:
    name = register(tmp_path)
    ids, _ = scene()
    labels = SemanticGroundTruth(name)(DatasetCatalog.get(name)[0]["sem_seg_file_name"], dtype=np.int64)
    expected = np.full(ids.shape, 255)
    for segment, label in ((100_000, 1), (300, 0), (1, 2), (70_000, 2), (5, 3)):
        expected[ids == segment] = label
    assert labels.dtype == np.int64 and np.array_equal(labels, expected)


def test_instance_json(tmp_path) -> None:
    name = register(tmp_path)
    ids, _ = scene()
    path = write_instance_json(name, tmp_path)
    content = json.loads(path.read_text())
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(7, "car"), (90, "person")]
    first = [a for a in content["annotations"] if a["image_id"] == 17]
    assert [(a["category_id"], a["iscrowd"], a["area"], a["bbox"]) for a in first] == [
        (7, 0, 80, [5, 22, 10, 8]),
        (7, 0, 260, [30, 25, 20, 13]),
        (90, 1, 80, [52, 15, 8, 10]),
    ]
    assert np.array_equal(coco_mask.decode(first[1]["segmentation"]), ids == 70_000)
    # A changed data set never meets the old file.
    source = MetadataCatalog.get(name).panoptic_json
    with open(source, "a") as file:
        file.write(" ")
    assert write_instance_json(name, tmp_path) != path


def perfect_output() -> dict:
    ids, _ = scene()
    mapping = {100_000: 1, 300: 2, 1: 3, 70_000: 4}
    panoptic = np.zeros(ids.shape, np.int32)
    for segment, new in mapping.items():
        panoptic[ids == segment] = new
    info = [
        {"id": 1, "isthing": False, "category_id": 1},
        {"id": 2, "isthing": False, "category_id": 0},
        {"id": 3, "isthing": True, "category_id": 0},
        {"id": 4, "isthing": True, "category_id": 0},
    ]
    scores = np.zeros((4, *ids.shape), np.float32)
    for segment, label in ((100_000, 1), (300, 0), (1, 2), (70_000, 2), (5, 3)):
        scores[label][ids == segment] = 1
    instances = Instances(ids.shape)
    instances.pred_boxes = Boxes(torch.tensor([[5.0, 22, 15, 30], [30, 25, 50, 38]]))
    instances.scores = torch.tensor([0.9, 0.8])
    instances.pred_classes = torch.tensor([0, 0])
    instances.pred_masks = torch.from_numpy(np.stack([ids == 1, ids == 70_000]))
    return {
        "panoptic_seg": (torch.from_numpy(panoptic), info),
        "sem_seg": torch.from_numpy(scores),
        "instances": instances,
    }


def test_perfect_predictions_score_100(tmp_path) -> None:
    name = register(tmp_path)
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    evaluator = build_evaluators(cfg, name, str(tmp_path / "out"))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        output = perfect_output()
        evaluator.process([record], [output])
        assert "isthing" in output["panoptic_seg"][1][0]  # the model's dicts stay whole
    results = evaluator.evaluate()
    panoptic = results["panoptic_seg"]
    # The only persons are a crowd, which counts for nothing: that class has no PQ.
    assert panoptic["PQ"] == panoptic["PQ_st"] == panoptic["PQ_th"] == 100
    assert round(results["bbox"]["AP"]) == round(results["segm"]["AP"]) == 100
    assert results["sem_seg"]["mIoU"] == 100
    assert not any("Boundary" in key or "BIoU" in key for key in results["sem_seg"])


def test_wrong_class_costs(tmp_path) -> None:
    name = register(tmp_path)
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    cfg.MODEL.SEAMLESS.OUTPUTS = ["panoptic_seg"]
    evaluator = build_evaluators(cfg, name, str(tmp_path / "out"))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        output = perfect_output()
        output["panoptic_seg"][1][3]["category_id"] = 1  # one car called a person
        evaluator.process([record], [output])
    results = evaluator.evaluate()
    assert set(results) == {"panoptic_seg"}
    # car: 2 TP, 2 FN -> 2/3; person: 2 FP -> 0; stuff 100.
    assert abs(results["panoptic_seg"]["PQ_th"] - 100 / 3) < 1e-6
    assert results["panoptic_seg"]["PQ_st"] == 100
