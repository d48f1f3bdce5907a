"""Parts of a large job that processes and machines take without talking to each other."""

import os
import zlib
from dataclasses import dataclass

from .errors import UserError


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
                step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", "1"))
            except (KeyError, ValueError):
                raise UserError(
                    f"--shard slurm needs {', '.join(keys)} in the environment; start the job with sbatch --array=0-7"
                ) from None
            text = f"{(task - first) // step + 1}/{count}"
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
        return zlib.crc32(os.fsencode(name)) % self.count == self.number - 1
