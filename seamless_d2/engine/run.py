"""What ``tools/train_net.py`` does."""

import argparse
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm

from ..checkpoint import load_weights
from ..evaluation.tables import without_nan
from ..files import write_json
from ..modeling.fold import prepare_for_inference
from .dry_run import dry_run
from .setup import load_and_check, setup
from .trainer import SeamlessTrainer


def evaluate(cfg: CfgNode) -> dict[str, Any]:
    """Evaluate MODEL.WEIGHTS on DATASETS.TEST; the results also go to OUTPUT_DIR/evaluation.json."""
    model = build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    prepare_for_inference(model)
    results = SeamlessTrainer.test(cfg, model)
    if comm.is_main_process():
        write_json(os.path.join(cfg.OUTPUT_DIR, "evaluation.json"), without_nan(results), indent=2)
    return results


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, or evaluate with ``args.eval_only``; returns the metrics of the last evaluation.

    With ``args.dry_run`` neither, see ``dry_run``, whose report it returns.
    """
    if getattr(args, "dry_run", False):
        return dry_run(load_and_check(args))
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg)
    trainer = SeamlessTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()
