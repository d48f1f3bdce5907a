"""Prediction of images, folders and videos, and the formats of the results."""

from typing import Any

from .formats import register_format
from .result import PanopticResult, Segment

__all__ = ["PanopticResult", "PredictionOptions", "Predictor", "Segment", "register_format"]


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch when it is asked for: results of exported models do without."""
    if name == "Predictor":
        from .predictor import Predictor

        return Predictor
    if name == "PredictionOptions":
        from .options import PredictionOptions

        return PredictionOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
