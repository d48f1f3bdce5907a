"""Every configuration key that seamless_d2 adds to Detectron2's, and the lookup of the shipped configs."""

import difflib
import re
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from .errors import UserError


def add_seamless_config(cfg: CfgNode) -> None:
    """Add the keys of seamless_d2, with their defaults, to Detectron2's ``cfg`` in place.

    Keys that Detectron2 already has keep their names and meaning; the fusion thresholds are
    ``MODEL.PANOPTIC_FPN.COMBINE.{INSTANCES_CONFIDENCE_THRESH, OVERLAP_THRESH, STUFF_AREA_LIMIT}``.
    """
    # --- the model as a whole ---------------------------------------------------------------------------------
    cfg.MODEL.SEAMLESS = CfgNode()
    # Activation after every normalisation: leaky_relu, elu, relu or identity.
    cfg.MODEL.SEAMLESS.ACTIVATION = "leaky_relu"
    # Negative slope of leaky_relu, alpha of elu.
    cfg.MODEL.SEAMLESS.ACTIVATION_SLOPE = 0.01
    # Batch normalisation keeps only its output for the backward pass and computes its input back from it (in-place
    # activated BatchNorm): about 40 % less memory of activations for some more time. For leaky_relu and elu.
    cfg.MODEL.SEAMLESS.INPLACE_NORM = False
    # Stages of the ResNet ("res2" ... "res5") that keep only their input in training and are computed again in the
    # backward pass.
    cfg.MODEL.SEAMLESS.GRADIENT_CHECKPOINTING = []
    # Memory format of weights and features: channels last is what tensor cores want (AMP on a GPU).
    cfg.MODEL.SEAMLESS.CHANNELS_LAST = False
    # Groups of group normalisation, wherever a NORM key says "GN".
    cfg.MODEL.SEAMLESS.GN_GROUPS = 16
    # Where instances and semantic scores are merged: "input" = the network's resolution, the map is then brought to
    # the requested size by nearest sampling (as the original); "output" = the requested size.
    cfg.MODEL.SEAMLESS.FUSE_AT = "input"
    # What inference computes and returns; what is not listed costs nothing.
    cfg.MODEL.SEAMLESS.OUTPUTS = ["instances", "sem_seg", "panoptic_seg"]
    # The original's ways at ties and edges, needed only to reproduce its numbers to the decimal:
    # - NMS suppresses at IoU >= threshold (otherwise >, as torchvision and Detectron2);
    # - proposals without area are kept and take slots (otherwise dropped);
    # - detections that need no truncation are in class-major order (otherwise always by score);
    # - resizing truncates the new sides (otherwise rounds them, as Detectron2).
    cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS = False
    # Names, colours and data set ids of the classes: things in the order 0..T-1, "stuff" all C semantic classes (stuff,
    # then things). Written by training and by the converters, so that a prediction needs only yaml and weights.
    cfg.MODEL.SEAMLESS.CLASS_NAMES = []
    cfg.MODEL.SEAMLESS.CLASS_COLORS = []
    cfg.MODEL.SEAMLESS.CLASS_DATASET_IDS = []

    # --- backbone ---------------------------------------------------------------------------------------------
    # Stride-2 levels added to the FPN from the last backbone stage (p6, p7, ...).
    cfg.MODEL.FPN.EXTRA_LEVELS = 1

    # --- semantic head ----------------------------------------------------------------------------------------
    # Window (height, width) of the sliding mean, in pixels of each level's feature map.
    cfg.MODEL.SEM_SEG_HEAD.POOLING_SIZE = [64, 64]
    # Dilation of the dilated 3x3 convolution.
    cfg.MODEL.SEM_SEG_HEAD.DILATION = 6
    # Share of the hardest pixels of each image that enter the loss; 1.0 takes them all.
    cfg.MODEL.SEM_SEG_HEAD.LOSS_TOP_K = 0.25

    # --- region proposals -------------------------------------------------------------------------------------
    # Normalisation of the RPN's 3x3 convolution (as every NORM key: BN, SyncBN, FrozenBN, GN or Affine).
    cfg.MODEL.RPN.NORM = "BN"
    # Anchors whose share inside crowd regions is at least this are ignored.
    cfg.MODEL.RPN.CROWD_THRESH = 0.7

    # --- ROI heads --------------------------------------------------------------------------------------------
    # Proposals whose share inside crowd regions is at least this are dropped.
    cfg.MODEL.ROI_HEADS.CROWD_THRESH = 0.7
    # A box of this side length (square root of its area, pixels) takes its features from this level (2 = p2), larger
    # ones from coarser levels (Lin et al. 2017, equation 1).
    cfg.MODEL.ROI_HEADS.CANONICAL_BOX_SIZE = 224
    cfg.MODEL.ROI_HEADS.CANONICAL_LEVEL = 4
    # Weights of the classification and the mask loss (Detectron2 has keys for the other four).
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT = 1.0
    cfg.MODEL.ROI_MASK_HEAD.LOSS_WEIGHT = 1.0
    # Mask loss: void pixels count as background instead of carrying no weight.
    cfg.MODEL.ROI_MASK_HEAD.VOID_IS_BACKGROUND = False

    # --- data -------------------------------------------------------------------------------------------------
    # Data sets to register: [name, image_dir, panoptic_dir, panoptic_json] each, or [name, root, split] for one in the
    # original's format; relative paths are below $DETECTRON2_DATASETS (default ./datasets).
    cfg.DATASETS.PANOPTIC = []
    # DATALOADER.SAMPLER_TRAIN may be TrainingSampler, RepeatFactorTrainingSampler (REPEAT_THRESHOLD; counts things and
    # stuff), RandomSubsetTrainingSampler or GroupedBatchSampler (the original's: whole epochs, no batch mixes landscape
    # and portrait). Share of the images that RandomSubsetTrainingSampler takes:
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0
    # A file that cannot be read, or a loader process that dies: "stop", or "skip" (the next image takes the place of an
    # unreadable one; a batch that was lost with its process is loaded again) up to MAX_FAULTS times.
    cfg.DATALOADER.ON_FAULT = "stop"
    cfg.DATALOADER.MAX_FAULTS = 10

    # --- evaluation -------------------------------------------------------------------------------------------
    # Also write the predicted maps (COCO panoptic) to OUTPUT_DIR/inference.
    cfg.TEST.SAVE_PREDICTIONS = False
    # What AP and mIoU are measured on: "separate" = the heads' outputs, "panoptic" = instances and classes of the fused
    # map, as the original does by default.
    cfg.TEST.EVAL_MODE = "separate"
    # Where PQ and mIoU are measured: "output" = at the image's size, "input" = at the network's, the ground truth brought
    # there by nearest sampling, as the original's published numbers were. AP is always at the image's size.
    cfg.TEST.EVAL_RESOLUTION = "output"
    # Void and crowd rules of PQ: "panopticapi", or "original" (crowd is void, absent classes count as 0 in the means).
    cfg.TEST.PQ_RULES = "panopticapi"
    # Also measure mIoU along the borders of regions (Cheng et al., CVPR 2021); costs seconds per image.
    cfg.TEST.BOUNDARY_IOU = False
    # Write metrics.json, per_class.csv and report.html to OUTPUT_DIR/inference.
    cfg.TEST.REPORT = True
    # Images for TensorBoard at each evaluation during training: image, ground truth and prediction.
    cfg.TEST.NUM_VISUALIZED_IMAGES = 4

    # --- Weights & Biases --------------------------------------------------------------------------------------
    # Also send all scalars there (pip install seamless_d2[wandb]); WANDB_MODE=offline keeps them on this machine.
    cfg.WANDB = CfgNode()
    cfg.WANDB.ENABLED = False
    cfg.WANDB.PROJECT = "seamless_d2"

    # --- solver -----------------------------------------------------------------------------------------------
    # The optimizer: "SGD" (with MOMENTUM and NESTEROV) or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Take a whole step of the optimizer in one kernel.
    cfg.SOLVER.FUSED_OPTIMIZER = False
    # Factor on the learning rate of normalisation parameters; 0 freezes them (running statistics still update).
    cfg.SOLVER.NORM_LR_FACTOR = 1.0
    # Length of the training in epochs; above 0 it overrides MAX_ITER.
    cfg.SOLVER.EPOCHS = 0
    # LR_SCHEDULER_NAME may also be "Poly", "Linear", "Step" or "MultiStep": the original's formulas, counting from 1.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # End points of "Linear", as factors on BASE_LR.
    cfg.SOLVER.LINEAR_RANGE = [1.0, 0.0]
    # Length of one step of "Step", in the unit of SCHEDULE_BY.
    cfg.SOLVER.STEP_SIZE = 1
    # What the schedule counts: "iteration" or "epoch".
    cfg.SOLVER.SCHEDULE_BY = "iteration"
    # Forward passes per step: the IMS_PER_BATCH images of a step go through the model in so many portions, and the step
    # follows the mean of their losses. For GPUs that are fewer or smaller than the recipe's.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # With SOLVER.AMP.ENABLED, what is computed in: "bf16", or "fp16" with a scaled loss.
    cfg.SOLVER.AMP.DTYPE = "bf16"
    # Exponential moving average of the weights, evaluated beside them (results "ema/...") and written to
    # model_final_ema.pth. The decay is per step, and smaller in the first steps.
    cfg.SOLVER.EMA = CfgNode()
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.9998
    # A loss or gradient that is NaN or infinite: "stop", or "skip" the step up to MAX_SKIPPED_STEPS times.
    cfg.SOLVER.ON_NONFINITE = "stop"
    cfg.SOLVER.MAX_SKIPPED_STEPS = 10
    # Numbered checkpoints that are kept, the newest ones; 0 keeps all. model_best and model_final are kept anyway.
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 5
    # Iterations between two lines of progress.
    cfg.SOLVER.LOG_PERIOD = 20


