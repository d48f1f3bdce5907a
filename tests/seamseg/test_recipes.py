"""The shipped Cityscapes and Vistas configs hold every setting of the paper's two recipes."""

import re

import pytest
from detectron2.config import CfgNode

from seamless_d2.config import get_config, list_keys
from seamless_d2.seamseg.ini import PAPER_GPUS, UNBOUND_SIZE, convert_ini
from seamless_d2.seamseg.ini_defaults import DEFAULTS
from seamless_d2.seamseg.weights import settings_to_config

from ..helpers.reference import SHARED

# What the recipes set besides the original's defaults.
BOTH = {
    "general": {"val_interval": "5", "log_interval": "5"},
    "body": {"bn_frozen": "no"},
    "rpn": {"num_post_nms_val": "1000", "min_size": "0"},
    "roi": {"num_samples": "512", "nms_threshold": "0.5"},
    "optimizer": {"weight_decay_norm": "no"},
    "scheduler": {"type": "multistep", "burn_in_steps": "200"},
    "dataloader": {
        "train_batch_size": "1",
        "rgb_mean": "(0.41738699, 0.45732192, 0.46886091)",
        "rgb_std": "(0.25685097, 0.26509955, 0.29067996)",
        "num_workers": "2",
    },
}
RECIPES = {
    "cityscapes": {
        "fpn": {"extra_scales": "1", "out_strides": "(4, 8, 16, 32, 64)"},
        "rpn": {"fpn_levels": "5"},
        "scheduler": {"epochs": "130", "params": '{"gamma": 0.1, "milestones": [36000, 44000]}'},
        "dataloader": {
            "longest_max_size": "4096",
            "val_batch_size": "2",
            "random_scale": "(0.5, 2.0)",
            "train_set": "train",
            "val_set": "val",
        },
    },
    "vistas": {
        "fpn": {"extra_scales": "2", "out_strides": "(4, 8, 16, 32, 64, 128)"},
        "rpn": {"anchor_ratios": "(0.2, 0.5, 1, 2, 5)", "anchor_scale": "2", "fpn_levels": "6"},
        "roi": {"max_predictions": "256"},
        "scheduler": {"epochs": "85", "params": '{"gamma": 0.1, "milestones": [144000, 176000]}'},
        "dataloader": {
            "shortest_size": "1920",
            "longest_max_size": "2304",
            "val_batch_size": "1",
            "random_scale": "(0.8, 1.25)",
            "train_set": "training",
            "val_set": "validation",
        },
    },
}
IMAGES = {"cityscapes": 2975, "vistas": 18000}
# Where the shipped configs say it in another way, with the reason; everything else must be equal.
OTHERWISE = {
    "MODEL.SEAMLESS.ORIGINAL_CONVENTIONS": "only needed to reproduce numbers of the original's own weights",
    "TEST.EVAL_MODE": "the tables of the paper measure AP and mIoU on the outputs of the heads",
    "SOLVER.EPOCHS": "the configs give iterations, see test_length_and_sizes",
    "INPUT.MAX_SIZE_TEST": "a bound that no image of the data sets reaches, see test_length_and_sizes",
}


def recipe(name: str) -> dict[str, dict[str, str]]:
    return {s: BOTH.get(s, {}) | RECIPES[name].get(s, {}) for s in BOTH | RECIPES[name]}


def converted(name: str) -> tuple[CfgNode, dict[str, object]]:
    sections = recipe(name).items()
    text = "".join(f"[{s}]\n" + "".join(f"{k} = {v}\n" for k, v in keys.items()) for s, keys in sections)
    settings = convert_ini(text).settings
    return settings_to_config(settings), settings


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting(name: str) -> None:
    theirs, settings = converted(name)
    theirs, ours = list_keys(theirs), list_keys(get_config(f"{name}/seamless_R_50_FPN"))
    differing = []
    for key in set(settings) - set(OTHERWISE):
        # yacs keeps a tuple or a list as the default has it.
        mine, other = (list(v) if isinstance(v, tuple) else v for v in (ours[key], theirs[key]))
        if mine != (pytest.approx(other, rel=1e-12) if key.startswith("MODEL.PIXEL_") else other):
            differing.append((key, mine, other))
    assert not differing


@pytest.mark.parametrize("name", RECIPES)
def test_length_and_sizes(name: str) -> None:
    cfg = get_config(f"{name}/seamless_R_50_FPN")
    epochs = int(recipe(name)["scheduler"]["epochs"])
    assert cfg.SOLVER.MAX_ITER == epochs * (IMAGES[name] // PAPER_GPUS)
    # The original tests without a bound; the largest images are 1024x2048 and 4000x6000.
    longest = {"cityscapes": 2048, "vistas": 1920 * 6000 / 4000}[name]
    assert longest < cfg.INPUT.MAX_SIZE_TEST < UNBOUND_SIZE
    assert cfg.TEST.EVAL_PERIOD == 5 * (IMAGES[name] // PAPER_GPUS)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the table of the original's settings is not part of the project")
def test_table_of_the_original() -> None:
    """The recipes above are those of the table that was written down from the original's files."""
    table = (SHARED / "SETTINGS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (.*?) \| ?(.*?) \| ?(.*?) \|", table, re.M)
    assert len(rows) >= sum(map(len, DEFAULTS.values()))
    for section, key, _, *values in rows:
        if key not in DEFAULTS.get(section, {}):
            continue
        for name, value in zip(RECIPES, values, strict=True):
            assert recipe(name).get(section, {}).get(key, "") == value.strip("` "), (section, key, name)
