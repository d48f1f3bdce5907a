"""Two processes measure and save the same model, whatever the normalization layers: before and after a kill."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from seamless_d2.engine import SeamlessTrainer, run

from ..engine.test_resume import assert_same, final
from ..helpers.processes import run_in_two_processes

pytestmark = pytest.mark.slow

OPTS = """
SOLVER.MAX_ITER 4 SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 2 SEED 11 TEST.NUM_VISUALIZED_IMAGES 0
SOLVER.IMS_PER_BATCH 2 SOLVER.EMA.ENABLED True TEST.PRECISE_BN.NUM_ITER 2
""".split()


@pytest.mark.parametrize(("norm", "precise"), [("BN", "False"), ("BN", "True"), ("SyncBN", "False")])
def test_what_is_evaluated_is_what_is_saved(tmp_path: Path, arguments, norm: str, precise: str) -> None:
    norms = ("MODEL.RESNETS.NORM", norm, "MODEL.FPN.NORM", norm, "TEST.PRECISE_BN.ENABLED", precise)

    def train(folder: Path, kill: bool = False) -> None:
        test = SeamlessTrainer._test

        def evaluate(self: SeamlessTrainer) -> dict:
            if kill:
                comm.synchronize()  # the checkpoint is complete
                os.kill(os.getpid(), signal.SIGKILL)
            models = {"model": self.checkpointer.model, "ema": self._trainer.ema.model}
            state = {key: model.state_dict() for key, model in models.items()}
            torch.save(state, folder / f"evaluated{comm.get_rank()}.pth")
            return test(self)

        SeamlessTrainer._test = evaluate
        run(arguments(*OPTS, *norms, "OUTPUT_DIR", str(folder), flags=("--resume",)))

    calm = tmp_path / "calm"
    run_in_two_processes(lambda: train(calm))
    saved = final(calm)
    for rank in range(2):
        evaluated = torch.load(calm / f"evaluated{rank}.pth", weights_only=True)
        assert_same(evaluated["model"], saved["model"])
        assert_same(evaluated["ema"], saved["trainer"]["_trainer"]["ema"]["weights"])
    killed = tmp_path / "killed"
    run_in_two_processes(lambda: train(killed, kill=True), codes=[-signal.SIGKILL] * 2)
    assert (killed / "last_checkpoint").read_text() == "model_0000001.pth"
    run_in_two_processes(lambda: train(killed))
    assert_same(final(killed), saved)
    assert (killed / "evaluations.json").read_text() == (calm / "evaluations.json").read_text()
    # ``--eval-only`` of the file finds the same.
    weights = ("MODEL.WEIGHTS", str(calm / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "alone"))
    alone = run(arguments(*OPTS, *norms, *weights, flags=("--eval-only",)))
    during = json.loads((calm / "evaluations.json").read_text())["4"]
    for task, metric in (("panoptic_seg", "PQ"), ("sem_seg", "mIoU"), ("segm", "AP"), ("bbox", "AP")):
        assert during[f"{task}/{metric}"] == pytest.approx(alone[task][metric], nan_ok=True), metric
