"""Training, evaluation and resuming as tools/train_net.py does them, on a few toy scenes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.evaluation import DatasetEvaluator

from seamless_d2.engine import SeamlessTrainer, launch, run
from seamless_d2.errors import UserError

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask", "loss_sem_seg"}


@pytest.mark.slow
def test_train_resume_and_evaluate(tmp_path: Path, arguments) -> None:
    results = run(arguments())
    assert {"panoptic_seg", "bbox", "segm", "sem_seg"} <= set(results)
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    assert LOSSES <= set(lines[0]) and all(torch.tensor(lines[0][name]).isfinite() for name in LOSSES)
    assert {"config.yaml", "model_final.pth", "model_best.pth", "log.txt", "last_checkpoint"} <= {
        p.name for p in out.iterdir()
    }
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    assert any(p.name.startswith("events.out.tfevents") for p in out.iterdir())
    # The report names the checkpoint of the weights that it is about.
    facts = json.loads((out / "inference" / "metrics.json").read_text())["facts"]
    digest = hashlib.sha256((out / "model_final.pth").read_bytes()).hexdigest()[:16]
    assert facts["weights"] == {"file": str(out / "model_final.pth"), "sha256": digest}
    # Going on with a longer schedule starts after the last iteration.
    run(arguments("SOLVER.MAX_ITER", "6", flags=("--resume", "--allow-config-change")))
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 5
    # config.yaml and the checkpoint are enough to evaluate.
    parser = default_argument_parser()
    weights = str(out / "model_final.pth")
    again = run(parser.parse_args(["--config-file", str(out / "config.yaml"), "--eval-only", "MODEL.WEIGHTS", weights]))
    assert json.loads((out / "evaluation.json").read_text())["panoptic_seg"]["PQ"] == again["panoptic_seg"]["PQ"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["RepeatFactorTrainingSampler", "GroupedBatchSampler"])
def test_samplers_and_crops(arguments, sampler: str) -> None:
    opts = ["DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.REPEAT_THRESHOLD", "0.5", "SOLVER.MAX_ITER", "1"]
    crop = ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "[48, 48]"]
    assert "panoptic_seg" in run(arguments(*opts, *crop))


CROPS = """
INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute INPUT.CROP.SIZE [48,48] INPUT.COPY_PASTE 0.5 INPUT.COLOR_JITTER 0.2
DATALOADER.SAMPLER_TRAIN InstanceScaleUniformSampler MODEL.RPN.BBOX_REG_LOSS_TYPE crop_aware_smooth_l1
MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE crop_aware_smooth_l1 TEST.EVAL_PERIOD 0
SOLVER.LR_SCHEDULER_NAME MultiStep SOLVER.STEPS (100,)
""".split()


@pytest.mark.slow
def test_training_on_crops_resumes_exactly(tmp_path: Path, arguments) -> None:
    """With everything that is drawn at random, in two processes of the loader and in none."""
    opts = [*CROPS, "SEED", "5"]
    run(arguments(*opts))
    weights = torch.load(tmp_path / "out" / "model_final.pth")["model"]
    folder = ["OUTPUT_DIR", str(tmp_path / "again")]
    run(arguments(*opts, *folder, "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "2"))
    run(arguments(*opts, *folder, flags=("--resume", "--allow-config-change")))
    again = torch.load(tmp_path / "again" / "model_final.pth")["model"]
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


@pytest.mark.slow
def test_starting_from_another_model(tmp_path: Path, arguments) -> None:
    """The first weights are those of the other model; a resumed training keeps its own."""
    run(arguments("SOLVER.MAX_ITER", "1"))
    first = tmp_path / "out" / "model_final.pth"
    state = torch.load(first)["model"]
    # Nothing is learned at a rate of zero.
    opts = ["MODEL.INIT_FROM", str(first), "OUTPUT_DIR", str(tmp_path / "next"), "SOLVER.BASE_LR", "0.0"]
    report = run(arguments(*opts, flags=("--dry-run",)))
    assert report["images"] == 4
    run(arguments(*opts, "SOLVER.MAX_ITER", "1"))
    started = torch.load(tmp_path / "next" / "model_final.pth")["model"]
    trained = [name for name in state if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(started[name], state[name]) for name in trained)
    first.unlink()
    run(arguments(*opts, "SOLVER.MAX_ITER", "2", flags=("--resume", "--allow-config-change")))
    with pytest.raises(UserError, match="model_final.pth does not exist"):
        run(arguments(*opts, "OUTPUT_DIR", str(tmp_path / "third")))


@pytest.mark.slow
def test_resume_needs_no_pretrained_network(tmp_path: Path, arguments) -> None:
    """A machine that a training resumes on may have neither the file nor a way to the hub."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    file = tmp_path / "network.pth"
    torch.save(timm.create_model("test_convnext").state_dict(), file)
    opts = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "test_convnext"]
    opts += ["MODEL.TIMM.PRETRAINED", str(file), "TEST.EVAL_PERIOD", "0"]
    run(arguments(*opts, "SOLVER.MAX_ITER", "2"))
    file.unlink()
    longer = ["SOLVER.MAX_ITER", "3", "MODEL.TIMM.GRAD_CHECKPOINTING", "True"]
    assert run(arguments(*opts, *longer, flags=("--resume", "--dry-run")))["images"] == 4
    run(arguments(*opts, *longer, flags=("--resume", "--allow-config-change")))
    content = torch.load(tmp_path / "out" / "model_final.pth")
    assert content["iteration"] == 2 and f"PRETRAINED: {file}" in content["trainer"]["config"]
    with pytest.raises(UserError, match=r"there is no file .*network.pth"):
        run(arguments(*opts, "OUTPUT_DIR", str(tmp_path / "other"), flags=("--resume",)))


