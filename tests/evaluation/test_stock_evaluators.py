"""Detectron2's evaluators after nothing but ``register_panoptic``: they run unchanged and agree with ours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Instances

from seamless_d2 import get_config
from seamless_d2.evaluation import build_evaluators

from .test_ground_truth import perfect_output, register


def imperfect_outputs() -> list[dict]:
    """One car is found too far right, one person inside the crowd, some labels are wrong."""
    outputs = []
    for seed in range(2):
        output = perfect_output()
        output["sem_seg"] = output["sem_seg"] + 1.2 * torch.rand(
            output["sem_seg"].shape, generator=torch.Generator().manual_seed(seed)
        )
        panoptic, info = output["panoptic_seg"]
        panoptic[15:25, 52:60] = 5
        info.append({"id": 5, "isthing": True, "category_id": 1})
        panoptic[25:38, 30 : 38 + 5 * seed] = 2
        found = output["instances"]
        masks = torch.cat([found.pred_masks, torch.zeros((1, 40, 60), dtype=torch.bool)])
        masks[1] = masks[1].roll(3 + 3 * seed, dims=1)
        masks[2, 16:24, 53:57] = True
        instances = Instances((40, 60), pred_masks=masks, pred_boxes=found.pred_boxes.cat([found.pred_boxes] * 2)[:3])
        instances.pred_boxes.tensor[2] = torch.tensor([53.0, 16, 57, 24])
        instances.scores, instances.pred_classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1])
        outputs.append({**output, "panoptic_seg": (panoptic, info), "instances": instances})
    return outputs


def run(evaluator, name: str) -> dict:
    evaluator.reset()
    for record, output in zip(DatasetCatalog.get(name), imperfect_outputs(), strict=True):
        evaluator.process([{**record, "image": torch.zeros(3, 40, 60)}], [output])
    return evaluator.evaluate()


def test_they_run_and_agree(tmp_path: Path) -> None:
    name = register(tmp_path)
    theirs = {}
    for evaluator in (COCOPanopticEvaluator, COCOEvaluator, SemSegEvaluator):
        theirs |= run(evaluator(name, output_dir=str(tmp_path / "theirs")), name)
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    cfg.TEST.BOUNDARY_IOU = True
    ours = run(build_evaluators(cfg, name, str(tmp_path / "ours")), name)
    assert set(theirs) == set(ours) == {"panoptic_seg", "bbox", "segm", "sem_seg"}
    for task, metrics in theirs.items():
        for key, value in metrics.items():
            assert ours[task][key] == pytest.approx(value, abs=1e-9, nan_ok=True), (task, key)
    assert theirs["panoptic_seg"]["PQ"] < 100 and 0 < theirs["sem_seg"]["mIoU"] < 100
    # The shifted cars have IoU 17/23 and 14/26: all four count at 0.5, three up to 0.7, two above. The crowd excuses.
    expected = 100 * (1 + 4 * 76 / 101 + 5 * 51 / 101) / 10
    assert theirs["segm"]["AP-car"] == pytest.approx(expected) and np.isnan(theirs["segm"]["AP-person"])
