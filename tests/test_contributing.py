"""The recipes of CONTRIBUTING.md, executed as they stand."""

import json
import re
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image

from seamless_d2 import Predictor
from seamless_d2.data.mapper import SeamlessMapper
from seamless_d2.prediction.batch.run import predict_files
from seamless_d2.prediction.formats import FORMATS

from .helpers.batches import make_batch, make_image

RECIPES = re.findall(
    r"^## An? (.+?)\n(.*?)(?=^## |\Z)", (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(), re.M | re.S
)


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    """What the recipes define; a later one may use an earlier one's imports."""
    return {"__name__": "recipes"}


@pytest.fixture(autouse=True)
def formats() -> Iterator[None]:
    """The format of the recipe is forgotten at the end."""
    with unittest.mock.patch.dict(FORMATS):
        yield


def train_and_infer(cfg: CfgNode) -> dict:
    model = build_model(cfg)
    with EventStorage():
        losses = model.train()(make_batch("usual"))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    with torch.no_grad():
        return model.eval()([{"image": make_image(67, 101)}])[0]


@pytest.mark.parametrize(("title", "text"), RECIPES, ids=[title for title, _ in RECIPES])
def test_recipe(
    title: str, text: str, namespace: dict, toy_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("my_labels", "my_images"):
        Path(folder).mkdir()
    labels = np.ones((64, 96), np.uint8)
    labels[20:40, 30:60] = 2
    Image.fromarray(labels).save("my_labels/a.png")
    Image.fromarray(make_image().permute(1, 2, 0).numpy()).save("my_images/a.jpg")
    namespace["cfg"] = toy_cfg
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(code, f"CONTRIBUTING.md: {title}", "exec"), namespace)
    if title == "data set":
        (record,) = DatasetCatalog.get("my_data")
        assert len(record["segments_info"]) == 2 and MetadataCatalog.get("my_data").thing_classes == ["car"]
        toy_cfg.MODEL.ROI_HEADS.NUM_CLASSES, toy_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1, 2
        assert len(SeamlessMapper(toy_cfg, True)(record)["instances"]) == 1
        DatasetCatalog.remove("my_data")
        MetadataCatalog.remove("my_data")
    elif title == "output format":
        toy_cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 1
        torch.save({"model": build_model(toy_cfg).state_dict()}, "model.pth")
        summary = predict_files(Predictor(toy_cfg, "model.pth", "cpu"), ["my_images"], "out", ["areas"])
        assert [p.name for p in summary.written] == ["a_areas.json"] and json.loads(summary.written[0].read_text())
    else:
        output = train_and_infer(toy_cfg)
        assert output["sem_seg"].shape == (8, 67, 101)


def test_there_are_five_recipes() -> None:
    assert [title for title, _ in RECIPES] == ["data set", "semantic head", "loss", "backbone", "output format"]
