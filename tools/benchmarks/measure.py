"""Measuring two things in turn."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tabulate import tabulate


@dataclass(frozen=True)
class Case:
    """One comparison: medians of ``ours`` and ``other`` in ``unit`` ("s" or "bytes").

    ``spread`` and ``other_spread`` are (max - min) / median; ``target`` is the ratio that we want to reach, where there
    is one.
    """

    name: str
    ours: float
    other: float | None
    unit: str = "s"
    spread: float = 0.0
    note: str = ""
    other_spread: float = 0.0
    target: float | None = None

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


def measure_times(functions: Sequence[Callable[[], object]], device: str, repeats: int) -> list[list[float]]:
    """Seconds of each function in each of the repeats; they run in turn, after one round of warm-up.

    Without repeats there is but that round, and it is what counts.
    """
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for own, function in zip(times, functions, strict=True):
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            if repeat or not repeats:
                own.append(time.perf_counter() - start)
    return times


def _spread(times: list[float]) -> float:
    return (max(times) - min(times)) / statistics.median(times)


def case_of_times(
    name: str, ours: list[float], other: list[float] | None, note: str = "", target: float | None = None
) -> Case:
    """The medians and spreads of two lists of seconds."""
    return Case(
        name,
        statistics.median(ours),
        statistics.median(other) if other else None,
        "s",
        _spread(ours),
        note,
        _spread(other) if other else 0.0,
        target,
    )


def compare_times(
    name: str,
    ours: Callable[[], object],
    other: Callable[[], object] | None,
    *,
    device: str = "cpu",
    repeats: int = 5,
    ours_per_round: int = 1,
    note: str = "",
    target: float | None = None,
) -> Case:
    """Median seconds of both, run in turn after one round of warm-up; ours as often per round as asked for."""
    times = measure_times([ours] * ours_per_round + ([other] if other else []), device, repeats)
    mine = [seconds for own in times[:ours_per_round] for seconds in own]
    return case_of_times(name, mine, times[-1] if other else None, note, target)


def format_cases(cases: list[Case]) -> str:
    """A table for the screen."""

    def show(value: float | None, unit: str) -> str:
        if value is None:
            return "-"
        return f"{value / 2**20:.1f} MiB" if unit == "bytes" else f"{value * 1e3:.1f} ms"

    def show_ratio(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows = [
        [
            c.name,
            show(c.ours, c.unit),
            show(c.other, c.unit),
            show_ratio(c.ratio),
            show_ratio(c.target),
            "" if c.unit == "bytes" else f"{100 * c.spread:.0f} %, {100 * c.other_spread:.0f} %",
            c.note,
        ]
        for c in cases
    ]
    header = ["case", "ours", "other", "other / ours", "target", "spreads", ""]
    return tabulate(rows, header, tablefmt="simple", disable_numparse=True)
