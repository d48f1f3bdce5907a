"""Drawings of the ground truth of a data set: one image per class and a contact sheet."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from ...io import read_id_map, read_image, save_image
from ...structures.classes import Classes
from ...structures.id_maps import measure_segments, replace_ids
from ...visualization import contact_sheet, draw_overlay

#: The number of images on the contact sheet.
SHEET_IMAGES = 12


def draw_ground_truth(image_file: Path, png_file: Path, segments: list[dict[str, Any]], classes: Classes) -> np.ndarray:
    """Draw the segments of one image.

    Args:
        image_file: The image.
        png_file: The panoptic PNG.
        segments: The segments, with the category ids of the data set.
        classes: The classes of the data set.

    Returns:
        (H, W, 3) uint8 RGB drawing.
    """
    ids = read_id_map(png_file)
    infos = []
    for number, segment in enumerate(measure_segments(ids, segments), 1):
        label = classes.dataset_ids.index(segment["category_id"])
        infos.append({**segment, **classes.from_label(label), "id": number, "source": segment["id"]})
    panoptic = replace_ids(ids, {info["source"]: info["id"] for info in infos})
    return draw_overlay(read_image(image_file, ids.shape), panoptic, infos, classes)


def write_gallery(
    folder: Path,
    first: list[tuple[Path, Path, list[dict[str, Any]]]],
    best: dict[int, tuple[Path, Path, list[dict[str, Any]]]],
    classes: Classes,
) -> list[Path]:
    """Write drawings of the ground truth.

    Args:
        folder: The folder of the drawings.
        first: The images of contact_sheet.jpg, as arguments of ``draw_ground_truth``.
        best: The image of each category id, which is written to class_ID_NAME.jpg.
        classes: The classes of the data set.

    Returns:
        The paths of the written files.
    """
    written = []
    for category, item in sorted(best.items()):
        name = re.sub(r"\W+", "_", classes.names[classes.dataset_ids.index(category)])
        written.append(folder / f"class_{category}_{name}.jpg")
        save_image(draw_ground_truth(*item, classes), written[-1])
    if first:
        written.append(folder / "contact_sheet.jpg")
        drawings = [draw_ground_truth(*item, classes) for item in first[:SHEET_IMAGES]]
        save_image(contact_sheet(drawings, columns=3), written[-1])
    return written
