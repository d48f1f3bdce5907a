"""Training: setup, optimizer, learning-rate schedules, trainer and launcher."""

from .launch import launch
from .main import evaluate, run
from .setup import setup
from .trainer import SeamlessTrainer

__all__ = ["SeamlessTrainer", "evaluate", "launch", "run", "setup"]
