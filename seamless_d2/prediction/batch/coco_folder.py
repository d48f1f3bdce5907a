"""The COCO json files of a whole folder of predictions, joined from those of its images."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...io import read_json, write_json
from ...structures.coco_json import ImageList, read_json_as


def read_image_ids(gt_json: str | Path) -> dict[str, int | str]:
    """Read the ids of the ``images`` of a COCO json, by their file names without suffix.

    Raises:
        UserError: The file is missing, or is no COCO json.
    """
    images = read_json_as(gt_json, "json of --image-ids", ImageList).images
    return {Path(image.file_name).with_suffix("").as_posix(): image.id for image in images}


def number_images(names: Sequence[str], image_ids: dict[str, int | str] | None = None) -> dict[str, int | str]:
    """Give every image an id: that of its data set if known, else the number that is its name, else 1, 2, ...

    Args:
        names: The names of the images, without suffix; may contain folders.
        image_ids: The ids that ``read_image_ids`` returns; looked up by the whole name, then by its last part.

    Raises:
        UserError: ``image_ids`` lacks an image or has several ids for it, or two images would get one id.
    """
    if image_ids is None:
        numbers = [Path(name).name for name in names]
        if all(n.isdecimal() and n.isascii() for n in numbers) and len({int(n) for n in numbers}) == len(numbers):
            return {name: int(n) for name, n in zip(names, numbers, strict=True)}
        return {name: number for number, name in enumerate(names, 1)}
    by_last_part: dict[str, list[int | str]] = {}
    for name, value in image_ids.items():
        by_last_part.setdefault(Path(name).name, []).append(value)
    found: dict[str, int | str] = {}
    owner: dict[int | str, str] = {}
    for name in names:
        values = [image_ids[name]] if name in image_ids else by_last_part.get(Path(name).name, [])
        if len(values) != 1:
            problem = "stands in several folders of" if values else "is not in"
            raise UserError(f"image {name} {problem} the json of --image-ids; give the json of its data set")
        found[name] = values[0]
        if (other := owner.setdefault(values[0], name)) != name:
            raise UserError(f"images {other} and {name} are one image in the json of --image-ids; leave out one")
    return found


def assemble_coco(
    folder: Path, names: Iterable[str], image_ids: dict[str, int | str] | None = None
) -> tuple[Path, Path] | None:
    """Join the json files of all images into panoptic.json and instances.json (COCO results).

    Args:
        folder: The folder of the predictions.
        names: The names of the images; those without a finished file are left out.
        image_ids: See ``number_images``.

    Returns:
        The two files, or None if no image is finished.
    """
    finished = {n: p for n in sorted(set(names)) if (p := folder / "panoptic" / f"{n}.json").is_file()}
    numbers = number_images(list(finished), image_ids)
    panoptic: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    instances: list[dict[str, Any]] = []
    for name, path in finished.items():
        content = read_json(path, "prediction")
        number = numbers[name]
        panoptic["images"] += [{**i, "id": number} for i in content["images"]]
        panoptic["annotations"] += [{**a, "image_id": number} for a in content["annotations"]]
        panoptic["categories"] = content["categories"]
        instances += [{"image_id": number, **i} for i in content["instances"]]
    if not finished:
        return None
    files = folder / "panoptic.json", folder / "instances.json"
    write_json(files[0], panoptic)
    write_json(files[1], instances)
    return files
