"""Checks a COCO-panoptic data set for everything that later crashes or silently lowers PQ."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from ...errors import UserError
from ...files import atomic_write, write_json
from ...visualization import contact_sheet, draw_overlay
from ..images import read_id_map, read_photo
from ..metadata import Classes
from ..register import read_json
from .writer import measure_segments

SHEET_PICTURES = 12


@dataclass
class Report:
    """What was found.

    Attributes:
        problems: (file, sentence) each.
        segments: segments per category id.
        crowds: crowd segments per category id.
        pixels: pixels per category id; 0 = void.
        images: number of annotated images.
        fixed: segments whose area or box were rewritten.
    """

    problems: list[tuple[str, str]] = field(default_factory=list)
    segments: Counter = field(default_factory=Counter)
    crowds: Counter = field(default_factory=Counter)
    pixels: Counter = field(default_factory=Counter)
    images: int = 0
    fixed: int = 0

    def table(self, categories: list[dict[str, Any]]) -> str:
        """Class counts and shares of the area, as text."""
        total = max(sum(self.pixels.values()), 1)
        rows = [
            [
                c["id"],
                c["name"],
                "thing" if c.get("isthing") else "stuff",
                self.segments[c["id"]],
                self.crowds[c["id"]],
                f"{100 * self.pixels[c['id']] / total:.2f}",
            ]
            for c in categories
        ]
        rows.append([0, "void", "", "", "", f"{100 * self.pixels[0] / total:.2f}"])
        return tabulate(rows, ["id", "class", "kind", "segments", "crowds", "% of pixels"], tablefmt="simple")


def _duplicates(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_json(content: dict[str, Any], source: str, report: Report) -> dict[int, dict[str, Any]]:
    """Categories by id; problems that need no picture go into the report."""

    def problem(text: str) -> None:
        report.problems.append((source, text))

    categories = {}
    for category in content["categories"]:
        lacking = [key for key in ("id", "name", "isthing") if key not in category]
        if lacking:
            problem(f"category {category} has no {', '.join(lacking)}")
        elif category["id"] in categories:
            problem(f"category id {category['id']} occurs twice")
        else:
            categories[category["id"]] = category
    for name in _duplicates(c.get("name") for c in content["categories"]):
        problem(f"two categories are called {name!r}")
    for image_id in _duplicates(i.get("id") for i in content["images"]):
        problem(f"image id {image_id} occurs twice")
    for name in _duplicates(i.get("file_name") for i in content["images"]):
        problem(f"photo {name} is listed twice")
    for image_id in _duplicates(a.get("image_id") for a in content["annotations"]):
        problem(f"image id {image_id} is annotated twice")
    for name in _duplicates(a.get("file_name") for a in content["annotations"]):
        problem(f"PNG {name} is used twice")
    known = {i.get("id") for i in content["images"]}
    annotated = {a.get("image_id") for a in content["annotations"]}
    for image_id in sorted(annotated - known, key=str):
        problem(f"an annotation belongs to image id {image_id}, which is not listed")
    for image_id in sorted(known - annotated, key=str):
        problem(f"image id {image_id} has no annotation")
    return categories


def _check_segments(
    annotation: dict[str, Any], ids: np.ndarray, categories: dict[int, dict[str, Any]], fix: bool, report: Report
) -> list[str]:
    """Sentences on one image's segments; counts go into the report, areas and boxes are rewritten with ``fix``."""
    problems = []
    segments = annotation["segments_info"]
    for segment_id in _duplicates(s["id"] for s in segments):
        problems.append(f"segment id {segment_id} is listed twice")
    values, counts = np.unique(ids, return_counts=True)
    areas = dict(zip(values.tolist(), counts.tolist(), strict=True))
    listed = {s["id"] for s in segments}
    strange = sorted(set(areas) - listed - {0})
    if strange:
        problems.append(f"id {strange[0]} is in the PNG but not in the json ({len(strange)} such ids)")
    measured = {s["id"]: s for s in measure_segments(np.where(np.isin(ids, strange), 0, ids), segments)}
    report.pixels[0] += areas.get(0, 0)
    for segment in segments:
        category = categories.get(segment["category_id"])
        if segment["id"] not in areas:
            problems.append(f"segment {segment['id']} has no pixel in the PNG")
            continue
        if category is None:
            problems.append(f"segment {segment['id']} has unknown category {segment['category_id']}")
            continue
        report.segments[category["id"]] += 1
        report.pixels[category["id"]] += areas[segment["id"]]
        if segment.get("iscrowd"):
            report.crowds[category["id"]] += 1
            if not category["isthing"]:
                problems.append(f"segment {segment['id']} is a crowd of {category['name']}, which is stuff")
        true = measured[segment["id"]]
        for key in ("area", "bbox"):
            given = segment.get(key)
            if given is not None and list(np.ravel(given)) == list(np.ravel(true[key])):
                continue
            if fix:
                segment[key] = true[key]
                report.fixed += 1
            elif key == "area" or given is not None:
                problems.append(f"segment {segment['id']} has {key} {given}, its pixels say {true[key]}")
    for category, count in Counter(s["category_id"] for s in segments).items():
        if count > 1 and category in categories and not categories[category]["isthing"]:
            problems.append(f"stuff {categories[category]['name']} has {count} segments; it must have one")
    return problems


