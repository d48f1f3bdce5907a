"""Two gloo processes on one machine against one process: gradients, statistics, evaluation, weights, faults."""

import copy
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from seamless_d2.engine import SeamlessTrainer, run, setup
from seamless_d2.engine.step import wrap_for_processes
from seamless_d2.errors import UserError

from ..helpers.processes import run_in_two_processes
from .test_resume import assert_same, final
from .test_step import image_with_ground_truth

pytestmark = pytest.mark.slow


def gradients_and_buffers(model: torch.nn.Module, data: list[dict]) -> dict[str, torch.Tensor]:
    with EventStorage():
        sum(model(data).values()).backward()
    bare = getattr(model, "module", model)
    gradients = {name: p.grad for name, p in bare.named_parameters() if p.grad is not None}
    return {**gradients, **{f"buffer {name}": b.clone() for name, b in bare.named_buffers()}}


def compute_in_two_processes(cfg: CfgNode, weights: dict, data: list[dict], file: Path) -> list[dict]:
    """What each process has after forwards and backwards of its half of ``data``."""

    def work() -> None:
        model = build_model(cfg)
        model.load_state_dict(weights)
        rank = comm.get_rank()
        result = gradients_and_buffers(wrap_for_processes(model), data[2 * rank : 2 * rank + 2])
        torch.save(result, f"{file}{rank}")

    run_in_two_processes(work)
    return [torch.load(f"{file}{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("norm", ["GN", "FrozenBN"])
def test_gradients_are_the_mean_over_the_halves(tmp_path: Path, toy_cfg: CfgNode, norm: str) -> None:
    toy_cfg.MODEL.RESNETS.NORM = norm
    model = build_model(toy_cfg)
    data = [image_with_ground_truth(k) for k in range(4)]
    # The images of the second half in the other order: sampling is the image's own business.
    halves = [gradients_and_buffers(copy.deepcopy(model), half) for half in (data[:2], data[3:1:-1])]
    found = compute_in_two_processes(toy_cfg, model.state_dict(), data, tmp_path / "gradients")
    assert_same(found[0], found[1])
    assert halves[0].keys() == found[0].keys()
    for name, value in found[0].items():
        expected = (halves[0][name] + halves[1][name]) / 2
        assert torch.allclose(value, expected, rtol=1e-4, atol=1e-6), name
    # The halves do differ.
    assert not torch.allclose(halves[0]["backbone.fpn_output2.weight"], halves[1]["backbone.fpn_output2.weight"])


def test_synchronised_statistics_are_those_of_the_joint_batch(tmp_path: Path, toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.RESNETS.NORM = toy_cfg.MODEL.FPN.NORM = "SyncBN"
    model = build_model(toy_cfg)
    data = [image_with_ground_truth(k) for k in range(4)]
    found = compute_in_two_processes(toy_cfg, model.state_dict(), data, tmp_path / "statistics")
    joint = gradients_and_buffers(model, data)
    statistics = [name for name in joint if name.endswith(("running_mean", "running_var"))]
    assert len(statistics) > 40
    for name in statistics:
        assert torch.equal(found[0][name], found[1][name])
        assert torch.allclose(found[0][name], joint[name], rtol=1e-4, atol=1e-6), name


OPTS = """
SOLVER.MAX_ITER 3 SOLVER.CHECKPOINT_PERIOD 2 SEED 11 TEST.NUM_VISUALIZED_IMAGES 0 SOLVER.IMS_PER_BATCH 4
SOLVER.EMA.ENABLED True
SOLVER.ACCUMULATE_STEPS 2 SOLVER.ON_NONFINITE skip MODEL.RESNETS.NORM SyncBN SOLVER.LOG_PERIOD 1
""".split()


def test_training_in_two_processes(tmp_path: Path, arguments) -> None:
    out, ended = tmp_path / "out", tmp_path / "weights"

    def work(*opts: str, spoil: int = -1) -> None:
        original = SeamlessTrainer.run_step

        def run_step(self) -> None:
            if self.iter == spoil and comm.get_rank() == 1:
                forward = self.model.module.sem_seg_head.losses
                self.model.module.sem_seg_head.losses = lambda *a, **k: forward(*a, **k) * float("nan")
                original(self)
                self.model.module.sem_seg_head.losses = forward
            else:
                original(self)
            torch.save(self.model.module.state_dict(), f"{ended}{comm.get_rank()}")

        SeamlessTrainer.run_step = run_step
        run(arguments(*OPTS, "OUTPUT_DIR", str(out), *opts, flags=("--resume",)))

    # The second step is spoiled in process 1: both leave it out.
    run_in_two_processes(lambda: work(spoil=1))
    weights = [torch.load(f"{ended}{rank}", weights_only=True) for rank in range(2)]
    assert_same(*weights)
    assert_same(final(out)["model"], weights[0])
    log = (out / "log.txt").read_text()
    assert "iteration 1: process 1: loss_sem_seg not finite, images" in log and "step skipped (1 of at most 10)" in log
    assert final(out)["trainer"]["_trainer"]["skipped"] == 1
    assert len(final(out)["trainer"]["_trainer"]["random"]) == 2
    # Evaluation was shared by the two, and gives what one process finds.
    evaluations = json.loads((out / "evaluations.json").read_text())["3"]
    parser_opts = ("--eval-only", "MODEL.WEIGHTS", str(out / "model_final.pth"))
    alone = run(arguments(*OPTS, "OUTPUT_DIR", str(tmp_path / "alone"), *parser_opts[1:], flags=parser_opts[:1]))
    assert evaluations["panoptic_seg/PQ"] == pytest.approx(alone["panoptic_seg"]["PQ"], nan_ok=True)
    assert evaluations["sem_seg/mIoU"] == pytest.approx(alone["sem_seg"]["mIoU"], nan_ok=True)
    assert evaluations["segm/AP"] == pytest.approx(alone["segm"]["AP"], nan_ok=True)
    # The last step again, from the checkpoint before it: the same weights in both.
    for name in ("model_final.pth", "last_checkpoint", "evaluations.json"):
        (out / name).unlink()
    before = weights[0]
    run_in_two_processes(work)
    assert_same(final(out)["model"], before)
    assert "Starting training from iteration 2" in (out / "log.txt").read_text()


def test_output_on_a_disk_that_others_do_not_see(tmp_path: Path, arguments) -> None:
    def work() -> None:
        folder = tmp_path / str(comm.get_rank())  # as on two machines without a common disk
        opts = (
            "OUTPUT_DIR",
            str(folder),
            "SOLVER.MAX_ITER",
            "1",
            "SOLVER.IMS_PER_BATCH",
            "2",
            "TEST.NUM_VISUALIZED_IMAGES",
            "0",
        )
        run(arguments(*opts))
        with pytest.raises(UserError, match=r"different iterations \(\[1, 0\]\); put OUTPUT_DIR"):
            run(arguments(*opts, flags=("--resume",)))

    run_in_two_processes(work)


def test_fewer_processes_than_the_recipe(arguments) -> None:
    base = "SOLVER.IMS_PER_BATCH 8 SOLVER.MAX_ITER 40 SOLVER.STEPS (20,) TEST.EVAL_PERIOD 1 SOLVER.CHECKPOINT_PERIOD 1"
    args = arguments(*base.split(), "SOLVER.REFERENCE_WORLD_SIZE", "4", "SOLVER.STEP_SIZE", "10")
    trainer = SeamlessTrainer(setup(args))
    solver = trainer.cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.STEPS, solver.STEP_SIZE) == (2, 160, (80,), 40)
    assert solver.BASE_LR == pytest.approx(setup(args).SOLVER.BASE_LR / 4) and trainer.max_iter == 160
    assert len(next(trainer.data_loader)) == 2
    cfg = setup(arguments(*base.split(), "SOLVER.REFERENCE_WORLD_SIZE", "2", "SOLVER.SCHEDULE_BY", "epoch"))
    # More processes than the recipe: periods do not vanish, epochs stay epochs.
    scaled = SeamlessTrainer.auto_scale_workers(cfg, 8)
    assert (scaled.TEST.EVAL_PERIOD, scaled.SOLVER.CHECKPOINT_PERIOD, scaled.SOLVER.STEPS) == (1, 1, (20,))
    assert scaled.SOLVER.IMS_PER_BATCH == 32
    with pytest.raises(UserError, match="REFERENCE_WORLD_SIZE 3"):
        SeamlessTrainer(setup(arguments(*base.split(), "SOLVER.REFERENCE_WORLD_SIZE", "3")))
