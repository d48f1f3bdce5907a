"""Sharing the inputs of a prediction among processes and machines that write into one folder, without an engine."""

import os
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ...io import remove_temporaries, summarize_failures
from ...locks import lock_output
from .coco_folder import assemble_coco
from .manifest import DONE, FAILED, PENDING, Entry, read_manifests
from .resume import list_coco_images


@dataclass(frozen=True)
class Shard:
    """A part of the inputs: those whose names the part takes, whatever their order.

    Attributes:
        number: 1..count.
        count: The number of parts.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Parse "3/8", or "slurm" for a task of a SLURM array.

        Raises:
            UserError: The text is neither, or this process belongs to no array.
        """
        if text == "slurm":
            keys = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
            try:
                task, first, count = (int(os.environ[key]) for key in keys)
            except (KeyError, ValueError):
                raise UserError(
                    f"--shard slurm needs {', '.join(keys)} in the environment; start the job with sbatch --array=0-7"
                ) from None
            text = f"{task - first + 1}/{count}"
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise UserError(f"--shard is {text!r}; write 1/8 for the first of eight parts, ... 8/8 for the last")
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def label(self) -> str:
        """What stands in names of files."""
        return f"{self.number}-of-{self.count}"

    def takes(self, name: str) -> bool:
        """Return whether an input of this name belongs to the part."""
        return zlib.crc32(name.encode()) % self.count == self.number - 1


def merge_predictions(output: str | Path, *, partial: bool = False) -> tuple[Path, Path]:
    """Join what shards have written into panoptic.json and instances.json.

    Args:
        output: The output folder of the shards.
        partial: Whether inputs may be pending or failed.

    Returns:
        The two files.

    Raises:
        UserError: Inputs are pending or failed, the folder holds no predictions in the format "coco", or something is
            writing into it.
    """
    output = Path(output)
    if not output.is_dir():
        raise UserError(f"folder {output} does not exist; check the path")
    with lock_output(output / ".lock", "a merge of predictions") as is_locked:
        entries = read_manifests(output)
        if not entries:
            raise UserError(f"{output} holds no predictions; give the --output of tools/predict.py")
        if not partial:
            _check_complete(output, entries)
        if is_locked:
            remove_temporaries(output)
        files = assemble_coco(output, list_coco_images(output, entries))
    if files is None:
        raise UserError(f"{output} holds no predictions in the format coco; predict with --format coco")
    return files


def _check_complete(output: Path, entries: dict[str, Entry]) -> None:
    counts = Counter(entry.outcome for entry in entries.values())
    if counts[PENDING] or counts[FAILED]:
        failed = [entry.reason for entry in entries.values() if entry.outcome == FAILED]
        sentences = f":\n  {summarize_failures(failed)}" if failed else ""
        raise UserError(
            f"{output}: {counts[DONE]} inputs are done, {counts[PENDING]} pending and {counts[FAILED]} failed; finish "
            f"them (--retry-failed), or merge what is there with --partial{sentences}"
        )
