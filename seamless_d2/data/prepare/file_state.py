"""Whether files and functions are the same as in an earlier run."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

#: The path of a file relative to a folder, its size in bytes, its modification time in nanoseconds since the epoch,
#: and a hash of its content. Of a missing file the size is -1.
FileState = list[str | int]


def record_state(path: Path, folder: Path) -> FileState:
    """Return the state of a file, with its path relative to ``folder``, so that both can move together."""
    name = os.path.relpath(path, folder)
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            return [name, status.st_size, status.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()]
    except FileNotFoundError:
        return [name, -1, 0, ""]


def is_unchanged(state: FileState, folder: Path, check_content: bool = False) -> bool:
    """Return whether a file still has the content of ``state``.

    Args:
        state: The result of ``record_state``.
        folder: The folder that the path is relative to.
        check_content: Whether to read the file even if its size and modification time are the same.
    """
    name, size, time, _ = state
    try:
        status = (folder / str(name)).stat()
    except FileNotFoundError:
        return size == -1
    if not check_content and (status.st_size, status.st_mtime_ns) == (size, time):
        return True
    # A copy of a data set has other times.
    return status.st_size == size and record_state(folder / str(name), folder)[3] == state[3]


def fingerprint(folder: Path, *values: Any) -> str:
    """Return a hash of values; paths count relative to ``folder``.

    A function counts by the source file that defines it, so that every change of its module is a change.
    """

    def describe(value: Any) -> Any:
        if isinstance(value, Path):
            return os.path.relpath(value, folder)
        if isinstance(value, set | frozenset):
            return sorted(value)
        if isinstance(value, partial):
            return [value.func, value.args, value.keywords]
        if callable(value):
            return [value.__qualname__, _hash_source(value)]
        return repr(value)

    return hashlib.sha256(json.dumps(values, default=describe, sort_keys=True).encode()).hexdigest()


def _hash_source(function: Callable[..., Any]) -> str:
    source = inspect.getsourcefile(function)
    if source is not None and os.path.isfile(source):
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return hashlib.sha256(function.__code__.co_code).hexdigest()  # typed into an interpreter
