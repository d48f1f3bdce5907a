"""The results of an evaluation as tables: for the screen, per_class.csv, per_image.csv and the report."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..io import atomic_write
from ..structures.classes import Classes
from .dataset_statistics import DatasetStatistics
from .panoptic_quality import PanopticStatistics

PARTS = ("All", "Things", "Stuff")
#: The metrics of a class by their keys in ``results_per_class``, with the heads of their columns in tables.
COLUMNS = {"pq": "PQ", "sq": "SQ", "rq": "RQ", "tp": "TP", "fp": "FP", "fn": "FN"}
OPTIONAL_COLUMNS = {"iou": "IoU", "boundary_iou": "boundary IoU", "box_ap": "box AP", "mask_ap": "mask AP"}
#: The keys of ``results_per_class`` that Detectron2's evaluation loop measures: key, task and name of the metric there.
_METRICS = (
    ("iou", "sem_seg", "IoU"),
    ("boundary_iou", "sem_seg", "BoundaryIoU"),
    ("box_ap", "bbox", "AP"),
    ("mask_ap", "segm", "AP"),
)


#: The kinds of average precision by Detectron2's names, with the heads of their columns.
AP_COLUMNS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "small", "APm": "medium", "APl": "large"}


def part_of_classes(part: str, classes: Classes) -> np.ndarray:
    """Return the (C,) bool selection of the classes that ``part`` ("All", "Things" or "Stuff") names."""
    isthing = np.arange(len(classes.names)) >= classes.num_stuff
    return {"All": np.ones_like(isthing), "Things": isthing, "Stuff": ~isthing}[part]


def averages(quality: PanopticStatistics, classes: Classes, rules: str) -> dict[str, dict[str, float]]:
    """Return the means {"All", "Things", "Stuff": {"pq", "sq", "rq", "n"}}, in 0..1; n is a number of classes."""
    return {part: quality.average(part_of_classes(part, classes), rules) for part in PARTS}


def results_per_class(
    classes: Classes, statistics: DatasetStatistics, results: dict[str, Any] | None = None
) -> dict[int, dict[str, Any]]:
    """Return what is known of each class by its category id, stuff first.

    Args:
        classes: The classes in the order of the statistics.
        statistics: The statistics of the data set.
        results: The results of Detectron2's evaluation loop, for the IoU of the semantic head and the optional keys.

    Returns:
        Dicts with class, kind, pq, sq, rq (in 0..1), tp, fp, fn and iou (in 0..1): that of the semantic head if
        ``results`` have it, else that of the panoptic map. Those of boundary_iou, box_ap and mask_ap (in 0..1) that
        ``results`` have are there too. None stands for what is not known of a class.
    """
    quality = statistics.quality.per_class()
    map_iou = statistics.semantic_iou()
    results = results or {}
    measured = [
        (key, task, metric)
        for key, task, metric in _METRICS
        if any(name.startswith(f"{metric}-") for name in results.get(task, ()))
    ]
    known = {}
    for k, (dataset_id, name) in enumerate(zip(classes.dataset_ids, classes.names, strict=True)):
        row = {"class": name, "kind": "thing" if k >= classes.num_stuff else "stuff"}
        row |= {key: value[k].item() for key, value in quality.items()}
        row["iou"] = _known(map_iou[k])
        for key, task, metric in measured:
            row[key] = _known(results[task].get(f"{metric}-{name}", math.nan) / 100)
        known[dataset_id] = row
    return known


def _known(value: float) -> float | None:
    """Return None for -1 and NaN, by which Detectron2 marks what cannot be measured."""
    return None if math.isnan(value) or value < 0 else float(value)


def write_per_class(
    path: Path, classes: Classes, statistics: DatasetStatistics, results: dict[str, Any] | None = None
) -> None:
    """Write ``results_per_class`` as CSV; values that are not known are empty."""
    rows = [{"category_id": i, **row} for i, row in results_per_class(classes, statistics, results).items()]
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_per_image(path: Path, statistics: DatasetStatistics, get_name: Callable[[Any], str]) -> None:
    """Write a line per image as CSV, the worst first; qualities in 0..1 are empty if no segment counts.

    Args:
        path: The file.
        statistics: The statistics of the data set.
        get_name: Returns the name of an image by its id.
    """
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_id", "name", "pq", "sq", "rq", "tp", "fp", "fn"])
        for row in statistics.worst_first():
            counts = row.tp, row.fp, row.fn
            writer.writerow([row.image_id, get_name(row.image_id), *(row.quality or [""] * 3), *counts])


def average_precision(results: dict[str, Any] | None) -> dict[str, dict[str, float | None]]:
    """Return the kinds of average precision (AP_COLUMNS) in 0..1 of those of "box" and "mask" that were measured.

    None stands for what cannot be measured, for instance because no object is of that size.
    """
    results = results or {}
    return {
        what: {key: _known(results[task].get(key, math.nan) / 100) for key in AP_COLUMNS}
        for what, task in (("box", "bbox"), ("mask", "segm"))
        if task in results
    }


def table_columns(per_class: dict[int, dict[str, Any]]) -> dict[str, str]:
    """Return the heads of the columns for ``results_per_class`` by key; optional ones only if they hold any value."""
    optional = (key for key in OPTIONAL_COLUMNS if any(row.get(key) is not None for row in per_class.values()))
    return COLUMNS | {key: OPTIONAL_COLUMNS[key] for key in optional}


def format_classes(per_class: dict[int, dict[str, Any]]) -> str:
    """Return ``results_per_class`` as a table for the screen, fractions in percent."""
    heads = table_columns(per_class)
    body = [[row["class"], *(_percent(row[key], key) for key in heads)] for row in per_class.values()]
    return tabulate(body, ["class", *heads.values()], floatfmt=".2f", missingval="-")


def format_averages(means: dict[str, dict[str, float]]) -> str:
    """Return a table of what ``averages`` returns, in percent."""
    body = [[part, *(100 * means[part][key] for key in ("pq", "sq", "rq")), means[part]["n"]] for part in PARTS]
    return tabulate(body, ["", "PQ", "SQ", "RQ", "classes"], floatfmt=".2f")


def format_tables(
    classes: Classes, statistics: DatasetStatistics, rules: str, results: dict[str, Any] | None = None
) -> str:
    """Return the tables of classes and of means, and the other metrics, in percent; see ``results_per_class``."""
    table = format_classes(results_per_class(classes, statistics, results))
    others = [f"{label} {value:.2f}" for label, value in other_metrics(statistics, results)]
    means = format_averages(averages(statistics.quality, classes, rules))
    precision = [
        [what, *(_percent(value, key) for key, value in values.items())]
        for what, values in average_precision(results).items()
    ]
    sizes = tabulate(precision, ["", *AP_COLUMNS.values()], floatfmt=".2f", missingval="-")
    parts = [table, means, "   ".join(others), *([sizes] if precision else [])]
    return "\n\n".join(parts)


def _percent(value: float | None, key: str) -> float | None:
    return value if value is None or key in ("tp", "fp", "fn") else 100 * value


def other_metrics(statistics: DatasetStatistics, results: dict[str, Any] | None) -> list[tuple[str, float]]:
    """Return labels and values in percent of the means of IoU, boundary IoU and AP, as far as they are known."""
    results = results or {}
    if "sem_seg" in results:
        boundary = [v for key, v in results["sem_seg"].items() if key.startswith("BoundaryIoU-") and not math.isnan(v)]
        known = [("mIoU", results["sem_seg"]["mIoU"])]
        known += [("boundary mIoU", float(np.mean(boundary)))] if boundary else []
    else:
        iou = statistics.semantic_iou()
        known = [("mIoU of the map", 100 * float(np.nanmean(iou)) if not np.isnan(iou).all() else math.nan)]
    known += [
        (label, results[task]["AP"]) for label, task in (("box AP", "bbox"), ("mask AP", "segm")) if task in results
    ]
    return [(label, value) for label, value in known if not math.isnan(value)]


def without_nan(results: Any) -> Any:
    """Return nested dicts with None in place of NaN, which json does not have."""
    if isinstance(results, dict):
        return {key: without_nan(value) for key, value in results.items()}
    return None if isinstance(results, float) and math.isnan(results) else results
