"""Validation of a COCO-panoptic data set: everything that would crash later or silently lower PQ."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...errors import UserError
from ...io import read_id_map, read_image, read_image_size, read_json, read_orientation, write_json
from ...parallel import map_parallel
from ...structures.classes import Classes
from ...structures.coco_json import (
    CocoAnnotation,
    CocoCategory,
    CocoImage,
    ImageList,
    MalformedEntry,
    PanopticJson,
    read_json_as,
    read_whole_entries,
)
from ...structures.id_maps import measure_segments, present_ids, replace_ids
from .class_list import describe_unlabelled
from .gallery import Example, check_gallery, write_gallery
from .json_checks import find_json_problems, find_json_warnings, find_repeated, malformed_ids
from .validation_report import Report


def _check_segments(
    annotation: CocoAnnotation, ids: np.ndarray, categories: dict[int, CocoCategory | None], fix: bool, report: Report
) -> list[str]:
    """Check the segments of one image.

    Args:
        annotation: The annotation; with ``fix``, its areas and boxes are rewritten in place.
        ids: (H, W) ids of the PNG.
        categories: The categories by id; None stands for one that is malformed.
        fix: Whether areas and boxes are rewritten.
        report: The report, to which numbers of segments and pixels are added in place.

    Returns:
        A sentence for each problem.
    """
    segments = annotation.segments_info
    listed = [s.id for s in segments]
    problems = [f"segment id {segment_id} is listed twice" for segment_id in find_repeated(listed)]
    strange = sorted(set(present_ids(ids)) - {0, *listed})
    if strange:
        problems.append(f"id {strange[0]} is in the PNG but not in the json ({len(strange)} such ids)")
        ids = replace_ids(ids, {segment_id: segment_id for segment_id in listed})
    measured = {s["id"]: s for s in measure_segments(ids, [{"id": segment_id} for segment_id in listed])}
    report.pixels[None] += ids.size - sum(s["area"] for s in measured.values())
    for segment in segments:
        category, true = categories.get(segment.category_id), measured.get(segment.id)
        if true is None:
            problems.append(f"segment {segment.id} has no pixel in the PNG")
            continue
        if category is None:
            if segment.category_id not in categories:
                problems.append(f"segment {segment.id} has unknown category {segment.category_id}")
            continue
        report.segments[category.id] += 1
        report.pixels[category.id] += true["area"]
        if segment.iscrowd:
            report.crowds[category.id] += 1
            if not category.isthing:
                problems.append(f"segment {segment.id} is a crowd of {category.name}, which is stuff")
        for key in ("area", "bbox"):
            # Boxes may be missing, because nothing reads them, but not wrong.
            stated = getattr(segment, key)
            if stated == true[key] or (key == "bbox" and stated is None and not fix):
                continue
            if fix:
                setattr(segment, key, true[key])
                report.fixed += 1
            else:
                problems.append(f"segment {segment.id} has {key} {stated}, its pixels say {true[key]}")
    for category_id, count in Counter(s.category_id for s in segments).items():
        category = categories.get(category_id)
        if count > 1 and category is not None and not category.isthing:
            problems.append(f"stuff {category.name} has {count} segments; it must have one")
    return problems


def _describe_rotation(image_file: Path, size: tuple[int, int]) -> str:
    """Return what the EXIF data of an image, whose labels fit, mean for labels of that size; empty if nothing."""
    orientation = read_orientation(image_file)
    if orientation == 1:
        return ""
    if orientation <= 4 or size[0] == size[1]:
        fit = "its labels fit either way, and it is read rotated; see whether they are rotated too"
    elif read_image_size(image_file) == size:
        fit = "its labels fit the rotated image, which is read"
    else:
        fit = "its labels fit only without that rotation, and it is read so"
    return f"the EXIF data rotate or mirror it (orientation {orientation}); {fit}"


def _check_image(
    item: tuple[CocoImage, CocoAnnotation],
    categories: dict[int, CocoCategory | None],
    image_dir: Path,
    panoptic_dir: Path,
    fix: bool,
) -> tuple[Report, CocoAnnotation, bool]:
    """Check one image.

    Returns:
        The report, the annotation, whose areas and boxes are rewritten with ``fix``, and whether both files are read.
    """
    image, annotation = item
    report = Report()
    image_file, png_file = image_dir / image.file_name, panoptic_dir / annotation.file_name
    size = (image.height, image.width)
    try:
        read_image(image_file, size)
        if rotation := _describe_rotation(image_file, size):
            report.warnings.append((str(image_file), rotation))
    except UserError as error:
        report.problems.append((str(image_file), str(error)))
    try:
        ids = read_id_map(png_file)
    except UserError as error:
        report.problems.append((str(png_file), str(error)))
        return report, annotation, False
    if ids.shape != size:
        text = f"the PNG is {ids.shape[1]} x {ids.shape[0]} pixels, the json says {size[1]} x {size[0]}"
        report.problems.append((str(png_file), text))
        return report, annotation, False
    is_read = not report.problems
    report.images = 1
    report.problems += [(str(png_file), text) for text in _check_segments(annotation, ids, categories, fix, report)]
    if report.pixels[None] == ids.size:
        report.warnings.append((str(png_file), "all of its pixels are void"))
    return report, annotation, is_read


def find_same_images(files: Iterable[tuple[Path, bool]]) -> list[list[tuple[Path, bool]]]:
    """Return the groups of files that have the same content, whatever their names.

    Args:
        files: The files, each with whether it belongs to another split; files that do not exist are skipped.
    """
    by_size = defaultdict(list)
    for item in dict.fromkeys(files):  # an image that is listed twice is one file
        if item[0].is_file():
            by_size[item[0].stat().st_size].append(item)
    groups = defaultdict(list)
    for same_size in by_size.values():
        for item in same_size if len(same_size) > 1 else ():
            groups[hashlib.sha256(item[0].read_bytes()).digest()].append(item)
    return [group for group in groups.values() if len(group) > 1]


def _compare_files(images: list[Path], others: list[Path], other_json: str | Path, report: Report) -> None:
    """Add images of this split that are the same as one of another split, or of this one, to the report in place."""
    for group in find_same_images([*((path, False) for path in images), *((path, True) for path in others)]):
        own, theirs = ([path for path, is_other in group if is_other == wanted] for wanted in (False, True))
        if theirs:
            text = f"the same image is {theirs[0]} of {other_json}; splits must be apart"
            report.problems += [(str(path), text) for path in own]
        report.warnings += [(str(path), f"the same image is {own[0]}") for path in own[1:]]


def validate(
    panoptic_json: str | Path,
    image_dir: str | Path,
    panoptic_dir: str | Path | None = None,
    *,
    fix: bool = False,
    other: tuple[str | Path, str | Path] | None = None,
    gallery: str | Path | None = None,
    workers: int | None = None,
) -> tuple[Report, list[CocoCategory]]:
    """Check a data set.

    Args:
        panoptic_json: The json.
        image_dir: The folder of the images.
        panoptic_dir: The folder of the PNGs; default the path of the json without ".json".
        fix: Whether wrong areas and boxes are rewritten in the json.
        other: The json and the image folder of another split, which must not share images with this one.
        gallery: The folder for a drawing of each class and a contact sheet, or None.
        workers: The number of processes; default one per available CPU.

    Returns:
        The report, and the categories of the json that follow the schema.

    Raises:
        UserError: The json is missing or has not the lists of the format, or the gallery is no folder for drawings.
    """
    panoptic_json, image_dir = Path(panoptic_json), Path(image_dir)
    panoptic_dir = Path(panoptic_dir) if panoptic_dir else panoptic_json.with_suffix("")
    if gallery is not None:
        check_gallery(Path(gallery), [image_dir, panoptic_dir])
    content, malformed = read_whole_entries(panoptic_json, "panoptic json", PanopticJson)
    report = Report([(str(panoptic_json), text) for text in find_json_problems(content, malformed)])
    report.warnings += [(str(panoptic_json), text) for text in find_json_warnings(content, malformed)]
    images = {image.id: image for image in content.images}
    if not any(entry.key == "images" for entry in malformed):
        own = [image_dir / image.file_name for image in content.images]
        own += [panoptic_dir / annotation.file_name for annotation in content.annotations]
        if text := describe_unlabelled(image_dir, {Path(os.path.relpath(file, image_dir)).as_posix() for file in own}):
            report.warnings.append((str(image_dir), text))
    others: list[Path] = []
    if other is not None:
        others = [Path(other[1]) / image.file_name for image in read_json_as(other[0], "json", ImageList).images]
    _compare_files([image_dir / image.file_name for image in content.images], others, other[0] if other else "", report)
    categories: dict[int, CocoCategory | None] = dict.fromkeys(malformed_ids(malformed, "categories", "id"))
    categories |= {category.id: category for category in content.categories}
    work = [(images[a.image_id], a) for a in content.annotations if a.image_id in images]
    check = partial(_check_image, categories=categories, image_dir=image_dir, panoptic_dir=panoptic_dir, fix=fix)
    drawable: list[tuple[int, Report]] = []
    killed = "a process was killed, perhaps for want of memory; validate again with fewer --workers"
    with closing(map_parallel(check, work, workers, killed)) as results:
        for number, (found, checked, is_read) in tqdm(results, desc="validate", unit="image", total=len(work)):
            report.add(found)
            work[number][1].segments_info = checked.segments_info
            if gallery is not None and is_read:
                drawable.append((number, found))
    report.problems.sort(key=lambda problem: problem[0] != str(panoptic_json))
    if fix and report.fixed:
        _write_fixed(panoptic_json, content, malformed)
    try:
        classes = Classes.from_categories(list({c.id: c for c in content.categories}.values()), str(panoptic_json))
    except UserError as error:
        report.problems.insert(0, (str(panoptic_json), str(error)))
        return report, content.categories
    if gallery is not None:
        examples = []
        for number, found in sorted(drawable, key=lambda pair: pair[0]):
            image, annotation = work[number]
            files = image_dir / image.file_name, panoptic_dir / annotation.file_name
            texts = [text for _, text in [*found.problems, *found.warnings]]
            size = (image.height, image.width)
            examples.append(Example(*files, size, annotation.segments_info, found.pixels, texts, bool(found.problems)))
        write_gallery(Path(gallery), examples, classes)
    return report, content.categories


def _write_fixed(panoptic_json: Path, content: PanopticJson, malformed: list[MalformedEntry]) -> None:
    """Write the areas and boxes of ``content`` into the json, whose other keys and malformed entries stay."""
    raw = read_json(panoptic_json, "panoptic json")
    left_out = {entry.index for entry in malformed if entry.key == "annotations"}
    entries = [entry for index, entry in enumerate(raw["annotations"]) if index not in left_out]
    for entry, annotation in zip(entries, content.annotations, strict=True):
        for info, segment in zip(entry["segments_info"], annotation.segments_info, strict=True):
            measured = {"area": segment.area, "bbox": segment.bbox}
            info.update({key: value for key, value in measured.items() if value is not None})
    write_json(panoptic_json, raw)
