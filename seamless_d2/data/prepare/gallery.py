"""Images of a data set's ground truth: one per class and a contact sheet."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from ...io import read_id_map, read_image, save_image
from ...structures.classes import Classes
from ...structures.id_maps import measure_segments, replace_ids
from ...visualization import contact_sheet, draw_overlay

SHEET_IMAGES = 12


def overlay(image_file: Path, png_file: Path, segments: list[dict[str, Any]], classes: Classes) -> np.ndarray:
    """(H, W, 3) uint8: the image under the colours of its segments (``category_id`` of the data set)."""
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
    """Write class_ID_NAME.jpg for each of ``best`` and contact_sheet.jpg of ``first``; the items go to ``overlay``."""
    written = []
    for category, item in sorted(best.items()):
        name = re.sub(r"\W+", "_", classes.names[classes.dataset_ids.index(category)])
        written.append(folder / f"class_{category}_{name}.jpg")
        save_image(overlay(*item, classes), written[-1])
    if first:
        written.append(folder / "contact_sheet.jpg")
        save_image(contact_sheet([overlay(*item, classes) for item in first[:SHEET_IMAGES]], columns=3), written[-1])
    return written
