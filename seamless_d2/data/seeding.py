"""Training samples whose augmentation depends on (seed, number of the sample) alone."""

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
from detectron2.data import DatasetFromList
from torch.utils.data import Dataset

from ..errors import UserError

#: A record's place in the data: (number of the sample over all processes, index into the records).
Place = tuple[int, int]

# With the policy "skip", so many neighbours of a record that cannot be read are tried.
_NEIGHBOURS = 10


@contextlib.contextmanager
def seeded(seed: int, sample: int) -> Iterator[int]:
    """numpy's and Python's random numbers as a function of (seed, sample), given back as they were.

    Yields:
        A further seed, 0..2^63-1, for whoever draws for this sample elsewhere.
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
    """Maps a ``Place`` to a training dict, which also gets "seed" (for sampling in the model) and maybe "faults"."""

    def __init__(self, records: list[dict], mapper: Callable[[dict], dict], seed: int, skip: bool) -> None:
        """
        Args:
            records: of the data set.
            mapper: see ``SeamlessMapper``.
            seed: of the training.
            skip: a record that cannot be read is replaced by the next one, and "faults" tells of it.
        """
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.seed = seed
        self.skip = skip

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: Place) -> dict:
        """
        Raises:
            UserError: the record (with ``skip``: so many in a row) cannot be read.
        """
        sample, index = place
        faults = []
        for step in range(min(_NEIGHBOURS, len(self)) if self.skip else 1):
            record = self.records[(index + step) % len(self)]
            try:
                with seeded(self.seed, sample) as sample_seed:
                    result = self.mapper(record)
            except (UserError, OSError) as error:
                faults.append(str(error) if isinstance(error, UserError) else f"image {record['file_name']}: {error}")
                continue
            except Exception as error:
                error.add_note(f"while image {record['file_name']} was prepared")
                raise
            return {**result, "seed": sample_seed, "faults": faults}
        raise UserError(faults[-1])
