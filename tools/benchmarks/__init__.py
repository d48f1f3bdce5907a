"""Speed, memory and accuracy, always measured side by side in one run."""

from .evaluation import benchmark_evaluation
from .fusion import benchmark_fusion
from .inference import benchmark_inference
from .loss import benchmark_loss
from .memory import benchmark_memory
from .training import benchmark_training

BENCHMARKS = {
    "fusion": benchmark_fusion,
    "inference": benchmark_inference,
    "training": benchmark_training,
    "loss": benchmark_loss,
    "memory": benchmark_memory,
    "evaluation": benchmark_evaluation,
}

__all__ = ["BENCHMARKS"]
