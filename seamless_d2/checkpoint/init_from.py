"""Starting a training from a model of other classes: its weights are copied, rows of classes are matched by name."""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..config import list_keys, load_config_text
from ..errors import UserError, suggest
from ..io import read_text
from ..structures.classes import Classes
from .tensor_files import load_file

# Layers whose outputs belong to classes: all classes, things and the background, things.
_SEMANTIC = re.compile(r"sem_seg_head\.predictor\.(weight|bias)")
_BOX_CLASSES = re.compile(r"roi_heads\.box_predictor\.(\d+\.)?cls_score\.(weight|bias)")
_PER_THING = re.compile(
    r"roi_heads\.(box_predictor\.(\d+\.)?(?P<deltas>bbox_pred)|mask_head\.predictor)\.(weight|bias)"
)
# Settings that the weights were trained with, and that are to stay as they are.
_ALIKE = ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1")


@dataclass
class Transfer:
    """What became of the weights of a model.

    Attributes:
        copied: The names of weights that were copied as they are.
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
    state = content.get("model", content)
    their_cfg = _find_config(path, content)
    theirs, ours = Classes.from_config(their_cfg), Classes.from_config(cfg)
    if theirs is None or ours is None:
        raise UserError(f"the names of the classes of {path if theirs is None else 'the data set'} are not known")
    transfer = _copy(model, state, ours, theirs, _match(ours, theirs, cfg.MODEL.INIT_CLASS_MAP, path))
    networks = ("backbone.bottom_up.", "backbone.net.")
    weights = [name for name in transfer.copied if not name.endswith("num_batches_tracked")]
    of_network = [name for name in weights if name.startswith(networks)]
    has_network = any(name.startswith(networks) for name in model.state_dict())
    if not weights or (has_network and not of_network):
        raise UserError(
            f"{path} shares no weight with this {'backbone' if weights else 'model'}; it belongs to another "
            "architecture: use the config of that model as the base of yours"
        )
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


@torch.no_grad()
def _copy(
    model: nn.Module, state: dict[str, Tensor], ours: Classes, theirs: Classes, labels: dict[int, int]
) -> Transfer:
    transfer = Transfer(matched={ours.names[a]: theirs.names[b] for a, b in labels.items()})
    transfer.new_classes = [name for name in ours.names if name not in transfer.matched]
    # A class that was stuff there and is a thing here has rows in the semantic head alone.
    things = [
        (a - ours.num_stuff, b - theirs.num_stuff)
        for a, b in labels.items()
        if a >= ours.num_stuff and b >= theirs.num_stuff
    ]
    background = (ours.num_things, theirs.num_things)
    for name, value in model.state_dict().items():
        if name not in state:
            transfer.new.append(name)
            continue
        source, rows, unit = state[name].to(value), None, 1
        if _SEMANTIC.fullmatch(name):
            rows, counts = list(labels.items()), (len(ours.names), len(theirs.names))
        elif _BOX_CLASSES.fullmatch(name):
            rows, counts = [*things, background], (ours.num_things + 1, theirs.num_things + 1)
        elif match := _PER_THING.fullmatch(name):
            rows, counts, unit = things, background, 4 if match["deltas"] else 1
        # Class-agnostic layers have fewer rows than that.
        by_class = rows is not None and (len(value), len(source)) == (unit * counts[0], unit * counts[1])
        if by_class and value.shape[1:] == source.shape[1:]:
            ours_by_class, theirs_by_class = value.unflatten(0, (-1, unit)), source.unflatten(0, (-1, unit))
            for a, b in rows:
                ours_by_class[a] = theirs_by_class[b]
        elif value.shape == source.shape:
            value.copy_(source)
        else:
            transfer.new.append(name)
            continue
        transfer.copied.append(name)
    return transfer


def _report(transfer: Transfer, cfg: CfgNode, their_cfg: CfgNode, path: Path) -> None:
    """Write what was copied, matched and new to the log."""
    logger = logging.getLogger(__name__)
    renamed = [f"{name} from {source}" for name, source in transfer.matched.items() if source != name]
    equal = len(transfer.matched) - len(renamed)
    logger.info(
        f"initialized from {path}: {len(transfer.copied)} weights copied; {equal} classes by their names, "
        f"{len(renamed)} by the map{': ' + ', '.join(renamed) if renamed else ''}"
    )
    if transfer.new_classes:
        logger.info(f"new classes, with initial rows: {', '.join(transfer.new_classes)}")
    lacking = [name for name in transfer.new if not name.endswith("num_batches_tracked")]
    if lacking:
        logger.warning(f"{len(lacking)} weights keep their initial values: {', '.join(lacking[:8])}, ...")
    ours, theirs = list_keys(cfg), list_keys(their_cfg)
    for key in _ALIKE:
        if ours[key] != theirs[key]:
            logger.warning(f"{key} is {ours[key]}, but {path} was trained with {theirs[key]}; set it to that")
