"""The streaming evaluator against Detectron2's, in one and in two processes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from panopticapi.evaluation import pq_compute

from seamless_d2 import register_panoptic
from seamless_d2.evaluation import PanopticEvaluator
from seamless_d2.evaluation.tables import write_per_class

from ..helpers.panoptic_files import scene, unique_name, write_dataset
from ..helpers.processes import run_in_two_processes


def images(number: int) -> dict:
    """Scenes that differ in a moved car."""
    result = {}
    for k in range(number):
        ids, segments = scene()
        ids[30:36, 16 + k : 20 + k] = 1
        for segment in segments:
            segment["area"] = int((ids == segment["id"]).sum())
        result[f"im{k}"] = (ids, segments)
    return result


def prediction(record: dict, seed: int) -> dict:
    """A prediction with right, shifted, wrong and missing segments."""
    ids, _ = images(seed + 1)[f"im{seed}"]
    panoptic = np.zeros(ids.shape, np.int32)
    for new, old in ((1, 100_000), (2, 300), (3, 1), (4, 70_000)):
        panoptic[ids == old] = new
    panoptic[:, : -seed or None] = panoptic[:, seed:]
    panoptic[15:25, 52:60] = 5  # where the crowd is
    panoptic[:3, :3] = 6
    info = [
        {"id": 1, "isthing": False, "category_id": 1},
        {"id": 2, "isthing": False, "category_id": 0},
        {"id": 3, "isthing": True, "category_id": seed % 2},
        {"id": 4, "isthing": True, "category_id": 0},
        {"id": 5, "isthing": True, "category_id": 1},
        {"id": 6, "isthing": True, "category_id": 0},  # on void
    ]
    return {"panoptic_seg": (torch.from_numpy(panoptic), info)}


def run(evaluator, name: str) -> dict:
    evaluator.reset()
    for seed, record in enumerate(DatasetCatalog.get(name)):
        evaluator.process([record], [prediction(record, seed)])
    return evaluator.evaluate()["panoptic_seg"]


def test_equals_detectron2s_evaluator(tmp_path: Path) -> None:
    name = unique_name()
    files = write_dataset(tmp_path / "d", images(5))
    register_panoptic(name, **files)
    evaluator = PanopticEvaluator(name, str(tmp_path / "ours"), save_predictions=True)
    ours = run(evaluator, name)
    theirs = run(COCOPanopticEvaluator(name, str(tmp_path / "theirs")), name)
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-9)
    assert 0 < ours["PQ"] < 100 and ours["PQ-person"] < ours["PQ-sky"]
    # The files that it writes on request say the same to panopticapi.
    again = pq_compute(
        str(files["panoptic_json"]),
        str(tmp_path / "ours" / "predictions.json"),
        str(files["panoptic_dir"]),
        str(tmp_path / "ours" / "predictions"),
    )
    assert 100 * again["All"]["pq"] == pytest.approx(ours["PQ"], abs=1e-9)
    write_per_class(tmp_path / "per_class.csv", evaluator.classes, evaluator.statistics)
    with open(tmp_path / "per_class.csv", newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["road", "sky", "car", "person"]
    assert 100 * float(rows["car"]["pq"]) == pytest.approx(ours["PQ-car"]) and rows["car"]["kind"] == "thing"
    assert rows["car"]["category_id"] == "7" and 0 < float(rows["road"]["iou"]) < 1
    assert int(rows["road"]["tp"]) + int(rows["road"]["fn"]) == 5


def test_nothing_is_written_unless_asked_for(tmp_path: Path) -> None:
    name = unique_name()
    register_panoptic(name, **write_dataset(tmp_path / "d", images(2)))
    run(PanopticEvaluator(name), name)
    run(PanopticEvaluator(name, str(tmp_path / "out")), name)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    name = unique_name()
    register_panoptic(name, **write_dataset(tmp_path / "d", images(5)))
    evaluator = PanopticEvaluator(name)
    alone = run(evaluator, name)

    def evaluate_share() -> None:
        evaluator.reset()
        for seed, record in enumerate(DatasetCatalog.get(name)):
            if seed % 2 == comm.get_rank():
                evaluator.process([record], [prediction(record, seed)])
        result = evaluator.evaluate()
        assert (result is None) == (comm.get_rank() == 1)
        if result is not None:
            kept = evaluator.statistics
            result["panoptic_seg"]["images"] = kept.images
            result["panoptic_seg"]["confusion"] = kept.confusion.ravel().tolist()
            result["panoptic_seg"]["worst"] = [example.image_id for example in kept.worst]
            (tmp_path / "result.json").write_text(json.dumps(result["panoptic_seg"]))

    run_in_two_processes(evaluate_share)
    together = json.loads((tmp_path / "result.json").read_text())
    kept = evaluator.statistics
    assert together.pop("images") == kept.images == 5
    assert together.pop("confusion") == kept.confusion.ravel().tolist()
    assert together.pop("worst") == [example.image_id for example in kept.worst]
    assert together == pytest.approx(alone, abs=1e-9)
