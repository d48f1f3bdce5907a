"""The statistics of a part of a data set in a file, to be added to those of other parts."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..io import atomic_write, read_bytes
from .dataset_statistics import DatasetStatistics, Example, ImageRow
from .panoptic_quality import Segments

_COUNTS = ("tp", "fp", "fn", "iou_parts")
_ARRAYS = ("confusion", "curve", "unscored")
_SEGMENTS = ("ids", "classes", "crowd", "areas", "scores")


def save_statistics(statistics: DatasetStatistics, path: Path, source: str) -> None:
    """Write statistics as .npz, atomically.

    Args:
        statistics: The statistics.
        path: The file.
        source: A text that says what they are of; ``load_statistics`` compares it.
    """
    arrays = {key: getattr(statistics, key) for key in _ARRAYS}
    arrays |= {key: getattr(statistics.quality, key) for key in _COUNTS}
    content = {"source": source, "rows": statistics.rows}
    for kind in ("best", "worst"):
        examples = getattr(statistics, kind)
        content[kind] = [[e.quality, e.image_id] for e in examples]
        for k, example in enumerate(examples):
            arrays[f"{kind}{k}_map"] = example.ids
            found = {key: getattr(example.segments, key) for key in _SEGMENTS}
            arrays |= {f"{kind}{k}_{key}": value for key, value in found.items() if value is not None}
    arrays["content"] = np.frombuffer(json.dumps(content).encode(), np.uint8)
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def load_statistics(path: Path, num_classes: int, source: str) -> DatasetStatistics:
    """Read what ``save_statistics`` has written; no code in the file is run.

    Args:
        path: The file.
        num_classes: The number of classes.
        source: What the statistics must be of.

    Raises:
        UserError: The file is damaged, or its statistics are of something else.
    """
    data = read_bytes(path, "file of sums")
    statistics = DatasetStatistics(num_classes)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            content = json.loads(arrays["content"].tobytes())
            if content["source"] != source:
                raise UserError(f"{path} has the sums of other files or rules; remove it and evaluate its shard again")
            for key in _ARRAYS:
                getattr(statistics, key)[...] = arrays[key]
            for key in _COUNTS:
                getattr(statistics.quality, key)[...] = arrays[key]
            statistics.rows = [ImageRow(*row) for row in content["rows"]]
            for kind in ("best", "worst"):
                for k, (quality, image_id) in enumerate(content[kind]):
                    found = {key: arrays.get(f"{kind}{k}_{key}") for key in _SEGMENTS}
                    example = Example(quality, image_id, arrays[f"{kind}{k}_map"], Segments(**found))
                    getattr(statistics, kind).append(example)
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile):
        raise UserError(f"{path} is damaged; remove it and evaluate its shard again") from None
    return statistics
