"""Prediction of many images: reading, network, and fusion with writing overlap in time, in bounded memory."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import UserError
from ..predictor import Predictor, PreparedImage, get_batch_shape
from ..result import PanopticResult


@dataclass(frozen=True)
class Job:
    """The prediction of one image.

    Attributes:
        name: The name of the image in error messages.
        load: Returns what ``Predictor.predict`` takes: a file or an RGB array.
        save: Takes the result.
    """

    name: str
    load: Callable[[], Any]
    save: Callable[[PanopticResult], None]


Outcome = tuple[Job, UserError | None]


class StageTimes:
    """Where the time of a prediction goes: the seconds that its threads spend in each stage."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.threads: dict[str, int] = {}
        self.images, self._begin = 0, time.perf_counter()
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - begin

    def describe(self) -> str:
        """Return one line: the rate, how busy the threads of each stage were, and the stage that bounds the rate."""
        wall = time.perf_counter() - self._begin
        loads: Counter[str] = Counter()
        for stages, threads in self.threads.items():  # stages that share threads count together
            loads[stages] = sum(self.seconds[stage] for stage in stages.split("+")) / (threads * wall)
        parts = []
        for stages, load in loads.items():
            times = ", ".join(f"{s} {1e3 * self.seconds[s] / max(self.images, 1):.1f} ms" for s in stages.split("+"))
            parts.append(f"{times} an image ({100 * load:.0f} % busy)")
        bound = max(loads, key=loads.__getitem__).replace("+", " and ")
        rate = f"{self.images} images in {wall:.1f} s, {self.images / wall:.1f} images/s"
        return f"{rate}: {'; '.join(parts)}; bound by {bound}"


def run_jobs(
    predictor: Predictor, jobs: Iterable[Job], *, readers: int = 2, writers: int = 2, times: StageTimes | None = None
) -> Iterator[Outcome]:
    """Predict all jobs; with one reader and one writer they are loaded and saved in order.

    Args:
        predictor: The model.
        jobs: The jobs, taken one by one as there is room.
        readers, writers: The numbers of threads that load and save.
        times: Where the times of the stages are added up.

    Yields:
        Each job in order when it is done, with the ``UserError`` that it failed with or None. Other errors are raised.
        If iteration is stopped or interrupted, every job is either saved or not begun.
    """
    read_pool, write_pool = ThreadPoolExecutor(readers), ThreadPoolExecutor(writers)
    times = times or StageTimes()
    times.threads = {"reading": readers, "network": 1, "fusion+writing": writers}
    try:
        yield from _run(predictor, iter(jobs), read_pool, write_pool, readers, writers, times)
    finally:
        read_pool.shutdown(cancel_futures=True)
        write_pool.shutdown(cancel_futures=True)


def _run(
    predictor: Predictor,
    jobs: Iterator[Job],
    read_pool: ThreadPoolExecutor,
    write_pool: ThreadPoolExecutor,
    readers: int,
    writers: int,
    times: StageTimes,
) -> Iterator[Outcome]:
    reading: deque[tuple[Job, Future]] = deque()
    writing: deque[tuple[Job, Future]] = deque()
    batch: list[tuple[Job, PreparedImage]] = []

    def read(job: Job) -> PreparedImage:
        with times.measure("reading"):
            return predictor.prepare(job.load())

    def flush() -> None:
        with times.measure("network"):
            outputs = _run_network(predictor, batch)
        for (job, prepared), output in zip(batch, outputs, strict=True):
            writing.append((job, write_pool.submit(_finish, predictor, job, prepared, output, times)))
        times.images += len(batch)
        batch.clear()

    while True:
        while len(reading) < predictor.options.batch_size + readers and (job := next(jobs, None)) is not None:
            reading.append((job, read_pool.submit(read, job)))
        if not reading:
            break
        job, future = reading.popleft()
        prepared = _outcome(job, future)
        if isinstance(prepared, UserError):
            flush()  # so that outcomes keep their order
            done: Future = Future()
            done.set_result(prepared)
            writing.append((job, done))
        else:
            if batch and get_batch_shape(prepared) != get_batch_shape(batch[0][1]):
                flush()
            batch.append((job, prepared))
            if len(batch) >= predictor.options.batch_size:
                flush()
        while len(writing) > 2 * writers:
            job, future = writing.popleft()
            yield job, _outcome(job, future)
    flush()
    while writing:
        job, future = writing.popleft()
        yield job, _outcome(job, future)


def _outcome(job: Job, future: Future) -> Any:
    """Return the result of a future, or the ``UserError`` that it raised, which names the job."""
    try:
        return future.result()
    except UserError as error:
        return error if job.name in str(error) else UserError(f"{job.name}: {error}")
    except MemoryError:
        return UserError(f"{job.name} does not fit into memory; make it smaller")


def _run_network(predictor: Predictor, batch: list[tuple[Job, PreparedImage]]) -> list[Any]:
    """Return the network's outputs; an image that does not fit into memory gives a ``UserError`` instead."""
    if not batch:
        return []
    try:
        return predictor.run_network([prepared for _, prepared in batch])
    except (
        RuntimeError,
        MemoryError,
    ) as error:  # torch.OutOfMemoryError is a RuntimeError; on a CPU only the text tells
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) > 1:
            return [output for item in batch for output in _run_network(predictor, [item])]
        return [UserError(f"{batch[0][0].name} does not fit into memory; use tiles, for instance --tile 2048x1024")]


def _finish(
    predictor: Predictor, job: Job, prepared: PreparedImage, output: Any, times: StageTimes
) -> UserError | None:
    if isinstance(output, UserError):
        return output
    with times.measure("fusion"):
        result = predictor.postprocess(prepared, output)
    with times.measure("writing"):
        job.save(result)
    return None
