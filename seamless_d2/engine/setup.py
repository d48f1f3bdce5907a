"""Setup of a training or evaluation: from command-line arguments to a checked configuration."""

import argparse
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import detectron2.engine
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import load_config, resolve_config
from ..data.registration import register_from_config
from ..errors import UserError
from ..io import atomic_write
from ..locks import lock_output
from ..structures.classes import Classes


def adopt_classes(cfg: CfgNode, names: list[str] | tuple[str, ...]) -> None:
    """Check that the data sets fit the model and each other, and write their classes into ``cfg`` in place.

    Args:
        cfg: The configuration of the model.
        names: The names of registered data sets.

    Raises:
        UserError: The numbers or names of the classes differ.
    """
    first = None
    for name in names:
        classes = Classes.from_metadata(MetadataCatalog.get(name))
        classes.check(cfg, f"data set {name!r}")
        if first is not None and classes.names != first.names:
            raise UserError(f"data sets {names[0]!r} and {name!r} have different classes; use data sets with the same")
        first = first or classes
    if first is not None:
        first.to_config(cfg)


def resolve_epochs(cfg: CfgNode) -> None:
    """Set SOLVER.MAX_ITER by SOLVER.EPOCHS and the size of the training sets, if SOLVER.EPOCHS is above 0."""
    if cfg.SOLVER.EPOCHS > 0:
        cfg.SOLVER.MAX_ITER = round(cfg.SOLVER.EPOCHS * iterations_per_epoch(cfg))


def iterations_per_epoch(cfg: CfgNode) -> int:
    """Return the number of whole batches in one pass over the training sets, at least 1."""
    images = sum(len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TRAIN)
    return max(images // cfg.SOLVER.IMS_PER_BATCH, 1)


def check_device(cfg: CfgNode) -> None:
    """Raise ``UserError`` if MODEL.DEVICE is a GPU and there is none."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r} but PyTorch finds no GPU; add MODEL.DEVICE cpu to the command"
        )


def build_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Return Detectron2's parser of a training's arguments with ``dry_run``, ``engine`` and ``allow_config_change``.

    Args:
        epilog: The text after the list of arguments.
    """
    parser = detectron2.engine.default_argument_parser(epilog)
    parser.add_argument("--dry-run", action="store_true", help="check config, data and memory, write nothing")
    parser.add_argument(
        "--engine",
        choices=("torch", "onnxruntime", "openvino"),
        help="with --eval-only: what runs the model, which may be an exported file (only PQ is measured then)",
    )
    parser.add_argument(
        "--allow-config-change", action="store_true", help="with --resume: accept settings that change the training"
    )
    return parser


def load_and_check(args: argparse.Namespace) -> CfgNode:
    """Load a config, register its data sets and check both; nothing is written.

    Args:
        args: The arguments of ``detectron2.engine.default_argument_parser``; config_file, eval_only and opts are used.

    Returns:
        The frozen configuration.

    Raises:
        UserError: The config or the data are wrong.
    """
    if not args.config_file:
        raise UserError("no config given; use --config-file configs/....yaml")
    args.config_file = str(resolve_config(args.config_file))
    cfg = load_config(args.config_file, args.opts)
    if not cfg.DATASETS.TEST or not (args.eval_only or cfg.DATASETS.TRAIN):
        raise UserError("DATASETS.TRAIN and DATASETS.TEST must name data sets")
    names = list(cfg.DATASETS.TEST) if args.eval_only else [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    register_from_config(cfg, names)
    adopt_classes(cfg, names)
    if not args.eval_only:
        resolve_epochs(cfg)
    check_device(cfg)
    cfg.freeze()
    return cfg


def setup(args: argparse.Namespace) -> CfgNode:
    """Return the config that ``load_and_check`` returns, after ``begin_output``.

    Raises:
        UserError: The config or the data are wrong.
    """
    cfg = load_and_check(args)
    begin_output(cfg, args)
    return cfg


def lock_output_dir(cfg: CfgNode, args: argparse.Namespace) -> AbstractContextManager[None]:
    """Return the lock of OUTPUT_DIR; of several processes, the main one holds it for all.

    Raises:
        UserError: On entering, if another training, evaluation or prediction holds the lock.
    """
    if not comm.is_main_process():
        return nullcontext()
    return lock_output(Path(cfg.OUTPUT_DIR) / ".lock", "an evaluation" if args.eval_only else "a training")


def begin_output(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Create OUTPUT_DIR with config.yaml and log.txt, and seed the random generators.

    Args:
        cfg: The checked configuration.
        args: The arguments of ``detectron2.engine.default_argument_parser``.
    """
    file = Path(cfg.OUTPUT_DIR) / "config.yaml"
    before = file.read_bytes() if file.is_file() else None
    detectron2.engine.default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="seamless_d2", abbrev_name="seamless")
    if comm.is_main_process() and before is not None and (args.resume or args.eval_only):
        # The file is that of the training whose checkpoints are there, until a training resumes with other settings.
        with atomic_write(file) as stream:
            stream.write(before)
    else:
        write_config(cfg)


def write_config(cfg: CfgNode) -> None:
    """Write OUTPUT_DIR/config.yaml in the main process, atomically (``default_setup`` writes it in place)."""
    if comm.is_main_process():
        with atomic_write(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w") as stream:
            stream.write(cfg.dump())
