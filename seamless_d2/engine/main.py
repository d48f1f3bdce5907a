"""The entry points of ``tools/train_net.py``: training, evaluation and the dry run."""

import argparse
import os
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm

from ..checkpoint import SeamlessCheckpointer, load_weights
from ..evaluation.tables import without_nan
from ..io import write_json
from ..modeling.ops.fold import prepare_for_inference
from ..modeling.timm_backbone import resume_without_pretrained
from ..prediction.engines import build_exported, is_eager
from ..prediction.options import PredictionOptions
from .config_changes import check_changes
from .dry_run import dry_run
from .setup import begin_output, load_and_check, lock_output_dir, write_config
from .trainer import SeamlessTrainer


def evaluate(
    cfg: CfgNode, trainer: type[SeamlessTrainer] = SeamlessTrainer, engine: str | None = None
) -> dict[str, Any]:
    """Evaluate MODEL.WEIGHTS on DATASETS.TEST and write the results to OUTPUT_DIR/evaluation.json.

    Args:
        cfg: The configuration.
        trainer: The class whose ``build_test_loader`` and ``build_evaluator`` are used.
        engine: What runs the model, see ``PredictionOptions``. An exported model is measured by PQ only.

    Returns:
        The results as Detectron2's ``DefaultTrainer.test`` returns them.
    """
    if is_eager(engine, cfg.MODEL.WEIGHTS):
        model = build_model(cfg)
        load_weights(model, cfg.MODEL.WEIGHTS)
        prepare_for_inference(model)
    else:
        cfg = PredictionOptions(engine=engine).apply(cfg, device="cpu")
        model = build_exported(cfg, engine)
    results = trainer.test(cfg, model)
    if comm.is_main_process():
        write_json(os.path.join(cfg.OUTPUT_DIR, "evaluation.json"), without_nan(results), indent=2)
    return results


def run(args: argparse.Namespace, trainer: type[SeamlessTrainer] = SeamlessTrainer) -> dict[str, Any]:
    """Train, or evaluate with ``args.eval_only``, or only check everything with ``args.dry_run``.

    Args:
        args: The arguments of ``detectron2.engine.default_argument_parser``, optionally with ``dry_run``,
            ``engine`` (see ``evaluate``) and ``allow_config_change`` (see ``check_changes``).
        trainer: The trainer's class; a subclass may bring its own model, data, optimizer, hooks or evaluation.

    Returns:
        The metrics of the last evaluation, or the report of the dry run.
    """
    cfg = load_and_check(args)
    resumes = args.resume and SeamlessCheckpointer(torch.nn.Identity(), cfg.OUTPUT_DIR).has_checkpoint()
    with resume_without_pretrained() if resumes else nullcontext():
        if getattr(args, "dry_run", False):
            return dry_run(cfg)
        with lock_output_dir(cfg, args):
            begin_output(cfg, args)
            if args.eval_only:
                return evaluate(cfg, trainer, getattr(args, "engine", None))
            training = trainer(cfg)
            training.resume_or_load(resume=args.resume)
            if training.resumed_config is not None:
                check_changes(training.resumed_config, training.cfg, getattr(args, "allow_config_change", False))
            write_config(cfg)
            return training.train()
