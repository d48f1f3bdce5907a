"""Label 255 means void: more than 255 classes are refused, and 255 are right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from seamless_d2 import register_panoptic
from seamless_d2.data.mapper import SeamlessMapper
from seamless_d2.errors import UserError
from seamless_d2.evaluation.ground_truth import SemanticGroundTruth
from seamless_d2.evaluation.semantic_evaluator import SemanticEvaluator
from seamless_d2.seamseg.dataset_to_coco import write_seamseg
from seamless_d2.structures.classes import Classes

from ..helpers.panoptic_files import unique_name, write_dataset


def write_classes(root: Path, count: int) -> dict[str, Path]:
    """A data set of one image in which the last class fills the upper half; the lower one is void."""
    ids = np.zeros((4, 6), int)
    ids[:2] = 9
    categories = [{"id": k, "name": f"class {k}", "isthing": 0} for k in range(1, count + 1)]
    return write_dataset(root, {"a": (ids, [{"id": 9, "category_id": count, "iscrowd": 0}])}, categories)


def test_256_classes_are_refused(tmp_path: Path, toy_cfg) -> None:
    files = write_classes(tmp_path / "d", 256)
    words = r"d/panoptic\.json: there are 256 classes, but at most 255 are supported, because label 255 means void"
    with pytest.raises(UserError, match=words):
        register_panoptic(unique_name(), **files)
    with pytest.raises(UserError, match=words):
        write_seamseg(tmp_path / "s", {"x": tuple(files.values())})
    toy_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 256
    toy_cfg.MODEL.SEAMLESS.CLASS_NAMES = [f"class {k}" for k in range(256)]
    with pytest.raises(UserError, match="there are 256 classes"):
        Classes.from_config(toy_cfg)
    toy_cfg.MODEL.SEAMLESS.CLASS_NAMES = []
    with pytest.raises(UserError, match="NUM_CLASSES 256, label 255 .*IGNORE_VALUE.* is a class as well as void"):
        build_model(toy_cfg)


def test_255_classes(tmp_path: Path) -> None:
    name = unique_name()
    register_panoptic(name, **write_classes(tmp_path / "d", 255))
    (record,) = DatasetCatalog.get(name)
    classes = Classes.numbered(255, 0)
    mapper = SeamlessMapper(is_train=True, augmentations=[], image_format="RGB", classes=classes)
    labels = mapper(record)["sem_seg"]
    assert labels[:2].eq(254).all() and labels[2:].eq(255).all()
    assert np.array_equal(SemanticGroundTruth(name)(record["sem_seg_file_name"]), labels.numpy())
    scores = torch.zeros(255, 4, 6)
    scores[254] = 1
    segments = [{"id": 1, "isthing": False, "category_id": 254}]
    outputs = {"sem_seg": scores, "panoptic_seg": ((labels == 254).int(), segments)}
    for fused in (False, True):  # predicted void has label 255 in the fused mode, true void 256 in its boundary
        options = {"resize_ground_truth": False, "boundary": True, "fuse_at": "output", "area_limit": 1}
        evaluator = SemanticEvaluator(name, fused=fused, **options)
        evaluator.process([record], [outputs])
        metrics = evaluator.evaluate()["sem_seg"]
        assert metrics["IoU-class 255"] == 100 and metrics["BoundaryIoU-class 255"] == 100
    assert json.loads((tmp_path / "d" / "panoptic.json").read_text())["categories"][-1]["id"] == 255
