"""What becomes of settings that differ from those of the checkpoint from which a training resumes."""

import logging
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..errors import UserError

#: Keys, or sections, that may change: they decide what is shown, saved and measured, and where it runs.
FREE = (
    "OUTPUT_DIR",
    "TEST",
    "WANDB",
    "VIS_PERIOD",
    "CUDNN_BENCHMARK",
    "MODEL.DEVICE",
    "MODEL.PANOPTIC_FPN.COMBINE",
    "MODEL.SEAMLESS.FUSE_AT",
    "MODEL.SEAMLESS.OUTPUTS",
    "MODEL.SEAMLESS.GRADIENT_CHECKPOINTING",
    "MODEL.TIMM.GRAD_CHECKPOINTING",
    "MODEL.SEAMLESS.CLASS_COLORS",
    "DATASETS.TEST",
    "DATASETS.PANOPTIC",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.ON_FAULT",
    "DATALOADER.MAX_FAULTS",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINTS_TO_KEEP",
    "SOLVER.LOG_PERIOD",
    "SOLVER.ON_NONFINITE",
    "SOLVER.MAX_SKIPPED_STEPS",
)
#: Keys whose values are in the state of the optimizer, the schedule and the loader.
OVERRIDDEN = (
    "SEED",
    "MODEL.WEIGHTS",
    "MODEL.TIMM.PRETRAINED",
    "MODEL.INIT_FROM",
    "MODEL.INIT_CLASS_MAP",
    "SOLVER.BASE_LR",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.NORM_LR_FACTOR",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.WEIGHT_DECAY_NORM",
)
#: Schedules whose learning rates do not depend on the length of the training.
_OPEN_ENDED = ("MultiStep", "Step", "WarmupMultiStepLR")
_LISTED = 10


def check_changes(before: str, cfg: CfgNode, allow: bool = False) -> None:
    """Compare the settings of a checkpoint with those of the training that resumes from it, and log all differences.

    Args:
        before: The configuration in the checkpoint, as yaml.
        cfg: The configuration of the training.
        allow: Whether to accept changes after which the training is not what it would have been.

    Raises:
        UserError: There are such changes, and they are not allowed.
    """
    changes = find_changes(flatten_config(before), flatten_config(cfg.dump()))
    free = {k for k in changes if k.startswith(FREE) and not k.startswith("TEST.PRECISE_BN") or k.endswith("_TEST")}
    if cfg.SOLVER.LR_SCHEDULER_NAME in _OPEN_ENDED:
        free |= {"SOLVER.MAX_ITER", "SOLVER.EPOCHS"} & changes.keys()
    without_effect = changes.keys() & set(OVERRIDDEN)
    harmful = changes.keys() - free - without_effect
    logger = logging.getLogger(__name__)
    if free:
        logger.info("resumed with changed settings: " + _list(changes, free))
    if without_effect:
        logger.warning("without effect, because the checkpoint has its own: " + _list(changes, without_effect))
    if harmful and not allow:
        raise UserError(
            f"the checkpoint in {cfg.OUTPUT_DIR} was trained with other settings ({_list(changes, harmful)}); use its "
            "settings, or accept that the training changes with --allow-config-change"
        )
    if harmful:
        logger.warning("the training changes from here on: " + _list(changes, harmful))


def flatten_config(text: str) -> dict[str, Any]:
    """Return the settings of a configuration in yaml by the full names of their keys, without sections."""
    return _flatten(yaml.safe_load(text))


def find_changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Return the settings that differ, by key, as text.

    Args:
        old, new: The settings as ``flatten_config`` returns them. A key that only one of the two has is of another
            version of this program, and no difference.
    """
    return {k: f"{k} {old[k]!r} -> {new[k]!r}" for k in new if k in old and old[k] != new[k]}


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in _flatten(child, f"{prefix}{name}.").items()}


def _list(changes: dict[str, str], keys: set[str]) -> str:
    listed = [changes[key] for key in sorted(keys)]
    return ", ".join(listed[:_LISTED]) + (f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else "")
