"""The optimizer, with the original's groups of parameters, and the learning-rate schedules."""

import re
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers.batch_norm import LayerNorm as ChannelLayerNorm
from detectron2.solver import build_lr_scheduler as build_detectron2_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from ..config_checks import SCHEDULES
from ..errors import UserError

#: By the name in SOLVER.OPTIMIZER: the class, and the function that takes its own options from the SOLVER keys.
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], Callable[[CfgNode], dict[str, Any]]]] = {
    "SGD": (torch.optim.SGD, lambda solver: {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}),
    "AdamW": (torch.optim.AdamW, lambda solver: {}),
}
_NORM_CLASSES = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    FrozenBatchNorm2d,
    ChannelLayerNorm,
)
# Embeddings of positions and tokens in the transformers of Detectron2 and timm; like norms, they are not to decay.
_EMBEDDINGS = re.compile(
    r"(^|[._])(pos_embed|cls_token|reg_token|mask_token|rel_pos_[hw]|relative_position_bias_table|"
    r"attention_biases)"
)
_STEM = re.compile(r"(stem|conv_stem|conv\d|bn\d|patch_embed)\b|stem_")
# Blocks of a network: the first numbered module, and the numbered block inside of it where there is one.
_BLOCK = re.compile(r"^((?:[A-Za-z]\w*\.)*?(?:\d+|\w*[A-Za-z]_?\d+)(?:\.(?:blocks|layers)\.\d+|\.b?\d+)?)\.")


