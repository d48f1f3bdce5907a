"""Everything about the files of the original program, mapillary/seamseg: weights, settings, data sets, raw outputs.

Importing the package registers the output format "raw" and the format of data sets in DATASETS.PANOPTIC.
"""

from ..data.registration import DATASET_FORMATS, datasets_root
from . import raw  # noqa: F401  (registers the output format)
from .dataset import register_seamseg


def _register_entry(name: str, root: str, split: str) -> None:
    register_seamseg(name, datasets_root() / root, split)


DATASET_FORMATS[2] = _register_entry

__all__ = ["register_seamseg"]
