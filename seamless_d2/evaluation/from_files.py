"""PQ of predictions in files of the COCO-panoptic format, which may come from any program."""

import hashlib
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..io import read_id_image, read_image
from ..parallel import map_threads
from ..shard import Shard
from ..structures.classes import Classes
from ..structures.coco_json import (
    CocoAnnotation,
    CocoCategory,
    CocoFile,
    GroundTruthJson,
    PredictionJson,
    read_json_as,
)
from .dataset_statistics import DatasetStatistics
from .facts import describe_files
from .panoptic_quality import ImageMatch, PanopticStatistics, Segments, match_image
from .report import ImageSource, write_reports
from .statistics_file import load_statistics, save_statistics
from .tables import averages, format_tables, results_per_class
from .with_hotcoco import quality_by_hotcoco

_SUMS = re.compile(r"sums-(\d+)-of-(\d+)\.npz")


@dataclass
class FilePairs:
    """Ground truth and prediction of the same images, as ``read_pairs`` reads and checks them.

    Attributes:
        categories: The categories of the ground truth in the order of its json.
        classes: The same categories in the order of their semantic labels, which is the order of the statistics.
        pairs: The true and the predicted annotation of each image.
        gt_json, prediction_json: The paths of the jsons.
        gt_dir, prediction_dir: The folders of the PNGs.
        images: The image entries of the ground truth by id.
    """

    categories: list[CocoCategory]
    classes: Classes
    pairs: list[tuple[CocoAnnotation, CocoAnnotation]]
    gt_json: Path
    prediction_json: Path
    gt_dir: Path
    prediction_dir: Path
    images: dict[int | str, CocoFile]

    def segments(self, annotation: CocoAnnotation) -> Segments:
        """Return the segments of an annotation; errors are those of ``Segments.from_json``."""
        return Segments.from_json(annotation.segments_info, self.class_of_id, annotation.file_name)

    def check_segments(self) -> None:
        """Raise ``UserError`` if the jsons contradict themselves or each other."""
        for ground_truth, prediction in self.pairs:
            self.segments(ground_truth)
            self.segments(prediction)

    def quality_by_hotcoco(self) -> PanopticStatistics | None:
        """Return the sums of PQ by ``with_hotcoco.quality_by_hotcoco``, or None if it cannot compute them."""
        images = (
            folder / annotation.file_name
            for pair in self.pairs
            for folder, annotation in zip((self.gt_dir, self.prediction_dir), pair, strict=True)
        )
        files = (self.gt_json, self.prediction_json, self.gt_dir, self.prediction_dir)
        return quality_by_hotcoco(*files, images=images, dataset_ids=self.classes.dataset_ids)

    def match(self, pair: tuple[CocoAnnotation, CocoAnnotation], rules: str) -> tuple[ImageMatch, np.ndarray]:
        """Read and compare one image.

        Args:
            pair: An element of ``pairs``.
            rules: The rules for void and crowd, see ``match_counts``.

        Returns:
            The matched segments, and the (H, W, 3) uint8 image of the predicted ids.

        Raises:
            UserError: A PNG is missing or malformed, or contradicts its json.
        """
        ground_truth, prediction = pair
        name = prediction.file_name
        try:
            image = read_id_image(self.prediction_dir / name)
            gt_image = read_id_image(self.gt_dir / ground_truth.file_name)
            match = match_image(gt_image, self.segments(ground_truth), image, self.segments(prediction), rules)
        except UserError as error:
            raise UserError(str(error) if name in str(error) else f"{name}: {error}") from None
        return match, image

    def __post_init__(self) -> None:
        self.class_of_id = {c: k for k, c in enumerate(self.classes.dataset_ids)}


