"""Processes that load data may die at any moment: nothing is lost, and nothing waits for them."""

import contextlib
import itertools
import multiprocessing
import os
import random
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import connection

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from detectron2.modeling import build_model

from seamless_d2.data.loader import TrainLoader
from seamless_d2.engine import SeamlessTrainer, setup
from seamless_d2.errors import UserError
from seamless_d2.evaluation import PanopticEvaluator

from ..helpers.processes import run_forked

RECORDS = [{"file_name": f"image{k}", "width": 6, "height": 5, "number": k} for k in range(7)]


def load(record: dict) -> dict:
    """A tensor, which processes share, and an array, which fills the connection."""
    return {**record, "image": torch.full((4,), record["number"]), "array": np.full(200_000, random.random())}


def make(mapper=load, **settings) -> TrainLoader:
    settings = {"batch_size": 1, "seed": 3, "on_fault": "skip", "max_faults": 1000, **settings}
    return TrainLoader(RECORDS, mapper, lambda seed: TrainingSampler(len(RECORDS), seed=seed), **settings)


def contents(loader: Iterator[list[dict]], count: int) -> list[tuple[int, int, float]]:
    batches = itertools.islice(loader, count)
    return [(x["number"], int(x["image"][0]), x["array"][-1]) for batch in batches for x in batch]


def kill_workers(loader: TrainLoader, count: int = 2) -> None:
    for worker in random.sample(loader._iterator.workers, count):
        worker.process.kill()


def test_killed_while_a_batch_is_fetched() -> None:
    def work() -> None:
        answer, calls = connection.answer_challenge, itertools.count()

        def kill_and_answer(*args: object) -> None:
            if next(calls) == 2:
                kill_workers(loader)
            answer(*args)

        connection.answer_challenge = kill_and_answer
        loader = make(num_workers=2)
        assert contents(loader, 6) == contents(make(), 6)
        assert 1 <= loader.faults <= 2
        loader.close()

    assert run_forked(work, limit=30) == [0]


def test_the_end_of_a_process_is_one_sentence() -> None:
    loader = make(num_workers=2, on_fault="stop")
    contents(loader, 1)
    kill_workers(loader)
    with pytest.raises(UserError, match=r"SIGKILL while batch \d \(image\d\) .*memory ran out.* \(or set .*ON_FAULT"):
        contents(loader, 6)
    loader.close()


@pytest.mark.parametrize("error", [RuntimeError("a bug"), EOFError("a bug"), threading.Lock()])
def test_other_errors_are_no_deaths(error: object) -> None:
    def fail(record: dict) -> dict:
        if isinstance(error, Exception):
            raise error
        return {**record, "lock": error}  # cannot be sent

    loader = make(fail, num_workers=1)
    with pytest.raises(RuntimeError, match="(?s)Traceback .*(while image image|cannot pickle.*lock)"):
        next(loader)
    assert loader.faults == 0
    loader.close()


@pytest.mark.parametrize("count", [1, 2])
def test_killed_while_it_writes(count: int) -> None:
    def work() -> None:
        loader = make(num_workers=2)
        found = contents(loader, 2)
        time.sleep(0.5)  # both are now in the middle of a batch that does not fit into the connection
        kill_workers(loader, count)
        assert found + contents(loader, 6) == contents(make(), 8)
        loader.close()

    assert run_forked(work, limit=30) == [0]


@pytest.mark.slow
def test_killed_at_any_moment() -> None:
    def work() -> None:
        loader, kills = make(num_workers=2), itertools.count()

        def kill(*_: object) -> None:
            with contextlib.suppress(AttributeError):  # there is none at the moment
                kill_workers(loader, 1)
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.2) if next(kills) < 30 else 0)

        signal.signal(signal.SIGALRM, kill)
        kill()
        found = contents(loader, 200)
        signal.setitimer(signal.ITIMER_REAL, 0)
        loader.close()
        assert found == contents(make(), 200) and loader.faults > 3

    assert run_forked(work, limit=120) == [0]


def test_no_process_stays() -> None:
    def work(end: Callable[[], None]) -> None:
        contents(make(num_workers=2), 1)
        end()

    # At the end of a process that did not close its loader, and after its death; the workers are writing.
    for end, code in ((lambda: None, 0), (lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL)):
        ours, theirs = os.pipe()
        assert run_forked(partial(work, end), limit=30) == [code]
        os.close(theirs)
        ended, _, _ = select.select([ours], [], [], 5)  # when no process has the other end any more
        os.close(ours)
        assert ended


def test_killed_in_an_evaluation(arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: object) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()
        time.sleep(1)

    monkeypatch.setattr(PanopticEvaluator, "process", kill)
    cfg = setup(arguments("DATALOADER.NUM_WORKERS", "1"))
    with pytest.raises(UserError, match=r"in an evaluation .*killed by signal.*memory ran out"):
        SeamlessTrainer.test(cfg, build_model(cfg))
