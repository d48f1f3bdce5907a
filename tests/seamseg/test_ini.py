"""The original's ini: every key is mapped or explained, every mistake is named."""

import pytest

from seamless_d2.config import load_config
from seamless_d2.errors import UserError
from seamless_d2.seamseg.ini import convert_ini
from seamless_d2.seamseg.ini_defaults import DEFAULTS, NOT_APPLICABLE
from seamless_d2.seamseg.weights import convert_config, settings_to_config

from ..helpers.original_files import metadata_bytes

# A second valid value for each key; the converted settings must change with it.
OTHER = {
    ("general", "eval_mode"): "separate",
    ("general", "score_threshold"): "0.4",
    ("general", "overlap_threshold"): "0.3",
    ("general", "min_stuff_area"): "2048",
    ("general", "cudnn_benchmark"): "yes",
    ("body", "body"): "resnet101",
    ("body", "normalization_mode"): "syncbn+gn",
    ("body", "activation"): "elu",
    ("body", "activation_slope"): "0.2",
    ("body", "gn_groups"): "8",
    ("body", "num_frozen"): "1",
    ("body", "bn_frozen"): "no",
    ("fpn", "out_channels"): "128",
    ("fpn", "extra_scales"): "2",
    ("rpn", "hidden_channels"): "64",
    ("rpn", "anchor_ratios"): "(1., 3.)",
    ("rpn", "anchor_scale"): "4",
    ("rpn", "nms_threshold"): "0.6",
    ("rpn", "num_pre_nms_train"): "11",
    ("rpn", "num_post_nms_train"): "12",
    ("rpn", "num_pre_nms_val"): "13",
    ("rpn", "num_post_nms_val"): "14",
    ("rpn", "min_size"): "0",
    ("rpn", "num_samples"): "128",
    ("rpn", "pos_ratio"): "0.4",
    ("rpn", "pos_threshold"): "0.8",
    ("rpn", "neg_threshold"): "0.2",
    ("rpn", "void_threshold"): "0.6",
    ("rpn", "fpn_min_level"): "0",
    ("rpn", "fpn_levels"): "3",
    ("rpn", "sigma"): "2.",
    ("roi", "roi_size"): "(10, 10)",
    ("roi", "num_samples"): "64",
    ("roi", "pos_ratio"): "0.3",
    ("roi", "pos_threshold"): "0.6",
    ("roi", "neg_threshold_hi"): "0.4",
    ("roi", "neg_threshold_lo"): "0.1",
    ("roi", "void_threshold"): "0.5",
    ("roi", "void_is_background"): "yes",
    ("roi", "nms_threshold"): "0.4",
    ("roi", "score_threshold"): "0.1",
    ("roi", "max_predictions"): "50",
    ("roi", "fpn_levels"): "3",
    ("roi", "fpn_canonical_scale"): "112",
    ("roi", "fpn_canonical_level"): "1",
    ("roi", "sigma"): "2.",
    ("roi", "bbx_reg_weights"): "(1., 2., 3., 4.)",
    ("sem", "fpn_levels"): "3",
    ("sem", "pooling_size"): "(32, 16)",
    ("sem", "ohem"): "None",
    ("optimizer", "lr"): "0.1",
    ("optimizer", "weight_decay"): "0.01",
    ("optimizer", "weight_decay_norm"): "no",
    ("optimizer", "momentum"): "0.8",
    ("optimizer", "nesterov"): "no",
    ("optimizer", "loss_weights"): "(1., 2., 3., 4., 5., 6.)",
    ("scheduler", "epochs"): "10",
    ("scheduler", "update_mode"): "epoch",
    ("scheduler", "params"): '{"gamma": 0.8}',
    ("scheduler", "burn_in_steps"): "100",
    ("scheduler", "burn_in_start"): "0.1",
    ("dataloader", "shortest_size"): "512",
    ("dataloader", "longest_max_size"): "1000",
    ("dataloader", "train_batch_size"): "2",
    ("dataloader", "rgb_mean"): "(0.1, 0.2, 0.3)",
    ("dataloader", "rgb_std"): "(0.1, 0.2, 0.3)",
    ("dataloader", "random_flip"): "no",
    ("dataloader", "random_scale"): "(0.5, 1, 2)",
    ("dataloader", "num_workers"): "4",
}
# Keys of which only the default is supported; anything else is an error.
FIXED = {
    ("body", "body_params"): '{"caffe_mode": true}',
    ("fpn", "interpolation"): "bilinear",
    ("fpn", "inputs"): '["mod3", "mod4", "mod5"]',
    ("rpn", "stride"): "2",
}
BASE = "[dataloader]\nnum_workers = 8\n"