def read_pairs(
    prediction_json: str | Path,
    gt_json: str | Path,
    prediction_dir: str | Path | None = None,
    gt_dir: str | Path | None = None,
) -> FilePairs:
    """Read and check two COCO-panoptic jsons.

    Args:
        prediction_json, gt_json: The paths of the jsons; the categories are those of the ground truth.
        prediction_dir, gt_dir: The folders of the PNGs; default the paths of the jsons without ".json".

    Raises:
        UserError: Files are missing or malformed, or an image of the ground truth has no prediction.
    """
    gt_json, prediction_json = Path(gt_json), Path(prediction_json)
    ground_truth = read_json_as(gt_json, "ground truth json", GroundTruthJson)
    prediction = read_json_as(prediction_json, "prediction json", PredictionJson)
    classes = Classes.from_categories(ground_truth.categories, str(gt_json))
    predicted = {a.image_id: a for a in prediction.annotations}
    lacking = [a.image_id for a in ground_truth.annotations if a.image_id not in predicted]
    if lacking:
        raise UserError(
            f"{prediction_json} has no prediction for image {lacking[0]} ({len(lacking)} images in all); predict them "
            "all, or take them out of the ground truth"
        )
    folders = []
    for given, json_path, what in (
        (prediction_dir, prediction_json, "--pred-dir"),
        (gt_dir, gt_json, "--truth-dir"),
    ):
        folder = Path(given or json_path.with_suffix(""))
        if not folder.is_dir():
            raise UserError(f"folder {folder} with the PNGs of {json_path} does not exist; name it with {what}")
        folders.append(folder)
    pairs = [(a, predicted[a.image_id]) for a in ground_truth.annotations]
    images = {image.id: image for image in ground_truth.images}
    return FilePairs(ground_truth.categories, classes, pairs, gt_json, prediction_json, folders[1], folders[0], images)


def accumulate(
    files: FilePairs, *, rules: str = "panopticapi", workers: int | None = None, shard: Shard | None = None
) -> DatasetStatistics:
    """Compare all images, or those whose ids a shard takes.

    Args:
        files: The result of ``read_pairs``.
        rules: The rules for void and crowd, see ``match_counts``.
        workers: The number of threads; default one per CPU.
        shard: The part of the images; default all.

    Raises:
        UserError: A PNG is missing or malformed, or contradicts its json.
    """
    statistics = DatasetStatistics(len(files.categories))
    pairs = [pair for pair in files.pairs if shard is None or shard.takes(str(pair[0].image_id))]
    # Decoding and counting release Python's global lock.
    matches = map_threads(partial(files.match, rules=rules), pairs, workers)
    progress = tqdm(matches, "evaluate", len(pairs), leave=False, unit="image")
    for (ground_truth, _), (match, image) in zip(pairs, progress, strict=True):
        statistics.add(match, ground_truth.image_id, image)
    return statistics


def write_sums(files: FilePairs, folder: Path, shard: Shard, *, rules: str, workers: int | None = None) -> Path:
    """Compare the images of a shard, and write the sums for ``read_sums``; return the file."""
    files.check_segments()
    statistics = accumulate(files, rules=rules, workers=workers, shard=shard)
    path = folder / f"sums-{shard.label}.npz"
    save_statistics(statistics, path, _describe(files, rules))
    return path


def read_sums(files: FilePairs, folder: Path, rules: str) -> DatasetStatistics:
    """Read and add the sums of all shards.

    Raises:
        UserError: Shards are missing, or their sums are of other files or rules.
    """
    found = {path: _SUMS.fullmatch(path.name) for path in sorted(folder.glob("sums-*.npz"))}
    counts = {int(match[2]) for match in found.values() if match}
    if len(counts) != 1 or None in found.values():
        raise UserError(f"{folder} holds no sums, or those of several divisions; give the --sums of the shards")
    (count,) = counts
    missing = sorted(set(range(1, count + 1)) - {int(match[1]) for match in found.values()})
    if missing:
        raise UserError(f"{folder} lacks the sums of shard {missing[0]}/{count}; evaluate it with --shard")
    total = DatasetStatistics(len(files.categories))
    for path in found:
        total += load_statistics(path, len(files.categories), _describe(files, rules))
    return total


def _describe(files: FilePairs, rules: str) -> str:
    """Return what sums depend on besides the PNGs."""
    digest = hashlib.sha256(rules.encode())
    for path in (files.gt_json, files.prediction_json):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def summarize(statistics: DatasetStatistics, files: FilePairs, rules: str = "panopticapi") -> dict[str, Any]:
    """Compute PQ from its sums.

    Args:
        statistics: The result of ``accumulate``.
        files: The result of ``read_pairs``.
        rules: The rules of the means, see ``PanopticStatistics.average``.

    Returns:
        {"All", "Things", "Stuff": {"pq", "sq", "rq", "n"}, "per_class": ``results_per_class``}; qualities are in 0..1.
    """
    means = averages(statistics.quality, files.classes, rules)
    return {**means, "per_class": results_per_class(files.classes, statistics)}


