"""The dry run of a training (``tools/train_net.py --dry-run``), which finds in a minute what would fail after hours."""

import datetime
import itertools
import os
import resource
import sys
import time
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage

from ..checkpoint import SeamlessCheckpointer, init_from
from ..data.loader import micro_batch_size
from ..data.mapper import SeamlessMapper
from ..errors import UserError
from .progress import resident_memory
from .solver import build_lr_scheduler, build_optimizer
from .step import TrainingStep
from .trainer import SeamlessTrainer

# The number of steps whose time is measured, after one step of warm-up.
_TIMED_STEPS = 2


def check_files(records: list[dict], name: str) -> None:
    """Check that the files of a data set exist.

    Args:
        records: The records of the data set.
        name: The name of the data set, for the error message.

    Raises:
        UserError: Images or label maps do not exist; the message names the first one and their number.
    """
    missing = [r[key] for r in records for key in ("file_name", "pan_seg_file_name") if not os.path.isfile(r[key])]
    if missing:
        raise UserError(f"data set {name!r}: {len(missing)} files do not exist, the first is {missing[0]}")


def largest_batch(cfg: CfgNode, records: list[dict]) -> list[dict]:
    """Return the batch of one forward pass that needs the most memory.

    It consists of the largest images, of those the ones with the most segments, at the largest scale of
    INPUT.MIN_SIZE_TRAIN.

    Args:
        cfg: The configuration.
        records: The records of the training sets.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN = (max(cfg.INPUT.MIN_SIZE_TRAIN),)
    mapper = SeamlessMapper(cfg, True)

    def cost(record: dict) -> tuple[int, int]:
        scale = cfg.INPUT.MIN_SIZE_TRAIN[0] / min(record["height"], record["width"])
        scale = min(scale, cfg.INPUT.MAX_SIZE_TRAIN / max(record["height"], record["width"]))
        return round(record["height"] * scale) * round(record["width"] * scale), len(record["segments_info"])

    chosen = sorted(records, key=cost, reverse=True)[: micro_batch_size(cfg)]
    return [mapper(record) for record, _ in zip(itertools.cycle(chosen), range(micro_batch_size(cfg)), strict=False)]


def _peak_memory(device: torch.device) -> float:
    """Return the largest memory that this process has used, in gigabytes (10^9 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _total_memory(device: torch.device) -> float | None:
    """Return the memory of the GPU, or the main memory, in gigabytes (10^9 bytes); None if it is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (ValueError, OSError):
        return None


def dry_run(cfg: CfgNode) -> dict[str, Any]:
    """Check data and weights, take a few steps on the largest batch, and print what the training needs.

    Nothing is written. Each of several processes does the same, without exchanging gradients.

    Args:
        cfg: The checked configuration, see ``load_and_check``.

    Returns:
        A dict with images (their number), parameters and trainable (numbers), flops (multiply-adds of inference on the
        largest image), seconds_per_step, seconds (of the whole training without evaluations), memory_gb (at the peak)
        and losses (by name).

    Raises:
        UserError: Something would stop the training: missing files, wrong weights, too little memory, or losses that
            are not finite.
    """
    cfg = SeamlessTrainer.auto_scale_workers(cfg, comm.get_world_size())
    show = print if comm.is_main_process() else lambda *_: None
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        records = DatasetCatalog.get(name)
        check_files(records, name)
        show(f"data set   {name}: {len(records)} images, all files are there")
    records = [record for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
    batch = largest_batch(cfg, records)
    height, width = (max(x["image"].shape[i] for x in batch) for i in (1, 2))
    show(
        f"batch      {cfg.SOLVER.IMS_PER_BATCH} images a step = {comm.get_world_size()} processes x "
        f"{cfg.SOLVER.ACCUMULATE_STEPS} forward passes x {len(batch)}; the largest is {width} x {height} pixels with "
        f"{max(len(x['instances']) for x in batch)} instances"
    )
    model = build_model(cfg)
    if cfg.MODEL.INIT_FROM:
        init_from(model, cfg)
    else:
        SeamlessCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    report: dict[str, Any] = {
        "images": len(records),
        "parameters": sum(n for n, _ in sizes),
        "trainable": sum(n for n, trained in sizes if trained),
    }
    report["flops"] = count_flops(model, batch[0])
    show(
        f"model      {report['parameters'] / 1e6:.2f} M parameters, {report['trainable'] / 1e6:.2f} M of them trained; "
        f"{report['flops'] / 1e9:.1f} G multiply-adds for one image of that size"
    )
    report.update(_take_steps(cfg, model, batch))
    total_memory = _total_memory(next(model.parameters()).device)
    show(
        f"memory     {report['memory_gb']:.2f} GB at the peak"
        + (f" of {total_memory:.1f} GB" if total_memory else "")
        # A loader process shares most of its pages with this one, but not its batches.
        + f"; loading adds {cfg.DATALOADER.NUM_WORKERS} processes"
    )
    show("losses     " + ", ".join(f"{k[5:]} {v:.3g}" for k, v in report["losses"].items()))
    report["seconds"] = report["seconds_per_step"] * cfg.SOLVER.MAX_ITER
    total = datetime.timedelta(seconds=round(report["seconds"]))
    show(
        f"time       {report['seconds_per_step']:.3g} s a step on the largest batch, {cfg.SOLVER.MAX_ITER} steps: at "
        f"most about {total}, evaluations not counted"
    )
    show("ready      the same command without --dry-run starts the training")
    return report


def count_flops(model: torch.nn.Module, example: dict) -> float:
    """Return the number of multiply-adds of inference on one image, as fvcore counts them.

    Args:
        model: The model; its training mode is restored.
        example: A training or test dict with "image".
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            analysis = FlopCountAnalysis(model, [{"image": example["image"]}])
            return float(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())
    finally:
        model.train(training)


def _take_steps(cfg: CfgNode, model: torch.nn.Module, batch: list[dict]) -> dict[str, Any]:
    """Take real steps, optimizer included, on copies of one batch; return their time, memory and losses."""
    optimizer = build_optimizer(cfg, model)
    build_lr_scheduler(cfg, optimizer)  # raises if its settings are wrong
    step = TrainingStep.from_config(cfg, model, itertools.repeat(batch), optimizer)
    if step.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = resident_memory()
    try:
        with EventStorage() as storage:
            times = []
            for _ in range(1 + _TIMED_STEPS):
                start = time.perf_counter()
                step.run_step()
                if step.device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
                storage.step()
            losses = {k: v for k, (v, _) in storage.latest().items() if k.startswith("loss_")}
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise UserError(
            f"the largest batch does not fit into memory ({str(error).splitlines()[0]}); raise "
            "SOLVER.ACCUMULATE_STEPS, set SOLVER.AMP.ENABLED True, or lower INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN"
        ) from None
    return {
        "seconds_per_step": sum(times[1:]) / _TIMED_STEPS,
        "memory_gb": max(_peak_memory(step.device), before if step.device.type == "cpu" else 0.0),
        "losses": losses,
    }
