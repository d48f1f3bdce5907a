"""Locks of output folders, so that two processes never write into one."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

import portalocker

from .errors import UserError

_held: set[IO[str]] = set()


def _close_held() -> None:
    for file in _held:
        file.close()


if hasattr(os, "register_at_fork"):
    # A lock belongs to an open file. A worker process that outlives its killed parent must not keep the parent's lock.
    os.register_at_fork(after_in_child=_close_held)


@contextmanager
def lock_output(path: Path, what: str, *, shared: bool = False, patience: float = 0) -> Iterator[bool]:
    """Hold the lock of an output for the duration of the block.

    The operating system releases the lock when the process ends, whatever ends it, also on file systems that machines
    share. The file stays, since removing it could take the lock away from a process that is just opening it.

    Args:
        path: The lock file, for instance OUTPUT/.lock; its folder is created if needed.
        what: The work that holds the lock, for the message to others: "a training".
        shared: Whether other processes may hold the lock too, if they share it.
        patience: The seconds for which to wait for the lock.

    Yields:
        Whether the lock is held; it is not on a file system that knows no locks, which is logged.

    Raises:
        UserError: Another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = portalocker.LockFlags.SHARED if shared else portalocker.LockFlags.EXCLUSIVE
    is_held = False
    with open(path, "a+", encoding="utf-8") as file:
        try:
            _lock(file, flags | portalocker.LockFlags.NON_BLOCKING, time.monotonic() + patience)
            is_held = True
        except portalocker.AlreadyLocked:
            file.seek(0)
            holder = file.read(500).strip() or "another process"
            raise UserError(
                f"{path.parent} is being written by {holder}; wait until it has ended, or choose another output folder"
            ) from None
        except portalocker.LockException as error:
            logging.getLogger(__name__).warning(
                f"{path} cannot be locked ({error}): make sure that nothing else writes into its folder"
            )
        file.truncate(0)
        now = datetime.now().isoformat(" ", "seconds")
        file.write(f"{what} (process {os.getpid()} on {socket.gethostname()}, since {now})\n")
        file.flush()
        _held.add(file)
        try:
            yield is_held
        finally:
            _held.remove(file)
            with suppress(portalocker.LockException):
                portalocker.unlock(file)  # a process that is just being forked has the file open too


def _lock(file: IO[str], flags: portalocker.LockFlags, deadline: float) -> None:
    """Take a lock, trying again until a time of ``time.monotonic``."""
    while True:
        try:
            return portalocker.lock(file, flags)
        except portalocker.AlreadyLocked:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.02)
