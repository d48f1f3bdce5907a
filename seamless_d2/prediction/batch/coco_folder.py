"""The COCO json files of a whole folder of predictions, joined from those of its images."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from ...errors import UserError
from ...io import atomic_write, read_bytes
from ...structures.coco_json import CocoFile, ImageList, read_json_as

# Ids are whole numbers that a float64 holds, which some readers of json take numbers for.
_ID_BITS = 52


def read_image_ids(gt_json: str | Path) -> dict[str, CocoFile]:
    """Read the ``images`` of a COCO json, by their file names without suffix.

    Raises:
        UserError: The file is missing, is no COCO json, or has two images of one name.
    """
    images = read_json_as(gt_json, "json of --image-ids", ImageList).images
    found = {Path(image.file_name).with_suffix("").as_posix(): image for image in images}
    if len(found) < len(images):
        twice = next(i for i in images if found[Path(i.file_name).with_suffix("").as_posix()] is not i)
        raise UserError(f"{gt_json} has two images that differ from {twice.file_name} in the suffix alone; rename one")
    return found


def number_images(names: Mapping[str, int | str | None]) -> dict[str, int | str]:
    """Give every image an id that does not depend on other images: the number that is its name, else a hash of it.

    Args:
        names: From the names of the images, without suffix, which may contain folders, to ids that are given.

    Returns:
        The ids by name. Of two names with one id, the later one in alphabetical order gets another.

    Raises:
        UserError: Two images have the same given id.
    """
    owner: dict[int | str, str] = {}
    for name, given in names.items():
        if given is not None and (other := owner.setdefault(given, name)) != name:
            raise UserError(f"images {other} and {name} have the same id {given}; predict them into two folders")
    found: dict[str, int | str] = {name: number for number, name in owner.items()}
    for name in sorted(names.keys() - found.keys()):
        number, salt = int(name) if name.isascii() and name.isdecimal() and len(name) < 16 else -1, 0
        while number < 0 or number in owner:
            digest = hashlib.blake2b(f"{name}{salt or ''}".encode(), digest_size=8).digest()
            number, salt = int.from_bytes(digest) >> (64 - _ID_BITS), salt + 1
        found[name] = number
        owner[number] = name
    return found


def find_images(names: Iterable[str], images: Mapping[str, CocoFile]) -> dict[str, CocoFile]:
    """Find images in those of their data set, by the whole name, then by its last part.

    Args:
        names: The names of the images, without suffix; may contain folders.
        images: What ``read_image_ids`` returns.

    Raises:
        UserError: An image is not there or is there several times, or two names are one image.
    """
    names = list(names)
    by_last_part: dict[str, list[CocoFile]] = {Path(name).name: [] for name in names if name not in images}
    if by_last_part:
        for name, value in images.items():
            if (last := Path(name).name) in by_last_part:
                by_last_part[last].append(value)
    found: dict[str, CocoFile] = {}
    owner: dict[int | str, str] = {}
    for name in names:
        values = [images[name]] if name in images else by_last_part[Path(name).name]
        if len(values) != 1:
            problem = "stands in several folders of" if values else "is not in"
            raise UserError(f"image {name} {problem} the json of --image-ids; give the json of its data set")
        found[name] = values[0]
        if (other := owner.setdefault(values[0].id, name)) != name:
            raise UserError(f"images {other} and {name} are one image in the json of --image-ids; leave out one")
    return found


def assemble_coco(folder: Path, names: Mapping[str, tuple[int | str | None, str]]) -> tuple[Path, Path] | None:
    """Join the json files of all images into panoptic.json and instances.json (COCO results), in bounded memory.

    Args:
        folder: The folder of the predictions.
        names: From the names of the images to their ids (None for those of ``number_images``) and file names; images
            without a json are left out.

    Returns:
        The two files, or None if no image is finished.

    Raises:
        UserError: Two images have the same id, or a json is damaged.
    """
    finished = sorted(name for name in names if _sidecar(folder, name).is_file())
    if not finished:
        return None
    numbers = number_images({name: names[name][0] for name in finished})
    return write_coco(folder, ((numbers[name], names[name][1], _read(_sidecar(folder, name))) for name in finished))


def write_coco(
    folder: Path,
    images: Iterable[tuple[int | str, str, dict[str, Any]]],
    categories: list[dict[str, Any]] | None = None,
) -> tuple[Path, Path]:
    """Write panoptic.json and instances.json of images, one at a time.

    Args:
        folder: The folder of the two files.
        images: The id, the file name and the json of each image.
        categories: The categories; default those of the last image.

    Returns:
        The two files.
    """
    files = folder / "panoptic.json", folder / "instances.json"
    with (
        atomic_write(files[0]) as panoptic,
        atomic_write(files[1]) as instances,
        tempfile.TemporaryFile() as annotations,
    ):
        panoptic.write(b'{"images": [')
        instances.write(b"[")
        content: dict[str, Any] = {"categories": []}
        written = [0, 0, 0]
        for number, file_name, content in images:
            parts = (
                (panoptic, [{**i, "id": number, "file_name": file_name} for i in content["images"]]),
                (annotations, [{**a, "image_id": number} for a in content["annotations"]]),
                (instances, [{"image_id": number, **i} for i in content["instances"]]),
            )
            for k, (file, values) in enumerate(parts):
                _append(file, values, written[k])
                written[k] += len(values)
        panoptic.write(b'], "annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, panoptic)
        panoptic.write(b'], "categories": ' + msgspec.json.encode(categories or content["categories"]) + b"}")
        instances.write(b"]")
    return files


def _sidecar(folder: Path, name: str) -> Path:
    return folder / "panoptic" / f"{name}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(read_bytes(path, "prediction"))
        if isinstance(content, dict) and {"images", "annotations", "categories", "instances"} <= content.keys():
            return content
    except msgspec.DecodeError:
        pass
    raise UserError(f"prediction {path} is damaged; remove it and predict the image again")


def _append(file: IO[bytes], values: list[dict[str, Any]], count: int) -> None:
    """Append values to a json array of so many values."""
    for number, value in enumerate(values, count):
        file.write((b", " if number else b"") + msgspec.json.encode(value))
