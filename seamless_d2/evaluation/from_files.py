"""PQ of predictions in files, from any program that writes COCO panoptic."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.images import read_id_picture, read_photo
from ..data.metadata import Classes
from ..data.prepare.writer import available_cpus
from ..data.register import read_json
from ..errors import UserError
from .panoptic_quality import ImageMatch, PanopticStatistics, Segments, match_image
from .report import write_reports
from .statistics import DatasetStatistics
from .tables import averages, format_tables

Annotation = dict[str, Any]


@dataclass
class FilePairs:
    """Two COCO-panoptic data sets of the same images, checked; ``read_pairs`` makes it.

    Attributes:
        categories: of the truth, in the order of its json.
        classes: the same in semantic order (stuff, then things), which numbers them in the statistics.
        pairs: the annotations (true, predicted) of each image.
        truth_json, prediction_json, truth_dir, prediction_dir: where they are.
        images: the truth's image entries by id.
    """

    categories: list[dict[str, Any]]
    classes: Classes
    pairs: list[tuple[Annotation, Annotation]]
    truth_json: Path
    prediction_json: Path
    truth_dir: Path
    prediction_dir: Path
    images: dict[Any, dict[str, Any]]

    def truth_segments(self, annotation: Annotation) -> Segments:
        """Of one of the truth's annotations."""
        segments = self._segments(annotation)
        if (segments.ids == 0).any():
            raise UserError(f"{annotation['file_name']} has a true segment of id 0, which means void; mend the json")
        return segments

    def _segments(self, annotation: Annotation) -> Segments:
        return Segments.from_json(annotation["segments_info"], self._class_of_id, annotation["file_name"])

    def check_segments(self) -> None:
        """Raise ``UserError`` where the jsons contradict themselves or each other."""
        for truth, prediction in self.pairs:
            self.truth_segments(truth)
            self._segments(prediction)

    def match(self, pair: tuple[Annotation, Annotation], rules: str) -> tuple[ImageMatch, np.ndarray]:
        """Read and compare one image; returns the predicted picture too."""
        truth, prediction = pair
        name = prediction["file_name"]
        try:
            picture = read_id_picture(self.prediction_dir / name)
            truth_picture = read_id_picture(self.truth_dir / truth["file_name"])
            match = match_image(truth_picture, self.truth_segments(truth), picture, self._segments(prediction), rules)
        except UserError as error:
            raise UserError(str(error) if name in str(error) else f"{name}: {error}") from None
        return match, picture

    def __post_init__(self) -> None:
        self._class_of_id = {c: k for k, c in enumerate(self.classes.dataset_ids)}


def _read_annotations(path: Path, what: str) -> dict[str, Any]:
    content = read_json(path, f"{what} json")
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise UserError(f"{path} has no annotations; it is not a COCO-panoptic json")
    for annotation in content["annotations"]:
        keys = ("image_id", "file_name", "segments_info")
        missing = [key for key in keys if not isinstance(annotation, dict) or key not in annotation]
        if missing:
            raise UserError(f"{path} has an annotation without {missing[0]!r}; it is not a COCO-panoptic json")
        if not isinstance(annotation["segments_info"], list):
            raise UserError(f"{path}: segments_info of image {annotation['image_id']} is no list; mend the json")
    return content


def read_pairs(
    prediction_json: str | Path,
    truth_json: str | Path,
    prediction_dir: str | Path | None = None,
    truth_dir: str | Path | None = None,
) -> FilePairs:
    """Read and check two COCO-panoptic jsons.

    Args:
        prediction_json, truth_json: the jsons; categories are taken from the truth.
        prediction_dir, truth_dir: folders of the PNGs; default the jsons' paths without ".json".

    Raises:
        UserError: files missing or malformed, or an image of the truth without prediction.
    """
    truth_json, prediction_json = Path(truth_json), Path(prediction_json)
    truth = _read_annotations(truth_json, "truth")
    prediction = _read_annotations(prediction_json, "prediction")
    if not truth.get("categories"):
        raise UserError(f"{truth_json} has no categories; it is not a COCO-panoptic json")
    classes = Classes.from_categories(truth["categories"], str(truth_json))
    predicted = {a["image_id"]: a for a in prediction["annotations"]}
    lacking = [a["image_id"] for a in truth["annotations"] if a["image_id"] not in predicted]
    if lacking:
        raise UserError(
            f"{prediction_json} has no prediction for image {lacking[0]} ({len(lacking)} images in all); predict them "
            "all, or take them out of the truth"
        )
    folders = []
    for given, json_path, what in (
        (prediction_dir, prediction_json, "--pred-dir"),
        (truth_dir, truth_json, "--truth-dir"),
    ):
        folder = Path(given or json_path.with_suffix(""))
        if not folder.is_dir():
            raise UserError(f"folder {folder} with the PNGs of {json_path} does not exist; name it with {what}")
        folders.append(folder)
    pairs = [(a, predicted[a["image_id"]]) for a in truth["annotations"]]
    images = {image["id"]: image for image in truth.get("images", [])}
    return FilePairs(truth["categories"], classes, pairs, truth_json, prediction_json, folders[1], folders[0], images)


