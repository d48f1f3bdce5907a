"""Speed and memory, always as ratios measured side by side in one run."""

from .evaluation import benchmark_evaluation
from .fusion import benchmark_fusion
from .loss import benchmark_loss

BENCHMARKS = {"fusion": benchmark_fusion, "loss": benchmark_loss, "evaluation": benchmark_evaluation}

__all__ = ["BENCHMARKS"]
