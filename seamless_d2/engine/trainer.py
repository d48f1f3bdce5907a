"""Detectron2's DefaultTrainer with our data, evaluators, optimiser and checkpoints."""

import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..checkpoint import SeamlessCheckpointer
from ..data.mapper import SeamlessMapper
from ..data.sampling import build_train_sampler
from ..evaluation import build_evaluators
from .setup import iterations_per_epoch
from .solver import build_lr_scheduler, build_optimizer


class SeamlessTrainer(DefaultTrainer):
    """Training loop of Detectron2: logs, TensorBoard, periodic evaluation, best and last checkpoint."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
        sampler = build_train_sampler(cfg, dataset)
        # Batches that the sampler has grouped already must not be grouped again.
        grouping = cfg.DATALOADER.ASPECT_RATIO_GROUPING and cfg.DATALOADER.SAMPLER_TRAIN != "GroupedBatchSampler"
        return build_detection_train_loader(
            dataset,
            mapper=SeamlessMapper(cfg, True),
            sampler=sampler,
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=grouping,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name, mapper=SeamlessMapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluators(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return build_lr_scheduler(cfg, optimizer, iterations_per_epoch(cfg))

    def train(self) -> dict[str, Any]:
        """Train from ``start_iter`` to ``max_iter``; returns the metrics of the last evaluation (rank 0)."""
        super().train()
        return getattr(self, "_last_eval_results", {})

    def build_hooks(self) -> list[HookBase]:
        # DefaultTrainer has no factory for its checkpointer; its hooks are the first to use it.
        self.checkpointer = SeamlessCheckpointer(
            self.checkpointer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        result = super().build_hooks()
        if comm.is_main_process():
            best = hooks.BestCheckpointer(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, "panoptic_seg/PQ")
            # After the evaluation, before the writers.
            result.insert(len(result) - 1, best)
        return result
