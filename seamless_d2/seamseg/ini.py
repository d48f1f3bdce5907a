"""From the original's ini settings to our configuration.

Every key of the original is either mapped, or listed with the reason why it has no counterpart; a key that the
original does not know is an error.
"""

import ast
import configparser
import json
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from .ini_defaults import KINDS, NOT_APPLICABLE, get_defaults
from .names import NormMode


def find_kind(text: str) -> str:
    """Return which of ``KINDS`` an ini describes: with [sem] a panoptic model, else by the number of its losses."""
    parser = configparser.ConfigParser(allow_no_value=True, interpolation=None)
    try:
        parser.read_string(text)
        weights = ast.literal_eval(parser.get("optimizer", "loss_weights", fallback="()"))
    except (configparser.Error, ValueError, SyntaxError, RecursionError, MemoryError):
        return "panoptic"  # whose conversion names what is wrong
    if not parser.has_section("sem"):
        for kind, losses in KINDS.items():
            if isinstance(weights, tuple) and len(weights) == losses:
                return kind
    return "panoptic"


# The original's longest_max_size does not bind in testing; no image reaches this.
UNBOUND_SIZE = 1_000_000
# The stride of such a level is larger than any image.
_MAX_EXTRA_SCALES = 16
# The paper trains on 8 GPUs; train_batch_size counts images per GPU.
PAPER_GPUS = 8


