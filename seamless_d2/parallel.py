"""Work on many items in several processes, which ends at once at Ctrl-C and SIGTERM."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import cv2

from .errors import UserError, exit_on_signal

Item = TypeVar("Item")
Result = TypeVar("Result")
_HELD = (signal.SIGINT, signal.SIGTERM)


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    # Not as a context manager, whose end waits for everything that was submitted, also after Ctrl-C.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(start_method), initializer=_start_worker)
    others = set(multiprocessing.active_children())
    finished = False
    try:
        with hold_signals():
            futures = {pool.submit(_work_interruptibly, work, item): number for number, item in enumerate(items)}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
        finished = True
    except BrokenProcessPool:
        raise UserError(killed) from None
    finally:
        if not finished:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        pool.shutdown(cancel_futures=True)


@contextmanager
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


def _start_worker() -> None:
    """Prepare a worker: it leaves Ctrl-C to its parent, which gets it too, and ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, exit_on_signal)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    # A worker whose parent was killed would wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(0)  # the CPUs are shared out among the processes already


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work_interruptibly(work: Callable[[Any], Any], item: Any) -> Any:
    """Return ``work(item)``; after SIGTERM, end the worker once ``work`` has removed its temporary files.

    The executor would catch ``SystemExit`` as the result of this item and go on with the next.
    """
    try:
        return work(item)
    except SystemExit as end:
        os._exit(end.code)
