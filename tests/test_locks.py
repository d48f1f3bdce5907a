"""The lock of an output folder: one holder, who is named, and none after its process has ended."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from seamless_d2.errors import UserError
from seamless_d2.locks import lock_output


def hold(path: Path) -> None:
    with lock_output(path, "a training"):
        path.with_suffix(".held").touch()
        time.sleep(60)


def test_one_holder_who_is_named(tmp_path: Path) -> None:
    path = tmp_path / "out" / ".lock"
    with lock_output(path, "a training"):
        with pytest.raises(UserError, match=rf"out is being written by a training \(process {os.getpid()} on .*since"):
            with lock_output(path, "a prediction"):
                pass
    with lock_output(path, "a prediction"):
        assert path.read_text().startswith("a prediction (process")
    with pytest.raises(KeyError), lock_output(path, "a prediction"):
        raise KeyError
    with lock_output(path, "a training"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    process = multiprocessing.get_context("fork").Process(target=hold, args=(path,))
    process.start()
    limit = time.monotonic() + 60
    while not path.with_suffix(".held").exists():
        assert time.monotonic() < limit
        time.sleep(0.01)
    with pytest.raises(UserError, match=f"process {process.pid} on"), lock_output(path, "a training"):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with lock_output(path, "a training"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_workers_do_not_hold_the_lock_of_their_parent(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with lock_output(tmp_path / ".lock", "a training"):
        worker.start()
        with pytest.raises(UserError), lock_output(tmp_path / ".lock", "a prediction"):
            pass
    with lock_output(tmp_path / ".lock", "a prediction"):  # while the worker is alive
        worker.kill()
    worker.join()