CHOICES = {
    "EVAL_MODE": ("separate", "panoptic"),
    "EVAL_RESOLUTION": ("output", "input"),
    "PQ_RULES": ("panopticapi", "original"),
}


def check_test_keys(cfg: CfgNode) -> None:
    """Raise ``UserError`` where one of our TEST keys has a value that it does not know."""
    for key, choices in CHOICES.items():
        if cfg.TEST[key] not in choices:
            names = " or ".join(f'"{choice}"' for choice in choices)
            raise UserError(f"TEST.{key} is {cfg.TEST[key]!r}; use {names}")


def config_file(name: str) -> Path:
    """Path of a shipped config such as ``"cityscapes/seamless_R_50_FPN.yaml"``.

    Raises:
        UserError: there is no such config; the message lists those that exist.
    """
    package = Path(__file__).resolve().parent
    # An installed package carries the configs inside; a checkout has them beside the package.
    roots = [root for root in (package / "configs", package.parent / "configs") if root.is_dir()]
    for root in roots:
        if (root / name).is_file():
            return root / name
    known = sorted({p.relative_to(root).as_posix() for root in roots for p in root.rglob("*.yaml")})
    raise UserError(f"there is no config {name!r}; the shipped ones are: {', '.join(known)}")


def resolve_config(file: str | Path) -> Path:
    """``file`` itself where it exists, else the shipped config of that name.

    Raises:
        UserError: there is neither.
    """
    if Path(file).is_file():
        return Path(file)
    if Path(file).is_absolute():
        raise UserError(f"config file {file} does not exist; give the path of a yaml file")
    return config_file(Path(file).as_posix().removeprefix("configs/"))


