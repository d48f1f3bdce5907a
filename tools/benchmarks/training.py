"""One training step, optimiser included, against Detectron2's stock PanopticFPN R50 in fp32."""

import itertools
from collections.abc import Callable
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.utils.events import EventStorage

from seamless_d2.engine.solver import build_optimizer
from seamless_d2.engine.step import TrainingStep

from .inference import CONFIG
from .measure import Case, case_of_times, measure_times
from .models import build, our_config, stock_config, training_batch
from .peak_memory import peak_memory

# Random weights are not to run away.
_LEARNING_RATE = 1e-6


def _step(trainer: SimpleTrainer) -> None:
    with EventStorage():
        trainer.run_step()


def our_step(
    device: str,
    size: tuple[int, int, int],
    quick: bool,
    settings: dict | None = None,
    channels_last: bool = False,
    fused: bool = False,
) -> Callable[[], None]:
    """A step of ours.

    Args:
        device: "cpu" or "cuda".
        size: images, height, width.
        quick: with few regions.
        settings: of the config, by key.
        channels_last: layout of the weights, which activations follow.
        fused: PyTorch's fused SGD.
    """
    cfg = our_config(CONFIG, device, quick)
    cfg.SOLVER.BASE_LR = _LEARNING_RATE
    cfg.merge_from_list([x for item in (settings or {}).items() for x in item])
    model = build(cfg).train()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(cfg, model)
    if fused:
        groups = [{k: g[k] for k in ("params", "lr", "weight_decay")} for g in optimizer.param_groups]
        solver = cfg.SOLVER
        optimizer = torch.optim.SGD(
            groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, fused=True
        )
    batch = training_batch(size[1], size[2], size[0], num_stuff=_num_stuff(cfg), stock=False)
    return partial(_step, TrainingStep.from_config(cfg, model, itertools.repeat(batch), optimizer))


def stock_step(device: str, size: tuple[int, int, int], quick: bool) -> Callable[[], None]:
    """A step of PanopticFPN with Detectron2's trainer."""
    ours = our_config(CONFIG, device, quick)
    cfg = stock_config(ours)
    cfg.SOLVER.BASE_LR = _LEARNING_RATE
    model = build(cfg).train()
    batch = training_batch(size[1], size[2], size[0], num_stuff=_num_stuff(ours), stock=True)
    return partial(_step, SimpleTrainer(model, itertools.repeat(batch), build_stock_optimizer(cfg, model)))


def _num_stuff(cfg: CfgNode) -> int:
    return cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - cfg.MODEL.ROI_HEADS.NUM_CLASSES


def benchmark_training(device: str = "cpu", against: str | None = None, quick: bool = False) -> list[Case]:
    """Seconds of a step of ours in several precisions, and on a GPU its peak memory."""
    gpu = device.startswith("cuda")
    size = (1, 64, 384) if quick else (2, 1024, 2048) if gpu else (1, 512, 1024)
    half = {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bf16"}
    variants: dict[str, tuple] = {"fp32": (), "bf16": (half,)}
    if gpu:
        variants["bf16, channels-last, fused SGD"] = (half, True, True)
        variants["bf16, channels-last, fused SGD, INPLACE_NORM"] = (
            half | {"MODEL.SEAMLESS.INPLACE_NORM": True},
            True,
            True,
        )
    steps = [our_step(device, size, quick, *arguments) for arguments in variants.values()]
    if against:
        steps.append(stock_step(device, size, quick))
    times = measure_times(steps, device, 0 if quick else 10 if gpu else 2)
    del steps
    cases = [
        case_of_times(
            f"{size[0]} x {size[1]}x{size[2]}, {name}",
            seconds,
            times[-1] if against else None,
            "other in fp32",
            2.0 if gpu and name != "fp32" and not quick else None,
        )
        for (name, seconds) in zip(variants, times, strict=False)
    ]
    if gpu:
        other = peak_memory(stock_step, device, size, quick, total=True) if against else None
        for name, arguments in variants.items():
            memory = peak_memory(our_step, device, size, quick, *arguments, total=True)
            cases.append(Case(f"{size[0]} x {size[1]}x{size[2]}, {name}, memory", memory, other, "bytes"))
    return cases