def _matches(
    files: FilePairs, rules: str, workers: int
) -> Iterator[tuple[tuple[Annotation, Annotation], ImageMatch, np.ndarray]]:
    """All pairs in order, read and compared by threads (decoding and counting leave Python's lock)."""
    pending: deque[tuple[Any, Future]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for pair in files.pairs:
                pending.append((pair, pool.submit(files.match, pair, rules)))
                if len(pending) > 2 * workers:
                    done, future = pending.popleft()
                    yield done, *future.result()
            while pending:
                done, future = pending.popleft()
                yield done, *future.result()
        finally:
            for _, future in pending:
                future.cancel()


def accumulate(files: FilePairs, *, rules: str = "panopticapi", workers: int | None = None) -> DatasetStatistics:
    """Compare all images.

    Args:
        files: of ``read_pairs``.
        rules: see ``match_counts``.
        workers: threads; default one per CPU.

    Raises:
        UserError: PNGs missing or malformed, ids that contradict the json.
    """
    statistics = DatasetStatistics(len(files.categories))
    matches: Iterable = _matches(files, rules, workers or available_cpus())
    for (truth, _), match, picture in tqdm(matches, "evaluate", len(files.pairs), leave=False, unit="image"):
        statistics.add(match, truth["image_id"], picture)
    return statistics


def summarize(quality: PanopticStatistics, files: FilePairs, rules: str = "panopticapi") -> dict[str, Any]:
    """{"All", "Things", "Stuff": {"pq", "sq", "rq", "n"}, "per_class": {category_id: {"pq", "sq", "rq", "tp", "fp",
    "fn", "iou"}}}, fractions of 1.
    """
    per_class = quality.per_class()
    place = {dataset_id: k for k, dataset_id in enumerate(files.classes.dataset_ids)}
    return {
        **averages(quality, files.classes, rules),
        "per_class": {
            c["id"]: {key: value[place[c["id"]]].item() for key, value in per_class.items()} for c in files.categories
        },
    }


def evaluate_files(
    prediction_json: str | Path,
    truth_json: str | Path,
    prediction_dir: str | Path | None = None,
    truth_dir: str | Path | None = None,
    *,
    rules: str = "panopticapi",
    workers: int | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare two COCO-panoptic jsons with their PNGs, the fastest way that is installed.

    Args and errors: see ``read_pairs`` and ``accumulate``.

    Returns:
        What ``summarize`` returns, and the categories.
    """
    # It needs this module's types.
    from .with_hotcoco import quality_by_hotcoco

    files = read_pairs(prediction_json, truth_json, prediction_dir, truth_dir)
    files.check_segments()
    quality = quality_by_hotcoco(files) if rules == "panopticapi" and workers is None else None
    if quality is None:
        quality = accumulate(files, rules=rules, workers=workers).quality
    return summarize(quality, files, rules), files.categories


def report_files(
    prediction_json: str | Path,
    truth_json: str | Path,
    prediction_dir: str | Path | None = None,
    truth_dir: str | Path | None = None,
    *,
    output_dir: str | Path,
    image_dir: str | Path | None = None,
    rules: str = "panopticapi",
    workers: int | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """``evaluate_files``, and metrics.json, per_class.csv and report.html.

    Args:
        prediction_json, truth_json, prediction_dir, truth_dir, rules, workers: see ``evaluate_files``.
        output_dir: where the reports go.
        image_dir: folder of the photos, named as in the truth's json; None shows plain colours.

    Returns:
        What ``evaluate_files`` returns, and the tables as text.

    Raises:
        UserError: see there; or ``image_dir`` does not exist.
    """
    if image_dir is not None and not Path(image_dir).is_dir():
        raise UserError(f"folder {image_dir} of the photos does not exist; check --images")
    files = read_pairs(prediction_json, truth_json, prediction_dir, truth_dir)
    files.check_segments()
    # What cannot be made should fail now and not after the work.
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    statistics = accumulate(files, rules=rules, workers=workers)
    truths = {truth["image_id"]: truth for truth, _ in files.pairs}

    def load_truth(image_id: Any) -> tuple[str, np.ndarray | None, np.ndarray, Segments]:
        truth = truths[image_id]
        picture = read_id_picture(files.truth_dir / truth["file_name"])
        name, photo = truth["file_name"], None
        if image_dir is not None and "file_name" in files.images.get(image_id, {}):
            name = files.images[image_id]["file_name"]
            photo = read_photo(Path(image_dir) / name, picture.shape[:2])
        return name, photo, picture, files.truth_segments(truth)

    title = f"Evaluation of {Path(prediction_json).name}"
    write_reports(Path(output_dir), title, files.classes, statistics, rules, load_truth)
    tables = format_tables(files.classes, statistics, rules)
    return summarize(statistics.quality, files, rules), files.categories, tables