@pytest.mark.slow
def test_mistakes_are_told_before_anything_is_written(tmp_path: Path, arguments) -> None:
    for opts, words in (
        (["MODEL.WEIGHTS", "none.pth"], "none.pth"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "5"], "NUM_CLASSES"),
        (["DATASETS.TRAIN", "('unheard_of',)"], "unheard_of"),
        (["DATALOADER.SAMPLER_TRAIN", "Nothing"], "GroupedBatchSampler"),
        (["MODEL.BACKBONE.FREEZE_AT", "2", "MODEL.SEAMLESS.FUSE_AT", "x"], "FUSE_AT"),
    ):
        with pytest.raises(UserError, match=words):
            run(arguments(*opts))
    with pytest.raises(UserError, match="no weights given"):
        run(arguments(flags=("--eval-only",)))
    assert not list((tmp_path / "out").glob("*.pth"))


@pytest.mark.slow
def test_epochs_set_the_length(tmp_path: Path, arguments) -> None:
    run(arguments("SOLVER.EPOCHS", "1"))  # 4 images, 2 a batch
    assert torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["iteration"] == 1


def test_a_vanished_image_is_named(tmp_path: Path, arguments) -> None:
    for image in (tmp_path / "toy_streets" / "train").iterdir():
        image.unlink()
    with pytest.raises(UserError, match=r"train/0000\d\d.png does not exist"):
        run(arguments())


class CountingTrainer(SeamlessTrainer):
    """A trainer with an evaluation of its own."""

    evaluated: list[str] = []

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str) -> DatasetEvaluator:
        cls.evaluated.append(dataset_name)
        return super().build_evaluator(cfg, dataset_name)


@pytest.mark.slow
def test_a_trainer_of_its_own(tmp_path: Path, arguments) -> None:
    run(arguments("SOLVER.MAX_ITER", "1", "TEST.NUM_VISUALIZED_IMAGES", "0"), trainer=CountingTrainer)
    assert len(CountingTrainer.evaluated) == 1
    weights = str(tmp_path / "out" / "model_final.pth")
    run(arguments("MODEL.WEIGHTS", weights, flags=("--eval-only",)), trainer=CountingTrainer)
    assert len(CountingTrainer.evaluated) == 2


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True])
def test_detectors_without_a_semantic_head(tmp_path: Path, arguments, masks: bool) -> None:
    """The original's detection.ini and instance_seg.ini: Detectron2's GeneralizedRCNN of our components."""
    opts = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.MASK_ON", str(masks), "SOLVER.MAX_ITER", "1"]
    results = run(arguments(*opts, "MODEL.SEAMLESS.OUTPUTS", "['instances']"))
    assert set(results) == ({"bbox", "segm"} if masks else {"bbox"})


def test_no_gpu_is_not_the_cpu(arguments) -> None:
    with pytest.raises(UserError, match="--num-gpus must be at least 1, not 0; the CPU is MODEL.DEVICE cpu"):
        launch(run, arguments(flags=("--num-gpus", "0")))
