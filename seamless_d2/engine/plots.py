"""The curves of a training as an image."""

import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..io import atomic_write
from .records import EVALUATIONS, read_evaluations

# The metrics that are drawn if they exist: (key of evaluations.json, label).
_QUALITIES = (
    ("panoptic_seg/PQ", "PQ"),
    ("panoptic_seg/PQ_th", "PQ things"),
    ("panoptic_seg/PQ_st", "PQ stuff"),
    ("ema/panoptic_seg/PQ", "PQ, moving average"),
    ("segm/AP", "mask AP"),
    ("sem_seg/mIoU", "mIoU"),
)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.json in the order of their iterations; lines of one iteration are merged.

    Raises:
        UserError: The file is missing or has no line of a training.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist; give the OUTPUT_DIR of a training")
    lines: dict[int, dict[str, Any]] = {}
    for line in file.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
            lines.setdefault(int(entry["iteration"]), {}).update(entry)
        except (ValueError, KeyError, TypeError):
            continue  # an incomplete line of a run that was killed
    if not any("total_loss" in entry for entry in lines.values()):
        raise UserError(f"{file} holds no line of a training yet; wait until SOLVER.LOG_PERIOD steps are done")
    return [lines[k] for k in sorted(lines)]


def plot_metrics(folder: str | Path, output: str | Path | None = None) -> Path:
    """Draw losses, quality, learning rate, speed and memory of a training.

    Args:
        folder: The OUTPUT_DIR of the training, with metrics.json and (after an evaluation) evaluations.json.
        output: The .png, .pdf or .svg file to write; default curves.png in the folder.

    Returns:
        The path of the written file.

    Raises:
        UserError: There is nothing to draw, or the suffix is unknown.
    """
    # pyplot would open a display if there is one.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder = Path(folder)
    output = Path(output) if output else folder / "curves.png"
    if output.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"{output}: curves are written as .png, .pdf or .svg")
    lines = read_metrics(folder / "metrics.json")
    evaluations = read_evaluations(folder / EVALUATIONS)
    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    figure.suptitle(f"{folder.resolve().name}: {lines[-1]['iteration'] + 1} steps")

    def draw(axis: Any, key: str, label: str, **style: Any) -> None:
        points = [(e["iteration"] + 1, e[key]) for e in lines if isinstance(e.get(key), (int, float))]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, **style)

    losses, quality, rate, speed = axes.flat
    draw(losses, "total_loss", "total", color="black", linewidth=1.8)
    for key in sorted({k for e in lines for k in e if k.startswith("loss_")}):
        draw(losses, key, key.removeprefix("loss_"), linewidth=1.0)
    losses.set(title="losses (medians)", yscale="log")
    for key, label in _QUALITIES:
        points = [(step, values[key]) for step, values in sorted(evaluations.items()) if key in values]
        if points:
            quality.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    quality.set(title="quality on DATASETS.TEST, percent")
    if not evaluations:
        quality.text(0.5, 0.5, "no evaluation yet", ha="center", va="center", transform=quality.transAxes)
    draw(rate, "lr", "learning rate")
    rate.set(title="learning rate")
    draw(speed, "images_per_second", "images / s")
    draw(speed, "memory_gb", "memory, GB")
    speed.set(title="speed and memory")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.set(xlabel="step", xlim=(0, lines[-1]["iteration"] + 1))
        if axis.get_legend_handles_labels()[0] and axis is not rate:
            axis.legend(fontsize=8)
    speed.set_ylim(bottom=0)
    with atomic_write(output) as file:
        figure.savefig(file, format=output.suffix[1:], dpi=110)
    return output
