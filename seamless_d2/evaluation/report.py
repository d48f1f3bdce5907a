"""The report of an evaluation: a self-contained HTML page, beside metrics.json, per_class.csv and per_image.csv."""

import base64
import io
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ..io import atomic_write, rgb_to_ids, write_json
from ..structures.classes import Classes
from ..visualization import draw_overlay
from .charts import bars, confusion_table, line_chart
from .counting import number_segments
from .dataset_statistics import DatasetStatistics, Example
from .facts import Facts
from .html_page import heading, make_page, make_table
from .panoptic_quality import Segments
from .tables import (
    AP_COLUMNS,
    OPTIONAL_COLUMNS,
    average_precision,
    averages,
    other_metrics,
    part_of_classes,
    results_per_class,
    table_columns,
    without_nan,
    write_per_class,
    write_per_image,
)

# The number of images in the table of the page; per_image.csv has all.
MAX_IMAGES = 2000


class ImageSource(NamedTuple):
    """Where a report takes its images from.

    Attributes:
        get_name: Returns the name of an image by its id.
        load: Reads, by the id of an image, the (H, W, 3) uint8 RGB image or None, the (H, W, 3) uint8 image of true ids
            and the true segments.
    """

    get_name: Callable[[Any], str]
    load: Callable[[Any], tuple[np.ndarray | None, np.ndarray, Segments]]


