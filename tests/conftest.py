"""Fixtures of all tests, and the table of measured differences that the parity tests leave behind."""

import argparse
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from seamless_d2 import Predictor, get_config
from seamless_d2.data.toy_streets import write_toy_streets
from seamless_d2.engine import build_parser
from seamless_d2.structures.classes import Classes

from .helpers.panoptic_files import CATEGORIES
from .helpers.reference import SHARED, Differences

_DIFFERENCES = pytest.StashKey[Differences]()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    # The threads of small operations wait for each other: on a busy machine two are several times slower than one.
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Derived files of the data sets of tests do not go to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FVCORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Tools that run in this process leave none: pools that later tests fork would inherit it and could hang."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with the original's images and further cases."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/reference (the original's images and cases)")
    return SHARED


@pytest.fixture
def toy_cfg() -> CfgNode:
    """See ``small_config``."""
    return small_config()


def small_config() -> CfgNode:
    """The toy_streets model (5 stuff, 3 thing classes) with a few channels, for images of about 64x96."""
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    cfg.MODEL.SEAMLESS.GN_GROUPS = 4
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RPN.CONV_DIMS = [16]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 200
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 8
    cfg.MODEL.SEM_SEG_HEAD.POOLING_SIZE = [8, 8]
    cfg.DATASETS.PANOPTIC = []
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    return cfg


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
        return build_parser().parse_args(command)

    return make


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


@pytest.fixture(scope="session")
def differences(request: pytest.FixtureRequest) -> Differences:
    """Collects what the parity tests measure; printed when all tests are done."""
    return request.config.stash.setdefault(_DIFFERENCES, Differences())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for title, lines in config.stash.get(_DIFFERENCES, Differences()).tables():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs a tool in this process; returns its exit code or message, and what it printed."""

    def run(name: str, *arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(request.config.rootpath / "tools" / name), run_name="__main__")
        except SystemExit as error:
            code = error.code
        captured = capsys.readouterr()
        return code, captured.out + (captured.err if code == 2 else "")

    return run
