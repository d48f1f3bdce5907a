"""Validation of a COCO-panoptic data set: everything that would crash later or silently lower PQ."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from ...errors import UserError
from ...io import atomic_write, read_id_map, read_image, read_json, write_json
from ...parallel import map_parallel
from ...structures.classes import Classes
from ...structures.coco_json import (
    CocoAnnotation,
    CocoCategory,
    CocoImage,
    ImageList,
    PanopticJson,
    read_json_as,
)
from ...structures.id_maps import measure_segments, present_ids, replace_ids
from .gallery import SHEET_IMAGES, write_gallery


@dataclass
class Report:
    """The result of a validation.

    Attributes:
        problems: A file and a sentence for each problem.
        segments: The number of segments per category id.
        crowds: The number of crowd segments per category id.
        pixels: The number of pixels per category id; None stands for void.
        images: The number of images whose PNG could be compared with the json.
        fixed: The number of areas and boxes that were rewritten.
    """

    problems: list[tuple[str, str]] = field(default_factory=list)
    segments: Counter = field(default_factory=Counter)
    crowds: Counter = field(default_factory=Counter)
    pixels: Counter = field(default_factory=Counter)
    images: int = 0
    fixed: int = 0

    def add(self, other: "Report") -> None:
        """Add the report on other images."""
        self.problems += other.problems
        for counter in ("segments", "crowds", "pixels"):
            getattr(self, counter).update(getattr(other, counter))
        self.images += other.images
        self.fixed += other.fixed

    def format_table(self, categories: list[CocoCategory]) -> str:
        """Return a table with the numbers of segments and the fraction of pixels of each category, as text."""
        total = max(sum(self.pixels.values()), 1)
        rows = [
            [
                c.id,
                c.name,
                "thing" if c.isthing else "stuff",
                self.segments[c.id],
                self.crowds[c.id],
                f"{100 * self.pixels[c.id] / total:.2f}",
            ]
            for c in categories
        ]
        rows.append(["", "void", "", "", "", f"{100 * self.pixels[None] / total:.2f}"])
        return tabulate(rows, ["id", "class", "kind", "segments", "crowds", "% of pixels"], tablefmt="simple")

    def list_files(self) -> list[str]:
        """Return a line for each file with problems: the first problem and the number of further ones."""
        by_file = defaultdict(list)
        for file, text in self.problems:
            by_file[file].append(text)
        return [
            f"{file}: {texts[0]}" + (f" (and {len(texts) - 1} more)" if len(texts) > 1 else "")
            for file, texts in by_file.items()
        ]

    def write(self, path: str | Path) -> None:
        """Write a line of json for each problem."""
        with atomic_write(path, "w") as file:
            for name, text in self.problems:
                file.write(json.dumps({"file": name, "problem": text}) + "\n")


def _find_repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_json(content: PanopticJson) -> list[str]:
    """Return a sentence for each problem that can be found without images."""
    problems: list[str] = []
    for entries, key, text in (
        (content.categories, "id", "category id {} occurs twice"),
        (content.categories, "name", "two categories are called {}"),
        (content.images, "id", "image id {} occurs twice"),
        (content.images, "file_name", "image {} is listed twice"),
        (content.annotations, "image_id", "image id {} is annotated twice"),
        (content.annotations, "file_name", "PNG {} belongs to two annotations"),
    ):
        problems += [text.format(value) for value in _find_repeated(getattr(entry, key) for entry in entries)]
    listed = {image.id for image in content.images}
    annotated = {annotation.image_id for annotation in content.annotations}
    problems += [f"image id {i} is annotated but not listed" for i in sorted(annotated - listed, key=str)]
    problems += [f"image id {i} has no annotation" for i in sorted(listed - annotated, key=str)]
    return problems


def _check_segments(
    annotation: CocoAnnotation, ids: np.ndarray, categories: dict[int, CocoCategory], fix: bool, report: Report
) -> list[str]:
    """Check the segments of one image.

    Args:
        annotation: The annotation; with ``fix``, its areas and boxes are rewritten in place.
        ids: (H, W) ids of the PNG.
        categories: The categories by id.
        fix: Whether areas and boxes are rewritten.
        report: The report, to which numbers of segments and pixels are added in place.

    Returns:
        A sentence for each problem.
    """
    segments = annotation.segments_info
    listed = [s.id for s in segments]
    problems = [f"segment id {segment_id} is listed twice" for segment_id in _find_repeated(listed)]
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
        if count > 1 and category_id in categories and not categories[category_id].isthing:
            problems.append(f"stuff {categories[category_id].name} has {count} segments; it must have one")
    return problems


def _check_image(
    item: tuple[CocoImage, CocoAnnotation],
    categories: dict[int, CocoCategory],
    image_dir: Path,
    panoptic_dir: Path,
    fix: bool,
) -> tuple[Report, CocoAnnotation]:
    """Return the report on one image, and its annotation, whose areas and boxes are rewritten with ``fix``."""
    image, annotation = item
    report = Report()
    image_file, png_file = image_dir / image.file_name, panoptic_dir / annotation.file_name
    size = (image.height, image.width)
    try:
        read_image(image_file, size)
    except UserError as error:
        report.problems.append((str(image_file), str(error)))
    try:
        ids = read_id_map(png_file)
    except UserError as error:
        report.problems.append((str(png_file), str(error)))
        return report, annotation
    if ids.shape != size:
        text = f"the PNG is {ids.shape[1]} x {ids.shape[0]} pixels, the json says {size[1]} x {size[0]}"
        report.problems.append((str(png_file), text))
        return report, annotation
    report.images = 1
    report.problems += [(str(png_file), text) for text in _check_segments(annotation, ids, categories, fix, report)]
    return report, annotation


def find_shared_images(images: list[Path], others: list[Path]) -> list[tuple[Path, Path]]:
    """Return the pairs of files in two lists that have the same content, whatever their names."""

    def by_size(paths: list[Path]) -> dict[int, list[Path]]:
        sizes = defaultdict(list)
        for path in paths:
            if path.is_file():
                sizes[path.stat().st_size].append(path)
        return sizes

    pairs, known = [], by_size(others)
    for size, candidates in by_size(images).items():
        digests = {hashlib.sha256(other.read_bytes()).digest(): other for other in known.get(size, [])}
        for path in candidates if digests else []:
            other = digests.get(hashlib.sha256(path.read_bytes()).digest())
            if other is not None:
                pairs.append((path, other))
    return pairs


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
        The report, and the categories of the json.

    Raises:
        UserError: The json itself is missing or malformed.
    """
    panoptic_json, image_dir = Path(panoptic_json), Path(image_dir)
    panoptic_dir = Path(panoptic_dir) if panoptic_dir else panoptic_json.with_suffix("")
    content = read_json_as(panoptic_json, "panoptic json", PanopticJson)
    report = Report([(str(panoptic_json), text) for text in _check_json(content)])
    images = {image.id: image for image in content.images}
    if other is not None:
        theirs = [Path(other[1]) / image.file_name for image in read_json_as(other[0], "json", ImageList).images]
        for path, twin in find_shared_images([image_dir / image.file_name for image in content.images], theirs):
            report.problems.append((str(path), f"the same image is {twin} of {other[0]}; splits must be apart"))
    categories = {category.id: category for category in content.categories}
    work = [(images[a.image_id], a) for a in content.annotations if a.image_id in images]
    check = partial(_check_image, categories=categories, image_dir=image_dir, panoptic_dir=panoptic_dir, fix=fix)
    first: list[int] = []  # the images without problems on the contact sheet
    best: dict[int, tuple[int, int]] = {}  # of each category, its largest area in an image and that image
    killed = "a process was killed, perhaps for want of memory; validate again with fewer --workers"
    with closing(map_parallel(check, work, workers, killed)) as results:
        for number, (found, checked) in tqdm(results, desc="validate", unit="image", total=len(work)):
            report.add(found)
            work[number][1].segments_info = checked.segments_info
            if found.images and not found.problems:
                first = sorted([*first, number])[:SHEET_IMAGES]
                for category, area in found.pixels.items():
                    if category is not None:
                        best[category] = max(best.get(category, (0, 0)), (area, -number))
    report.problems.sort(key=lambda problem: problem[0] != str(panoptic_json))
    if fix and report.fixed:
        _write_fixed(panoptic_json, content)
    if gallery is not None and first:

        def item(number: int) -> tuple[Path, Path, list[dict[str, Any]]]:
            image, annotation = work[number]
            segments = [{"id": s.id, "category_id": s.category_id} for s in annotation.segments_info]
            return image_dir / image.file_name, panoptic_dir / annotation.file_name, segments

        classes = Classes.from_categories(list(categories.values()), str(panoptic_json))
        write_gallery(
            Path(gallery), [item(n) for n in first], {c: item(-number) for c, (_, number) in best.items()}, classes
        )
    return report, content.categories


def _write_fixed(panoptic_json: Path, content: PanopticJson) -> None:
    """Write the areas and boxes of ``content`` into the json, whose other keys stay."""
    raw = read_json(panoptic_json, "panoptic json")
    for entry, annotation in zip(raw["annotations"], content.annotations, strict=True):
        for info, segment in zip(entry["segments_info"], annotation.segments_info, strict=True):
            measured = {"area": segment.area, "bbox": segment.bbox}
            info.update({key: value for key, value in measured.items() if value is not None})
    write_json(panoptic_json, raw)
