"""Tiny networks of timm, of random weights, learn as fast as the ResNet-18 of the demo."""

from pathlib import Path

import pytest

from seamless_d2.data.toy_streets import write_toy_streets
from seamless_d2.engine import run
from seamless_d2.engine.setup import build_parser

pytest.importorskip("timm", reason="timm is not installed")

# The PQ on its 16 scenes of the demo's own model after as many iterations (ResNet-18, SGD); no things yet.
DEMO = 23.9
SCHEDULE = """
SOLVER.MAX_ITER 60 SOLVER.WARMUP_ITERS 15 SOLVER.OPTIMIZER AdamW SOLVER.BASE_LR 0.001 SOLVER.WEIGHT_DECAY 0.05
SOLVER.CLIP_GRADIENTS.ENABLED True SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model SOLVER.CLIP_GRADIENTS.CLIP_VALUE 5.0
INPUT.MIN_SIZE_TRAIN (80,) INPUT.MIN_SIZE_TEST 80 MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT 30
MODEL.BACKBONE.NAME build_timm_fpn_backbone TEST.NUM_VISUALIZED_IMAGES 0
""".split()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_a_tiny_network_keeps_up_with_the_demo(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of convolutions and one transformer: at most five points of PQ behind after as many iterations."""
    monkeypatch.setattr("seamless_d2.engine.trainer.plot_metrics", lambda folder: None)
    monkeypatch.setattr("detectron2.engine.defaults.collect_env_info", str)
    data = tmp_path / "toy_streets"
    write_toy_streets(data, num_train=16, num_val=1, height=80, width=160, workers=1, progress=False)
    entry = [f"learning_{name}", str(data / "train"), str(data / "panoptic_train"), str(data / "panoptic_train.json")]
    options = [
        *SCHEDULE,
        "DATASETS.PANOPTIC",
        str([entry]),
        "MODEL.TIMM.NAME",
        name,
        "OUTPUT_DIR",
        str(tmp_path / "out"),
    ]
    options += ["DATASETS.TRAIN", str((entry[0],)), "DATASETS.TEST", str((entry[0],))]
    results = run(build_parser().parse_args(["--config-file", "toy_streets/seamless_R_18_FPN.yaml", *options]))
    assert results["panoptic_seg"]["PQ"] > DEMO - 5
