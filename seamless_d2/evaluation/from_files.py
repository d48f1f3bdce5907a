"""PQ of predictions in files, from any program that writes COCO panoptic."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.images import read_id_map
from ..data.prepare.writer import available_cpus
from ..data.register import read_json
from ..errors import UserError
from .panoptic_quality import PanopticStatistics, Segments, add_image

Pair = tuple[dict[str, Any], dict[str, Any]]


def _compare_pairs(
    pairs: list[Pair], truth_dir: Path, prediction_dir: Path, class_of_id: dict[int, int], rules: str
) -> PanopticStatistics:
    statistics = PanopticStatistics(len(class_of_id))
    for truth, prediction in pairs:
        name = prediction["file_name"]
        try:
            add_image(
                statistics,
                read_id_map(truth_dir / truth["file_name"]),
                Segments.from_json(truth["segments_info"], class_of_id, truth["file_name"]),
                read_id_map(prediction_dir / name),
                Segments.from_json(prediction["segments_info"], class_of_id, name),
                rules,
            )
        except UserError as error:
            raise UserError(str(error) if name in str(error) else f"{name}: {error}") from None
    return statistics


def _chunks(pairs: list[Pair], size: int) -> Iterator[list[Pair]]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def evaluate_files(
    prediction_json: str | Path,
    truth_json: str | Path,
    prediction_dir: str | Path | None = None,
    truth_dir: str | Path | None = None,
    *,
    rules: str = "panopticapi",
    workers: int | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare two COCO-panoptic jsons with their PNGs.

    Args:
        prediction_json, truth_json: the jsons; categories are taken from the truth.
        prediction_dir, truth_dir: folders of the PNGs; default the jsons' paths without ".json".
        rules: see ``add_image``.
        workers: processes; default one per CPU.

    Returns:
        {"All", "Things", "Stuff": {"pq", "sq", "rq", "n"}, "per_class": {category_id: {"pq", "sq", "rq", "tp", "fp",
        "fn", "iou"}}} with fractions of 1, and the categories.

    Raises:
        UserError: files missing or malformed, an image of the truth without prediction, ids that contradict the json.
    """
    truth_json, prediction_json = Path(truth_json), Path(prediction_json)
    truth = read_json(truth_json, "truth json")
    prediction = read_json(prediction_json, "prediction json")
    for content, path in ((truth, truth_json), (prediction, prediction_json)):
        if not isinstance(content, dict) or "annotations" not in content:
            raise UserError(f"{path} has no annotations; it is not a COCO-panoptic json")
    if "categories" not in truth:
        raise UserError(f"{truth_json} has no categories; it is not a COCO-panoptic json")
    categories = truth["categories"]
    class_of_id = {c["id"]: k for k, c in enumerate(categories)}
    predicted = {a["image_id"]: a for a in prediction["annotations"]}
    lacking = [a["image_id"] for a in truth["annotations"] if a["image_id"] not in predicted]
    if lacking:
        raise UserError(f"{prediction_json} has no prediction for image {lacking[0]} ({len(lacking)} images in all)")
    pairs = [(a, predicted[a["image_id"]]) for a in truth["annotations"]]
    compare = partial(
        _compare_pairs,
        truth_dir=Path(truth_dir or truth_json.with_suffix("")),
        prediction_dir=Path(prediction_dir or prediction_json.with_suffix("")),
        class_of_id=class_of_id,
        rules=rules,
    )
    workers = min(workers or available_cpus(), max(len(pairs) // 4, 1))
    total = PanopticStatistics(len(categories))
    chunks = list(_chunks(pairs, 8))
    with tqdm(total=len(pairs), desc="evaluate", unit="image", leave=False) as bar:
        if workers == 1:
            parts = map(compare, chunks)
            for chunk, part in zip(chunks, parts, strict=True):
                total += part
                bar.update(len(chunk))
        else:
            with ProcessPoolExecutor(workers) as pool:
                for chunk, part in zip(chunks, pool.map(compare, chunks), strict=True):
                    total += part
                    bar.update(len(chunk))
    isthing = np.array([bool(c["isthing"]) for c in categories], bool)
    per_class = total.per_class()
    result: dict[str, Any] = {
        "All": total.average(None, rules),
        "Things": total.average(isthing, rules),
        "Stuff": total.average(~isthing, rules),
        "per_class": {
            c["id"]: {key: value[k].item() for key, value in per_class.items()} for k, c in enumerate(categories)
        },
    }
    return result, categories
