"""Which values the keys of a configuration accept: one table, checked before anything else starts."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from fvcore.common.registry import Registry

from .errors import UserError

#: Whether a value is accepted, and what it must be, for the sentence "KEY is VALUE; it must be ...".
Rule = tuple[Callable[[Any], bool], str]

#: The schedules of the original, beside those of Detectron2.
SCHEDULES = ("Poly", "Linear", "Step", "MultiStep")
_DETECTRON2_SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")


def _at_least(least: float) -> Rule:
    return lambda value: value >= least, f"at least {least}"


def _between(low: float, high: float) -> Rule:
    return lambda value: low <= value <= high, f"in {low}..{high}"


def _one_of(*choices: str) -> Rule:
    return lambda value: value in choices, "one of " + ", ".join(choices)


def _registered(registry: Registry, *others: str) -> Rule:
    """Return the rule for the name of a component; names that are registered later count too."""
    return (
        lambda value: value in registry or value in others,
        "the name of a registered component; register yours (import its module) before the config is loaded",
    )


def _each(rule: Rule, count: int | None = None) -> Rule:
    """Return the rule for a list, of ``count`` values if given, that is not empty."""
    holds, must = rule
    number = "one or more numbers" if count is None else f"{count} numbers"
    return (
        lambda values: (len(values) > 0 if count is None else len(values) == count) and all(map(holds, values)),
        f"{number}, each {must}",
    )


def _is_device(value: str) -> bool:
    try:
        torch.device(value)
    except RuntimeError:
        return False
    return True


_ABOVE_ZERO: Rule = (lambda value: value > 0, "above 0")

#: Keys with the same rule stand in one row.
RULES: list[tuple[str, Rule]] = [
    ("SEED", (lambda value: value < 2**31, "below 2147483648 (negative for a random one)")),
    ("MODEL.DEVICE", (_is_device, "a device of PyTorch, such as cpu, cuda or cuda:1")),
    ("MODEL.META_ARCHITECTURE", _registered(META_ARCH_REGISTRY)),
    ("MODEL.BACKBONE.NAME", _registered(BACKBONE_REGISTRY)),
    ("MODEL.PROPOSAL_GENERATOR.NAME", _registered(PROPOSAL_GENERATOR_REGISTRY, "PrecomputedProposals")),
    ("MODEL.ANCHOR_GENERATOR.NAME", _registered(ANCHOR_GENERATOR_REGISTRY)),
    ("MODEL.RPN.HEAD_NAME", _registered(RPN_HEAD_REGISTRY)),
    ("MODEL.ROI_HEADS.NAME", _registered(ROI_HEADS_REGISTRY)),
    ("MODEL.ROI_BOX_HEAD.NAME", _registered(ROI_BOX_HEAD_REGISTRY, "")),
    ("MODEL.ROI_MASK_HEAD.NAME", _registered(ROI_MASK_HEAD_REGISTRY)),
    ("MODEL.SEM_SEG_HEAD.NAME", _registered(SEM_SEG_HEADS_REGISTRY)),
    ("MODEL.PIXEL_MEAN", _each((lambda value: value == value, "a number"), 3)),
    ("MODEL.PIXEL_STD", _each(_ABOVE_ZERO, 3)),
    ("MODEL.BACKBONE.FREEZE_AT", _between(0, 5)),
    ("MODEL.RPN.IN_FEATURES MODEL.ROI_HEADS.IN_FEATURES", (len, "one or more features, such as ['p2', 'p3']")),
    ("MODEL.SEM_SEG_HEAD.IN_FEATURES", (len, "one or more features, such as ['p2', 'p3']")),
    ("MODEL.SEM_SEG_HEAD.LOSS_TOP_K", (lambda value: 0 < value <= 1, "above 0 and at most 1")),
    ("MODEL.SEM_SEG_HEAD.POOLING_SIZE", _each(_at_least(1), 2)),
    ("MODEL.SEM_SEG_HEAD.DILATION MODEL.SEAMLESS.GN_GROUPS", _at_least(1)),
    ("MODEL.RPN.CROWD_THRESH MODEL.ROI_HEADS.CROWD_THRESH", _between(0, 1)),
    ("MODEL.RPN.NMS_THRESH MODEL.ROI_HEADS.NMS_THRESH_TEST MODEL.ROI_HEADS.SCORE_THRESH_TEST", _between(0, 1)),
    (
        "MODEL.RPN.BBOX_REG_LOSS_TYPE MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE",
        _one_of("smooth_l1", "giou", "diou", "ciou", "crop_aware_smooth_l1"),
    ),
    ("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", _between(0, 1)),
    ("MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH", _between(0, 1)),
    ("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", _at_least(0)),
    ("INPUT.MIN_SIZE_TRAIN", _each(_at_least(1))),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", _one_of("choice", "range")),
    ("INPUT.MAX_SIZE_TRAIN INPUT.MAX_SIZE_TEST", _at_least(1)),
    ("INPUT.MIN_SIZE_TEST", _at_least(0)),
    ("INPUT.CROP.TYPE", _one_of("relative", "relative_range", "absolute", "absolute_range")),
    ("INPUT.CROP.SIZE", _each(_ABOVE_ZERO, 2)),
    (
        "INPUT.LARGE_SCALE_JITTER",
        (lambda v: not v or (len(v) == 2 and 0 < v[0] <= v[1]), "empty, or two numbers above 0 in ascending order"),
    ),
    (
        "INPUT.INSTANCE_SIZES INPUT.INSTANCE_SCALES",
        (lambda v: len(v) == 2 and 0 < v[0] <= v[1], "two numbers above 0 in ascending order"),
    ),
    ("INPUT.COLOR_JITTER INPUT.COPY_PASTE", _between(0, 1)),
    ("INPUT.RANDOM_FLIP", _one_of("none", "horizontal", "vertical")),
    ("DATALOADER.NUM_WORKERS DATALOADER.MAX_FAULTS DATALOADER.REPEAT_THRESHOLD", _at_least(0)),
    ("DATALOADER.RANDOM_SUBSET_RATIO", (lambda value: 0 < value <= 1, "above 0 and at most 1")),
    ("DATALOADER.ON_FAULT SOLVER.ON_NONFINITE", _one_of("stop", "skip")),
    ("SOLVER.MAX_ITER SOLVER.IMS_PER_BATCH SOLVER.ACCUMULATE_STEPS SOLVER.LOG_PERIOD SOLVER.STEP_SIZE", _at_least(1)),
    ("SOLVER.BASE_LR SOLVER.BIAS_LR_FACTOR SOLVER.NORM_LR_FACTOR", _between(0, 1000)),
    ("SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM", _at_least(0)),
    ("SOLVER.WEIGHT_DECAY_BIAS", (lambda value: value is None or value >= 0, "at least 0, or None")),
    ("SOLVER.WARMUP_ITERS SOLVER.EPOCHS SOLVER.CHECKPOINT_PERIOD SOLVER.CHECKPOINTS_TO_KEEP", _at_least(0)),
    ("SOLVER.MAX_SKIPPED_STEPS SOLVER.REFERENCE_WORLD_SIZE SOLVER.POLY_LR_POWER", _at_least(0)),
    ("SOLVER.MOMENTUM SOLVER.WARMUP_FACTOR SOLVER.EMA.DECAY", _between(0, 1)),
    ("SOLVER.LINEAR_RANGE", _each(_at_least(0), 2)),
    ("SOLVER.LR_SCHEDULER_NAME", _one_of(*SCHEDULES, *_DETECTRON2_SCHEDULES)),
    ("SOLVER.SCHEDULE_BY", _one_of("iteration", "epoch")),
    ("SOLVER.AMP.DTYPE", _one_of("bf16", "fp16")),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", _one_of("value", "norm", "full_model")),
    ("SOLVER.LAYER_DECAY", (lambda value: 0 < value <= 1, "above 0 and at most 1")),
    ("SOLVER.LAYER_DECAY_DEPTH", _at_least(1)),
    ("MODEL.TIMM.DROP_PATH_RATE", _between(0, 1)),
    ("MODEL.TIMM.NORM", _one_of("", "FrozenBN", "SyncBN")),
    ("INPUT.INTERPOLATION", _one_of("", "bilinear", "bicubic")),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.CLIP_GRADIENTS.NORM_TYPE", _ABOVE_ZERO),
    ("TEST.EVAL_PERIOD TEST.NUM_VISUALIZED_IMAGES TEST.DETECTIONS_PER_IMAGE VIS_PERIOD", _at_least(0)),
    ("TEST.PRECISE_BN.NUM_ITER", _at_least(1)),
    ("TEST.EVAL_MODE", _one_of("separate", "panoptic")),
    ("TEST.EVAL_RESOLUTION", _one_of("output", "input")),
    ("TEST.PQ_RULES", _one_of("panopticapi", "original")),
]


def check_config(cfg: CfgNode, section: str = "") -> None:
    """Check the values of a configuration with ``RULES``, and keys that must agree.

    Args:
        cfg: The configuration.
        section: The section whose keys are checked, such as "TEST"; default all.

    Raises:
        UserError: A value is not accepted.
    """
    for keys, (holds, must) in RULES:
        for key in keys.split():
            if key.startswith(section):
                value = functools.reduce(operator.getitem, key.split("."), cfg)
                if not holds(value):
                    raise UserError(f"{key} is {value!r}; it must be {must}")
    levels = len(cfg.MODEL.RPN.IN_FEATURES)
    for name in ("SIZES", "ASPECT_RATIOS"):
        count = len(cfg.MODEL.ANCHOR_GENERATOR[name])
        if not section and count not in (1, levels):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{name} has {count} lists for the {levels} features of MODEL.RPN.IN_FEATURES; "
                f"give one list for all, or {levels}"
            )
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if not section and cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        raise UserError(f'INPUT.MIN_SIZE_TRAIN is {sizes}; INPUT.MIN_SIZE_TRAIN_SAMPLING "range" needs two values')
    if not section:
        _check_crops(cfg)


#: Components of Detectron2 that do not know the crop-aware box loss.
_WITHOUT_CROP_AWARE = ("RPN", "StandardROIHeads", "Res5ROIHeads", "CascadeROIHeads")


def _check_crops(cfg: CfgNode) -> None:
    """Check the keys of training on crops, which must agree."""
    for part, name in (("RPN", cfg.MODEL.PROPOSAL_GENERATOR.NAME), ("ROI_BOX_HEAD", cfg.MODEL.ROI_HEADS.NAME)):
        loss = cfg.MODEL[part].BBOX_REG_LOSS_TYPE
        if loss == "crop_aware_smooth_l1" and name in _WITHOUT_CROP_AWARE:
            raise UserError(
                f"MODEL.{part}.BBOX_REG_LOSS_TYPE is {loss}, which {name} of Detectron2 does not know; change one"
            )
    crop = cfg.INPUT.CROP
    is_absolute = crop.TYPE.startswith("absolute")
    if crop.ENABLED and any(side < 1 or side != int(side) if is_absolute else side > 1 for side in crop.SIZE):
        must = "whole numbers of pixels" if is_absolute else "shares of the image, at most 1"
        raise UserError(f"INPUT.CROP.SIZE is {list(crop.SIZE)}; with INPUT.CROP.TYPE {crop.TYPE} it must be {must}")
    is_uniform = cfg.DATALOADER.SAMPLER_TRAIN == "InstanceScaleUniformSampler"
    if is_uniform and not cfg.INPUT.CROP.ENABLED:
        raise UserError("DATALOADER.SAMPLER_TRAIN InstanceScaleUniformSampler needs crops; set INPUT.CROP.ENABLED True")
    if cfg.INPUT.LARGE_SCALE_JITTER:
        if is_uniform:
            raise UserError(
                "INPUT.LARGE_SCALE_JITTER and DATALOADER.SAMPLER_TRAIN InstanceScaleUniformSampler both choose the "
                "scale; use one of them"
            )
        if not cfg.INPUT.CROP.ENABLED or cfg.INPUT.CROP.TYPE != "absolute":
            raise UserError(
                "INPUT.LARGE_SCALE_JITTER makes images of one size; set INPUT.CROP.ENABLED True, INPUT.CROP.TYPE "
                "absolute and INPUT.CROP.SIZE"
            )
