"""Training samples whose augmentation depends only on the seed and the number of the sample."""

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
from detectron2.data import DatasetFromList
from torch.utils.data import Dataset

from ..errors import UserError

#: A training sample: its number, counted over all processes, and the index of its record, see ``join_index``.
Sample = tuple[int, int]

# The number of records in a row that are tried if records cannot be read and are skipped.
_MAX_TRIES = 10


def join_index(index: int, focus: int | None, count: int) -> int:
    """Return one number for a record and the semantic label that its crop is to show (None: no certain one)."""
    return index if focus is None else (focus + 1) * count + index


def split_index(joined: int, count: int) -> tuple[int, int | None]:
    """Return the index of a record, of ``count``, and the label that ``join_index`` has put together."""
    focus, index = divmod(joined, count)
    return index, focus - 1 if focus else None


@contextlib.contextmanager
def seeded(seed: int, sample: int) -> Iterator[int]:
    """Within the block, seed the random generators of numpy and Python by (seed, sample); restore them afterwards.

    Yields:
        A further seed in 0..2^63-1, for random numbers that are drawn for this sample elsewhere.
    """
    words = np.random.SeedSequence([seed, sample]).generate_state(4)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(words[0])
    random.seed(int(words[1]))
    try:
        yield (int(words[2]) << 31) | (int(words[3]) >> 1)
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


class SeededDataset(Dataset):
    """Maps a ``Sample`` to a training dict with the additional keys "seed" and "faults".

    "seed" is a number for random sampling in the model; "faults" lists errors of records that were skipped.
    """

    def __init__(self, records: list[dict], mapper: Callable[[dict], dict], seed: int, skip: bool) -> None:
        """
        Args:
            records: The records of the training sets.
            mapper: Makes a training dict of a record, see ``SeamlessMapper``.
            seed: The seed of the training.
            skip: Whether a record that cannot be read is replaced by the next one.
        """
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.seed = seed
        self.skip = skip

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, sample: Sample) -> dict:
        """Return the training dict of a sample.

        Raises:
            UserError: The record, or with ``skip`` also those after it, cannot be read.
        """
        number, joined = sample
        index, focus = split_index(joined, len(self))
        faults = []
        for step in range(min(_MAX_TRIES, len(self)) if self.skip else 1):
            record = self.records[(index + step) % len(self)]
            if focus is not None:
                record = {**record, "focus": focus}
            try:
                with seeded(self.seed, number) as sample_seed:
                    result = self.mapper(record)
            except (UserError, OSError) as error:
                faults.append(str(error) if isinstance(error, UserError) else f"image {record['file_name']}: {error}")
                continue
            except Exception as error:
                error.add_note(f"while image {record['file_name']} was prepared")
                raise
            return {**result, "seed": sample_seed, "faults": faults}
        raise UserError(faults[-1])
