"""Sizes that are numbers in eager mode and symbols where a model is traced."""

from typing import Any

import torch


def smaller(a: Any, b: Any) -> Any:
    """Return ``min(a, b)``; torch.export would otherwise decide once and for all which one it is."""
    return torch.sym_min(a, b) if torch.compiler.is_compiling() else min(a, b)
