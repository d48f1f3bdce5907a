"""Evaluation of the panoptic map, the instances and the semantic labels with Detectron2's evaluators."""

from .build import PanopticEvaluator, build_evaluators

__all__ = ["PanopticEvaluator", "build_evaluators"]
