"""Arguments of tools/train_net.py for a tiny model on a few toy scenes."""

import argparse
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from seamless_d2.data.toy_streets import write_toy_streets


@pytest.fixture
def arguments(tmp_path: Path, toy_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
    """Makes the arguments of train_net.py for the tiny model, KEY VALUE pairs first, flags after."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    # Both take longer than such a training.
    monkeypatch.setattr("seamless_d2.engine.trainer.plot_metrics", lambda folder: None)
    monkeypatch.setattr("detectron2.engine.defaults.collect_env_info", str)
    root = tmp_path / "toy_streets"
    write_toy_streets(root, num_train=4, num_val=2, height=64, width=96, workers=1, progress=False)
    name = tmp_path.name.replace("-", "_")
    cfg = toy_cfg.clone()
    cfg.DATASETS.PANOPTIC = [
        [f"{name}_{s}", f"toy_streets/{s}", f"toy_streets/panoptic_{s}", f"toy_streets/panoptic_{s}.json"]
        for s in ("train", "val")
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"{name}_train",), (f"{name}_val",)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 2, 4, 2
    cfg.SOLVER.WARMUP_ITERS = 1
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    (tmp_path / "config.yaml").write_text(cfg.dump())

    def make(*opts: str, flags: tuple[str, ...] = ()) -> argparse.Namespace:
        command = ["--config-file", str(tmp_path / "config.yaml"), *flags, *opts]
        return default_argument_parser().parse_args(command)

    return make