def _keys(cfg: CfgNode, prefix: str = "") -> dict[str, object]:
    """All full keys, sections included, with their values."""
    result: dict[str, object] = {}
    for name, value in cfg.items():
        result[prefix + name] = value
        if isinstance(value, CfgNode):
            result.update(_keys(value, f"{prefix}{name}."))
    return result


def _explain(cfg: CfgNode, reason: str) -> str:
    """Make yacs's complaint one that says what to write instead."""
    key = reason.rsplit("key: ", 1)[-1] if "key: " in reason else ""
    keys = _keys(cfg)
    if "Non-existent" in reason:
        by_upper = {k.upper(): k for k in keys}
        close = difflib.get_close_matches(key.upper(), by_upper, n=3, cutoff=0.75)
        # The right name in the wrong section.
        leaf = key.rsplit(".", 1)[-1].upper()
        close += [k for k in by_upper if k.rsplit(".", 1)[-1] == leaf and k not in close][:3]
        names = [by_upper[k] for k in close]
        return f"there is no key {key}" + (f"; did you mean {' or '.join(names)}?" if names else "")
    if reason.startswith("Type mismatch") and key in keys:
        if isinstance(keys[key], CfgNode):
            return f"{key} is a section; set one of its keys: {', '.join(f'{key}.{k}' for k in keys[key])}"
        kind = type(keys[key]).__name__
        given = re.search(r"with values \((.*) vs\. (.*)\) for config", reason, re.DOTALL)
        found = f", not {given.group(2)!r}" if given else ""
        example = {"float": "a number with a point", "int": "a whole number", "bool": "True or False", "str": "text"}
        return f"{key} must be {example.get(kind, f'a {kind}')} such as {keys[key]!r}{found}"
    return reason


def load_config(file: str | Path, overrides: list[str] | None = None) -> CfgNode:
    """Detectron2's defaults, ours, then the yaml ``file``, then ``KEY VALUE`` overrides.

    ``file`` may be a path or the name of a shipped config. Yaml tags that would run code are refused.

    Raises:
        UserError: file missing, not yaml, or with a key that does not exist.
    """
    cfg = get_cfg()
    add_seamless_config(cfg)
    path = resolve_config(file)
    try:
        cfg.merge_from_file(str(path), allow_unsafe=False)
        cfg.merge_from_list(overrides or [])
    except (KeyError, ValueError, AssertionError, TypeError) as error:
        reason = str(error.args[0] if error.args else error)
        reason = _explain(cfg, reason)
        raise UserError(f"config {path} (with its overrides) is not valid: {reason}") from error
    except Exception as error:  # yaml has no common base class that yacs re-exports
        raise UserError(f"config {path} cannot be read as yaml: {error}") from error
    check_test_keys(cfg)
    return cfg


def get_config(name: str) -> CfgNode:
    """Complete configuration of a shipped config, e.g. ``get_config("cityscapes/seamless_R_50_FPN.yaml")``."""
    return load_config(config_file(name if name.endswith(".yaml") else f"{name}.yaml"))
