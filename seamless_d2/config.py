"""The configuration keys that seamless_d2 adds to Detectron2's, and the lookup of the shipped configs."""

import re
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from .config_checks import check_config
from .errors import UserError, suggest
from .timm_description import adopt_description


def add_seamless_config(cfg: CfgNode) -> None:
    """Add the keys of seamless_d2, with their defaults, to Detectron2's ``cfg`` in place.

    Keys that Detectron2 already has keep their names and meanings. The thresholds of panoptic fusion are
    ``MODEL.PANOPTIC_FPN.COMBINE.{INSTANCES_CONFIDENCE_THRESH, OVERLAP_THRESH, STUFF_AREA_LIMIT}``.
    """
    # --- the model as a whole ---------------------------------------------------------------------------------
    cfg.MODEL.SEAMLESS = CfgNode()
    # The activation after every normalization: leaky_relu, elu, relu or identity.
    cfg.MODEL.SEAMLESS.ACTIVATION = "leaky_relu"
    # The negative slope of leaky_relu, or the alpha of elu.
    cfg.MODEL.SEAMLESS.ACTIVATION_SLOPE = 0.01
    # In-place activated batch normalization: it keeps only its output for the backward pass and computes its input
    # from it. This saves about 40 % of the memory of activations and takes some more time. It needs leaky_relu or elu.
    cfg.MODEL.SEAMLESS.INPLACE_NORM = False
    # The stages of the ResNet ("res2" ... "res5") that use gradient checkpointing: in training they keep only their
    # input and are computed again in the backward pass.
    cfg.MODEL.SEAMLESS.GRADIENT_CHECKPOINTING = []
    # Use the memory format "channels last" for weights and features, which suits tensor cores (AMP on a GPU).
    cfg.MODEL.SEAMLESS.CHANNELS_LAST = False
    # The number of groups of group normalization, wherever a NORM key is "GN".
    cfg.MODEL.SEAMLESS.GN_GROUPS = 16
    # The resolution at which instances and semantic scores are fused. "input" is the resolution of the network; the
    # map is then resized to the requested size by nearest sampling, as in the original. "output" is the requested size.
    cfg.MODEL.SEAMLESS.FUSE_AT = "input"
    # The outputs that inference computes and returns. An output that is not listed costs no time.
    cfg.MODEL.SEAMLESS.OUTPUTS = ["instances", "sem_seg", "panoptic_seg"]
    # Follow the original at ties and edges, which is needed only to reproduce its numbers to the last decimal:
    # - NMS suppresses at IoU >= threshold (otherwise >, as in torchvision and Detectron2);
    # - proposals without area are kept and use up slots (otherwise they are dropped);
    # - detections that need no truncation are in class-major order (otherwise they are always ordered by score);
    # - resizing truncates the new sides (otherwise it rounds them, as in Detectron2).
    cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS = False
    # The names, colors and data set ids of the classes in the order of their semantic labels (stuff, then things).
    # Training and the converters write them, so that prediction needs only a yaml file and weights.
    cfg.MODEL.SEAMLESS.CLASS_NAMES = []
    cfg.MODEL.SEAMLESS.CLASS_COLORS = []
    cfg.MODEL.SEAMLESS.CLASS_DATASET_IDS = []

    # Start the training from another model, of other classes: a checkpoint of this program or a converted one, with its
    # config inside or beside it. Rows of classes are copied from the class of the same name, or as this map says:
    # entries [class of the data set, class of that model], with "" for none.
    cfg.MODEL.INIT_FROM = ""
    cfg.MODEL.INIT_CLASS_MAP = []

    # --- backbone ---------------------------------------------------------------------------------------------
    # The number of stride-2 levels (p6, p7, ...) that are added to the FPN after the last backbone stage.
    cfg.MODEL.FPN.EXTRA_LEVELS = 1

    # build_timm_fpn_backbone: the model of timm (pip install timm), with or without the tag of its weights,
    # such as "convnext_tiny.fb_in22k".
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = ""
    # Its initial weights: "" random ones, "hub" those of the name, which timm downloads, or a file. They are not read
    # if MODEL.WEIGHTS names a checkpoint, which has them.
    cfg.MODEL.TIMM.PRETRAINED = ""
    # The probability that a residual branch is left out in training, for the last block (stochastic depth).
    cfg.MODEL.TIMM.DROP_PATH_RATE = 0.0
    # Recompute the network's activations in the backward pass instead of keeping them.
    cfg.MODEL.TIMM.GRAD_CHECKPOINTING = False
    # What becomes of its batch normalization: "" nothing, "FrozenBN" fixed, "SyncBN" over all GPUs.
    cfg.MODEL.TIMM.NORM = ""

    # --- semantic head ----------------------------------------------------------------------------------------
    # The window (height, width) of the sliding mean, in pixels of the feature map of each level.
    cfg.MODEL.SEM_SEG_HEAD.POOLING_SIZE = [64, 64]
    # The dilation of the dilated 3x3 convolution.
    cfg.MODEL.SEM_SEG_HEAD.DILATION = 6
    # The fraction of each image's pixels, those with the highest loss, that enter the loss; 1.0 takes all pixels.
    cfg.MODEL.SEM_SEG_HEAD.LOSS_TOP_K = 0.25

    # --- region proposals -------------------------------------------------------------------------------------
    # The normalization of the RPN's 3x3 convolution; as every NORM key: BN, SyncBN, FrozenBN, GN or Affine.
    cfg.MODEL.RPN.NORM = "BN"
    # Anchors of whose area at least this fraction lies inside crowd regions are ignored.
    cfg.MODEL.RPN.CROWD_THRESH = 0.7

    # --- ROI heads --------------------------------------------------------------------------------------------
    # Proposals of whose area at least this fraction lies inside crowd regions are dropped.
    cfg.MODEL.ROI_HEADS.CROWD_THRESH = 0.7
    # A box with sides of this length (the square root of its area, in pixels) is pooled from level CANONICAL_LEVEL
    # (2 = p2), larger ones from coarser levels (Lin et al. 2017, equation 1).
    cfg.MODEL.ROI_HEADS.CANONICAL_BOX_SIZE = 224
    cfg.MODEL.ROI_HEADS.CANONICAL_LEVEL = 4
    # The weights of the classification loss and the mask loss (Detectron2 has keys for the other four losses).
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT = 1.0
    cfg.MODEL.ROI_MASK_HEAD.LOSS_WEIGHT = 1.0
    # In the mask loss, void pixels count as background instead of being ignored.
    cfg.MODEL.ROI_MASK_HEAD.VOID_IS_BACKGROUND = False

    # --- data -------------------------------------------------------------------------------------------------
    # The data sets to register: [name, image_dir, panoptic_dir, panoptic_json] for COCO panoptic, or [name, root,
    # split] for the original's format. Relative paths are below $DETECTRON2_DATASETS (default ./datasets).
    cfg.DATASETS.PANOPTIC = []
    # How images are resized: "bilinear", "bicubic", or "" for what timm says of its network (others: bilinear).
    cfg.INPUT.INTERPOLATION = ""

    # --- augmentation, besides Detectron2's INPUT keys ----------------------------------------------------------
    # Large-scale jitter (Ghiasi et al., CVPR 2021): the range of scales, such as [0.1, 2.0], of the size CROP.SIZE into
    # which the image is fitted, before it is cropped or padded to exactly that size. Empty: off.
    cfg.INPUT.LARGE_SCALE_JITTER = []
    # Brightness, contrast and saturation are each changed by a random factor in 1 - this .. 1 + this.
    cfg.INPUT.COLOR_JITTER = 0.0
    # The probability that a random half of the instances of another image is pasted into an image.
    cfg.INPUT.COPY_PASTE = 0.0
    # InstanceScaleUniformSampler: the range of the sizes of instances (the square root of the area of the box, in
    # pixels) that scales are chosen for, and the range of the factors by which an image is scaled at all.
    cfg.INPUT.INSTANCE_SIZES = [16.0, 512.0]
    cfg.INPUT.INSTANCE_SCALES = [0.25, 4.0]

    # DATALOADER.SAMPLER_TRAIN may be TrainingSampler, RepeatFactorTrainingSampler (with REPEAT_THRESHOLD; it counts
    # things and stuff), RandomSubsetTrainingSampler, InstanceScaleUniformSampler (crops around instances of classes
    # that are drawn with equal probability; it needs CROP.ENABLED) or GroupedBatchSampler (the original's: whole
    # epochs, and no batch mixes landscape and portrait images). This is the fraction of the images that
    # RandomSubsetTrainingSampler takes.
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0
    # What happens if a file cannot be read or a loader process dies: "stop", or "skip" up to MAX_FAULTS times. In place
    # of an unreadable image, "skip" takes the next one; a batch that was lost with its process is loaded again.
    cfg.DATALOADER.ON_FAULT = "stop"
    cfg.DATALOADER.MAX_FAULTS = 10

    # --- evaluation -------------------------------------------------------------------------------------------
    # Also write the predicted maps (COCO panoptic) to OUTPUT_DIR/inference.
    cfg.TEST.SAVE_PREDICTIONS = False
    # What AP and mIoU are measured on: "separate" takes the outputs of the heads, "panoptic" the instances and classes
    # of the fused map, as the original does by default.
    cfg.TEST.EVAL_MODE = "separate"
    # The resolution at which PQ and mIoU are measured: "output" is the size of the image, "input" that of the network's
    # input, to which the ground truth is resized by nearest sampling, as for the original's published numbers. AP is
    # always measured at the size of the image.
    cfg.TEST.EVAL_RESOLUTION = "output"
    # The rules of PQ for void and crowd regions: "panopticapi", or "original" (crowd regions are void, and absent
    # classes count as 0 in the means).
    cfg.TEST.PQ_RULES = "panopticapi"
    # Also measure the IoU along the borders of regions (Cheng et al., CVPR 2021), which takes seconds per image.
    cfg.TEST.BOUNDARY_IOU = False
    # Write metrics.json, per_class.csv and report.html to OUTPUT_DIR/inference.
    cfg.TEST.REPORT = True
    # The number of images that TensorBoard shows after each evaluation during training, each with its ground truth and
    # its prediction.
    cfg.TEST.NUM_VISUALIZED_IMAGES = 4

    # --- Weights & Biases --------------------------------------------------------------------------------------
    # Also send all scalars to Weights & Biases (pip install seamless_d2[wandb]). WANDB_MODE=offline in the environment
    # keeps them on this machine.
    cfg.WANDB = CfgNode()
    cfg.WANDB.ENABLED = False
    cfg.WANDB.PROJECT = "seamless_d2"

    # --- solver -----------------------------------------------------------------------------------------------
    # The optimizer: "SGD" (with MOMENTUM and NESTEROV) or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Layer-wise learning-rate decay of the backbone's network (without the feature pyramid): the last layer learns at
    # this factor of the rate, the one before it at its square, and so on. Its blocks are divided into at most
    # LAYER_DECAY_DEPTH layers, with the stem as the first. 1: off.
    cfg.SOLVER.LAYER_DECAY = 1.0
    cfg.SOLVER.LAYER_DECAY_DEPTH = 12
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE may be "full_model": by the norm of all gradients together ("norm": of each).
    # Use the implementation of the optimizer that takes a whole step in one kernel.
    cfg.SOLVER.FUSED_OPTIMIZER = False
    # The factor on the learning rate of normalization parameters; 0 freezes them (running statistics still update).
    cfg.SOLVER.NORM_LR_FACTOR = 1.0
    # The length of the training in epochs; above 0 it overrides MAX_ITER.
    cfg.SOLVER.EPOCHS = 0
    # LR_SCHEDULER_NAME may also be "Poly", "Linear", "Step" or "MultiStep": the original's formulas, which count from
    # 1. This is the exponent of "Poly".
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # The end points of "Linear", as factors on BASE_LR.
    cfg.SOLVER.LINEAR_RANGE = [1.0, 0.0]
    # The length of one step of "Step", in the unit of SCHEDULE_BY.
    cfg.SOLVER.STEP_SIZE = 1
    # The unit in which the schedule counts: "iteration" or "epoch".
    cfg.SOLVER.SCHEDULE_BY = "iteration"
    # The number of forward passes per step (gradient accumulation): the IMS_PER_BATCH images of a step are divided
    # among them, and the step follows the mean of their losses. For fewer or smaller GPUs than the recipe's.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # The precision of mixed-precision training (SOLVER.AMP.ENABLED): "bf16", or "fp16" with a scaled loss.
    cfg.SOLVER.AMP.DTYPE = "bf16"
    # Exponential moving average of the weights. It is evaluated beside the weights (results "ema/...") and written to
    # model_final_ema.pth. The decay is per step, and smaller in the first steps.
    cfg.SOLVER.EMA = CfgNode()
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.9998
    # What happens if a loss or gradient is NaN or infinite: "stop", or "skip" the step, up to MAX_SKIPPED_STEPS times.
    cfg.SOLVER.ON_NONFINITE = "stop"
    cfg.SOLVER.MAX_SKIPPED_STEPS = 10
    # The number of numbered checkpoints to keep, the newest ones; 0 keeps all. model_best and model_final are always
    # kept.
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 5
    # The number of iterations between two progress lines in the log.
    cfg.SOLVER.LOG_PERIOD = 20


