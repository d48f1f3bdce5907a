"""PQ of the predictions that a job on Ray has written, part by part, on this machine or in tasks of Ray."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from tqdm import tqdm

from ..errors import UserError
from ..io import decode_rgb_png, read_id_image
from ..parallel import in_window, map_threads
from ..prediction.batch.coco_folder import find_images
from ..prediction.batch.merge_parts import list_parts, read_part, read_settings
from ..prediction.batch.ray_job import import_ray, start_ray
from ..prediction.batch.remote_files import Folder
from ..structures.coco_json import CocoAnnotation, CocoFile, CocoSegment
from .dataset_statistics import DatasetStatistics
from .from_files import FilePairs, read_pairs
from .panoptic_quality import Segments, match_image

Result = TypeVar("Result")


def accumulate_parts(
    uri: str,
    gt_json: str | Path,
    gt_dir: str | Path | None = None,
    *,
    rules: str = "panopticapi",
    ray_address: str | None = None,
) -> tuple[DatasetStatistics, FilePairs]:
    """Compare all parts with the ground truth.

    Images are found by their names: the name of a prediction is that of the ground truth's image without its suffix, or
    the last part of it.

    Args:
        uri: The output of ``predict_on_ray``.
        gt_json, gt_dir: The ground truth, see ``read_pairs``; on Ray it must be there on every machine.
        rules: The rules for void and crowd, see ``match_counts``.
        ray_address: The address of a Ray cluster, "" for Ray on this machine; None for threads of this process.

    Returns:
        The sums, which do not depend on how the parts were divided, and the ground truth, paired with itself.

    Raises:
        UserError: Images of the ground truth have no prediction, or predictions contradict themselves or it.
    """
    files = read_pairs(gt_json, gt_json, gt_dir, gt_dir)
    folder = Folder(uri)
    format = read_settings(folder)["format"]
    parts = list_parts(folder, format)
    statistics, found = DatasetStatistics(len(files.categories)), set()
    work = partial(_sum_part, uri, format, rules)
    ground_truth = _GroundTruth(
        files,
        {Path(image.file_name).with_suffix("").as_posix(): image for image in files.images.values()},
        {annotation.image_id: annotation for annotation, _ in files.pairs},
    )
    for sums, ids in tqdm(
        _map(work, parts, ground_truth, ray_address), "evaluate", len(parts), leave=False, unit="part"
    ):
        twice = found & ids
        if twice:
            raise UserError(f"{uri} has several predictions of image {min(twice, key=str)}; predict it once")
        statistics += sums
        found |= ids
    lacking = [a.image_id for a, _ in files.pairs if a.image_id not in found]
    if lacking:
        raise UserError(
            f"{uri} has no prediction for image {lacking[0]} ({len(lacking)} images in all); predict them all, or take "
            "them out of the ground truth"
        )
    return statistics, files


@dataclass(frozen=True)
class _GroundTruth:
    """The ground truth, with its images by name without suffix and its annotations by image id."""

    files: FilePairs
    images: dict[str, CocoFile]
    annotations: dict[int | str, CocoAnnotation]


def _sum_part(
    uri: str, format: str, rules: str, ground_truth: _GroundTruth, part: str
) -> tuple[DatasetStatistics, set[Any]]:
    """Return the sums of a part, and the ids of its images."""
    files = ground_truth.files
    statistics, ids = DatasetStatistics(len(files.categories)), set()
    predictions = {p.name: p for p in read_part(Folder(uri), part, format)}
    images = find_images(predictions, ground_truth.images)
    for name, prediction in predictions.items():
        annotation = ground_truth.annotations.get(images[name].id)
        if annotation is None:
            continue  # the ground truth does not judge it
        segments = msgspec.convert(prediction.segments, list[CocoSegment])
        try:
            found = Segments.from_json(segments, files.class_of_id, name)
            image = decode_rgb_png(prediction.png)
            if image is None:
                raise UserError("the PNG is damaged; predict the image again")
            gt_image = read_id_image(files.gt_dir / annotation.file_name)
            match = match_image(gt_image, files.segments(annotation), image, found, rules)
        except UserError as error:
            raise UserError(f"{name} in {part}: {error}") from None
        statistics.add(match, annotation.image_id, image)
        ids.add(annotation.image_id)
    return statistics, ids


def _map(
    work: Callable[[_GroundTruth, str], Result], parts: Sequence[str], ground_truth: _GroundTruth, address: str | None
) -> Iterator[Result]:
    """Yield the results of all parts, of which a few are worked on at a time."""
    if address is None:
        yield from map_threads(partial(work, ground_truth), parts)
        return
    ray = import_ray()
    start_ray(ray, address)
    shared, task = ray.put(ground_truth), ray.remote(_call)

    def get(reference: Any) -> Result:
        result = ray.get(reference)
        if isinstance(result, UserError):
            raise result
        return result

    size = 2 * int(ray.cluster_resources()["CPU"])
    yield from in_window(lambda part: task.remote(work, shared, part), get, parts, size)


def _call(work: Callable[[_GroundTruth, str], Result], ground_truth: _GroundTruth, part: str) -> Result | UserError:
    """Call ``work``; Ray would print an error that it raises with its traceback."""
    try:
        return work(ground_truth, part)
    except UserError as error:
        return error
