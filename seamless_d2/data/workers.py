"""Worker processes that load the batches of a training, each with a connection of its own."""

import itertools
import signal
from collections.abc import Iterator
from functools import partial
from multiprocessing.util import Finalize

import torch
import torch.multiprocessing  # so that tensors travel between processes in shared memory  # noqa: F401

from ..parallel import Worker, end_workers
from .seeding import Sample, SeededDataset

# The number of batches that a worker has to load at any time.
_PREFETCH = 2


class BatchWorkers:
    """An endless iterator over batches that worker processes load, one after the other in turn.

    Attributes:
        workers: The processes.
        close: A function that ends the workers; it is called at the latest when this process ends.
    """

    def __init__(self, dataset: SeededDataset, plan: Iterator[list[Sample]], num_workers: int) -> None:
        """
        Args:
            dataset: Maps a sample to a training dict; its seed, too, differs between workers.
            plan: The samples of each batch, without end.
            num_workers: The number of processes.
        """
        self._plan = plan
        self.workers: list[Worker] = []
        for number in range(num_workers):
            prepare = partial(_prepare_worker, dataset.seed + number)
            self.workers.append(Worker(partial(_load_batch, dataset), self.workers, prepare=prepare))
        self.close = Finalize(self, end_workers, (self.workers,), exitpriority=0)
        for worker in self.workers * _PREFETCH:
            worker.send(next(plan))
        self._turns = itertools.cycle(self.workers)

    def __iter__(self) -> "BatchWorkers":
        return self

    def __next__(self) -> list[dict]:
        """Return the training dicts of the next batch; for its exceptions see ``Worker.receive``."""
        worker = next(self._turns)
        batch = worker.receive()
        worker.send(next(self._plan))
        return batch


def _prepare_worker(seed: int) -> None:
    # A worker ends with its connection, that is with the trainer, which handles the signals that all processes get.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(ignored, signal.SIG_IGN)
    torch.set_num_threads(1)
    torch.manual_seed(seed)


def _load_batch(dataset: SeededDataset, samples: list[Sample]) -> list[dict]:
    return [dataset[sample] for sample in samples]
