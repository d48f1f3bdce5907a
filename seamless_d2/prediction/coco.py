"""Results from files in COCO's panoptic format, of this program or of any other."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..io import read_id_map, read_image
from ..structures.classes import Classes
from ..structures.coco_json import PanopticJson, read_json_as
from ..structures.id_maps import present_ids, replace_ids
from .result import PanopticResult


def read_results(
    panoptic_json: str | Path, panoptic_dir: str | Path | None = None, image_dir: str | Path | None = None
) -> Iterator[PanopticResult]:
    """Read the panoptic maps of a json, one at a time.

    Args:
        panoptic_json: The json.
        panoptic_dir: The folder of the PNGs; default the path of the json without ".json".
        image_dir: The folder of the images, with the names of the json. Default: the images of the results are white.

    Yields:
        The result of each image, in the order of the annotations. Segments have the ids 1, 2, ... in the order of the
        json; those without a pixel are left out.

    Raises:
        UserError: A file is missing or malformed, or a map holds an id that the json does not list.
    """
    content = read_json_as(panoptic_json, "panoptic json", PanopticJson)
    classes = Classes.from_categories(content.categories, str(panoptic_json))
    labels = {dataset_id: label for label, dataset_id in enumerate(classes.dataset_ids)}
    names = {image.id: image.file_name for image in content.images}
    folder = Path(panoptic_dir or Path(panoptic_json).with_suffix(""))
    for annotation in content.annotations:
        ids = read_id_map(folder / annotation.file_name)
        present = set(present_ids(ids))
        unknown = present - {0, *(segment.id for segment in annotation.segments_info)}
        if unknown:
            raise UserError(f"{folder / annotation.file_name} holds id {min(unknown)}, which its json does not list")
        info = []
        segments = [segment for segment in annotation.segments_info if segment.id in present]
        for number, segment in enumerate(segments, 1):
            if segment.category_id not in labels:
                raise UserError(f"{panoptic_json}: category {segment.category_id} is not in categories; mend the json")
            entry = {"id": number, **classes.from_label(labels[segment.category_id])}
            info.append(entry if segment.score is None else {**entry, "score": segment.score})
        panoptic_seg = replace_ids(ids, {segment.id: number for number, segment in enumerate(segments, 1)})
        if image_dir is None or annotation.image_id not in names:
            image = np.full((*ids.shape, 3), 255, np.uint8)
        else:
            image = read_image(Path(image_dir) / names[annotation.image_id], ids.shape)
        yield PanopticResult.from_fusion(image, panoptic_seg, info, classes)
