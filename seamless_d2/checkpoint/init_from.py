"""Starting a training from a model of other classes: its weights are copied, rows of classes are matched by name."""

import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..config import list_keys, load_config_text
from ..errors import UserError, suggest
from ..io import read_text
from ..structures.classes import Classes
from ..tensor_files import check_finite, load_file
from .checkpointer import check_shared

# Layers whose outputs belong to classes, by what these are.
_BY_CLASS = {
    "classes": re.compile(r"sem_seg_head\.predictor\.(weight|bias)"),
    "scores": re.compile(r"roi_heads\.box_predictor\.(\d+\.)?cls_score\.(weight|bias)"),
    "deltas": re.compile(r"roi_heads\.box_predictor\.(\d+\.)?bbox_pred\.(weight|bias)"),
    "masks": re.compile(r"roi_heads\.mask_head\.predictor\.(weight|bias)"),
}
# Settings that the weights were trained with, and that are to stay as they are.
_ALIKE = (
    *("INPUT.FORMAT", "INPUT.INTERPOLATION", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1"),
    *("MODEL.SEAMLESS.ACTIVATION", "MODEL.SEAMLESS.ACTIVATION_SLOPE"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"),
    *("MODEL.RPN.BBOX_REG_WEIGHTS", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"),
    *(f"MODEL.{part}.NORM" for part in ("RESNETS", "FPN", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")),
    "MODEL.SEM_SEG_HEAD.NORM",
)

# The classes of a model, and its configuration.
Model = tuple[Classes, CfgNode]


@dataclass
class Transfer:
    """What became of the weights of a model.

    Attributes:
        copied: The names of weights that were copied, of layers with outputs per class at least one row.
        matched: The new classes whose rows were copied, each with the class that they come from.
        new_classes: The classes whose rows keep their initial values.
        new: The names of weights that keep their initial values.
    """

    copied: list[str] = field(default_factory=list)
    matched: dict[str, str] = field(default_factory=dict)
    new_classes: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


def init_from(model: nn.Module, cfg: CfgNode) -> Transfer:
    """Initialize ``model`` in place from the checkpoint MODEL.INIT_FROM.

    Backbone, neck and heads are copied. Of the layers with outputs per class, the rows of a class are those of the
    class of the same name (if need be in other case), or of the one that MODEL.INIT_CLASS_MAP names. What has no
    counterpart keeps its initial values.

    Args:
        model: The model, with its initial values.
        cfg: Its configuration, with MODEL.SEAMLESS.CLASS_NAMES.

    Raises:
        UserError: The file is missing or no checkpoint, its classes are not known, the class map has unknown names, or
            the model has no weight in common with it.
    """
    path = Path(cfg.MODEL.INIT_FROM)
    if cfg.MODEL.WEIGHTS:
        raise UserError(
            f'MODEL.INIT_FROM and MODEL.WEIGHTS ({cfg.MODEL.WEIGHTS}) are both set; set MODEL.WEIGHTS to "" to start '
            "from the other model"
        )
    content = load_file(path, "checkpoint of MODEL.INIT_FROM")
    values = content["model"] if isinstance(content.get("model"), dict) else content
    state = {k: torch.as_tensor(v) for k, v in values.items() if isinstance(v, (Tensor, np.ndarray))}
    their_cfg = _find_config(path, content)
    theirs, ours = Classes.from_config(their_cfg), Classes.from_config(cfg)
    if theirs is None or ours is None:
        raise UserError(f"the names of the classes of {path if theirs is None else 'the data set'} are not known")
    labels = _match(ours, theirs, cfg.MODEL.INIT_CLASS_MAP, path)
    try:
        check_finite(state)
        transfer = _copy(model, state, labels, (ours, cfg), (theirs, their_cfg))
        check_shared(model, [name for name in transfer.copied if not name.endswith("num_batches_tracked")])
    except UserError as error:
        raise UserError(f"MODEL.INIT_FROM {path}: {error}") from None
    _report(transfer, cfg, their_cfg, path)
    return transfer


def _find_config(path: Path, content: dict) -> CfgNode:
    """Return the configuration of a checkpoint: inside of it, or beside it as FILE.yaml or config.yaml."""
    trainer = content.get("trainer")
    if isinstance(trainer, dict) and isinstance(trainer.get("config"), str):
        return load_config_text(trainer["config"], path)
    for file in (path.with_suffix(".yaml"), path.parent / "config.yaml"):
        if file.is_file():
            return load_config_text(read_text(file, "config"), file)
    raise UserError(
        f"the classes of {path} (MODEL.INIT_FROM) are not known: it has no config inside, and beside it is neither "
        f"{path.stem}.yaml nor config.yaml; put the config there that it was trained with"
    )


def _match(ours: Classes, theirs: Classes, class_map: list, path: Path) -> dict[int, int]:
    """Return the label of their class for the labels of our classes that have one."""
    pairs: dict[str, str] = {}
    for entry in class_map:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            raise UserError(f"MODEL.INIT_CLASS_MAP has {entry!r}; its entries are [new class, class of INIT_FROM]")
        if str(entry[0]) in pairs:
            raise UserError(f"MODEL.INIT_CLASS_MAP has {entry[0]!r} twice; give each class one entry")
        pairs[str(entry[0])] = str(entry[1])
    for names, known, where in ((pairs, ours, "the data set"), (pairs.values(), theirs, str(path))):
        for name in names:
            if name and name not in known.names:
                hint = suggest(name, known.names) or f"; its classes are {', '.join(known.names)}"
                raise UserError(f"MODEL.INIT_CLASS_MAP: {where} has no class {name!r}{hint}")
    lower = {name.lower(): name for name in theirs.names}
    equal = {name: name if name in theirs.names else lower.get(name.lower(), "") for name in ours.names}
    sources = {name: pairs.get(name, equal[name]) for name in ours.names}
    return {ours.names.index(name): theirs.names.index(source) for name, source in sources.items() if source}


def _count_outputs(classes: Classes, cfg: CfgNode) -> dict[str, int]:
    """Return the outputs of each kind of ``_BY_CLASS``; class-agnostic layers have those of one class."""
    counts = {key: 1 if is_agnostic else classes.num_things for key, is_agnostic in _find_agnostic(cfg).items()}
    return {
        "classes": len(classes.names),
        "scores": classes.num_things + 1,  # the background comes last
        "deltas": 4 * counts["deltas"],
        "masks": counts["masks"],
    }


def _find_agnostic(cfg: CfgNode) -> dict[str, bool]:
    """Return which of the kinds that can be are class-agnostic."""
    heads = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    return {"deltas": heads[0].CLS_AGNOSTIC_BBOX_REG, "masks": heads[1].CLS_AGNOSTIC_MASK}


def _pair_rows(labels: dict[int, int], ours: Model, theirs: Model) -> dict[str, list[tuple[int, int]]]:
    """Return for each kind of ``_BY_CLASS`` the rows of ours that come from theirs, each with the row of theirs."""
    (our_classes, our_cfg), (their_classes, their_cfg) = ours, theirs
    # A class that was stuff there and is a thing here has rows in the semantic head alone.
    things = [(a - our_classes.num_stuff, b - their_classes.num_stuff) for a, b in labels.items()]
    things = [(a, b) for a, b in things if a >= 0 and b >= 0]
    rows = {
        "classes": list(labels.items()),
        "scores": [*things, (our_classes.num_things, their_classes.num_things)],
        "deltas": [(4 * a + k, 4 * b + k) for a, b in things for k in range(4)],
        "masks": things,
    }
    is_agnostic, was_agnostic = _find_agnostic(our_cfg), _find_agnostic(their_cfg)
    for kind, size in (("deltas", 4), ("masks", 1)):
        if is_agnostic[kind] or was_agnostic[kind]:
            rows[kind] = [(k, k) for k in range(size)] if is_agnostic[kind] and was_agnostic[kind] else []
    return rows


@torch.no_grad()
def _copy(model: nn.Module, state: dict[str, Tensor], labels: dict[int, int], ours: Model, theirs: Model) -> Transfer:
    (our_classes, our_cfg), (their_classes, their_cfg) = ours, theirs
    names = our_classes.names
    transfer = Transfer(matched={names[a]: their_classes.names[b] for a, b in labels.items()})
    transfer.new_classes = [name for name in names if name not in transfer.matched]
    rows = _pair_rows(labels, ours, theirs)
    our_outputs, their_outputs = _count_outputs(our_classes, our_cfg), _count_outputs(their_classes, their_cfg)
    architectures = {(cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NAME) for cfg in (our_cfg, their_cfg)}
    for name, value in model.state_dict().items():
        source = state.get(name)
        kind = next((kind for kind, pattern in _BY_CLASS.items() if pattern.fullmatch(name)), "")
        if source is None or source.shape[bool(kind) :] != value.shape[bool(kind) :] or source.dim() != value.dim():
            transfer.new.append(name)
            continue
        source = source.to(value)
        if not kind:
            value.copy_(source)
            transfer.copied.append(name)
            continue
        is_ours, is_theirs = len(value) == our_outputs[kind], len(source) == their_outputs[kind]
        if is_ours and not is_theirs and len(architectures) == 1:
            raise UserError(
                f"{name} has {len(source)} outputs, but {their_outputs[kind]} by its config, which names "
                f"{len(their_classes.names)} classes; put the config beside it that it was trained with"
            )
        if is_ours and is_theirs:
            pairs = rows[kind]
        else:  # outputs of another kind, such as those of Detectron2's PanopticFPN, are the same for the same classes
            same = our_classes.names == their_classes.names and len(value) == len(source)
            pairs = [(k, k) for k in range(len(value))] if same else []
        if not pairs:
            transfer.new.append(name)
            continue
        own, other = map(list, zip(*pairs, strict=True))
        value[own] = source[other]
        transfer.copied.append(name)
    return transfer


def _report(transfer: Transfer, cfg: CfgNode, their_cfg: CfgNode, path: Path) -> None:
    """Write what was copied, matched and new to the log."""
    logger = logging.getLogger(__name__)
    counts = Counter(name.partition(".")[0] for name in transfer.copied)
    logger.info(
        f"initialized from {path}: {len(transfer.copied)} weights copied "
        f"({', '.join(f'{count} of {part}' for part, count in counts.items())})"
    )
    equal = [name for name, source in transfer.matched.items() if source == name]
    renamed = [f"{name} from {source}" for name, source in transfer.matched.items() if source != name]
    found = {"with the rows of their names": equal, "with those of another name": renamed}
    for what, names in {**found, "with initial rows": transfer.new_classes}.items():
        if names:
            logger.info(f"{len(names)} classes {what}: {', '.join(names)}")
    lacking = [name for name in transfer.new if not name.endswith("num_batches_tracked")]
    if lacking:
        logger.warning(f"{len(lacking)} weights keep their initial values: {', '.join(lacking[:8])}, ...")
    ours, theirs = list_keys(cfg), list_keys(their_cfg)
    for key in _ALIKE:
        own, other = (_normalize(key, values[key]) for values in (ours, theirs))
        if own != other:
            logger.warning(f"{key} is {own}, but {path} was trained with {other}; set it to that")


def _normalize(key: str, value: Any) -> Any:
    """Return the value of a setting, the same one for all values under which weights mean the same."""
    if key.endswith(".NORM"):
        return re.sub(r"\w*BN$", "BN", value)
    return value or "bilinear" if key == "INPUT.INTERPOLATION" else value
