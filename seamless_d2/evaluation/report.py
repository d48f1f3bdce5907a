"""The report of an evaluation: a self-contained HTML page, beside metrics.json and per_class.csv."""

import base64
import io
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ..io import atomic_write, rgb_to_ids, write_json
from ..structures.classes import Classes
from ..visualization import draw_overlay
from .charts import STYLE, bars, confusion_table, line_chart
from .counting import number_segments
from .dataset_statistics import DatasetStatistics, Example
from .panoptic_quality import Segments
from .tables import (
    OPTIONAL_COLUMNS,
    averages,
    other_metrics,
    part_of_classes,
    results_per_class,
    table_columns,
    without_nan,
    write_per_class,
)

#: From an image id to the name of the image, the (H, W, 3) uint8 RGB image or None, the (H, W, 3) uint8 image of true
#: ids and the true segments.
LoadGroundTruth = Callable[[Any], tuple[str, np.ndarray | None, np.ndarray, Segments]]


def write_reports(
    output_dir: Path,
    title: str,
    classes: Classes,
    statistics: DatasetStatistics,
    rules: str,
    load_ground_truth: LoadGroundTruth,
    results: dict[str, Any] | None = None,
) -> None:
    """Write metrics.json, per_class.csv and report.html.

    Args:
        output_dir: The folder of the files; it is created if it does not exist.
        title: The title of the page.
        classes: The classes in the order of the statistics.
        statistics: The statistics of the data set.
        rules: The rules by which the statistics were made, "panopticapi" or "original".
        load_ground_truth: Reads the image and ground truth of an example.
        results: The results of Detectron2's evaluation loop, if there are any.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    metrics = {
        "images": statistics.images,
        "rules": rules,
        **averages(statistics.quality, classes, rules),
        **{label: value / 100 for label, value in other_metrics(statistics, results)},
        "per_class": results_per_class(classes, statistics, results),
        "results": results or {},
    }
    write_json(output_dir / "metrics.json", without_nan(metrics), indent=2)
    write_per_class(output_dir / "per_class.csv", classes, statistics, results)
    page = _page(title, classes, statistics, rules, load_ground_truth, results)
    with atomic_write(output_dir / "report.html", "w") as file:
        file.write(page)


def _page(
    title: str,
    classes: Classes,
    statistics: DatasetStatistics,
    rules: str,
    load_ground_truth: LoadGroundTruth,
    results: dict[str, Any] | None,
) -> str:
    means = averages(statistics.quality, classes, rules)
    mean_of = "classes that occur" if rules == "panopticapi" else "all classes, as in the original"
    tiles = [("PQ", 100 * means["All"]["pq"]), ("SQ", 100 * means["All"]["sq"]), ("RQ", 100 * means["All"]["rq"])]
    tiles += [("PQ things", 100 * means["Things"]["pq"]), ("PQ stuff", 100 * means["Stuff"]["pq"])]
    tiles += other_metrics(statistics, results)
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{statistics.images} images, {len(classes.names)} classes; means over {mean_of}; percent.</p>',
        '<div class="tiles">',
        *(f'<div class="tile"><b>{value:.1f}</b><span>{escape(label)}</span></div>' for label, value in tiles),
        "</div>",
        _class_section(classes, statistics, results),
        _confusion_section(classes, statistics),
        _curve_section(classes, statistics),
        _example_section("Worst images", statistics.worst, classes, load_ground_truth),
        _example_section("Best images", statistics.best, classes, load_ground_truth),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _class_section(classes: Classes, statistics: DatasetStatistics, results: dict[str, Any] | None) -> str:
    per_class = results_per_class(classes, statistics, results)
    colors = dict(zip(classes.names, classes.colors, strict=True))
    heads = table_columns(per_class)
    body = []
    for row in sorted(per_class.values(), key=lambda r: -r["pq"]):
        occurs = row["tp"] + row["fp"] + row["fn"] > 0
        values = [f"{100 * row[k]:.1f}" if occurs else "–" for k in ("pq", "sq", "rq")]
        values += [str(row[k]) for k in ("tp", "fp", "fn")]
        values += ["–" if row[k] is None else f"{100 * row[k]:.1f}" for k in heads if k in OPTIONAL_COLUMNS]
        color = "#{:02x}{:02x}{:02x}".format(*colors[row["class"]])
        chart = bars({k: row[k] for k in ("pq", "sq", "rq")}) if occurs else ""
        body.append(
            f'<tr><td class="name"><span class="dot" style="background:{color}"></span>{escape(row["class"])}</td>'
            f'<td class="kind">{row["kind"]}</td><td class="bars">{chart}</td>'
            + "".join(f"<td>{value}</td>" for value in values)
            + "</tr>"
        )
    return (
        '<h2>Classes</h2><p class="soft legend"><span><i class="pq"></i>PQ = SQ × RQ</span>'
        '<span><i class="sq"></i>SQ: how well matched segments fit (their mean IoU)</span>'
        '<span><i class="rq"></i>RQ: how many are matched (F1)</span></p>'
        '<div class="scroll"><table class="classes"><tr>'
        '<th class="name">class</th><th class="kind"></th><th></th>'
        + "".join(f"<th>{label}</th>" for label in heads.values())
        + f"</tr>{''.join(body)}</table></div>"
    )


def _confusion_section(classes: Classes, statistics: DatasetStatistics) -> str:
    confusion = statistics.confusion[:-1]
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    predicted = [*classes.names, "no segment"]
    largest = [np.unravel_index(k, shares.shape) for k in np.argsort(-shares, axis=None, kind="stable")[:6]]
    pairs = [
        f"<li>{100 * shares[i, j]:.1f} % of <b>{escape(classes.names[i])}</b> is predicted as "
        f"<b>{escape(predicted[j])}</b></li>"
        for i, j in largest
        if shares[i, j] >= 0.005
    ]
    return (
        '<h2>Confusion between classes</h2><p class="soft">Pixels, in percent of the true class (rows) by '
        "predicted class (columns); instances of a class are not told apart here.</p>"
        f'<div class="scroll">{confusion_table(confusion, classes.names)}</div><ul class="pairs">{"".join(pairs)}</ul>'
    )


def _curve_section(classes: Classes, statistics: DatasetStatistics) -> str:
    curves = statistics.score_curves(part_of_classes("Things", classes))
    head = "<h2>Score threshold</h2>"
    if curves is None:
        return head + '<p class="soft">The predicted instances have no scores, so that no curve can be drawn.</p>'
    labels = {"pq": "PQ of things", "sq": "SQ", "rq": "RQ"}
    best = int(curves["pq"].argmax())
    chart = line_chart(curves["score"], {k: curves[k] for k in labels}, labels, "least score of an instance")
    return (
        f'{head}<p class="soft">What would become of the things if only instances of at least this score had been kept '
        f"(freed pixels stay void). Highest PQ of things: {100 * curves['pq'][best]:.1f} at {curves['score'][best]:g}. "
        f"tools/tune_thresholds.py tries lower thresholds too.</p>{chart}"
    )


def _example_section(
    heading: str, examples: list[Example], classes: Classes, load_ground_truth: LoadGroundTruth
) -> str:
    parts = [f'<h2>{heading}</h2><p class="soft">Prediction left, ground truth right; PQ of the image alone.</p>']
    for example in examples:
        name, image, gt_id_image, ground_truth = load_ground_truth(example.image_id)
        height, width = example.ids.shape
        gt_ids = rgb_to_ids(cv2.resize(gt_id_image, (width, height), interpolation=cv2.INTER_NEAREST))
        if image is None:
            image, alpha = np.full((height, width, 3), 235, np.uint8), 1.0
        else:
            image, alpha = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), 0.55
        images = []
        for ids, segments in ((example.ids, example.segments), (gt_ids, ground_truth)):
            labels, info = _for_drawing(ids, segments, classes)
            drawn = draw_overlay(image, labels, info, classes, alpha=alpha, min_side=240)
            images.append(f'<img src="data:image/jpeg;base64,{_jpeg(drawn)}" alt="">')
        parts.append(
            f'<div class="example"><h3>{escape(name)} <span class="soft">PQ {100 * example.quality:.1f}</span></h3>'
            f"{''.join(images)}</div>"
        )
    return "".join(parts) if examples else ""


def _for_drawing(ids: np.ndarray, segments: Segments, classes: Classes) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the map with ids 1..n and its segments in the form that ``draw_overlay`` takes."""
    labels = number_segments(ids, segments.ids)
    labels[labels > len(segments.ids)] = 0
    info = []
    for k, label in enumerate(segments.classes.tolist(), 1):
        segment = {"id": k, **classes.from_label(label)}
        score = np.nan if segments.scores is None else segments.scores[k - 1]
        info.append(segment if np.isnan(score) else {**segment, "score": float(score)})
    return labels, info


def _jpeg(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