def with_key(section: str, key: str, value: str) -> str:
    return f"[{section}]\n{key} = {value}\n"


@pytest.mark.parametrize(("section", "key"), [(s, k) for s, keys in DEFAULTS.items() for k in keys])
def test_every_key_is_mapped_or_explained(section: str, key: str) -> None:
    before = convert_ini(BASE).settings
    if (section, key) in NOT_APPLICABLE:
        notes = convert_ini(with_key(section, key, "1")).notes
        assert any(note.startswith(f"[{section}] {key} = 1: ") for note in notes)
    elif (section, key) in FIXED:
        with pytest.raises(UserError, match=key):
            convert_ini(with_key(section, key, FIXED[section, key]))
    elif (section, key) == ("scheduler", "type"):
        text = with_key(section, key, "linear") + 'params = {"from": 1, "to": 0.1}\n'
        assert convert_ini(text).settings["SOLVER.LINEAR_RANGE"] == [1.0, 0.1]
    elif key == "fpn_min_level":
        assert convert_ini(with_key(section, key, "1") + "fpn_levels = 3\n").settings != before
    else:
        after = convert_ini(with_key(section, key, OTHER[section, key])).settings
        assert after != before
        settings_to_config(after)  # every value has the type that the configuration wants


def test_conventions_are_turned_over() -> None:
    settings = convert_ini(with_key("roi", "bbx_reg_weights", "(1., 2., 3., 4.)")).settings
    assert settings["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"] == [2, 1, 4, 3]  # y, x, h, w -> x, y, w, h
    settings = convert_ini(with_key("optimizer", "loss_weights", "(2., 6., 3., 4., 5., 7.)")).settings
    assert settings["MODEL.RPN.LOSS_WEIGHT"] == 2 and settings["MODEL.RPN.BBOX_REG_LOSS_WEIGHT"] == 3
    text = "[roi]\npos_threshold = .6\nneg_threshold_hi = .4\nneg_threshold_lo = .1\n"
    settings = convert_ini(text).settings
    assert settings["MODEL.ROI_HEADS.IOU_THRESHOLDS"] == [0.1, 0.4, 0.6]
    assert settings["MODEL.ROI_HEADS.IOU_LABELS"] == [-1, 0, -1, 1]
    text = with_key("fpn", "extra_scales", "2") + "[rpn]\nfpn_levels = 6\nanchor_scale = 2\n"
    assert convert_ini(text).settings["MODEL.ANCHOR_GENERATOR.SIZES"] == [[8], [16], [32], [64], [128], [256]]
    assert convert_ini(with_key("body", "bn_frozen", "yes")).settings["SOLVER.NORM_LR_FACTOR"] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no section"),
        ("just words", "not an ini file"),
        ("[net]\nbatch = 64\n", "'batch' of section"),
        ("[rpn]\nanchor_scales = 8\n", "'anchor_scales'"),
        ("[body]\nbody = vgg16\n", "vgg16"),
        ("[body]\nnormalization_mode = ln\n", "syncbn"),
        ("[rpn]\nanchor_ratios = (1, oops)\n", "anchor_ratios"),
        ("[rpn]\nfpn_levels = 9\n", "levels 0..8"),
        ("[roi]\nroi_size = (14, 7)\n", "roi_size"),
        ("[optimizer]\nloss_weights = (1, 1)\n", "loss_weights"),
        ("[scheduler]\ntype = multistep\n", "milestones"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        convert_ini(text, "my.ini")
    assert "my.ini" in str(error.value)


def test_files(tmp_path) -> None:
    (tmp_path / "a.ini").write_text(BASE)
    (tmp_path / "metadata.bin").write_bytes(metadata_bytes())
    convert_config(tmp_path / "a.ini", tmp_path / "a.yaml", tmp_path / "metadata.bin")
    cfg = load_config(tmp_path / "a.yaml")
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (5, 2)
    notes = convert_config(tmp_path / "a.ini", tmp_path / "b.yaml")
    assert any("--metadata" in note for note in notes)
    for missing in ("ini", "bin"):
        with pytest.raises(UserError, match=f"none.{missing}"):
            convert_config(
                tmp_path / ("none.ini" if missing == "ini" else "a.ini"), tmp_path / "c.yaml", tmp_path / "none.bin"
            )
    assert not (tmp_path / "c.yaml").exists()