def validate(
    panoptic_json: str | Path,
    image_dir: str | Path,
    panoptic_dir: str | Path | None = None,
    *,
    fix: bool = False,
    other_json: str | Path | None = None,
    pictures: str | Path | None = None,
) -> tuple[Report, list[dict[str, Any]]]:
    """Check a data set.

    Args:
        panoptic_json: the json.
        image_dir: folder of the photos.
        panoptic_dir: folder of the PNGs; default the json's path without ".json".
        fix: rewrite areas and boxes in the json.
        other_json: json of another split, which must not share photos.
        pictures: folder for one picture per class and a contact sheet; None = none.

    Returns:
        The report and the categories.

    Raises:
        UserError: the json itself is missing or malformed.
    """
    panoptic_json, image_dir = Path(panoptic_json), Path(image_dir)
    panoptic_dir = Path(panoptic_dir) if panoptic_dir else panoptic_json.with_suffix("")
    content = read_json(panoptic_json, "panoptic json")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{panoptic_json} has no {key}; a COCO-panoptic json has images, annotations, categories")
    report = Report()
    categories = _check_json(content, panoptic_json.name, report)
    if other_json is not None:
        other = {i["file_name"] for i in read_json(other_json, "other json")["images"]}
        for name in sorted(other & {i["file_name"] for i in content["images"]}):
            report.problems.append((name, f"the photo is in {Path(other_json).name} too; splits must be apart"))
    images = {i.get("id"): i for i in content["images"]}
    gallery = _Gallery(content["categories"])
    for annotation in tqdm(content["annotations"], desc="validate", unit="image"):
        image = images.get(annotation.get("image_id"))
        if image is None:
            continue
        report.images += 1
        png = panoptic_dir / annotation["file_name"]
        size = (image["height"], image["width"])
        photo = None
        try:
            photo = read_photo(image_dir / image["file_name"], size)
        except UserError as error:
            report.problems.append((str(image_dir / image["file_name"]), str(error)))
        try:
            ids = read_id_map(png)
        except UserError as error:
            report.problems.append((str(png), str(error)))
            continue
        if ids.shape != size:
            text = f"the PNG is {ids.shape[1]} x {ids.shape[0]} pixels, the json says {size[1]} x {size[0]}"
            report.problems.append((str(png), text))
            continue
        sentences = _check_segments(annotation, ids, categories, fix, report)
        report.problems += [(str(png), text) for text in sentences]
        if pictures is not None and photo is not None and not sentences:
            gallery.add(photo, ids, annotation["segments_info"], categories)
    if fix and report.fixed:
        write_json(panoptic_json, content)
    if pictures is not None:
        gallery.save(Path(pictures))
    return report, content["categories"]


class _Gallery:
    """Keeps, per class, the overlay in which it covers most, and the first few overlays."""

    def __init__(self, categories: list[dict[str, Any]]) -> None:
        self.best: dict[int, tuple[int, np.ndarray]] = {}
        self.first: list[np.ndarray] = []
        try:
            self.classes = Classes.from_categories(categories, "json")
        except UserError:  # reported elsewhere; there is nothing to draw with
            self.classes = None

    def add(
        self, photo: np.ndarray, ids: np.ndarray, segments: list[dict[str, Any]], categories: dict[int, dict[str, Any]]
    ) -> None:
        if self.classes is None:
            return
        largest = {s["category_id"]: int((ids == s["id"]).sum()) for s in segments}
        better = [c for c, area in largest.items() if area > self.best.get(c, (0,))[0]]
        if not better and len(self.first) >= SHEET_PICTURES:
            return
        labels = {dataset_id: k for k, dataset_id in enumerate(self.classes.dataset_ids)}
        order = {s["id"]: k for k, s in enumerate(segments, 1)}
        values, inverse = np.unique(ids, return_inverse=True)
        panoptic = np.array([order.get(v, 0) for v in values.tolist()])[inverse].reshape(ids.shape)
        infos = []
        for segment in segments:
            label = labels[segment["category_id"]]
            thing = label >= self.classes.num_stuff
            infos.append(
                {
                    "id": order[segment["id"]],
                    "isthing": thing,
                    "category_id": label - (self.classes.num_stuff if thing else 0),
                    "area": segment.get("area", 0),
                }
            )
        picture = draw_overlay(photo, panoptic, infos, self.classes)
        for category in better:
            self.best[category] = (largest[category], picture)
        if len(self.first) < SHEET_PICTURES:
            self.first.append(picture)

    def save(self, folder: Path) -> None:
        from ...prediction import save_picture

        if self.classes is None:
            return
        for category, (_, picture) in sorted(self.best.items()):
            name = self.classes.names[self.classes.dataset_ids.index(category)].replace("/", "-").replace(" ", "_")
            save_picture(picture, folder / f"class_{category}_{name}.jpg")
        if self.first:
            save_picture(contact_sheet(self.first, columns=3), folder / "contact_sheet.jpg")


def write_problems(report: Report, path: str | Path) -> None:
    """One line of json per problem."""
    with atomic_write(path, "w") as file:
        for name, text in report.problems:
            file.write(json.dumps({"file": name, "problem": text}) + "\n")
