"""Results as the objects of other programs, and back from files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks
from PIL import Image

from seamless_d2.errors import UserError
from seamless_d2.prediction.coco import read_results
from seamless_d2.prediction.result import PanopticResult

from ..helpers.images import make_image
from ..helpers.panoptic_files import CLASSES


@pytest.fixture
def result() -> PanopticResult:
    ids = np.zeros((20, 30), np.int32)
    ids[:12], ids[5:9, 3:8], ids[15:, 20:] = 3, 1, 2
    segments = [
        {"id": 1, "isthing": True, "category_id": 0, "score": 0.875},
        {"id": 2, "isthing": True, "category_id": 1, "score": 0.5},
        {"id": 3, "isthing": False, "category_id": 1},
    ]
    return PanopticResult.from_fusion(make_image(20, 30), ids, segments, CLASSES)


def test_masks(result: PanopticResult) -> None:
    masks = result.masks()
    assert masks.shape == (3, 20, 30) and masks.dtype == bool
    assert masks.sum(axis=(1, 2)).tolist() == [20, 50, 12 * 30 - 20]
    assert np.array_equal(masks[1], result.panoptic_seg == 2)
    assert replace(result, segments=[]).masks().shape == (0, 20, 30)


def test_detectron2s_instances(result: PanopticResult) -> None:
    instances = result.to_instances()
    assert len(instances) == 2 and instances.image_size == (20, 30)
    assert torch.equal(instances.pred_boxes.tensor, BitMasks(instances.pred_masks).get_bounding_boxes().tensor)
    assert instances.scores.tolist() == [0.875, 0.5] and instances.pred_classes.tolist() == [0, 1]
    empty = replace(result, segments=result.segments[2:]).to_instances()
    assert len(empty) == 0 and empty.pred_boxes.tensor.shape == (0, 4) and empty.pred_masks.shape == (0, 20, 30)


def test_json(result: PanopticResult) -> None:
    content = json.loads(json.dumps(result.to_json()))
    assert (content["height"], content["width"], content["void"]) == (20, 30, 0)
    assert content["segments"][0] == {
        "id": 1,
        "class": "car",
        "class_id": 7,
        "isthing": True,
        "area": 20,
        "box": [3, 5, 8, 9],
        "score": 0.875,
    }
    tracked = replace(result, segments=[replace(result.segments[0], track_id=4)])
    assert tracked.to_json()["segments"][0]["track_id"] == 4


def test_a_table(result: PanopticResult) -> None:
    pytest.importorskip("pandas")
    table = result.to_dataframe()
    assert table["class_name"].tolist() == ["car", "person", "sky"] and table["area"].tolist() == [20, 50, 340]
    assert table[["x0", "y0", "x1", "y1"]].to_numpy().tolist() == [list(s.box) for s in result.segments]
    empty = replace(result, segments=[]).to_dataframe()
    assert len(empty) == 0 and set(empty.columns) == set(table.columns)


def test_supervision(result: PanopticResult) -> None:
    supervision = pytest.importorskip("supervision")
    found = result.to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 3
    assert found.area.tolist() == [20, 50, 340] and found.confidence.tolist() == [0.875, 0.5, 1.0]
    assert found.class_id.tolist() == [2, 3, 1] and found.data["class_name"].tolist() == ["car", "person", "sky"]
    assert found.tracker_id is None and len(found[found.data["isthing"]]) == 2
    assert len(replace(result, segments=[]).to_supervision()) == 0


def test_coco_files_and_back(result: PanopticResult, tmp_path: Path) -> None:
    ids, content = result.to_coco("7.png", 7)
    (tmp_path / "panoptic").mkdir()
    Image.fromarray(ids).save(tmp_path / "panoptic" / "7.png")
    Image.fromarray(result.image).save(tmp_path / "7.png")
    # As other programs write it: any ids, a segment that has no pixel left.
    ids[..., 1] = np.where(ids[..., 0] > 0, 3, 0)
    Image.fromarray(ids).save(tmp_path / "panoptic" / "8.png")
    other = json.loads(json.dumps(content))
    for segment in other["annotations"][0]["segments_info"]:
        segment["id"] += 3 * 256
    other["annotations"][0]["segments_info"].insert(0, {"id": 5, "category_id": 3, "iscrowd": 0, "area": 0})
    content["annotations"].append(other["annotations"][0] | {"file_name": "8.png", "image_id": 8})
    content["images"].append(content["images"][0] | {"id": 8})
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    assert list(read_results(path, image_dir=tmp_path)) == [result, result]
    blank = next(read_results(path))
    assert blank.segments == result.segments and (blank.image == 255).all()
    content["annotations"][0]["segments_info"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"7\.png holds id 3, which its json does not list"):
        next(read_results(path))
