"""Evaluation of the panoptic map, the instances and the semantic labels."""

from .build import build_evaluators
from .panoptic_evaluator import PanopticEvaluator

__all__ = ["PanopticEvaluator", "build_evaluators"]