def evaluate_files(
    prediction_json: str | Path,
    gt_json: str | Path,
    prediction_dir: str | Path | None = None,
    gt_dir: str | Path | None = None,
    *,
    rules: str = "panopticapi",
    workers: int | None = None,
    class_iou: bool = True,
    sums: str | Path | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare two COCO-panoptic jsons with their PNGs in the fastest way that is installed.

    Args:
        prediction_json, gt_json, prediction_dir, gt_dir: The files, see ``read_pairs``.
        rules: The rules for void and crowd, see ``match_counts``.
        workers: The number of threads; default one per CPU.
        class_iou: Whether the IoU of the classes is needed. Without it, and without ``workers``, hotcoco computes PQ in
            less than half the time if it is installed; "iou" is None then.
        sums: A folder in which all shards have left their sums (``write_sums``); default the images are compared.

    Returns:
        The result of ``summarize``, and the categories of the ground truth.

    Raises:
        UserError: Files are missing or malformed, or contradict each other.
    """
    files = read_pairs(prediction_json, gt_json, prediction_dir, gt_dir)
    files.check_segments()
    by_hotcoco = rules == "panopticapi" and workers is None and not class_iou and sums is None
    quality = files.quality_by_hotcoco() if by_hotcoco else None
    if sums is not None:
        statistics = read_sums(files, Path(sums), rules)
    elif quality is None:
        statistics = accumulate(files, rules=rules, workers=workers)
    else:
        statistics = DatasetStatistics(len(files.categories))
        statistics.quality = quality
    return summarize(statistics, files, rules), files.categories


def report_files(
    prediction_json: str | Path,
    gt_json: str | Path,
    prediction_dir: str | Path | None = None,
    gt_dir: str | Path | None = None,
    *,
    output_dir: str | Path,
    image_dir: str | Path | None = None,
    rules: str = "panopticapi",
    workers: int | None = None,
    sums: str | Path | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """Compare two COCO-panoptic jsons and write metrics.json, per_class.csv, per_image.csv and report.html.

    Args:
        prediction_json, gt_json, prediction_dir, gt_dir, rules, workers, sums: The arguments of ``evaluate_files``.
        output_dir: The folder of the reports.
        image_dir: The folder of the images, with the names of the ground truth's json. Default: the report shows the
            maps without images.

    Returns:
        The results of ``evaluate_files``, and the tables as text.

    Raises:
        UserError: Files are missing or malformed, or contradict each other, or ``image_dir`` does not exist.
    """
    if image_dir is not None and not Path(image_dir).is_dir():
        raise UserError(f"folder {image_dir} of the images does not exist; check --images")
    files = read_pairs(prediction_json, gt_json, prediction_dir, gt_dir)
    files.check_segments()
    # A folder that cannot be created should be reported before the work.
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    statistics = read_sums(files, Path(sums), rules) if sums else accumulate(files, rules=rules, workers=workers)
    ground_truths = {ground_truth.image_id: ground_truth for ground_truth, _ in files.pairs}

    def get_name(image_id: Any) -> str:
        return files.images.get(image_id, ground_truths[image_id]).file_name

    def load(image_id: Any) -> tuple[np.ndarray | None, np.ndarray, Segments]:
        ground_truth = ground_truths[image_id]
        id_image = read_id_image(files.gt_dir / ground_truth.file_name)
        shown = image_dir is not None and image_id in files.images
        image = read_image(Path(image_dir) / get_name(image_id), id_image.shape[:2]) if shown else None
        return image, id_image, files.segments(ground_truth)

    title = f"Evaluation of {Path(prediction_json).name}"
    facts = describe_files(predictions=files.prediction_json, ground_truth=files.gt_json)
    images = ImageSource(get_name, load)
    write_reports(Path(output_dir), title, files.classes, statistics, rules, images, facts=facts)
    tables = format_tables(files.classes, statistics, rules)
    return summarize(statistics, files, rules), files.categories, tables
