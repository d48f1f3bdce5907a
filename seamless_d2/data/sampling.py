"""The order of the training images: Detectron2's samplers, and the grouped batches of the original."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import Sampler

from ..errors import UserError
from .seeding import join_index


class GroupedBatchSampler(Sampler[int]):
    """The order of the original: whole epochs in which each batch of a process is either landscape or portrait.

    An epoch is a permutation by (seed + epoch). Its images are dealt, in this order, to an open batch of landscape
    images (width > height) and an open batch of other images. Full batches go to the processes in turn, so that no
    image goes to two processes. What is left at the end of the epoch is dropped (the original repeats batches until
    their number is divisible by the number of processes). Indices are yielded one by one without end; those of a batch
    follow each other, so that a loader with the same batch size per process collects them again.
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
            is_landscape: Whether each image is wider than high.
            images_per_process: The number of images per batch of one process.
            seed: The seed of the permutations, the same in all processes.
            rank, world_size: The number of this process and of all processes; default what Detectron2 says.

        Raises:
            UserError: An epoch has fewer batches than there are processes.
        """
        self.is_landscape = is_landscape
        self.images_per_process = images_per_process
        self.seed = seed
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size
        landscape = sum(is_landscape)
        others = len(is_landscape) - landscape
        #: The number of batches per epoch of each process.
        self.batches_per_epoch = (landscape // images_per_process + others // images_per_process) // self.world_size
        if not self.batches_per_epoch:
            raise UserError(
                f"{landscape} landscape and {others} other images do not fill a batch of {images_per_process} for each "
                f"of {self.world_size} processes; lower SOLVER.IMS_PER_BATCH or set DATALOADER.SAMPLER_TRAIN to "
                "TrainingSampler"
            )

    def list_batches(self, number: int) -> list[list[int]]:
        """Return the batches of this process in epoch ``number``, as lists of indices."""
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
            for batch in self.list_batches(number):
                yield from batch


def repeat_factors(records: list[dict[str, Any]], threshold: float, sqrt: bool = True) -> torch.Tensor:
    """Return the repeat factors of Detectron2's ``RepeatFactorTrainingSampler``, by the classes of ``segments_info``.

    Args:
        records: The N records; things and stuff count alike.
        threshold: The fraction of images below which a class is repeated (DATALOADER.REPEAT_THRESHOLD).
        sqrt: Whether factors follow the square root of the frequency (DATALOADER.REPEAT_SQRT).

    Returns:
        (N,) float32 factors of at least 1.
    """
    classes = [
        {"annotations": [{"category_id": (s["isthing"], s["category_id"])} for s in record["segments_info"]]}
        for record in records
    ]
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(classes, threshold, sqrt)


class InstanceScaleUniformSampler(Sampler[int]):
    """Classes with equal probability, then an image that has the class (Porzi et al., CVPR 2021, section 3.3).

    The crop is then made around an instance of the class (``ResizeCropAround``). Indices are those of ``join_index``,
    without end; the processes take them in turn.
    """

    def __init__(
        self,
        records: list[dict[str, Any]],
        num_stuff: int,
        seed: int,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """
        Args:
            records: The N records; crowd regions do not count.
            num_stuff: The number of stuff classes, after which the labels of things begin.
            seed: The seed of the order, the same in all processes.
            rank, world_size: The number of this process and of all processes; default what Detectron2 says.

        Raises:
            UserError: No record has a segment.
        """
        images: dict[int, list[int]] = {}
        for index, record in enumerate(records):
            segments = [s for s in record["segments_info"] if not s["iscrowd"]]
            for label in {s["category_id"] + num_stuff * s["isthing"] for s in segments}:
                images.setdefault(label, []).append(index)
        if not images:
            raise UserError(
                "DATALOADER.SAMPLER_TRAIN InstanceScaleUniformSampler: no image has a segment that is not a crowd; "
                "choose another sampler, such as TrainingSampler"
            )
        self.images = dict(sorted(images.items()))
        self.num_images = len(records)
        self.seed = seed
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._draw(), self.rank, None, self.world_size)

    def _draw(self) -> Iterator[int]:
        generator, classes = np.random.default_rng(self.seed), list(self.images.items())
        while True:
            # A block costs no more than a single number.
            for class_part, image_part in generator.random((1024, 2)).tolist():
                label, images = classes[int(class_part * len(classes))]
                yield join_index(images[int(image_part * len(images))], label, self.num_images)


def build_train_sampler(
    cfg: CfgNode, dataset_dicts: list[dict[str, Any]], *, seed: int | None = None, batch_size: int | None = None
) -> Sampler[int]:
    """Build the sampler that DATALOADER.SAMPLER_TRAIN names.

    Args:
        cfg: The configuration; DATALOADER.SAMPLER_TRAIN, REPEAT_THRESHOLD, REPEAT_SQRT, RANDOM_SUBSET_RATIO,
            SOLVER.IMS_PER_BATCH and SEED are used.
        dataset_dicts: The records in the order of the indices.
        seed: The seed of the order, the same in all processes. Default: SEED, or a random seed that all processes share
            if SEED is negative.
        batch_size: The number of images of one forward pass of one process; default its part of SOLVER.IMS_PER_BATCH.

    Raises:
        UserError: The name is unknown.
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
    if name == "InstanceScaleUniformSampler":
        num_stuff = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - cfg.MODEL.ROI_HEADS.NUM_CLASSES
        return InstanceScaleUniformSampler(dataset_dicts, num_stuff, seed)
    if name == "GroupedBatchSampler":
        per_process = batch_size or cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        return GroupedBatchSampler([r["width"] > r["height"] for r in dataset_dicts], per_process, seed)
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; use TrainingSampler, RepeatFactorTrainingSampler, "
        "RandomSubsetTrainingSampler, InstanceScaleUniformSampler or GroupedBatchSampler"
    )
