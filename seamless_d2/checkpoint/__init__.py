"""Checkpoints: safe and atomic reading and writing, conversion from and to other programs."""

from .checkpointer import SeamlessCheckpointer, load_weights

__all__ = ["SeamlessCheckpointer", "load_weights"]
