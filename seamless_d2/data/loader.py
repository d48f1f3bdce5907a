"""The training loader: batches as a function of (seed, position) alone, whatever the worker processes do.

Sampler and aspect-ratio grouping are replayed up to the position, and every sample draws its augmentation from its own
seed; so a training that goes on from a checkpoint sees exactly what it would have seen without the interruption.
"""

import itertools
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler

from ..errors import UserError
from .mapper import SeamlessMapper
from .sampling import build_train_sampler
from .seeding import Place, SeededDataset


class BatchPlan:
    """The batches of one process from batch ``start`` on, as lists of ``Place``; for DataLoader's ``batch_sampler``."""

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
            sampler: the indices of this process, without end and each time the same.
            batch_size: of this process.
            is_landscape: of each record; batches then hold landscape images or others only (Detectron2's aspect-ratio
                grouping). Default: no grouping.
            start: batches to leave out.
            rank, world_size: of this process; default Detectron2's.
        """
        self.sampler = sampler
        self.batch_size = batch_size
        self.is_landscape = is_landscape
        self.start = start
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size

    def __iter__(self) -> Iterator[list[Place]]:
        return itertools.islice(self._all(), self.start, None)

    def _all(self) -> Iterator[list[Place]]:
        open_batches: dict[bool, list[Place]] = {True: [], False: []}
        for number, index in enumerate(self.sampler):
            batch = open_batches[self.is_landscape is None or self.is_landscape[index]]
            batch.append((number * self.world_size + self.rank, index))
            if len(batch) == self.batch_size:
                yield batch.copy()
                batch.clear()


class TrainLoader:
    """Endless iterator over the batches (lists of training dicts) of this process, with a position to go on from."""

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
            records: of the data set.
            mapper: see ``SeamlessMapper``.
            make_sampler: from a seed to an endless sampler of this process's indices.
            batch_size: of this process.
            seed: the same in all processes.
            grouping: landscape and other images in separate batches.
            num_workers: processes that load.
            on_fault: "stop" or "skip" when a file cannot be read or a worker dies.
            max_faults: faults from which "skip" stops too.

        Raises:
            UserError: an unknown ``on_fault``.
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
        #: batches given out, and faults met, since the training began
        self.batches = 0
        self.faults = 0
        self._iterator: Iterator[list[dict]] | None = None
        make_sampler(seed)  # tells of wrong settings before the training starts

    def state_dict(self) -> dict[str, int]:
        images = self.batches * self.batch_size * comm.get_world_size()
        return {"seed": self.seed, "images": images, "faults": self.faults}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position, which counts the images of all processes; batches that workers hold are dropped."""
        self.close()
        self.seed, self.faults = state["seed"], state["faults"]
        self.batches = state["images"] // (self.batch_size * comm.get_world_size())

    def close(self) -> None:
        """End the worker processes; the next batch starts new ones."""
        self._iterator = None

    def plan(self) -> BatchPlan:
        """What comes, from the position on."""
        return BatchPlan(self.make_sampler(self.seed), self.batch_size, self.is_landscape, self.batches)

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> list[dict]:
        """
        Raises:
            UserError: a file cannot be read or a worker died, and ``on_fault`` is "stop" or there were too many.
        """
        while True:
            try:
                if self._iterator is None:
                    self._iterator = self._start()
                batch = next(self._iterator)
                break
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                files = ", ".join(self.records[index]["file_name"] for _, index in next(iter(self.plan())))
                reason = str(error).split("\n")[0]
                self._count(
                    f"{reason} while batch {self.batches} ({files}) was awaited; most often memory ran out: lower "
                    "DATALOADER.NUM_WORKERS",
                    "the batch is loaded again",
                )
                # The position has not moved, so that new workers start with the batch that was lost.
                self.close()
        self.batches += 1
        for entry in batch:
            for fault in entry.pop("faults"):
                self._count(fault, f"{entry['file_name']} takes its place")
        return batch

    def _count(self, fault: str, consequence: str) -> None:
        self.faults += 1
        if self.on_fault == "stop":
            raise UserError(f"{fault} (or set DATALOADER.ON_FAULT to skip)")
        if self.faults > self.max_faults:
            raise UserError(f"{fault}; this is fault {self.faults} of the data, more than DATALOADER.MAX_FAULTS allows")
        logging.getLogger(__name__).warning(f"{fault}; {consequence} (fault {self.faults} of {self.max_faults})")

    def _start(self) -> Iterator[list[dict]]:
        dataset = SeededDataset(self.records, self.mapper, self.seed, self.on_fault == "skip")
        main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if main else None
        loader = DataLoader(
            dataset,
            batch_sampler=self.plan(),
            num_workers=self.num_workers,
            collate_fn=list,
            worker_init_fn=_start_worker,
            # Not the global generator, whose state belongs to the training.
            generator=torch.Generator().manual_seed(self.seed),
        )
        iterator = iter(loader)
        if main and self.num_workers:
            # PyTorch's handler raises wherever the program is, for instance in the middle of an optimiser step. The
            # iterator notices a dead worker by itself when it waits for a batch.
            ours = handler is None or getattr(handler, "__module__", "").startswith("torch.")
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if ours else handler)
        return iterator


def _start_worker(_: int) -> None:
    """In a worker process: leave signals that the whole process group gets (preemption, Ctrl-C) to the trainer."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def on_first_term(*_: Any) -> None:
        # The second one is from our own exit.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, on_first_term)


def micro_batch_size(cfg: CfgNode) -> int:
    """Images of one process in one forward pass: IMS_PER_BATCH shared by the processes and ACCUMULATE_STEPS.

    Raises:
        UserError: it does not divide.
    """
    total, steps, processes = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE_STEPS, comm.get_world_size()
    if steps < 1 or total < 1 or total % (steps * processes):
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {total} is not divisible by SOLVER.ACCUMULATE_STEPS {steps} times {processes} "
            "processes; change one of them"
        )
    return total // (steps * processes)


def build_train_loader(cfg: CfgNode, seed: int) -> TrainLoader:
    """The loader of DATASETS.TRAIN by Detectron2's DATALOADER keys and ours.

    Raises:
        UserError: see ``micro_batch_size``, ``build_train_sampler`` and ``TrainLoader``.
    """
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    size = micro_batch_size(cfg)
    return TrainLoader(
        records,
        SeamlessMapper(cfg, True),
        lambda s: build_train_sampler(cfg, records, seed=s, batch_size=size),
        batch_size=size,
        seed=seed,
        # Batches that the sampler has grouped already must not be grouped again.
        grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING and cfg.DATALOADER.SAMPLER_TRAIN != "GroupedBatchSampler",
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        on_fault=cfg.DATALOADER.ON_FAULT,
        max_faults=cfg.DATALOADER.MAX_FAULTS,
    )
