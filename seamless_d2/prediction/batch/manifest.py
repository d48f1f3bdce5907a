"""The manifest of an output folder: its inputs, and what became of each.

A manifest is a text file to which lines of json are appended, so that a killed process loses no more than the line that
it was writing. Each writer has its own: manifest.jsonl, or manifest-3-of-8.jsonl of a shard. All those of a folder
together are its manifest.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from ...errors import UserError
from ..frames import redact

PENDING, DONE, FAILED = "pending", "done", "failed"
_FILES = "manifest*.jsonl"
_SHARD = re.compile(r"manifest-(\d+)-of-(\d+)\.jsonl")
# The attributes of an entry that do not change.
_INPUT = ("source", "state", "image", "kind", "image_id")


@dataclass(frozen=True, slots=True)
class Entry:
    """One input.

    Attributes:
        source: The absolute path or the address of the input.
        state: Its size in bytes and the time of its last change in nanoseconds; empty if it is not there.
        image: The name of the image in COCO files: with its suffix, relative to the folder that was given, or its name
            in the data set of ``image_id``.
        kind: "image", "video", "camera" or "stream".
        image_id: The id of the image in its data set, if one was given.
        outcome: ``PENDING``, ``DONE`` or ``FAILED``.
        reason: Why it failed.
    """

    source: str
    state: tuple[int, ...]
    image: str
    kind: str = "image"
    image_id: int | str | None = None
    outcome: str = PENDING
    reason: str = ""

    def as_pending(self) -> "Entry":
        """Return the entry of an input of which nothing has become yet."""
        return replace(self, outcome=PENDING, reason="")

    def is_same_file(self, other: "Entry") -> bool:
        """Return whether both are one file that has not changed, which may have been moved."""
        return self.state == other.state if self.state or other.state else self.source == other.source


def describe_file(path: Path | int | str, image: str, kind: str = "image", image_id: int | str | None = None) -> Entry:
    """Return the entry of a file as it is now, of a camera or of a URL; see ``Entry``."""
    if not isinstance(path, Path):
        return Entry(f"camera {path}" if isinstance(path, int) else redact(path), (), image, kind)
    try:
        found = path.stat()
    except OSError:
        return Entry(os.path.abspath(path), (), image, kind, image_id)
    return Entry(os.path.abspath(path), (found.st_size, found.st_mtime_ns), image, kind, image_id)


class Manifest:
    """The manifest of one writer. Several processes may append to it at a time."""

    def __init__(self, folder: Path, label: str = "") -> None:
        """
        Args:
            folder: The output folder.
            label: What tells this writer from others in the folder, for instance "3-of-8".
        """
        self.path = folder / (f"manifest-{label}.jsonl" if label else "manifest.jsonl")

    def add(self, entries: dict[str, Entry]) -> None:
        """Append inputs by name; their outcome is pending. Without any, the file is created."""
        now = time.time_ns()
        lines = ({"name": name, "time": now, **{k: getattr(e, k) for k in _INPUT}} for name, e in entries.items())
        self._append("".join(f"{json.dumps(line)}\n" for line in lines))

    def finish(self, name: str, reason: str | None = None) -> None:
        """Append that an input is done, or the ``reason`` for which it failed."""
        outcome = DONE if reason is None else FAILED
        line = {"name": name, "time": time.time_ns(), "outcome": outcome, "reason": reason or ""}
        self._append(json.dumps(line) + "\n")

    def _append(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode()
        with open(self.path, "a+b", buffering=0) as file:  # one call of write: lines of several processes do not mix
            if data and _is_torn(file):
                data = b"\n" + data
            file.write(data)


def _is_torn(file: IO[bytes]) -> bool:
    """Return whether the last line of a file was cut off."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def read_manifests(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Entry]:
    """Read all manifests of a folder; of several lines on one input the latest counts, whatever file it is in.

    Args:
        folder: The output folder.
        wanted: Which names are returned, for folders of which a shard needs a part.

    Returns:
        The entries by name, in the order in which they were recorded.

    Raises:
        UserError: A file is no manifest.
    """
    inputs: dict[str, tuple[int, Entry]] = {}
    outcomes: dict[str, tuple[int, str, str]] = {}
    for path in sorted(folder.glob(_FILES)):
        for line in _read_lines(path):
            name, when = line["name"], line["time"]
            if not wanted(name):
                continue
            if "source" not in line:
                if name not in outcomes or outcomes[name][0] <= when:
                    outcomes[name] = when, line["outcome"], line["reason"]
            elif name not in inputs or inputs[name][0] <= when:
                inputs[name] = when, Entry(**{key: line[key] for key in _INPUT} | {"state": tuple(line["state"])})
    found = {}
    for name, (when, entry) in inputs.items():
        last, outcome, reason = outcomes.get(name, (0, "", ""))
        found[name] = replace(entry, outcome=outcome, reason=reason) if last >= when else entry
    return found


def find_missing_shards(folder: Path) -> str | None:
    """Return a shard that has never begun, "2/3", if there are shards and no division of the inputs is complete."""
    begun: dict[int, set[int]] = {}
    for path in folder.glob(_FILES):
        if match := _SHARD.fullmatch(path.name):
            begun.setdefault(int(match[2]), set()).add(int(match[1]))
    missing = [(count, sorted(set(range(1, count + 1)) - numbers)) for count, numbers in begun.items()]
    if not missing or any(not numbers for _, numbers in missing):
        return None
    count, numbers = max(missing)
    return f"{numbers[0]}/{count}"


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the values of a manifest; lines that were cut off by a kill are passed over."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file):
            try:
                line = json.loads(text)
            except ValueError:
                line = None if number else {}
            if line is None:
                continue
            known = isinstance(line, dict) and isinstance(line.get("name"), str) and isinstance(line.get("time"), int)
            if not known or not (set(_INPUT) <= line.keys() or {"outcome", "reason"} <= line.keys()):
                raise UserError(f"{path} was not written by this program; choose another folder")
            yield line
