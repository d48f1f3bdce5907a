"""Atomic output: a file is written under a temporary name and renamed when it is whole."""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp(\.\w+)?")


def make_temporary(path: Path, suffix: str = "") -> Path:
    """An empty new file beside ``path`` (whose folder is created where needed), with an ordinary file's permissions.

    Args:
        path: what it is going to become.
        suffix: at the end of its name, for writers that go by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp{suffix}")
    # Not tempfile: its files are private, and the umask cannot be asked for without a race between threads.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Open ``path`` for writing; it appears, or replaces an older one, only if the block ends without an exception.

    Raises:
        OSError: with the file's name, a full disk too.
    """
    path = Path(path)
    temporary = make_temporary(path)
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a write that fails does not say where
        raise


def remove_temporaries(folder: str | Path) -> None:
    """Remove what writers that were killed have left below ``folder``; nothing may be writing there."""
    for path in Path(folder).rglob(".*.tmp*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write ``content`` as json, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=indent)
