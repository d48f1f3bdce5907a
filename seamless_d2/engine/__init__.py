"""Training: setup, optimizer, learning-rate schedules, trainer and launcher."""

from .launch import launch
from .main import evaluate, run
from .setup import build_parser, setup
from .trainer import SeamlessTrainer

__all__ = ["SeamlessTrainer", "build_parser", "evaluate", "launch", "run", "setup"]
