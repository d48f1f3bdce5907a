"""Exponential moving average of a model's weights."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Moving average of all floating-point parameters and buffers; other buffers are taken as they are.

    The decay is min(decay, (1 + n) / (10 + n)) at step n, so that the first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: without a wrapper for several processes.
            decay: share of the average that a step keeps, 0..1.
        """
        self.model = model
        self.decay = decay
        self.updates = 0
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor, 1 - decay)
            else:
                self.weights[name].copy_(tensor)

    @torch.no_grad()
    def _swap(self) -> None:
        for name, tensor in self.model.state_dict().items():
            other = tensor.clone()
            tensor.copy_(self.weights[name])
            self.weights[name].copy_(other)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.set_weights(state["weights"])

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Start from ``weights``, for instance those that the model has been loaded with."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])
