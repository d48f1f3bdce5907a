"""Data sets: registration, mapper, training loader and preparation."""

from .registration import DATASET_FORMATS, register_from_config, register_panoptic

__all__ = ["DATASET_FORMATS", "register_from_config", "register_panoptic"]
