"""Data sets: registration, metadata and the mapper."""

from .register import register_from_config, register_panoptic
from .seamseg_format import register_seamseg

__all__ = ["register_from_config", "register_panoptic", "register_seamseg"]
