"""Prediction from Python and from the command line."""

from .predictor import Predictor
from .result import PanopticResult, Segment

__all__ = ["PanopticResult", "Predictor", "Segment"]
