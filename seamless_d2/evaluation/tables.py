"""The results of an evaluation as tables: for the screen, per_class.csv and the report."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..io import atomic_write
from ..structures.classes import Classes
from .dataset_statistics import DatasetStatistics
from .panoptic_quality import PanopticStatistics

PARTS = ("All", "Things", "Stuff")
#: The columns of the tables of classes, by key of ``per_class_rows``.
COLUMNS = {"pq": "PQ", "sq": "SQ", "rq": "RQ", "tp": "TP", "fp": "FP", "fn": "FN"}
OPTIONAL_COLUMNS = {"semantic_iou": "IoU", "box_ap": "box AP", "mask_ap": "mask AP"}


def part_of_classes(part: str, classes: Classes) -> np.ndarray:
    """Return the (C,) bool selection of the classes that ``part`` ("All", "Things" or "Stuff") names."""
    isthing = np.arange(len(classes.names)) >= classes.num_stuff
    return {"All": np.ones_like(isthing), "Things": isthing, "Stuff": ~isthing}[part]


def averages(quality: PanopticStatistics, classes: Classes, rules: str) -> dict[str, dict[str, float]]:
    """Return the means {"All", "Things", "Stuff": {"pq", "sq", "rq", "n"}}, in 0..1; n is a number of classes."""
    return {part: quality.average(part_of_classes(part, classes), rules) for part in PARTS}


def per_class_rows(
    classes: Classes, statistics: DatasetStatistics, results: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return one row per class, stuff first.

    Args:
        classes: The classes in the order of the statistics.
        statistics: The statistics of the data set.
        results: The results of Detectron2's evaluation loop, for box_ap, mask_ap and semantic_iou.

    Returns:
        Dicts with class, kind, pq, sq, rq (in 0..1), tp, fp, fn, iou (the sum of matched IoU), semantic_iou, box_ap and
        mask_ap (in 0..1, None if not known).
    """
    per_class = statistics.quality.per_class()
    fused_iou = statistics.semantic_iou()
    results = results or {}
    rows = []
    for k, name in enumerate(classes.names):
        semantic = results["sem_seg"].get(f"IoU-{name}", math.nan) / 100 if "sem_seg" in results else fused_iou[k]
        row = {"class": name, "kind": "thing" if k >= classes.num_stuff else "stuff"}
        row |= {key: value[k].item() for key, value in per_class.items()}
        row["semantic_iou"] = _known(semantic)
        for key, task in (("box_ap", "bbox"), ("mask_ap", "segm")):
            row[key] = _known(results.get(task, {}).get(f"AP-{name}", math.nan) / 100)
        rows.append(row)
    return rows


def _known(value: float) -> float | None:
    """Return None for -1 and NaN, by which Detectron2 marks what cannot be measured."""
    return None if math.isnan(value) or value < 0 else float(value)


def write_per_class(
    path: Path, classes: Classes, statistics: DatasetStatistics, results: dict[str, Any] | None = None
) -> None:
    """Write ``per_class_rows`` as CSV; values that are not known are empty."""
    rows = per_class_rows(classes, statistics, results)
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def format_classes(rows: list[dict[str, Any]], columns: tuple[str, ...] = ()) -> str:
    """Return a table of classes for the screen, fractions in percent.

    Args:
        rows: Dicts with "class", the keys of ``COLUMNS`` and ``columns``; None stands for what is not known.
        columns: Further columns, of ``OPTIONAL_COLUMNS``.
    """
    heads = COLUMNS | {key: OPTIONAL_COLUMNS[key] for key in columns}
    body = [[row["class"], *(_percent(row[key], key) for key in heads)] for row in rows]
    return tabulate(body, ["class", *heads.values()], floatfmt=".2f", missingval="-")


def format_averages(means: dict[str, dict[str, float]]) -> str:
    """Return a table of what ``averages`` returns, in percent."""
    body = [[part, *(100 * means[part][key] for key in ("pq", "sq", "rq")), means[part]["n"]] for part in PARTS]
    return tabulate(body, ["", "PQ", "SQ", "RQ", "classes"], floatfmt=".2f")


def format_tables(
    classes: Classes, statistics: DatasetStatistics, rules: str, results: dict[str, Any] | None = None
) -> str:
    """Return the tables of classes and of means, and the other metrics, in percent; see ``per_class_rows``."""
    rows = per_class_rows(classes, statistics, results)
    columns = ("semantic_iou", "box_ap", "mask_ap") if results and "segm" in results else ("semantic_iou",)
    others = [f"{label} {value:.2f}" for label, value in other_metrics(statistics, results)]
    means = format_averages(averages(statistics.quality, classes, rules))
    return f"{format_classes(rows, columns)}\n\n{means}\n\n{'   '.join(others)}"


def _percent(value: float | None, key: str) -> float | None:
    return value if value is None or key in ("tp", "fp", "fn") else 100 * value


def other_metrics(statistics: DatasetStatistics, results: dict[str, Any] | None) -> list[tuple[str, float]]:
    """Return labels and values in percent of mIoU, box AP and mask AP, as far as they are known."""
    results = results or {}
    if "sem_seg" in results:
        known = [("mIoU", results["sem_seg"]["mIoU"])]
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
