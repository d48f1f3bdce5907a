"""Exponential moving average of a model's weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def get_warmup_ema_multi_avg_fn(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """Return a ``multi_avg_fn`` for ``AveragedModel`` whose decay increases in the first steps.

    In contrast to ``torch.optim.swa_utils.get_ema_multi_avg_fn``, the decay at step n (counted from 0) is
    min(decay, (1 + n) / (10 + n)), so that the initial weights are soon forgotten, and integer buffers are copied. The
    initial weights count as the first model that ``AveragedModel`` has averaged.

    Args:
        decay: The share of the average that a step keeps, in 0..1.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        step = int(num_averaged) - 1
        share = 1 - min(decay, (1 + step) / (10 + step))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, share)
        else:
            torch._foreach_copy_(averaged, current)

    return update


class WeightAverage:
    """The moving average of all parameters and buffers of a model in training.

    Attributes:
        model: A copy of the model that has the averaged weights, ready for evaluation.
        updates: The number of steps that have entered the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: The model in training, without a wrapper for distributed training.
            decay: The share of the average that a step keeps, in 0..1.
        """
        self._average = AveragedModel(model, multi_avg_fn=get_warmup_ema_multi_avg_fn(decay), use_buffers=True)
        self.restart(model)

    @property
    def model(self) -> nn.Module:
        return self._average.module

    @property
    def updates(self) -> int:
        return int(self._average.n_averaged) - 1

    def restart(self, model: nn.Module) -> None:
        """Start again from the present weights of ``model``."""
        self._average.n_averaged.zero_()
        self._average.update_parameters(model)

    def update(self, model: nn.Module) -> None:
        """Add the weights of ``model`` after one step to the average."""
        self._average.update_parameters(model)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["weights"])
        self._average.n_averaged.fill_(state["updates"] + 1)
