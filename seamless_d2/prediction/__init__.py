"""Prediction of one image (this package) and of many (``batch``)."""

from .formats import register_format
from .options import PredictionOptions
from .predictor import Predictor
from .result import PanopticResult, Segment

__all__ = ["PanopticResult", "PredictionOptions", "Predictor", "Segment", "register_format"]
