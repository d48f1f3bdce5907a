"""A training that resumes from damaged, foreign or differently made files says so, and loses nothing."""

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml

from seamless_d2.engine import run
from seamless_d2.engine.config_changes import OVERRIDDEN, check_changes
from seamless_d2.errors import UserError

from ..engine.test_resume import read_metrics

pytestmark = pytest.mark.slow
OPTS = "SOLVER.MAX_ITER 2 SOLVER.LOG_PERIOD 1 SOLVER.CHECKPOINT_PERIOD 1 SEED 3 TEST.NUM_VISUALIZED_IMAGES 0".split()
MORE = ["SOLVER.MAX_ITER", "3", "SOLVER.LR_SCHEDULER_NAME", "MultiStep"]


@pytest.fixture
def trained(tmp_path: Path, arguments) -> Path:
    """The folder of a training of two steps, which may go on to three."""
    run(arguments(*OPTS, "SOLVER.LR_SCHEDULER_NAME", "MultiStep"))
    return tmp_path / "out"


@pytest.mark.parametrize(
    "change",
    ["SOLVER.IMS_PER_BATCH 4", "MODEL.SEAMLESS.GN_GROUPS 2", "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler"],
)
def test_changes_that_break_exactness_are_refused(trained: Path, arguments, change: str) -> None:
    before = (trained / "config.yaml").read_text()
    key, value = change.split()
    with pytest.raises(UserError, match=rf"trained with other settings \({key} .* -> '?{value}'?\)"):
        run(arguments(*OPTS, *MORE, key, value, flags=("--resume",)))
    assert (trained / "config.yaml").read_text() == before
    run(arguments(*OPTS, *MORE, key, value, flags=("--resume", "--allow-config-change")))
    assert value in (trained / "config.yaml").read_text()
    assert f"the training changes from here on: {key}" in (trained / "log.txt").read_text()


def test_what_the_checkpoint_overrides_is_said(trained: Path, arguments) -> None:
    changes = ["SOLVER.BASE_LR", "7.0", "SEED", "4", "SOLVER.MOMENTUM", "0.1", "TEST.EVAL_PERIOD", "9"]
    run(arguments(*OPTS, *MORE, *changes, flags=("--resume",)))
    log = (trained / "log.txt").read_text()
    assert "without effect, because the checkpoint has its own: SEED 3 -> 4, SOLVER.BASE_LR 0.0" in log
    assert "resumed with changed settings: SOLVER.MAX_ITER 2 -> 3, TEST.EVAL_PERIOD 0 -> 9" in log
    rates = [line["lr"] for line in read_metrics(trained)]
    assert max(rates) < 1
    optimizer = torch.load(trained / "model_final.pth", weights_only=True)["trainer"]["_trainer"]["optimizer"]
    assert all(group["momentum"] > 0.5 for group in optimizer["param_groups"])


def test_keys_of_the_table_exist(toy_cfg) -> None:
    old = yaml.safe_load(toy_cfg.dump())
    for key in OVERRIDDEN:
        section, name = old, key.split(".")
        for part in name[:-1]:
            section = section[part]
        assert name[-1] in section, key
    check_changes(toy_cfg.dump(), toy_cfg)
    del old["SEED"]  # as of another version of the program
    check_changes(yaml.safe_dump(old), toy_cfg)


def test_evaluation_leaves_the_config_of_the_training(trained: Path, arguments) -> None:
    before = (trained / "config.yaml").read_text()
    weights = str(trained / "model_final.pth")
    run(arguments("SOLVER.BASE_LR", "7.0", "MODEL.WEIGHTS", weights, flags=("--eval-only",)))
    assert (trained / "config.yaml").read_text() == before


def test_a_damaged_history_does_not_lose_the_best_model(
    trained: Path,
    arguments,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The best of the history, in the checkpoint and in the file.
    checkpoint = trained / "model_final.pth"
    content = torch.load(checkpoint, weights_only=True)
    content["trainer"]["hooks"]["EvaluationHook"] = {1: {"panoptic_seg/PQ": 99.0}}
    torch.save(content, checkpoint)
    (trained / "evaluations.json").write_text('{"1": {"panop')
    (trained / "model_best.pth").write_bytes(b"best")
    with caplog.at_level(logging.WARNING):
        run(arguments(*OPTS, *MORE, flags=("--resume",)))
    assert "evaluations.json is damaged" in caplog.text
    history = json.loads((trained / "evaluations.json").read_text())
    assert history["1"] == {"panoptic_seg/PQ": 99.0} and "3" in history
    assert (trained / "model_best.pth").read_bytes() == b"best"


def test_a_checkpoint_without_its_trainer(trained: Path, arguments) -> None:
    checkpoint = trained / "model_final.pth"
    content = torch.load(checkpoint, weights_only=True)
    torch.save({"model": content["model"]}, checkpoint)
    with pytest.raises(UserError, match="model_final.pth has weights but no state of a trainer.* no --resume"):
        run(arguments(*OPTS, *MORE, flags=("--resume",)))
