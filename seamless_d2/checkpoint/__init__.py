"""Checkpoints: safe reading, atomic writing, and weights of torchvision."""

from .checkpointer import SeamlessCheckpointer, load_weights

__all__ = ["SeamlessCheckpointer", "load_weights"]