def config_file(name: str) -> Path:
    """Return the path of a shipped config such as ``"cityscapes/seamless_R_50_FPN.yaml"``.

    Raises:
        UserError: There is no such config; the message lists those that exist.
    """
    package = Path(__file__).resolve().parent
    # An installed package contains the configs; in a checkout they are beside the package.
    roots = [root for root in (package / "configs", package.parent / "configs") if root.is_dir()]
    for root in roots:
        if (root / name).is_file():
            return root / name
    known = sorted({p.relative_to(root).as_posix() for root in roots for p in root.rglob("*.yaml")})
    raise UserError(f"there is no config {name!r}; the shipped ones are: {', '.join(known)}")


def resolve_config(file: str | Path) -> Path:
    """Return ``file`` if it exists, else the path of the shipped config of that name.

    Raises:
        UserError: Neither exists.
    """
    if Path(file).is_file():
        return Path(file)
    if Path(file).is_absolute():
        raise UserError(f"config file {file} does not exist; give the path of a yaml file")
    return config_file(Path(file).as_posix().removeprefix("configs/"))


def list_keys(cfg: CfgNode, prefix: str = "") -> dict[str, object]:
    """Return all keys with their full names, sections included, and their values."""
    result: dict[str, object] = {}
    for name, value in cfg.items():
        result[prefix + name] = value
        if isinstance(value, CfgNode):
            result.update(list_keys(value, f"{prefix}{name}."))
    return result


