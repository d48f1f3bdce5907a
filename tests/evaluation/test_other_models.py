"""The evaluators, the report and the drawings on what other models of Detectron2 return."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor, nn

from seamless_d2 import get_config
from seamless_d2.engine.prediction_images import draw_predictions
from seamless_d2.evaluation import build_evaluators
from seamless_d2.evaluation.model_output import read_panoptic_seg
from seamless_d2.structures.classes import Classes

from .test_ground_truth import perfect_output, register


def stock_output() -> tuple[Tensor, list[dict]]:
    """A perfect map in the form of Detectron2's ``PanopticFPN``: things without area, stuff without score."""
    panoptic, info = perfect_output()["panoptic_seg"]
    for number, segment in enumerate(info):
        if segment["isthing"]:
            segment |= {"score": 0.9 - 0.1 * number, "instance_id": number}
        else:
            segment["area"] = int((panoptic == segment["id"]).sum())
    return panoptic, info


def least_output() -> tuple[Tensor, list[dict]]:
    """The keys that Detectron2 requires, and no other."""
    return perfect_output()["panoptic_seg"]


def numbered_output() -> tuple[Tensor, None]:
    """A map without a list, in the form of Detectron2's Panoptic-DeepLab: label * 1000 + instance, -1 = void."""
    panoptic, _ = perfect_output()["panoptic_seg"]
    return torch.tensor([-1, 1000, 0, 2001, 2002], dtype=torch.int32)[panoptic.long()], None


class OtherModel(nn.Module):
    """Returns the same map for every image."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, inputs: list[dict]) -> list[dict]:
        return [{"panoptic_seg": self.make()} for _ in inputs]


def test_numbered_maps() -> None:
    """With and without void, ids are 1..K and the labels go to the right kind of class."""
    classes = Classes.numbered(4, 2)
    for void in (-1, 3007):
        panoptic_seg = torch.tensor([[void, 0, 1000], [2005, 2001, 1000]], dtype=torch.int32)
        ids, segments = read_panoptic_seg({"panoptic_seg": (panoptic_seg, None)}, classes)
        labels = {s["id"]: classes.to_label(s) for s in segments}
        found = [[labels.get(i, -1) for i in row] for row in ids.tolist()]
        assert found == [[-1 if void < 0 else 3, 0, 1], [2, 2, 1]]
        assert (
            sorted(labels) == list(range(1, 5 + (void > 0)))
            and ids[1, 0] != ids[1, 1]
            and (ids[0, 0] == 0) == (void < 0)
        )


@pytest.mark.parametrize("make", [stock_output, least_output, numbered_output])
def test_evaluation_and_drawings(tmp_path: Path, make) -> None:
    name = register(tmp_path)
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    classes = Classes.from_metadata(MetadataCatalog.get(name))
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes.num_things, len(classes.names)
    cfg.TEST.EVAL_MODE, cfg.TEST.SAVE_PREDICTIONS, cfg.DATASETS.TEST = "panoptic", True, (name,)
    evaluator = build_evaluators(cfg, name, str(tmp_path / "out"))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([{**record, "image": torch.zeros(3, 40, 60)}], [{"panoptic_seg": make()}])
    results = evaluator.evaluate()
    assert results["panoptic_seg"]["PQ"] == 100 and round(results["segm"]["AP-car"]) == 100
    assert results["sem_seg"]["IoU-car"] == results["sem_seg"]["IoU-sky"] == 100
    assert results["sem_seg"]["IoU-person"] == 0  # the crowd is not predicted
    page = (tmp_path / "out" / "report.html").read_text()
    assert ("no scores" in page) == (make is not stock_output)
    saved = json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"][0]["segments_info"]
    assert sorted(s["area"] for s in saved) == sorted(np.bincount(least_output()[0].ravel())[1:])
    assert sum("score" in s for s in saved) == (2 if make is stock_output else 0)
    drawn = [draw_predictions(cfg, OtherModel(form))[0][1] for form in (make, least_output)]
    assert np.array_equal(*drawn) == (make is not stock_output)  # the names carry the scores
