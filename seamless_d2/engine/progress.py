"""The event writers of a training: progress lines, metrics.json, TensorBoard and Weights & Biases."""

import datetime
import logging
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage, EventWriter, TensorboardXWriter, get_event_storage

from ..errors import UserError
from .records import ResumedJSONWriter


def memory_in_use() -> float:
    """Return the memory of this process in gigabytes (10^9 bytes): the peak of its GPU memory, else the main memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resident_memory()


def resident_memory() -> float:
    """Return the main memory of this process in gigabytes (10^9 bytes), or its peak on systems without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (OSError, ValueError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class ProgressPrinter(EventWriter):
    """Logs a line per interval: step, time left, losses (medians), learning rate, images per second and memory."""

    def __init__(self, max_iter: int, period: int) -> None:
        """
        Args:
            max_iter: The number of steps of the whole training.
            period: The number of steps between two lines.
        """
        self.max_iter = max_iter
        self.period = period
        self.logger = logging.getLogger(__name__)
        self._last: tuple[int, float] | None = None

    def write(self) -> None:
        storage = get_event_storage()
        done = storage.iter + 1
        # The writers are called once more after the last step.
        if storage.iter >= self.max_iter or (self._last is not None and self._last[0] == done):
            return
        scalars = storage.latest()
        if scalars.get("total_loss", (0.0, -1))[1] != storage.iter:  # no step has been taken
            return
        now = time.perf_counter()
        per_step = self._seconds_per_step(storage, done, now)
        self._last = (done, now)
        parts = [f"step {done}/{self.max_iter}"]
        if per_step:
            left = datetime.timedelta(seconds=round(per_step * (self.max_iter - done)))
            rate = scalars["images"][0] / per_step
            storage.put_scalars(images_per_second=rate, eta_seconds=left.total_seconds(), smoothing_hint=False)
            parts.append(f"{left} left")
        losses = {k: storage.history(k).median(self.period) for k in scalars if k.startswith("loss_")}
        total = storage.history("total_loss").median(self.period)
        parts.append(f"loss {total:.4g} (" + ", ".join(f"{k[5:]} {v:.3g}" for k, v in losses.items()) + ")")
        if "lr" in scalars:
            parts.append(f"lr {scalars['lr'][0]:.3g}")
        if per_step:
            waited = storage.history("data_time").avg(self.period) / per_step
            parts.append(f"{rate:.3g} images/s" + (f" ({waited:.0%} waiting for data)" if waited > 0.1 else ""))
        memory = memory_in_use()
        storage.put_scalar("memory_gb", memory, smoothing_hint=False)
        parts.append(f"{memory:.2f} GB")
        self.logger.info("  ".join(parts))

    def _seconds_per_step(self, storage: EventStorage, done: int, now: float) -> float | None:
        """Return the median time of the recent steps; the time since the last line would include evaluations."""
        if "time" in storage.latest():
            return storage.history("time").median(max(self.period, 100))
        if self._last is not None and done > self._last[0]:
            return (now - self._last[1]) / (done - self._last[0])
        return None


class WandbWriter(EventWriter):
    """Sends all new scalars to Weights & Biases."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: The configuration; OUTPUT_DIR and WANDB.PROJECT are used, and all of it is recorded.

        Raises:
            UserError: The package wandb is not installed.
        """
        try:
            import wandb
        except ImportError:
            raise UserError(
                "WANDB.ENABLED needs the package wandb; pip install seamless_d2[wandb], or set WANDB.ENABLED False"
            ) from None
        # The id is made of the folder's name, so that a resumed training stays one run.
        run_id = "".join(c if c.isalnum() else "-" for c in str(Path(cfg.OUTPUT_DIR).resolve()))[-64:]
        self._run = wandb.init(
            project=cfg.WANDB.PROJECT,
            id=run_id,
            name=Path(cfg.OUTPUT_DIR).name,
            resume="allow",
            dir=cfg.OUTPUT_DIR,
            config=_to_dicts(cfg),
        )
        self._last_write = -1

    def write(self) -> None:
        steps: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(20).items():
            if iteration > self._last_write:
                steps.setdefault(iteration, {})[name] = value
        for iteration in sorted(steps):
            self._run.log(steps[iteration], step=iteration)
            self._last_write = iteration

    def close(self) -> None:
        self._run.finish()


def _to_dicts(node: Any) -> Any:
    return {k: _to_dicts(v) for k, v in node.items()} if isinstance(node, dict) else node


def build_writers(cfg: CfgNode, start_iter: int) -> list[EventWriter]:
    """Build the writers of progress lines, metrics.json, TensorBoard events and, by WANDB.ENABLED, Weights & Biases.

    Args:
        cfg: The configuration; OUTPUT_DIR, SOLVER.MAX_ITER, SOLVER.LOG_PERIOD and WANDB are used.
        start_iter: The first iteration that is written. metrics.json and TensorBoard drop what a killed run wrote for
            this and later iterations.

    Raises:
        UserError: WANDB.ENABLED is set and the package wandb is not installed.
    """
    wandb = [WandbWriter(cfg)] if cfg.WANDB.ENABLED else []
    return [
        # This writer comes first, because the others write what it measures.
        ProgressPrinter(cfg.SOLVER.MAX_ITER, cfg.SOLVER.LOG_PERIOD),
        ResumedJSONWriter(Path(cfg.OUTPUT_DIR) / "metrics.json", start_iter),
        TensorboardXWriter(cfg.OUTPUT_DIR, purge_step=start_iter),
        *wandb,
    ]
