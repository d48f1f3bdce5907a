"""The dry run's figures against independent counts, and what it finds before the training starts."""

from pathlib import Path

import pytest
import torch
from torch import nn

from seamless_d2.engine import run
from seamless_d2.engine.dry_run import count_flops
from seamless_d2.engine.setup import check_device, load_and_check
from seamless_d2.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture
def dry(arguments):
    def make(*opts: str):
        args = arguments(*opts)
        args.dry_run = True
        return args

    return make


def test_report(tmp_path: Path, dry, capsys: pytest.CaptureFixture) -> None:
    opts = ("INPUT.MIN_SIZE_TRAIN", "(32,64)", "SOLVER.ACCUMULATE_STEPS", "2", "SOLVER.IMS_PER_BATCH", "4")
    report = run(dry(*opts, "SOLVER.MAX_ITER", "50"))
    from detectron2.modeling import build_model

    model = build_model(load_and_check(dry()))
    assert report["parameters"] == report["trainable"] == sum(p.numel() for p in model.parameters())
    assert report["images"] == 4 and report["seconds"] == pytest.approx(50 * report["seconds_per_step"])
    assert 0.1 < report["memory_gb"] < 50 and len(report["losses"]) == 6
    text = capsys.readouterr().out
    assert "1 processes x 2 forward passes x 2; the largest is 96 x 64 pixels" in text  # not 48 x 32
    assert "2 images, all files are there" in text and "50 steps" in text
    assert not (tmp_path / "out").exists()


def test_multiply_adds_of_a_convolution() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 7, 3, padding=1)

        def forward(self, batch: list[dict]) -> list[dict]:
            return [{"x": self.conv(batch[0]["image"][None].float())}]

    model = Net().train()
    assert count_flops(model, {"image": torch.zeros(3, 10, 12)}) == 3 * 7 * 9 * 10 * 12
    assert model.training


def test_what_would_fail_later(tmp_path: Path, dry) -> None:
    with pytest.raises(UserError, match="IMS_PER_BATCH 2 is not divisible by SOLVER.ACCUMULATE_STEPS 3"):
        run(dry("SOLVER.ACCUMULATE_STEPS", "3"))
    with pytest.raises(UserError, match="none.pth"):
        run(dry("MODEL.WEIGHTS", "none.pth"))
    (tmp_path / "toy_streets" / "val" / "000001.png").unlink()
    with pytest.raises(UserError, match=r"_val': 1 files do not exist, the first is .*val/000001.png"):
        run(dry())


def test_too_large_a_batch(dry, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")

    monkeypatch.setattr("seamless_d2.engine.step.TrainingStep.run_step", fail)
    with pytest.raises(UserError, match=r"does not fit into memory \(CUDA out of memory.* SOLVER.ACCUMULATE_STEPS"):
        run(dry())


def test_no_gpu(dry, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_and_check(dry()).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="add MODEL.DEVICE cpu"):
        check_device(cfg)
