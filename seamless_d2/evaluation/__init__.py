"""Evaluation of panoptic maps, instances and semantic labels."""

from .build import build_evaluators
from .panoptic_evaluator import PanopticEvaluator

__all__ = ["PanopticEvaluator", "build_evaluators"]
