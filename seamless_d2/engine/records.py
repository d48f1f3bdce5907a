"""The records of a training: after a kill and resume they are those of a training that was left in peace."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventStorage, JSONWriter

from ..io import atomic_write

EVALUATIONS = "evaluations.json"
#: The number of values of each scalar that the medians of a progress line are taken of, at most.
_WINDOW = 100


def read_evaluations(file: Path) -> dict[int, dict[str, float]]:
    """Read the history that ``EvaluationHook`` writes.

    Returns:
        {number of steps: flat results}; empty if there is no file, and, with a warning, if it is damaged.
    """
    try:
        return {int(k): {name: float(x) for name, x in v.items()} for k, v in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        pass
    except (ValueError, AttributeError, TypeError):
        logging.getLogger(__name__).warning(f"{file} is damaged; evaluations are taken from the checkpoint instead")
    return {}


def get_events(storage: EventStorage) -> dict[str, list[Any]]:
    """Return the recent values of all scalars, as plain values for a checkpoint.

    Returns:
        By the name of the scalar: whether writers smooth it, its values, and their iterations.
    """
    hints = storage.smoothing_hints()
    recent = {name: history.values()[-_WINDOW:] for name, history in storage.histories().items()}
    return {name: [hints[name], *map(list, zip(*values, strict=True))] for name, values in recent.items() if values}


def set_events(storage: EventStorage, events: dict[str, list[Any]]) -> None:
    """Put the scalars that ``get_events`` has returned into a new storage."""
    for name, (hint, values, iterations) in events.items():
        for value, iteration in zip(values, iterations, strict=True):
            storage.put_scalar(name, value, smoothing_hint=hint, cur_iter=int(iteration))


class ResumedJSONWriter(JSONWriter):
    """Detectron2's writer of metrics.json that drops what a killed run wrote, and repeats nothing that is there."""

    def __init__(self, file: Path, start: int) -> None:
        """
        Args:
            file: The path of metrics.json.
            start: The first iteration that will be written. Lines of this and later iterations are removed, and so are
                incomplete ones.
        """
        kept: dict[int, str] = {}
        if file.is_file():
            for line in file.read_text(errors="replace").splitlines():
                try:
                    iteration = json.loads(line)["iteration"]
                except (ValueError, KeyError, TypeError):
                    continue
                if iteration < start:
                    kept[iteration] = line
            with atomic_write(file, "w") as stream:
                stream.writelines(line + "\n" for line in kept.values())
        super().__init__(str(file))
        self._last_write = max(kept, default=-1)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Delete the temporary files that a killed run has left in its OUTPUT_DIR ``folder``."""
    for leftover in Path(folder).glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
