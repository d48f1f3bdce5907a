"""Data sets: registration, metadata and the mapper."""

from .register import register_panoptic
from .seamseg_format import register_seamseg

__all__ = ["register_panoptic", "register_seamseg"]