def norm_parameter_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters (weights and biases) of normalization layers."""
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, _NORM_CLASSES)
        for name, _ in module.named_parameters(recurse=False)
    }


def layer_factors(model: nn.Module, decay: float, max_depth: int) -> dict[str, float]:
    """Return the factors on the learning rate of layer-wise decay (as in Bao et al., BEiT, ICLR 2022).

    The blocks of the backbone's network, in the order of its parameters, are divided into L layers of equal numbers of
    blocks; what comes before them is layer 0. Layer k has the factor decay^(L + 1 - k).

    Args:
        model: The model. Its ``backbone`` is the network, or has it as ``bottom_up`` or ``net`` as Detectron2's have.
        decay: The decay per layer, in 0..1.
        max_depth: The largest number L of layers.

    Returns:
        By the names of the network's parameters; empty if nothing decays.
    """
    backbone = getattr(model, "backbone", None)
    if decay == 1.0 or backbone is None:
        return {}
    part = next((name for name in ("bottom_up", "net") if isinstance(getattr(backbone, name, None), nn.Module)), None)
    network = backbone if part is None else getattr(backbone, part)
    prefix = "backbone." if part is None else f"backbone.{part}."
    names = [name for name, _ in network.named_parameters()]
    # Wrappers of networks of timm are none of their layers.
    wrapper = next((w for w in ("net.model.", "net.") if all(name.startswith(w) for name in names)), "")
    blocks: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for name in names:
        inner = name.removeprefix(wrapper)
        match = None if _STEM.match(inner) else _BLOCK.match(inner)
        if match:
            blocks.setdefault(match.group(1), len(blocks) + 1)
        numbers[name] = len(blocks)
    depth = min(len(blocks), max_depth)
    layers = {name: -(-number * depth // max(len(blocks), 1)) for name, number in numbers.items()}
    return {prefix + name: decay ** (depth + 1 - layer) for name, layer in layers.items()}


def _clip_full_model(optimizer_class: type[torch.optim.Optimizer], clip: CfgNode) -> type[torch.optim.Optimizer]:
    """Return an optimizer that clips the norm of all gradients together; Detectron2 clips those of each parameter."""

    class ClippedOptimizer(optimizer_class):
        def step(self, closure: Any = None) -> Any:
            parameters = [p for group in self.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)
            return super().step(closure)

    return ClippedOptimizer


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that SOLVER.OPTIMIZER names, with gradient clipping as SOLVER.CLIP_GRADIENTS says.

    Weights and biases of normalization layers have their own weight decay and learning-rate factor. (Detectron2's
    grouping gives biases of normalization layers the decay of other biases; the original does not.) Embeddings of
    positions and scales of layers have the weight decay of norms. The rate of the backbone's network follows
    SOLVER.LAYER_DECAY.

    Args:
        cfg: The configuration.
        model: The model; parameters that need no gradient are left out.

    Raises:
        UserError: SOLVER.OPTIMIZER is unknown, or every parameter is frozen.
    """
    solver = cfg.SOLVER
    factors = layer_factors(model, solver.LAYER_DECAY, solver.LAYER_DECAY_DEPTH)
    optimizers = {name.lower(): name for name in OPTIMIZERS}
    if solver.OPTIMIZER.lower() not in optimizers:
        raise UserError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; use {' or '.join(OPTIMIZERS)}")
    optimizer_class, options = OPTIMIZERS[optimizers[solver.OPTIMIZER.lower()]]
    norms = norm_parameter_names(model)
    bias_decay = solver.WEIGHT_DECAY if solver.WEIGHT_DECAY_BIAS is None else solver.WEIGHT_DECAY_BIAS
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = solver.BASE_LR * factors.get(name, 1.0)
        if name in norms:
            settings = (lr * solver.NORM_LR_FACTOR, solver.WEIGHT_DECAY_NORM)
        elif name.endswith(".bias"):
            settings = (lr * solver.BIAS_LR_FACTOR, bias_decay)
        elif all(side == 1 for side in parameter.shape[1:]) or _EMBEDDINGS.search(name):  # scales count as norms
            settings = (lr, solver.WEIGHT_DECAY_NORM)
        else:
            settings = (lr, solver.WEIGHT_DECAY)
        groups.setdefault(settings, []).append(parameter)
    if not groups:
        raise UserError("every parameter is frozen, nothing can be trained; lower MODEL.BACKBONE.FREEZE_AT")
    params = [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    if solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_TYPE == "full_model":
        optimizer_class = _clip_full_model(optimizer_class, solver.CLIP_GRADIENTS)
    else:
        optimizer_class = maybe_add_gradient_clipping(cfg, optimizer_class)
    # False would also turn off the form that updates many parameters at a time, which PyTorch prefers on GPUs.
    fused = solver.FUSED_OPTIMIZER or None
    return optimizer_class(params, lr=solver.BASE_LR, fused=fused, **options(solver))


def lr_factor(cfg: CfgNode, iterations_per_epoch: int = 1) -> Callable[[int], float]:
    """Return the factor on BASE_LR as a function of Detectron2's iteration, which is 0 at the first batch.

    The formulas count from 1, because the original increments its counter before it steps its schedule. While
    it <= WARMUP_ITERS, the factor is start + it (1 - start) / WARMUP_ITERS with start = WARMUP_FACTOR. Then it is

    - "Poly": (1 - it / count)^POLY_LR_POWER, where count is the length of the training;
    - "Linear": between the two values of LINEAR_RANGE;
    - "Step": GAMMA^(it // STEP_SIZE);
    - "MultiStep": GAMMA to the number of STEPS that are at most it.

    Args:
        cfg: The configuration; its SOLVER keys are used.
        iterations_per_epoch: The number of iterations that count as one if SOLVER.SCHEDULE_BY is "epoch".
    """
    solver = cfg.SOLVER
    name = solver.LR_SCHEDULER_NAME
    unit = iterations_per_epoch if solver.SCHEDULE_BY == "epoch" else 1
    count = max(solver.MAX_ITER / unit, 1)

    def factor(iteration: int) -> float:
        it = iteration // unit + 1
        if it <= solver.WARMUP_ITERS:
            return solver.WARMUP_FACTOR + it * (1 - solver.WARMUP_FACTOR) / solver.WARMUP_ITERS
        if name == "Poly":
            return max(1 - it / count, 0.0) ** solver.POLY_LR_POWER
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
    """Build the learning-rate schedule that SOLVER.LR_SCHEDULER_NAME names: one of ``SCHEDULES``, or of Detectron2's.

    Args:
        cfg: The configuration; its SOLVER keys are used.
        optimizer: The optimizer whose learning rates change.
        iterations_per_epoch: The number of iterations in one epoch, for SOLVER.SCHEDULE_BY "epoch".
    """
    if cfg.SOLVER.LR_SCHEDULER_NAME not in SCHEDULES:
        return build_detectron2_scheduler(cfg, optimizer)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(cfg, iterations_per_epoch))
