"""The COCO json files of a whole folder of predictions, joined from those of its images."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...io import write_json


def read_image_ids(gt_json: str | Path) -> dict[str, int | str]:
    """Read the ids of the ``images`` of a COCO json, by their file names without suffix.

    Raises:
        UserError: The file is missing, or is no COCO json.
    """
    try:
        images = json.loads(Path(gt_json).read_text(encoding="utf-8"))["images"]
        return {Path(i["file_name"]).with_suffix("").as_posix(): i["id"] for i in images}
    except FileNotFoundError:
        raise UserError(f"{gt_json} does not exist; check the path") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{gt_json} is no COCO json with images ({error!r}); give the data set's json") from None


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
        content = json.loads(path.read_text(encoding="utf-8"))
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