def write_reports(
    output_dir: Path,
    title: str,
    classes: Classes,
    statistics: DatasetStatistics,
    rules: str,
    images: ImageSource,
    results: dict[str, Any] | None = None,
    facts: Facts | None = None,
) -> None:
    """Write metrics.json, per_class.csv, per_image.csv and report.html.

    Args:
        output_dir: The folder of the files; it is created if it does not exist.
        title: The title of the page.
        classes: The classes in the order of the statistics.
        statistics: The statistics of the data set.
        rules: The rules by which the statistics were made, "panopticapi" or "original".
        images: The images and their ground truth.
        results: The results of Detectron2's evaluation loop, if there are any.
        facts: What was evaluated, see ``describe_model`` and ``describe_files``.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    metrics = {
        "images": statistics.images,
        "rules": rules,
        "facts": facts or {},
        **averages(statistics.quality, classes, rules),
        **{label: value / 100 for label, value in other_metrics(statistics, results)},
        "average_precision": average_precision(results),
        "per_class": results_per_class(classes, statistics, results),
        "results": results or {},
    }
    write_json(output_dir / "metrics.json", without_nan(metrics), indent=2)
    write_per_class(output_dir / "per_class.csv", classes, statistics, results)
    write_per_image(output_dir / "per_image.csv", statistics, images.get_name)
    page = _page(title, classes, statistics, rules, images, results, facts or {})
    with atomic_write(output_dir / "report.html", "w") as file:
        file.write(page)


def _page(
    title: str,
    classes: Classes,
    statistics: DatasetStatistics,
    rules: str,
    images: ImageSource,
    results: dict[str, Any] | None,
    facts: Facts,
) -> str:
    means = averages(statistics.quality, classes, rules)
    mean_of = "classes that occur" if rules == "panopticapi" else "all classes, as in the original"
    tiles = [("PQ", 100 * means["All"]["pq"]), ("SQ", 100 * means["All"]["sq"]), ("RQ", 100 * means["All"]["rq"])]
    tiles += [("PQ things", 100 * means["Things"]["pq"]), ("PQ stuff", 100 * means["Stuff"]["pq"])]
    tiles += other_metrics(statistics, results)
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{statistics.images} images, {len(classes.names)} classes; means over {mean_of}; percent.</p>',
        _facts_section(facts),
        '<div class="tiles">',
        *(f'<div class="tile"><b>{value:.1f}</b><span>{escape(label)}</span></div>' for label, value in tiles),
        "</div>",
        _precision_section(results),
        _class_section(classes, statistics, results),
        _confusion_section(classes, statistics),
        _curve_section(classes, statistics),
        _image_section(statistics, images),
        _example_section("Worst images", statistics.worst, classes, images),
        _example_section("Best images", statistics.best, classes, images),
    ]
    return make_page(title, sections)


def _facts_section(facts: Facts) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td>{escape(', '.join(f'{k} {v}' for k, v in values.items()))}</td></tr>"
        for name, values in facts.items()
        if name != "config"
    ]
    table = f'<table class="facts">{"".join(rows)}</table>' if rows else ""
    lines = escape("\n".join(f"{key}: {value}" for key, value in facts.get("config", {}).items()))
    return table + (f"<details><summary>config</summary><pre>{lines}</pre></details>" if lines else "")


def _precision_section(results: dict[str, Any] | None) -> str:
    rows = [
        f'<tr><td class="name">{what}</td>{"".join(f"<td>{_percent(value)}</td>" for value in values.values())}</tr>'
        for what, values in average_precision(results).items()
    ]
    if not rows:
        return ""
    heads = ['<th class="name"></th>', *(f"<th>{label}</th>" for label in AP_COLUMNS.values())]
    return (
        '<h2>Average precision</h2><p class="soft">At IoU 0.5 to 0.95, at 0.5 and at 0.75; of objects below 32², up to '
        f"96² and above 96² pixels.</p>{make_table(heads, rows)}"
    )


def _image_section(statistics: DatasetStatistics, images: ImageSource) -> str:
    shown = statistics.worst_first()[:MAX_IMAGES]
    heads = [heading("image", "name"), heading("PQ", sorted_by="ascending"), heading("SQ"), heading("RQ")]
    heads += [heading("matched"), heading("missed"), heading("false")]
    rows = []
    for row in shown:
        values = [_percent(value) for value in row.quality or [None] * 3]
        cells = "".join(f"<td>{value}</td>" for value in (*values, row.tp, row.fn, row.fp))
        rows.append(f'<tr><td class="name">{escape(images.get_name(row.image_id))}</td>{cells}</tr>')
    cut = f"The {MAX_IMAGES} worst of {statistics.images} images; per_image.csv has all. "
    return (
        f'<h2>Images</h2><p class="soft">{cut if len(shown) < statistics.images else ""}Over all segments of the image '
        f"alone; a click on a heading sorts.</p>{make_table(heads, rows)}"
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _class_section(classes: Classes, statistics: DatasetStatistics, results: dict[str, Any] | None) -> str:
    per_class = results_per_class(classes, statistics, results)
    colors = dict(zip(classes.names, classes.colors, strict=True))
    heads = table_columns(per_class)
    body = []
    for row in sorted(per_class.values(), key=lambda r: -r["pq"]):
        occurs = row["tp"] + row["fp"] + row["fn"] > 0
        values = [_percent(row[k] if occurs else None) for k in ("pq", "sq", "rq")]
        values += [str(row[k]) for k in ("tp", "fp", "fn")]
        values += [_percent(row[k]) for k in heads if k in OPTIONAL_COLUMNS]
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
        + make_table(
            [
                heading("class", "name"),
                '<th class="kind"></th><th></th>',
                *(heading(label, sorted_by="descending" if key == "pq" else "") for key, label in heads.items()),
            ],
            body,
            high=False,
        )
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


def _example_section(title: str, examples: list[Example], classes: Classes, images: ImageSource) -> str:
    parts = [
        f'<h2>{title}</h2><p class="soft">Image, prediction and ground truth, enlarged by a click; PQ of the image '
        "alone.</p>"
    ]
    for example in examples:
        image, gt_id_image, ground_truth = images.load(example.image_id)
        height, width = example.ids.shape
        gt_ids = rgb_to_ids(cv2.resize(gt_id_image, (width, height), interpolation=cv2.INTER_NEAREST))
        if image is None:
            background, alpha = np.full((height, width, 3), 235, np.uint8), 1.0
        else:
            background, alpha = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), 0.55
        drawn = {}
        for what, ids, segments in (
            ("prediction", example.ids, example.segments),
            ("ground truth", gt_ids, ground_truth),
        ):
            labels, info = _for_drawing(ids, segments, classes)
            drawn[what] = draw_overlay(background, labels, info, classes, alpha=alpha, min_side=240)
        if image is not None:
            size = drawn["prediction"].shape[1::-1]  # small ones are enlarged
            drawn = {"image": cv2.resize(background, size, interpolation=cv2.INTER_CUBIC), **drawn}
        parts.append(
            f'<div class="example"><h3>{escape(images.get_name(example.image_id))} '
            f'<span class="soft">PQ {100 * example.quality:.1f}</span></h3>'
            + "".join(
                f'<button type="button"><img src="data:image/jpeg;base64,{_jpeg(drawing)}" alt="{what}"></button>'
                for what, drawing in drawn.items()
            )
            + "</div>"
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
