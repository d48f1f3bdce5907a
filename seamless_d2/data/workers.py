"""Worker processes that load the batches of a training, each with a connection of its own.

PyTorch's ``DataLoader`` has one pipe with one lock for all workers. If one is killed while it writes, half a batch and
the lock stay behind, and the training waits for ever.
"""

import contextlib
import itertools
import signal
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize

import torch
from torch import multiprocessing
from torch.multiprocessing import Process

from ..errors import UserError
from ..parallel import hold_signals
from .seeding import Sample, SeededDataset

# The number of batches that a worker has to load at any time.
_PREFETCH = 2
# Seconds for a worker to end by itself.
_PATIENCE = 5


class WorkerDied(Exception):
    """A worker process has ended; the message says how."""


class BatchWorkers:
    """An endless iterator over batches that worker processes load, one after the other in turn.

    Attributes:
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
        self._workers: list[tuple[Process, Connection]] = []
        for number in range(num_workers):
            ours, theirs = multiprocessing.Pipe()
            inherited = [ours, *(connection for _, connection in self._workers)]
            worker = multiprocessing.Process(target=_work, args=(theirs, inherited, dataset, number), daemon=True)
            with hold_signals():
                worker.start()
            theirs.close()  # so that the connection ends with the worker
            self._workers.append((worker, ours))
        self.close = Finalize(self, _end, (self._workers,), exitpriority=0)
        for worker, connection in self._workers * _PREFETCH:
            with _report_death(worker):
                connection.send(next(plan))
        self._turns = itertools.cycle(self._workers)

    def __iter__(self) -> "BatchWorkers":
        return self

    def __next__(self) -> list[dict]:
        """Return the training dicts of the next batch.

        Raises:
            WorkerDied: The worker that was to load it has ended.
            UserError: A record cannot be read.
            RuntimeError: The worker met another error; the message is its traceback.
        """
        worker, connection = next(self._turns)
        with _report_death(worker):
            result = connection.recv()
            connection.send(next(self._plan))
        if isinstance(result, Exception):
            raise result
        return result


@contextlib.contextmanager
def _report_death(worker: Process) -> Iterator[None]:
    """Turn an error of the connection with a worker that has ended into ``WorkerDied``."""
    try:
        yield
    except (EOFError, OSError) as error:
        worker.join(_PATIENCE)
        if worker.exitcode is None:
            raise
        code = worker.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise WorkerDied(f"a data loader process {how}") from error


def _end(workers: list[tuple[Process, Connection]]) -> None:
    for _, connection in workers:
        connection.close()
    for worker, _ in workers:
        worker.join(_PATIENCE)
        worker.kill()


def _work(connection: Connection, inherited: list[Connection], dataset: SeededDataset, number: int) -> None:
    """Run a worker: answer the samples of a batch with their training dicts, or with an exception."""
    # A worker ends with its connection, that is with the trainer, which handles the signals that all processes get.
    for other in inherited:
        other.close()
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(ignored, signal.SIG_IGN)
    torch.set_num_threads(1)
    torch.manual_seed(dataset.seed + number)
    with contextlib.suppress(EOFError, OSError):
        while True:
            samples = connection.recv()
            try:
                answer = ForkingPickler.dumps([dataset[sample] for sample in samples])
            except UserError as error:
                answer = ForkingPickler.dumps(error)
            except Exception:  # not itself: it may be impossible to pickle
                answer = ForkingPickler.dumps(RuntimeError(f"in a data loader process:\n{traceback.format_exc()}"))
            connection.send_bytes(answer)