def _explain(cfg: CfgNode, reason: str) -> str:
    """Rewrite an error message of yacs so that it says what to write instead."""
    key = reason.rsplit("key: ", 1)[-1] if "key: " in reason else ""
    keys = list_keys(cfg)
    if "Non-existent" in reason:
        leaf = key.rsplit(".", 1)[-1].upper()
        elsewhere = [k for k in keys if k.rsplit(".", 1)[-1].upper() == leaf]  # the right name in another section
        return f"there is no key {key}{suggest(key, keys, 0.75, elsewhere)}"
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
    """Load a configuration: the defaults, then the yaml ``file``, then the overrides.

    Args:
        file: A path, or the name of a shipped config. Yaml tags that would run code are refused.
        overrides: KEY VALUE pairs, as on a command line.

    Returns:
        The complete configuration.

    Raises:
        UserError: The file is missing, is no yaml, or has a key that does not exist or a value that is not accepted.
    """
    path = resolve_config(file)
    cfg = _load(path, lambda cfg: cfg.merge_from_file(str(path), allow_unsafe=False), overrides)
    adopt_description(cfg)
    return cfg


def load_config_text(text: str, source: str | Path) -> CfgNode:
    """Load a configuration from yaml, for instance that inside the file ``source``; see ``load_config``."""
    return _load(source, lambda cfg: cfg.merge_from_other_cfg(CfgNode.load_cfg(text)))


def _load(path: str | Path, merge: Callable[[CfgNode], None], overrides: list[str] | None = None) -> CfgNode:
    cfg = get_cfg()
    add_seamless_config(cfg)
    try:
        merge(cfg)
        cfg.merge_from_list(overrides or [])
    except (KeyError, ValueError, AssertionError, TypeError) as error:
        reason = str(error.args[0] if error.args else error)
        reason = _explain(cfg, reason)
        raise UserError(f"config {path} (with its overrides) is not valid: {reason}") from error
    except Exception as error:  # yaml has no common base class that yacs re-exports
        raise UserError(f"config {path} cannot be read as yaml: {error}") from error
    check_config(cfg)
    return cfg


def get_config(name: str) -> CfgNode:
    """Return a shipped config as a complete configuration.

    Args:
        name: Its name, such as ``"cityscapes/seamless_R_50_FPN.yaml"``; the suffix may be left out.

    Raises:
        UserError: There is no such config.
    """
    return load_config(config_file(name if name.endswith(".yaml") else f"{name}.yaml"))
