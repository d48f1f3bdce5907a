"""Atomic output: a file is written under a temporary name and renamed when it is whole."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Open ``path`` for writing; it appears, or replaces an older one, only if the block ends without an exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; give them the permissions of an ordinary new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def remove_temporaries(folder: str | Path) -> None:
    """Remove what writers that were killed have left below ``folder``; nothing may be writing there."""
    for path in Path(folder).rglob(".*.tmp*"):
        if path.is_file():
            path.unlink()


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write ``content`` as json, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=indent)
