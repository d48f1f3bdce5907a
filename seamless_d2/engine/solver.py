"""The original's optimiser groups and learning-rate schedules."""

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.solver import build_lr_scheduler as build_detectron2_scheduler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from ..errors import UserError

SCHEDULES = ("Poly", "Linear", "Step", "MultiStep")
_NORM_CLASSES = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, FrozenBatchNorm2d)


def norm_parameter_names(model: nn.Module) -> set[str]:
    """Names of the parameters that belong to normalisation layers."""
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, _NORM_CLASSES)
        for name, _ in module.named_parameters(recurse=False)
    }


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum; norm parameters have their own weight decay and learning-rate factor.

    Raises:
        UserError: every parameter is frozen.
    """
    solver = cfg.SOLVER
    norms = norm_parameter_names(model)
    factors = {name: solver.NORM_LR_FACTOR for name in norms}
    names = {id(p): name for name, p in model.named_parameters()}
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    for group in groups:
        # get_default_optimizer_params groups equal hyper-parameters; norms with a factor of their own are split off.
        group["norm"] = [p for p in group["params"] if factors.get(names[id(p)], 1.0) != 1.0]
    split = []
    for group in groups:
        special = group.pop("norm")
        rest = [p for p in group["params"] if not any(p is q for q in special)]
        if rest:
            split.append({**group, "params": rest})
        if special:
            split.append({**group, "params": special, "lr": group["lr"] * solver.NORM_LR_FACTOR})
    if not split:
        raise UserError("every parameter is frozen, nothing can be trained; lower MODEL.BACKBONE.FREEZE_AT")
    sgd = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
    return sgd(split, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)


def lr_factor(cfg: CfgNode, iterations_per_epoch: int = 1) -> Callable[[int], float]:
    """The factor on BASE_LR as a function of Detectron2's iteration, which is 0 at the first batch.

    The formulas count from 1 (the original counts up before it steps its schedule):
    warm-up start + it (1 - start) / steps while it <= steps, then poly (1 - it / count)^power, linear, step
    gamma^(it // step_size), or multistep gamma^(milestones <= it).
    """
    solver = cfg.SOLVER
    name = solver.LR_SCHEDULER_NAME
    unit = iterations_per_epoch if solver.SCHEDULE_BY == "epoch" else 1
    count = max(solver.MAX_ITER / unit, 1)

    def factor(iteration: int) -> float:
        it = iteration // unit + 1 if unit > 1 else iteration + 1
        if it <= solver.WARMUP_ITERS:
            return solver.WARMUP_FACTOR + it * (1 - solver.WARMUP_FACTOR) / solver.WARMUP_ITERS
        if name == "Poly":
            return max(1 - it / count, 0.0) ** solver.POLY_POWER
        if name == "Linear":
            low, high = solver.LINEAR_RANGE
            return low + (high - low) * it / count
        if name == "Step":
            return solver.GAMMA ** (it // solver.STEP_SIZE)
        return solver.GAMMA ** sum(milestone <= it for milestone in solver.STEPS)

    return factor


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer, iterations_per_epoch: int = 1
) -> torch.optim.lr_scheduler.LRScheduler:
    """One of ``SCHEDULES``, or any of Detectron2's."""
    if cfg.SOLVER.LR_SCHEDULER_NAME not in SCHEDULES:
        return build_detectron2_scheduler(cfg, optimizer)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(cfg, iterations_per_epoch))
