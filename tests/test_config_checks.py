"""Every wrong value gets one sentence that names the key, before anything starts."""

import pytest

from seamless_d2.config import config_file, get_config, load_config
from seamless_d2.config_checks import RULES, check_config
from seamless_d2.errors import UserError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", "-0.1"),
        ("SOLVER.BASE_LR", "1e999"),
        ("MODEL.DEVICE", "gpu"),
        ("DATALOADER.NUM_WORKERS", "-1"),
        ("SOLVER.LR_SCHEDULER_NAME", "Cosine"),
        ("SOLVER.LOG_PERIOD", "0"),
        ("INPUT.MIN_SIZE_TRAIN", "()"),
        ("INPUT.MIN_SIZE_TRAIN", "(-64, 64)"),
        ("INPUT.MIN_SIZE_TEST", "-1"),
        ("INPUT.MAX_SIZE_TEST", "0"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "random"),
        ("MODEL.PIXEL_MEAN", "[1.0, 2.0]"),
        ("MODEL.PIXEL_STD", "[1.0, 2.0, 0.0]"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full"),
        ("MODEL.META_ARCHITECTURE", "SeamlesPanoptic"),
        ("MODEL.BACKBONE.NAME", "build_nothing"),
        ("MODEL.SEM_SEG_HEAD.NAME", "NoHead"),
        ("SEED", "4294967296"),
        ("SOLVER.MAX_ITER", "0"),
        ("SOLVER.MAX_ITER", "-5"),
        ("SOLVER.EMA.DECAY", "1.5"),
        ("SOLVER.MOMENTUM", "1.1"),
        ("SOLVER.WARMUP_ITERS", "-1"),
        ("SOLVER.CHECKPOINT_PERIOD", "-1"),
        ("TEST.EVAL_PERIOD", "-1"),
        ("SOLVER.EPOCHS", "-1"),
        ("SOLVER.CHECKPOINTS_TO_KEEP", "-1"),
        ("MODEL.SEM_SEG_HEAD.LOSS_TOP_K", "0.0"),
        ("MODEL.SEM_SEG_HEAD.LOSS_TOP_K", "1.5"),
        ("MODEL.BACKBONE.FREEZE_AT", "9"),
        ("MODEL.RPN.IN_FEATURES", "[]"),
        ("SOLVER.AMP.DTYPE", "fp8"),
        ("SOLVER.ON_NONFINITE", "ignore"),
        ("TEST.PQ_RULES", "none"),
    ],
)
def test_wrong_values(key: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^{key} is .*; it must be [^\n]+$"):
        load_config("toy_streets/seamless_R_18_FPN.yaml", [key, value])


def test_values_that_must_agree() -> None:
    for key, value, words in (
        (
            "MODEL.ANCHOR_GENERATOR.SIZES",
            "[[32], [64]]",
            "SIZES has 2 lists for the 5 features of MODEL.RPN",
        ),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", 'SAMPLING "range" needs two values'),
    ):
        with pytest.raises(UserError, match=words):
            load_config("toy_streets/seamless_R_18_FPN.yaml", [key, value])


def test_every_key_of_the_table_exists_and_detectron2s_defaults_are_accepted() -> None:
    from detectron2.config import get_cfg

    from seamless_d2.config import add_seamless_config

    cfg = get_cfg()
    add_seamless_config(cfg)
    check_config(cfg)
    keys = [key for keys, _ in RULES for key in keys.split()]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", ["RetinaNet-Base", "COCO-Detection/faster_rcnn_R_50_FPN_1x"])
def test_detectron2s_own_configs_are_accepted(name: str) -> None:
    pytest.importorskip("detectron2.model_zoo")
    from detectron2 import model_zoo

    try:
        file = model_zoo.get_config_file(f"{name}.yaml" if "/" in name else "COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    except RuntimeError:
        pytest.skip("this Detectron2 comes without its configs")
    load_config(file)


def test_features_that_the_backbone_does_not_have() -> None:
    from detectron2.modeling import build_model

    for section in ("RPN", "ROI_HEADS", "SEM_SEG_HEAD"):
        cfg = get_config("toy_streets/seamless_R_18_FPN")
        cfg.MODEL[section].IN_FEATURES = [*cfg.MODEL[section].IN_FEATURES[:-1], "p9"]
        with pytest.raises(UserError, match=rf"MODEL\.{section}\.IN_FEATURES lists 'p9', which the backbone build_"):
            build_model(cfg)


def test_a_file_is_checked_too(tmp_path) -> None:
    base = config_file("toy_streets/seamless_R_18_FPN.yaml")
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {base}\nSOLVER:\n  MAX_ITER: -5\n")
    with pytest.raises(UserError, match="SOLVER.MAX_ITER is -5; it must be at least 1"):
        load_config(tmp_path / "mine.yaml")
