"""Work in several threads, or in several processes, of which any can be killed or end at once without harm."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

import cv2

from .errors import UserError, exit_on_signal

Item = TypeVar("Item")
Result = TypeVar("Result")
_HELD = (signal.SIGINT, signal.SIGTERM)
# Seconds that workers have to end by themselves; an interrupted worker gets SIGTERM before each of them.
_PATIENCE = (1.0, 1.0, 3.0)


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_window(
    submit: Callable[[Item], Any], get: Callable[[Any], Result], items: Iterable[Item], size: int
) -> Iterator[Result]:
    """Yield the results of items in order, of which at most ``size`` are worked on at a time.

    Args:
        submit: Begins the work on an item; returns a handle.
        get: Waits for the result of a handle.
        items: The items, which are taken as needed.
        size: The number of items that are begun before the first result is waited for.
    """
    pending: deque[Any] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= size:
            yield get(pending.popleft())
    while pending:
        yield get(pending.popleft())


def map_threads(work: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None) -> Iterator[Result]:
    """Yield ``work(item)`` of all items in order, for work that releases Python's global lock.

    If the loop over it ends early, items that no thread has begun are dropped.

    Args:
        work: The function.
        items: Its arguments.
        workers: The number of threads; default one per available CPU.
    """
    workers = workers or available_cpus()
    pool = ThreadPoolExecutor(workers)
    try:
        yield from in_window(partial(pool.submit, work), Future.result, items, 2 * workers)
    finally:
        pool.shutdown(cancel_futures=True)


class WorkerDied(Exception):
    """A worker process has ended; the message says how."""


class Worker:
    """A process that does one kind of work, on items that come over a connection of its own.

    The pools of Python and PyTorch share pipes and locks between their processes. If one is killed, half a message or a
    lock may stay behind, and the others wait for ever.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        others: Sequence["Worker"] = (),
        *,
        prepare: Callable[[], object] = lambda: None,
        start_method: str | None = None,
    ) -> None:
        """Start the process.

        Args:
            work: The function of an item.
            others: The workers that this process has started before.
            prepare: Is called once in the new process.
            start_method: See ``multiprocessing``; default that of the system.
        """
        context = multiprocessing.get_context(start_method)
        self.connection, theirs = context.Pipe()
        # A forked process has copies of our ends, with which the workers would outlive this process.
        inherited = [worker.connection for worker in (*others, self)]
        args = (theirs, inherited if context.get_start_method() == "fork" else [], prepare, work)
        self.process = context.Process(target=_run, args=args, daemon=True)
        with hold_signals():
            self.process.start()
        theirs.close()  # so that the connection ends with the worker

    def send(self, item: Any) -> None:
        """Send an item; its result can be received once those of earlier items have been.

        Raises:
            WorkerDied: The process has ended.
        """
        with self._report_death():
            self.connection.send(item)

    def receive(self) -> Any:
        """Wait for the next result, and return it.

        Raises:
            WorkerDied: The process has ended.
            UserError, OSError: As ``work`` raised it.
            RuntimeError: ``work`` raised another exception; the message is its traceback.
        """
        with self._report_death():
            result = self.connection.recv()
        if isinstance(result, Exception):
            raise result
        return result

    @contextlib.contextmanager
    def _report_death(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            self.process.join(sum(_PATIENCE))
            if (code := self.process.exitcode) is None:
                raise
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise WorkerDied(how) from error


def end_workers(workers: Sequence[Worker], *, interrupt: bool = False) -> None:
    """End worker processes, after the items that they work on or at once."""
    for worker in workers:
        worker.connection.close()
    for seconds in _PATIENCE:
        limit = time.monotonic() + seconds
        for worker in workers if interrupt else ():
            # More than once, because Python forgets an exception that a signal raises in a destructor or callback.
            worker.process.terminate()
        for worker in workers:
            worker.process.join(max(0.0, limit - time.monotonic()))
    for worker in workers:
        worker.process.kill()
        worker.process.join(1)


def _run(theirs: Connection, inherited: list[Connection], prepare: Callable, work: Callable) -> None:
    """Run a worker until its connection ends."""
    for connection in inherited:
        connection.close()
    prepare()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    with contextlib.suppress(EOFError, OSError):
        while True:
            item = theirs.recv()
            try:
                answer = ForkingPickler.dumps(work(item))
            except (UserError, OSError) as error:
                answer = ForkingPickler.dumps(error)
            except Exception:  # not itself: it may be impossible to pickle
                answer = ForkingPickler.dumps(RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))
            theirs.send_bytes(answer)


def map_parallel(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None,
    killed: str,
    *,
    start_method: str = "fork" if sys.platform == "linux" else "spawn",
) -> Generator[tuple[int, Result], None, None]:
    """Yield (number, ``work(item)``) of all items in the order in which they finish.

    Close the iterator after an exception in the loop over it: that ends the processes.

    Args:
        work: The function; it must be possible to pickle it.
        items: Its arguments.
        workers: The number of processes; default one per available CPU. One works in this process.
        killed: The sentence of the error if a process was killed.
        start_method: How the processes start, see ``multiprocessing``. A spawned process would import the whole
            package again, forked ones share its memory; but CUDA needs spawned ones.

    Raises:
        UserError: A process was killed.
    """
    workers = min(workers or available_cpus(), len(items))
    if workers <= 1:
        yield from enumerate(map(work, items))
        return
    tasks = iter(enumerate(items))
    pool: list[Worker] = []
    busy: dict[Connection, tuple[Worker, int]] = {}
    finished = False

    def send_next(worker: Worker) -> None:
        for number, item in tasks:
            worker.send(item)
            busy[worker.connection] = worker, number
            return

    try:
        for _ in range(workers):
            pool.append(Worker(work, pool, prepare=_prepare_worker, start_method=start_method))
            send_next(pool[-1])
        while busy:
            for connection in wait(list(busy)):
                worker, number = busy.pop(connection)
                result = worker.receive()
                send_next(worker)
                yield number, result
        finished = True
    except WorkerDied:
        raise UserError(killed) from None
    finally:
        end_workers(pool, interrupt=not finished)


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of a block that starts processes, which inherit that.

    An exception that a signal raises inside of ``os.fork`` would be printed and forgotten.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker() -> None:
    """Prepare a worker of ``map_parallel``: it leaves Ctrl-C to its parent, which gets it too, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, exit_on_signal)
    sys.unraisablehook = _report_unraisable
    # A worker whose parent was killed would go on with its item.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(0)  # the CPUs are shared out among the processes already


def _report_unraisable(error: Any) -> None:
    """Print an exception that Python cannot raise, but not an interruption, which comes again."""
    if not issubclass(error.exc_type, SystemExit):
        sys.__unraisablehook__(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