@dataclass
class Converted:
    """The result of a conversion.

    Attributes:
        settings: The values of our keys (with dots).
        notes: One line per setting without counterpart.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Ini:
    """The original's settings, with its defaults for absent keys.

    Raises:
        UserError: The text is no ini, or has a section or key that the original does not know.
    """

    def __init__(self, text: str, source: str, kind: str = "panoptic") -> None:
        self.source, self.kind, self.latest = source, kind, ""
        parser = configparser.ConfigParser(allow_no_value=True, interpolation=None)
        try:
            parser.read_string(text)
        except configparser.Error as error:
            raise UserError(f"{source} is not an ini file: {str(error).splitlines()[0]}") from None
        self.values = get_defaults(kind)
        for section in parser.sections():
            for key, value in parser[section].items():
                if (section, key) not in self.values:
                    raise UserError(f"{source}: key {key!r} of section [{section}] is not one of seamseg's settings")
                self.values[section, key] = value or ""
        if not parser.sections():
            raise UserError(f"{source} has no section; it is not a seamseg configuration")

    def text(self, section: str, key: str) -> str:
        value = self.values[section, key].strip()
        self.latest = f"[{section}] {key} = {value[:100]!r}"  # for error messages
        return value

    def get(self, section: str, key: str) -> Any:
        """Return a value as Python literal: number, tuple, dict, None, or bool for yes/no."""
        value = self.text(section, key)
        if value.lower() in ("yes", "no", "true", "false", "on", "off"):
            return value.lower() in ("yes", "true", "on")
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two for deep nesting
                pass
        raise UserError(f"{self.source}: {self.latest} is not a number, tuple, dict or yes/no")

    def choice(self, section: str, key: str, choices: tuple[str, ...]) -> str:
        value = self.text(section, key)
        if value not in choices:
            raise UserError(f"{self.source}: {self.latest}; it must be one of {', '.join(choices)}")
        return value

    def expect(self, section: str, key: str, value: Any) -> None:
        """Raise ``UserError`` unless the setting is the only one that this program supports."""
        given = self.get(section, key)
        if given != value:
            raise UserError(f"{self.source}: [{section}] {key} = {given}; only {value} is supported")


def convert_ini(text: str, source: str = "config.ini", kind: str | None = None) -> Converted:
    """Convert the text of a seamseg ini.

    Args:
        text: The ini, complete or not.
        source: The name of the file, for error messages.
        kind: One of ``KINDS``; default as ``find_kind`` says. Models without a semantic head become Detectron2's
            ``GeneralizedRCNN`` of our components.

    Raises:
        UserError: A key is unknown, a value malformed, or a setting has no counterpart here.
    """
    ini = Ini(text, source, kind or find_kind(text))
    result = Converted()
    result.settings["MODEL.SEAMLESS.ORIGINAL_CONVENTIONS"] = True
    for convert in (_general, _body, _fpn_and_rpn, _roi, _sem, _optimizer, _scheduler, _dataloader):
        try:
            convert(ini, result.settings)
        except (TypeError, ValueError, KeyError, ArithmeticError) as error:
            raise UserError(f"{ini.source}: {ini.latest} is a value of a wrong form ({error}); mend it") from None
    for (section, key), reason in NOT_APPLICABLE.items():
        if (section, key) not in ini.values:
            continue
        result.notes.append(f"[{section}] {key} = {ini.text(section, key) or '(empty)'}: {reason}")
    return result


def _general(ini: Ini, out: dict[str, Any]) -> None:
    out["CUDNN_BENCHMARK"] = bool(ini.get("general", "cudnn_benchmark"))
    if ini.kind != "panoptic":
        out["MODEL.META_ARCHITECTURE"] = "GeneralizedRCNN"
        out["MODEL.MASK_ON"] = ini.kind == "instance_seg"
        out["MODEL.SEAMLESS.OUTPUTS"] = ["instances"]
        return
    combine = "MODEL.PANOPTIC_FPN.COMBINE."
    out[combine + "INSTANCES_CONFIDENCE_THRESH"] = float(ini.get("general", "score_threshold"))
    out[combine + "OVERLAP_THRESH"] = float(ini.get("general", "overlap_threshold"))
    out[combine + "STUFF_AREA_LIMIT"] = int(ini.get("general", "min_stuff_area"))
    out["TEST.EVAL_MODE"] = ini.choice("general", "eval_mode", ("panoptic", "separate"))


def _body(ini: Ini, out: dict[str, Any]) -> None:
    depths = ("18", "34", "50", "101", "152")
    body = ini.choice("body", "body", tuple(f"resnet{d}" for d in depths))
    out["MODEL.RESNETS.DEPTH"] = int(body.removeprefix("resnet"))
    # Blocks without a bottleneck have the stem's 64 channels; Detectron2 asserts the same.
    out["MODEL.RESNETS.RES2_OUT_CHANNELS"] = 256 if out["MODEL.RESNETS.DEPTH"] >= 50 else 64
    out["MODEL.RESNETS.STRIDE_IN_1X1"] = False
    params = dict(ini.get("body", "body_params"))
    plain = {"dilation": 1, "dropout": None, "caffe_mode": False, "keep_outputs": False}
    odd = [key for key, value in params.items() if key not in plain or value != plain[key]]
    if odd:
        raise UserError(f"{ini.source}: [body] body_params sets {odd[0]!r}, which is not supported; only {{}} is")
    mode = NormMode.parse(
        ini.choice("body", "normalization_mode", ("bn", "syncbn", "syncbn+bn", "gn", "syncbn+gn", "off"))
    )
    for part in ("RESNETS", "FPN", "SEM_SEG_HEAD"):
        out[f"MODEL.{part}.NORM"] = mode.static
    for part in ("RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        out[f"MODEL.{part}.NORM"] = mode.dynamic
    out["MODEL.SEAMLESS.ACTIVATION"] = ini.choice("body", "activation", ("leaky_relu", "elu", "relu", "identity"))
    out["MODEL.SEAMLESS.ACTIVATION_SLOPE"] = float(ini.get("body", "activation_slope"))
    out["MODEL.SEAMLESS.GN_GROUPS"] = int(ini.get("body", "gn_groups"))
    out["MODEL.BACKBONE.FREEZE_AT"] = int(ini.get("body", "num_frozen"))
    out["SOLVER.NORM_LR_FACTOR"] = 0.0 if ini.get("body", "bn_frozen") else 1.0


def _levels(ini: Ini, section: str, total: int) -> list[str]:
    low, count = int(ini.get(section, "fpn_min_level")), int(ini.get(section, "fpn_levels"))
    if low < 0 or count < 1 or low + count > total:
        raise UserError(f"{ini.source}: [{section}] uses levels {low}..{low + count - 1}, but the FPN has {total}")
    return [f"p{2 + i}" for i in range(low, low + count)]


def _num_levels(ini: Ini) -> int:
    extra = int(ini.get("fpn", "extra_scales"))
    if not 0 <= extra <= _MAX_EXTRA_SCALES:
        raise UserError(f"{ini.source}: [fpn] extra_scales = {extra}; it must be 0 to {_MAX_EXTRA_SCALES}")
    return 4 + extra


def _fpn_and_rpn(ini: Ini, out: dict[str, Any]) -> None:
    ini.choice("fpn", "interpolation", ("nearest",))
    ini.expect("fpn", "inputs", ["mod2", "mod3", "mod4", "mod5"])
    ini.expect("rpn", "stride", 1)
    out["MODEL.FPN.OUT_CHANNELS"] = int(ini.get("fpn", "out_channels"))
    out["MODEL.FPN.EXTRA_LEVELS"] = int(ini.get("fpn", "extra_scales"))
    levels = _levels(ini, "rpn", _num_levels(ini))
    key = "anchor_scale" if ini.kind == "panoptic" else "anchor_scales"
    scale = ini.get("rpn", key)
    if not isinstance(scale, (int, float)):
        raise UserError(f"{ini.source}: [rpn] {key} = {scale}; the original takes one number, such as 8")
    out["MODEL.ANCHOR_GENERATOR.SIZES"] = [[scale * 2 ** int(level[1:])] for level in levels]
    out["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] = [[float(r) for r in ini.get("rpn", "anchor_ratios")]]
    out["MODEL.ANCHOR_GENERATOR.OFFSET"] = 0.5
    rpn = "MODEL.RPN."
    out[rpn + "IN_FEATURES"] = levels
    out[rpn + "CONV_DIMS"] = [int(ini.get("rpn", "hidden_channels"))]
    out[rpn + "NMS_THRESH"] = float(ini.get("rpn", "nms_threshold"))
    for ours, theirs in (("TRAIN", "train"), ("TEST", "val")):
        out[rpn + f"PRE_NMS_TOPK_{ours}"] = int(ini.get("rpn", f"num_pre_nms_{theirs}"))
        out[rpn + f"POST_NMS_TOPK_{ours}"] = int(ini.get("rpn", f"num_post_nms_{theirs}"))
    out["MODEL.PROPOSAL_GENERATOR.MIN_SIZE"] = int(ini.get("rpn", "min_size"))
    out[rpn + "BATCH_SIZE_PER_IMAGE"] = int(ini.get("rpn", "num_samples"))
    out[rpn + "POSITIVE_FRACTION"] = float(ini.get("rpn", "pos_ratio"))
    out[rpn + "IOU_THRESHOLDS"] = [float(ini.get("rpn", "neg_threshold")), float(ini.get("rpn", "pos_threshold"))]
    out[rpn + "CROWD_THRESH"] = float(ini.get("rpn", "void_threshold"))
    out[rpn + "SMOOTH_L1_BETA"] = 1 / float(ini.get("rpn", "sigma")) ** 2


def _roi(ini: Ini, out: dict[str, Any]) -> None:
    height, width = ini.get("roi", "roi_size")
    if height != width or height % 2:
        raise UserError(f"{ini.source}: [roi] roi_size = {(height, width)}; it must be square and even")
    heads = "MODEL.ROI_HEADS."
    out[heads + "IN_FEATURES"] = _levels(ini, "roi", _num_levels(ini))
    out[heads + "BATCH_SIZE_PER_IMAGE"] = int(ini.get("roi", "num_samples"))
    out[heads + "POSITIVE_FRACTION"] = float(ini.get("roi", "pos_ratio"))
    positive = float(ini.get("roi", "pos_threshold"))
    high, low = float(ini.get("roi", "neg_threshold_hi")), float(ini.get("roi", "neg_threshold_lo"))
    thresholds, labels = [positive], [0, 1]
    if high != positive:
        thresholds, labels = [high, positive], [0, -1, 1]
    if low > 0:
        thresholds, labels = [low, *thresholds], [-1, *labels]
    out[heads + "IOU_THRESHOLDS"], out[heads + "IOU_LABELS"] = thresholds, labels
    out[heads + "CROWD_THRESH"] = float(ini.get("roi", "void_threshold"))
    out[heads + "NMS_THRESH_TEST"] = float(ini.get("roi", "nms_threshold"))
    out[heads + "SCORE_THRESH_TEST"] = float(ini.get("roi", "score_threshold"))
    out[heads + "CANONICAL_BOX_SIZE"] = int(ini.get("roi", "fpn_canonical_scale"))
    # Levels count from 0 at stride 4 there, from 2 here.
    out[heads + "CANONICAL_LEVEL"] = int(ini.get("roi", "fpn_canonical_level")) + 2
    out["TEST.DETECTIONS_PER_IMAGE"] = int(ini.get("roi", "max_predictions"))
    box, mask = "MODEL.ROI_BOX_HEAD.", "MODEL.ROI_MASK_HEAD."
    out[box + "POOLER_RESOLUTION"], out[box + "POOLER_SAMPLING_RATIO"] = height // 2, 2
    out[mask + "POOLER_RESOLUTION"], out[mask + "POOLER_SAMPLING_RATIO"] = height, 1
    y, x, h, w = ini.get("roi", "bbx_reg_weights")
    out[box + "BBOX_REG_WEIGHTS"] = [float(x), float(y), float(w), float(h)]
    out[box + "SMOOTH_L1_BETA"] = 1 / float(ini.get("roi", "sigma")) ** 2
    out[box + "NUM_FC"], out[box + "FC_DIM"] = 2, 1024
    out[mask + "NUM_CONV"], out[mask + "CONV_DIM"] = 4, 256
    if ini.kind != "detection":
        out[mask + "VOID_IS_BACKGROUND"] = bool(ini.get("roi", "void_is_background"))


def _sem(ini: Ini, out: dict[str, Any]) -> None:
    if ini.kind != "panoptic":
        return
    head = "MODEL.SEM_SEG_HEAD."
    out[head + "IN_FEATURES"] = _levels(ini, "sem", _num_levels(ini))
    size = ini.get("sem", "pooling_size")
    out[head + "POOLING_SIZE"] = [int(s) for s in (size if isinstance(size, (list, tuple)) else (size, size))]
    ohem = ini.get("sem", "ohem") if ini.text("sem", "ohem") else None
    out[head + "LOSS_TOP_K"] = 1.0 if ohem is None else float(ohem)
    out[head + "CONVS_DIM"] = 128


def _optimizer(ini: Ini, out: dict[str, Any]) -> None:
    decay = float(ini.get("optimizer", "weight_decay"))
    out["SOLVER.BASE_LR"] = float(ini.get("optimizer", "lr"))
    out["SOLVER.WEIGHT_DECAY"] = out["SOLVER.WEIGHT_DECAY_BIAS"] = decay
    out["SOLVER.WEIGHT_DECAY_NORM"] = decay if ini.get("optimizer", "weight_decay_norm") else 0.0
    out["SOLVER.MOMENTUM"] = float(ini.get("optimizer", "momentum"))
    out["SOLVER.NESTEROV"] = bool(ini.get("optimizer", "nesterov"))
    weights = [float(w) for w in ini.get("optimizer", "loss_weights")]
    if len(weights) != KINDS[ini.kind]:
        raise UserError(
            f"{ini.source}: [optimizer] loss_weights has {len(weights)} numbers; it must have {KINDS[ini.kind]}"
        )
    if weights[0] == 0:
        raise UserError(f"{ini.source}: [optimizer] loss_weights: the objectness weight cannot be 0 here")
    out["MODEL.RPN.LOSS_WEIGHT"] = weights[0]
    out["MODEL.RPN.BBOX_REG_LOSS_WEIGHT"] = weights[1] / weights[0]  # Detectron2 multiplies it with LOSS_WEIGHT
    out["MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT"] = weights[2]
    out["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT"] = weights[3]
    heads = ("MODEL.ROI_MASK_HEAD.LOSS_WEIGHT", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT")
    out.update(zip(heads, weights[4:], strict=False))  # as many as the kind of model has


def _scheduler(ini: Ini, out: dict[str, Any]) -> None:
    names = {"linear": "Linear", "step": "Step", "poly": "Poly", "multistep": "MultiStep"}
    name = ini.choice("scheduler", "type", tuple(names))
    params = dict(ini.get("scheduler", "params"))
    out["SOLVER.LR_SCHEDULER_NAME"] = names[name]
    try:
        if name == "poly":
            out["SOLVER.POLY_LR_POWER"] = float(params["gamma"])
        elif name == "linear":
            out["SOLVER.LINEAR_RANGE"] = [float(params["from"]), float(params["to"])]
        else:
            out["SOLVER.GAMMA"] = float(params["gamma"])
            if name == "step":
                out["SOLVER.STEP_SIZE"] = int(params["step_size"])
            else:
                out["SOLVER.STEPS"] = [int(m) for m in params["milestones"]]
    except KeyError as error:
        raise UserError(f"{ini.source}: [scheduler] params has no {error}, which type {name!r} needs") from None
    mode = ini.choice("scheduler", "update_mode", ("batch", "epoch"))
    out["SOLVER.SCHEDULE_BY"] = "iteration" if mode == "batch" else "epoch"
    out["SOLVER.EPOCHS"] = int(ini.get("scheduler", "epochs"))
    out["SOLVER.WARMUP_ITERS"] = int(ini.get("scheduler", "burn_in_steps"))
    out["SOLVER.WARMUP_FACTOR"] = float(ini.get("scheduler", "burn_in_start"))


def _dataloader(ini: Ini, out: dict[str, Any]) -> None:
    shortest = int(ini.get("dataloader", "shortest_size"))
    out["INPUT.FORMAT"] = "RGB"
    out["MODEL.PIXEL_MEAN"] = [255 * float(v) for v in ini.get("dataloader", "rgb_mean")]
    out["MODEL.PIXEL_STD"] = [255 * float(v) for v in ini.get("dataloader", "rgb_std")]
    out["INPUT.MIN_SIZE_TEST"], out["INPUT.MAX_SIZE_TEST"] = shortest, UNBOUND_SIZE
    longest = ini.text("dataloader", "longest_max_size")
    out["INPUT.MAX_SIZE_TRAIN"] = int(ini.get("dataloader", "longest_max_size")) if longest else UNBOUND_SIZE
    scales = [1.0, 1.0] if not ini.text("dataloader", "random_scale") else ini.get("dataloader", "random_scale")
    out["INPUT.MIN_SIZE_TRAIN"] = [int(shortest * s) for s in scales or (1, 1)]
    out["INPUT.MIN_SIZE_TRAIN_SAMPLING"] = "range" if len(out["INPUT.MIN_SIZE_TRAIN"]) == 2 else "choice"
    out["INPUT.RANDOM_FLIP"] = "horizontal" if ini.get("dataloader", "random_flip") else "none"
    batch = ini.text("dataloader", "train_batch_size")
    out["SOLVER.IMS_PER_BATCH"] = PAPER_GPUS * (int(batch) if batch else 1)
    out["DATALOADER.NUM_WORKERS"] = int(ini.get("dataloader", "num_workers"))
