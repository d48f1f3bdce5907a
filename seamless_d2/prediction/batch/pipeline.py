"""Prediction of many images: reading, network, and fusion with writing overlap in time, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


def run_jobs(predictor: Predictor, jobs: Iterable[Job], *, readers: int = 2, writers: int = 2) -> Iterator[Outcome]:
    """Predict all jobs; with one reader and one writer they are loaded and saved in order.

    Args:
        predictor: The model.
        jobs: The jobs, taken one by one as there is room.
        readers, writers: The numbers of threads that load and save.

    Yields:
        Each job in order when it is done, with the ``UserError`` that it failed with or None. Other errors are raised.
        If iteration is stopped or interrupted, every job is either saved or not begun.
    """
    read_pool, write_pool = ThreadPoolExecutor(readers), ThreadPoolExecutor(writers)
    try:
        yield from _run(predictor, iter(jobs), read_pool, write_pool, readers, writers)
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
) -> Iterator[Outcome]:
    reading: deque[tuple[Job, Future]] = deque()
    writing: deque[tuple[Job, Future]] = deque()
    batch: list[tuple[Job, PreparedImage]] = []

    def flush() -> None:
        for (job, prepared), output in zip(batch, _run_network(predictor, batch), strict=True):
            writing.append((job, write_pool.submit(_finish, predictor, job, prepared, output)))
        batch.clear()

    while True:
        while len(reading) < predictor.options.batch_size + readers and (job := next(jobs, None)) is not None:
            reading.append((job, read_pool.submit(lambda job=job: predictor.prepare(job.load()))))
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


def _finish(predictor: Predictor, job: Job, prepared: PreparedImage, output: Any) -> UserError | None:
    if isinstance(output, UserError):
        return output
    job.save(predictor.postprocess(prepared, output))
    return None
