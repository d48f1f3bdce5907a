"""A tiny untrained model on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from seamless_d2 import Predictor
from seamless_d2.data.metadata import Classes

from ..conftest import small_config
from ..data.panoptic_files import CATEGORIES


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Yaml and weights: all that a prediction needs."""
    root = tmp_path_factory.mktemp("model")
    cfg = small_config()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2, 4
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 1
    # An untrained model is sure of nothing.
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.3
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATASETS.TEST = ("prediction_test",)
    Classes.from_categories(CATEGORIES, "test").to_config(cfg)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, root / "model.pth")
    (root / "model.yaml").write_text(cfg.dump())
    return root / "model.yaml", root / "model.pth"


@pytest.fixture(scope="session")
def predictor(model_files: tuple[Path, Path]) -> Predictor:
    return Predictor(*model_files, device="cpu")


def photo(height: int = 50, width: int = 70, seed: int = 3) -> np.ndarray:
    """Noise."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
