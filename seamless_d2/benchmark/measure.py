"""Measuring two things in turn."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tabulate import tabulate


@dataclass(frozen=True)
class Case:
    """One comparison: medians of ``ours`` and ``other`` in ``unit`` ("s" or "bytes")."""

    name: str
    ours: float
    other: float | None
    unit: str = "s"
    spread: float = 0.0
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """other / ours: above 1 means that ours is faster or smaller."""
        return None if self.other is None else self.other / self.ours

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


def synchronize(device: str) -> None:
    """Wait for the GPU, so that its work is inside the measurement."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def compare_times(
    name: str,
    ours: Callable[[], object],
    other: Callable[[], object] | None,
    *,
    device: str = "cpu",
    repeats: int = 5,
    note: str = "",
) -> Case:
    """Median seconds of both, run in turn after one warm-up each; ``spread`` is (max - min) / median of ours."""
    runs: dict[int, list[float]] = {0: [], 1: []}
    functions = [ours] if other is None else [ours, other]
    for repeat in range(repeats + 1):
        for k, function in enumerate(functions):
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            if repeat:
                runs[k].append(time.perf_counter() - start)
    mine = statistics.median(runs[0])
    spread = (max(runs[0]) - min(runs[0])) / mine
    return Case(name, mine, statistics.median(runs[1]) if other else None, "s", spread, note)


def format_cases(cases: list[Case]) -> str:
    """A table for the screen."""

    def show(value: float | None, unit: str) -> str:
        if value is None:
            return "-"
        return f"{value / 2**20:.1f} MiB" if unit == "bytes" else f"{value * 1e3:.1f} ms"

    rows = [
        [
            c.name,
            show(c.ours, c.unit),
            show(c.other, c.unit),
            "-" if c.ratio is None else f"{c.ratio:.2f}",
            f"{100 * c.spread:.0f} %",
            c.note,
        ]
        for c in cases
    ]
    return tabulate(rows, ["case", "ours", "other", "other / ours", "spread", ""], tablefmt="simple")
