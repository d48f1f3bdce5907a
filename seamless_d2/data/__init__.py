"""Data sets: registration, metadata and the mapper."""

from ..seamseg.dataset import register_seamseg
from .registration import register_from_config, register_panoptic

__all__ = ["register_from_config", "register_panoptic", "register_seamseg"]
