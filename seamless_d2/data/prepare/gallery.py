"""Drawings of the ground truth of a data set: one image per class and a contact sheet."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...io import read_id_map, read_image, read_json, save_image, write_json
from ...structures.classes import Classes
from ...structures.coco_json import CocoSegment
from ...structures.id_maps import measure_segments, replace_ids
from ...visualization import LegendEntry, Stripes, add_legend, contact_sheet, draw_overlay, draw_stripes
from .instance_sizes import draw_instance_sizes, instance_sizes

#: The number of images on the contact sheet.
SHEET_IMAGES = 12
#: The file that lists the drawings of a folder. Only they are replaced or removed.
_RECORD = ".drawings.json"
_SIZES = "instance_sizes.png"
_CROWD, _VOID = Stripes((255, 255, 255), 1), Stripes((0, 255, 255), -1)  # cyan: rare among colors of classes
_RED, _AMBER, _GREEN, _GRAY = (220, 0, 0), (255, 180, 0), (0, 150, 0), (128, 128, 128)


@dataclass
class Example:
    """An image of the data set, whose files can be read.

    Attributes:
        image_file: The image.
        png_file: The panoptic PNG.
        size: The (height, width) of the image.
        segments: The segments, with the category ids of the data set.
        areas: The number of pixels per category id; None stands for void.
        texts: What is wrong with it.
        is_wrong: Whether that is more than warnings.
    """

    image_file: Path
    png_file: Path
    size: tuple[int, int]
    segments: list[CocoSegment]
    areas: dict[int | None, int]
    texts: list[str]
    is_wrong: bool


def check_gallery(folder: Path, sources: Sequence[Path]) -> set[str]:
    """Return the names of the drawings that an earlier validation has written into a folder.

    Raises:
        UserError: The folder is in one of the ``sources``, which are read, or holds files of others only.
    """
    for source in sources:
        if folder.resolve().is_relative_to(source.resolve()):
            raise UserError(f"{folder} is in the folder {source} that is read; choose another folder for --pictures")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names and _RECORD not in names:
        raise UserError(
            f"{folder} holds files that this program did not write; give a new or empty folder for --pictures"
        )
    record = read_json(folder / _RECORD, "list of drawings") if names else []
    return names & {name for name in record if isinstance(name, str)} if isinstance(record, list) else set()


def write_gallery(folder: Path, examples: list[Example], classes: Classes) -> None:
    """Write contact_sheet.jpg, class_ID_NAME.jpg for each class, and instance_sizes.png, in place of earlier drawings.

    The contact sheet shows images with problems first, then images that are spread evenly over the data set. The
    drawing of a class shows the image in which it is largest, with the rest faded. See ``draw_instance_sizes``.

    Args:
        folder: The folder, which ``check_gallery`` accepts.
        examples: The images that can be drawn, in the order of the data set.
        classes: The classes of the data set.

    Raises:
        UserError: A drawing would replace a file that this function has not written.
    """
    largest: dict[str, tuple[int, Example]] = {}
    for category, name in zip(classes.dataset_ids, classes.names, strict=True):
        with_class = [example for example in examples if example.areas.get(category)]
        if with_class:
            best = max(with_class, key=lambda example: (not example.is_wrong, example.areas[category]))
            text = re.sub(r"\W+", "_", name)[:60]
            largest[f"class_{category}_{text}.jpg"] = category, best
    own, known = check_gallery(folder, ()), set(classes.dataset_ids)
    sized = [
        (e.size, kept) for e in examples if (kept := [s for s in e.segments if _has_box(s) and s.category_id in known])
    ]
    has_sizes = len(instance_sizes(sized, classes)) > 0
    names = [*largest, *([_SIZES] if has_sizes else []), *(["contact_sheet.jpg"] if examples else [])]
    for name in names:
        if (folder / name).exists() and name not in own:
            raise UserError(f"{folder / name} was not written by this program; move it away, or give another folder")
    write_json(folder / _RECORD, sorted(own | set(names)))
    for name, (category, example) in largest.items():
        legend = _list_styles([example], classes, category)
        save_image(add_legend(_draw(example, classes, category), legend), folder / name)
    if has_sizes:
        draw_instance_sizes(sized, classes, folder / _SIZES)
    if examples:
        save_image(_draw_sheet(examples, classes), folder / names[-1])
    for name in own - set(names):
        (folder / name).unlink()
    write_json(folder / _RECORD, names)


def _has_box(segment: CocoSegment) -> bool:
    """Whether a segment has a box with an area; wrong ones are reported elsewhere."""
    box = segment.bbox or []
    return len(box) == 4 and min(box[2:]) > 0


def _draw(example: Example, classes: Classes, category: int | None = None) -> np.ndarray:
    """Draw the segments of one image, crowds and void hatched.

    Args:
        example: The image.
        classes: The classes of the data set.
        category: The id of the class that is highlighted, while the rest is faded; default none.

    Returns:
        (H, W, 3) uint8 RGB drawing.
    """
    # Ids that the json does not know, and segments of unknown classes, are void.
    listed = {s.id: s for s in example.segments if s.category_id in classes.dataset_ids}
    ids = replace_ids(read_id_map(example.png_file), {segment_id: segment_id for segment_id in listed})
    infos, new_ids = [], {}
    for number, measured in enumerate(measure_segments(ids, [{"id": segment_id} for segment_id in listed]), 1):
        segment = listed[measured["id"]]
        if category in (None, segment.category_id):
            new_ids[segment.id] = number
            label = classes.from_label(classes.dataset_ids.index(segment.category_id))
            infos.append({**measured, **label, "id": number, "iscrowd": segment.iscrowd})
    panoptic = replace_ids(ids, new_ids)
    image = read_image(example.image_file, ids.shape).copy()
    if category is not None:
        rest = panoptic == 0
        image[rest] = image[rest].mean(axis=1, keepdims=True) * 0.3 + 160
    draw_stripes(image, ids == 0, _VOID)
    draw_stripes(image, np.isin(panoptic, [info["id"] for info in infos if info["iscrowd"]]), _CROWD)
    return draw_overlay(image, panoptic, infos, classes, color_instances=False)


def _list_styles(examples: list[Example], classes: Classes, category: int | None = None) -> list[LegendEntry]:
    """Return the legend of drawings of images: their classes, or the ``category`` alone, then crowds and void."""
    shown = {s.category_id for e in examples for s in e.segments if category in (None, s.category_id)}
    crowds = {s.category_id for e in examples for s in e.segments if s.iscrowd} & shown
    styles: list[LegendEntry] = [
        (name, color, None)
        for name, color, dataset_id in zip(classes.names, classes.colors, classes.dataset_ids, strict=True)
        if dataset_id in shown
    ]
    styles += [("crowd", _GRAY, _CROWD)] if crowds else []
    return styles + ([("void", _GRAY, _VOID)] if any(e.areas.get(None) for e in examples) else [])


def _draw_sheet(examples: list[Example], classes: Classes) -> np.ndarray:
    """Draw the images with problems, then others spread evenly, each above its name and first problem."""
    chosen = sorted((e for e in examples if e.texts), key=lambda example: not example.is_wrong)[:SHEET_IMAGES]
    clean = [e for e in examples if not e.texts]
    count = min(SHEET_IMAGES - len(chosen), len(clean))
    chosen += [clean[(2 * k + 1) * len(clean) // (2 * count)] for k in range(count)]
    drawings = []
    for example in chosen:
        text = ": ".join([example.image_file.name, *example.texts[:1]])
        color = _RED if example.is_wrong else _AMBER if example.texts else _GREEN
        drawings.append(add_legend(_draw(example, classes), [(text, color, None)]))
    return add_legend(contact_sheet(drawings, columns=3), _list_styles(chosen, classes))
