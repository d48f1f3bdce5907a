"""Checkpoints: safe reading, atomic writing, and weights of torchvision."""

from .checkpointer import SeamlessCheckpointer, load_weights
from .init_from import init_from

__all__ = ["SeamlessCheckpointer", "init_from", "load_weights"]
