"""Which training image comes when: Detectron2's samplers on our records, and the original's grouped batches."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import Sampler

from ..errors import UserError


class GroupedBatchSampler(Sampler[int]):
    """The original's order: whole epochs, in which each process's batch is landscape or portrait only.

    An epoch is a shuffle by (seed + epoch). Its images are dealt, in this order, to an open batch of landscape images
    (width > height) and one of the others; full batches go to the processes in turn, so that none sees another's. What
    is left at the end of the epoch is dropped (the original repeats a batch where the number of processes does not
    divide their number). Indices are yielded one by one, without end; the images of a batch follow each other, so that
    a loader with the same batch size per process puts them together again.
    """

    def __init__(
        self,
        is_landscape: list[bool],
        images_per_process: int,
        seed: int,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """
        Args:
            is_landscape: of each image.
            images_per_process: of one batch.
            seed: the same in all processes.
            rank, world_size: of this process; default Detectron2's.

        Raises:
            UserError: an epoch has not one batch for each process.
        """
        self.is_landscape = is_landscape
        self.images_per_process = images_per_process
        self.seed = seed
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size
        landscape = sum(is_landscape)
        others = len(is_landscape) - landscape
        #: of each process
        self.batches_per_epoch = (landscape // images_per_process + others // images_per_process) // self.world_size
        if not self.batches_per_epoch:
            raise UserError(
                f"{landscape} landscape and {others} other images do not fill a batch of {images_per_process} for each "
                f"of {self.world_size} processes; lower SOLVER.IMS_PER_BATCH or set DATALOADER.SAMPLER_TRAIN to "
                "TrainingSampler"
            )

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of this process in one epoch."""
        generator = torch.Generator()
        generator.manual_seed(self.seed + number)
        open_batches: dict[bool, list[int]] = {True: [], False: []}
        batches = []
        for index in torch.randperm(len(self.is_landscape), generator=generator).tolist():
            batch = open_batches[self.is_landscape[index]]
            batch.append(index)
            if len(batch) == self.images_per_process:
                batches.append(batch.copy())
                batch.clear()
        return batches[: self.batches_per_epoch * self.world_size][self.rank :: self.world_size]

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            for batch in self.epoch(number):
                yield from batch


def repeat_factors(records: list[dict[str, Any]], threshold: float, sqrt: bool = True) -> torch.Tensor:
    """(N,) float32: Detectron2's repeat factors, counting things and stuff alike by ``segments_info``."""
    classes = [
        {"annotations": [{"category_id": (s["isthing"], s["category_id"])} for s in record["segments_info"]]}
        for record in records
    ]
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(classes, threshold, sqrt)


def build_train_sampler(
    cfg: CfgNode, dataset_dicts: list[dict[str, Any]], *, seed: int | None = None, batch_size: int | None = None
) -> Sampler[int]:
    """The sampler that ``DATALOADER.SAMPLER_TRAIN`` names.

    Args:
        cfg: configuration; reads DATALOADER.SAMPLER_TRAIN, REPEAT_THRESHOLD, REPEAT_SQRT, RANDOM_SUBSET_RATIO,
            SOLVER.IMS_PER_BATCH and SEED.
        dataset_dicts: the records, in the order of the indices.
        seed: the same in all processes; default SEED, where negative a random one that all processes agree on.
        batch_size: images of one process in one forward pass; default its share of SOLVER.IMS_PER_BATCH.

    Raises:
        UserError: an unknown name.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if seed is None:
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset_dicts), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = repeat_factors(dataset_dicts, cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.REPEAT_SQRT)
        return RepeatFactorTrainingSampler(factors, seed=seed)
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        return RandomSubsetTrainingSampler(len(dataset_dicts), ratio, seed_shuffle=seed, seed_subset=seed)
    if name == "GroupedBatchSampler":
        per_process = batch_size or cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        return GroupedBatchSampler([r["width"] > r["height"] for r in dataset_dicts], per_process, seed)
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; use TrainingSampler, RepeatFactorTrainingSampler, "
        "RandomSubsetTrainingSampler or GroupedBatchSampler"
    )
