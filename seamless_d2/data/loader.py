"""The training loader, whose batches are a function of (seed, position) alone, whatever the worker processes do.

Sampler and aspect-ratio grouping are replayed up to the position, and every sample draws its augmentation from its own
seed. So a training that resumes from a checkpoint sees exactly the images that it would have seen without interruption.
"""

import itertools
import logging
from collections.abc import Callable, Generator, Iterator

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.utils import comm
from torch.utils.data import Sampler

from ..errors import UserError
from ..parallel import WorkerDied
from .mapper import SeamlessMapper
from .sampling import build_train_sampler
from .seeding import Sample, SeededDataset, split_index
from .workers import BatchWorkers


class BatchPlan:
    """The batches of one process from batch ``start`` on, as lists of ``Sample``: a ``batch_sampler`` of DataLoader."""

    def __init__(
        self,
        sampler: Sampler[int],
        batch_size: int,
        is_landscape: list[bool] | None = None,
        start: int = 0,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """
        Args:
            sampler: Yields the indices of the records for this process, without end and the same ones every time.
            batch_size: The number of images per batch of this process.
            is_landscape: Whether each record is a landscape image. A batch then has either landscape images or others
                (Detectron2's aspect-ratio grouping). Default: no grouping.
            start: The number of batches to leave out at the beginning.
            rank, world_size: The number of this process and of all processes; default what Detectron2 says.
        """
        self.sampler = sampler
        self.batch_size = batch_size
        self.is_landscape = is_landscape
        self.start = start
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size

    def __iter__(self) -> Iterator[list[Sample]]:
        return itertools.islice(self._iterate(), self.start, None)

    def _iterate(self) -> Iterator[list[Sample]]:
        open_batches: dict[bool, list[Sample]] = {True: [], False: []}
        for number, index in enumerate(self.sampler):
            batch = open_batches[
                self.is_landscape is None or self.is_landscape[split_index(index, len(self.is_landscape))[0]]
            ]
            batch.append((number * self.world_size + self.rank, index))
            if len(batch) == self.batch_size:
                yield batch.copy()
                batch.clear()


class TrainLoader:
    """An endless iterator over the batches of this process, which are lists of training dicts.

    Its state is a position in the sequence of batches, so that another loader can resume from it.

    Attributes:
        batches: The number of batches that were returned since the training began.
        faults: The number of faults since the training began.
    """

    def __init__(
        self,
        records: list[dict],
        mapper: Callable[[dict], dict],
        make_sampler: Callable[[int], Sampler[int]],
        *,
        batch_size: int,
        seed: int,
        grouping: bool = False,
        num_workers: int = 0,
        on_fault: str = "stop",
        max_faults: int = 10,
    ) -> None:
        """
        Args:
            records: The records of the training sets.
            mapper: Makes a training dict of a record, see ``SeamlessMapper``.
            make_sampler: Makes, from a seed, an endless sampler of the indices for this process.
            batch_size: The number of images per batch of this process.
            seed: The seed of the order and of the augmentations, the same in all processes.
            grouping: Whether landscape and other images are in separate batches.
            num_workers: The number of worker processes; 0 loads in this process.
            on_fault: What happens if a file cannot be read or a worker dies: "stop", or "skip" the image.
            max_faults: The number of faults above which "skip" stops, too.

        Raises:
            UserError: ``on_fault`` is unknown.
        """
        if on_fault not in ("stop", "skip"):
            raise UserError(f'DATALOADER.ON_FAULT is {on_fault!r}; use "stop" or "skip"')
        self.records = records
        self.mapper = mapper
        self.make_sampler = make_sampler
        self.batch_size = batch_size
        self.seed = seed
        self.is_landscape = [r["width"] > r["height"] for r in records] if grouping else None
        self.num_workers = num_workers
        self.on_fault = on_fault
        self.max_faults = max_faults
        self.batches = 0
        self.faults = 0
        self._iterator: BatchWorkers | Generator[list[dict], None, None] | None = None
        make_sampler(seed)  # raises before the training starts if settings are wrong

    def state_dict(self) -> dict[str, int]:
        images = self.batches * self.batch_size * comm.get_world_size()
        return {"seed": self.seed, "images": images, "faults": self.faults}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from a position, which counts the images of all processes; batches of running workers are dropped."""
        self.close()
        self.seed, self.faults = state["seed"], state["faults"]
        self.batches = state["images"] // (self.batch_size * comm.get_world_size())

    def close(self) -> None:
        """End the worker processes; the next batch starts new ones."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def plan_batches(self) -> BatchPlan:
        """Return the batches from the present position on."""
        return BatchPlan(self.make_sampler(self.seed), self.batch_size, self.is_landscape, self.batches)

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> list[dict]:
        """Return the next batch.

        Raises:
            UserError: A file cannot be read or a worker died, and ``on_fault`` is "stop" or there were too many faults.
        """
        while True:
            try:
                if self._iterator is None:
                    self._iterator = self._start()
                batch = next(self._iterator)
                break
            except WorkerDied as error:
                # The position has not moved, so that new workers start with the batch that was lost.
                self.close()
                lost = [split_index(index, len(self.records))[0] for _, index in next(iter(self.plan_batches()))]
                files = ", ".join(self.records[index]["file_name"] for index in lost)
                self._count_fault(
                    f"a data loader process {error} while batch {self.batches} ({files}) was awaited; most often "
                    "memory ran out: lower DATALOADER.NUM_WORKERS",
                    "the batch is loaded again",
                )
        self.batches += 1
        for entry in batch:
            for fault in entry.pop("faults"):
                self._count_fault(fault, f"{entry['file_name']} takes its place")
        return batch

    def _count_fault(self, fault: str, consequence: str) -> None:
        """Count a fault; log it with its consequence, or raise ``UserError``."""
        self.faults += 1
        if self.on_fault == "stop":
            raise UserError(f"{fault} (or set DATALOADER.ON_FAULT to skip)")
        if self.faults > self.max_faults:
            raise UserError(f"{fault}; this is fault {self.faults} of the data, more than DATALOADER.MAX_FAULTS allows")
        logging.getLogger(__name__).warning(f"{fault}; {consequence} (fault {self.faults} of {self.max_faults})")

    def _start(self) -> BatchWorkers | Generator[list[dict], None, None]:
        dataset = SeededDataset(self.records, self.mapper, self.seed, self.on_fault == "skip")
        plan = iter(self.plan_batches())
        if self.num_workers:
            return BatchWorkers(dataset, plan, self.num_workers)
        return ([dataset[sample] for sample in batch] for batch in plan)


def micro_batch_size(cfg: CfgNode) -> int:
    """Return the number of images of one forward pass of one process.

    It is SOLVER.IMS_PER_BATCH, divided by SOLVER.ACCUMULATE_STEPS and the number of processes.

    Raises:
        UserError: The number of images is not divisible.
    """
    total, steps, processes = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE_STEPS, comm.get_world_size()
    if steps < 1 or total < 1 or total % (steps * processes):
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {total} is not divisible by SOLVER.ACCUMULATE_STEPS {steps} times {processes} "
            "processes; change one of them"
        )
    return total // (steps * processes)


def build_train_loader(cfg: CfgNode, seed: int) -> TrainLoader:
    """Build the loader of DATASETS.TRAIN as the DATALOADER keys say.

    Args:
        cfg: The configuration.
        seed: The seed of the order and of the augmentations, the same in all processes.

    Raises:
        UserError: The batch size is not divisible (``micro_batch_size``), or a DATALOADER key has an unknown value.
    """
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    size = micro_batch_size(cfg)
    return TrainLoader(
        records,
        SeamlessMapper(cfg, True, sources=DatasetFromList(records, copy=False) if cfg.INPUT.COPY_PASTE else ()),
        lambda s: build_train_sampler(cfg, records, seed=s, batch_size=size),
        batch_size=size,
        seed=seed,
        # GroupedBatchSampler has grouped the images already.
        grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING and cfg.DATALOADER.SAMPLER_TRAIN != "GroupedBatchSampler",
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        on_fault=cfg.DATALOADER.ON_FAULT,
        max_faults=cfg.DATALOADER.MAX_FAULTS,
    )
