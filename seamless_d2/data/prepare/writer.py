"""Writing of a COCO-panoptic data set from a list of items, in parallel, with progress, and resumable.

Each finished image leaves its PNG and a small json file (a "part"); the json of the data set is written last, from the
parts. All files are written atomically, so that an interrupted run can be resumed at any point.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...errors import UserError
from ...io import atomic_write, ids_to_rgb, write_json
from ...parallel import map_parallel
from ...structures.id_maps import instance_annotations, measure_segments, thing_categories

# The folder, beside the parts, of empty files that say which PNGs a run has written or was about to write.
_CLAIMS = "claims"
Item = TypeVar("Item")


@dataclass
class PanopticImage:
    """One converted image.

    Attributes:
        file_name: The path of the image below the folder of images.
        png_name: The path of the id PNG below the folder of PNGs, distinct for each image.
        ids: (H, W) integer ids of the segments below 2^24, 0 = void.
        segments: Dicts with id, category_id (of the data set) and iscrowd. The writer adds area and bbox, and leaves
            out segments without a pixel.
        image: Further keys of the image entry in the json.
    """

    file_name: str
    png_name: str
    ids: np.ndarray
    segments: list[dict[str, Any]]
    image: dict[str, Any] = field(default_factory=dict)


def write_panoptic_dataset(
    items: Sequence[Item],
    keys: Sequence[str],
    convert: Callable[[Item], PanopticImage],
    *,
    png_dir: Path,
    panoptic_json: Path,
    instance_json: Path | None,
    categories: list[dict[str, Any]],
    input_dirs: Sequence[Path] = (),
    workers: int | None = None,
    description: str = "images",
) -> None:
    """Convert all items and write the data set.

    PNGs are created inside ``png_dir`` only, and a file is replaced only if an earlier run of this function wrote it.

    Args:
        items: The arguments of ``convert``: paths, or data that json can represent. Finished work is used again only if
            they (of paths, the names), the keys and the categories have not changed.
        keys: A distinct name for each item, stable between runs. Images get the ids 1, 2, ... in this order, unless
            the converted image has an "id".
        convert: Makes a ``PanopticImage`` of an item; it must be possible to pickle it. Its ``UserError``,
            ``ValueError`` and ``OSError`` are collected while the other items are converted.
        png_dir: The folder of the id PNGs.
        panoptic_json: The json, which is written last. A finished data set of the same items is not written again.
        instance_json: The json of COCO instance annotations of the things, or None.
        categories: The categories of the json.
        input_dirs: The folders that images and labels are read from; nothing is written into them.
        workers: The number of processes; default one per available CPU.
        description: The text beside the progress bar.

    Raises:
        UserError: Some items failed (the message names all of them), a process was killed, or the data set would be
            written into a folder that is read, or over files of others.
    """
    if len(set(keys)) != len(keys):
        raise UserError(f"{description}: the name {_first_repeated(keys)} occurs twice; names must be distinct")
    for folder in input_dirs:
        if png_dir.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"the PNGs of {panoptic_json} would be written to {png_dir}, in the folder {folder} that is read; "
                "choose another output"
            )
    content = json.dumps([list(keys), list(items), categories], default=lambda path: path.name)
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    if _is_finished(panoptic_json, instance_json, png_dir, fingerprint):
        return
    own_files = _list_own_files(panoptic_json, instance_json)
    parts = panoptic_json.with_name(f".{panoptic_json.stem}.parts")
    stamp = parts / "fingerprint"
    if parts.is_dir() and (not stamp.is_file() or stamp.read_text() != fingerprint):
        for part in parts.glob("*.json"):
            part.unlink()
    (parts / _CLAIMS).mkdir(parents=True, exist_ok=True)
    png_dir.mkdir(parents=True, exist_ok=True)
    with atomic_write(stamp, "w") as file:
        file.write(fingerprint)
    todo = [(i, k) for i, k in zip(items, keys, strict=True) if not (parts / _part_name(k)).is_file()]
    thing_ids = {c["id"] for c in categories if c["isthing"]}
    work = partial(_convert_one, convert, png_dir=png_dir, parts=parts, thing_ids=thing_ids, own_files=own_files)
    killed = (
        f"a process that worked on {panoptic_json} was killed, perhaps for want of memory; run this again with fewer "
        "--workers (what is done is kept)"
    )
    failures = {}
    with (
        tqdm(total=len(keys), initial=len(keys) - len(todo), desc=description, unit="image") as bar,
        closing(map_parallel(partial(_find_error, work), todo, workers, killed)) as results,
    ):
        for number, failure in results:
            if failure:
                failures[number] = f"{todo[number][1]}: {failure}"
            bar.update()
    if failures:
        listed = "; ".join(failures[number] for number in sorted(failures))
        raise UserError(
            f"{len(failures)} of {len(keys)} images of {panoptic_json} failed (mend their files and run this again, "
            f"the others are done): {listed}"
        )
    _assemble(keys, parts, panoptic_json, instance_json, categories, fingerprint, own_files)
    shutil.rmtree(parts)


def _first_repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


def _part_name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:24] + ".json"


def _record_path(panoptic_json: Path) -> Path:
    """Return the hidden file beside the json that lists all files that were written for it."""
    return panoptic_json.with_name(f".{panoptic_json.stem}.written.json")


def _list_own_files(panoptic_json: Path, instance_json: Path | None) -> frozenset[str]:
    """Return the names of the files that earlier runs have written for a data set.

    Raises:
        UserError: One of the jsons exists and no earlier run has written it.
    """
    record = _record_path(panoptic_json)
    own_files = frozenset(json.loads(record.read_text(encoding="utf-8"))) if record.is_file() else frozenset()
    for path in filter(None, (panoptic_json, instance_json)):
        if path.exists() and path.name not in own_files:
            raise UserError(
                f"{path} exists and was not written by this program; choose another output, or move it away"
            )
    return own_files


def _claim(png_dir: Path, name: str, parts: Path, own_files: frozenset[str]) -> Path:
    """Return the path of a PNG, and remember that it is written by this program.

    Raises:
        UserError: The name leaves ``png_dir``, or the file exists and was not written by this program.
    """
    path = png_dir / name
    if not path.resolve().is_relative_to(png_dir.resolve()):
        raise UserError(
            f"its PNG would be written to {path}, outside of {png_dir}; make the file name relative to the image folder"
        )
    claim = parts / _CLAIMS / _part_name(name)
    if path.exists() and name not in own_files and not claim.exists():
        raise UserError(f"{path} exists and was not written by this program; choose another output, or move it away")
    claim.touch()
    return path


def _convert_one(
    convert: Callable[[Item], PanopticImage],
    item: Item,
    key: str,
    png_dir: Path,
    parts: Path,
    thing_ids: set[int],
    own_files: frozenset[str],
) -> None:
    """Convert one item in a worker process and write its PNG, then its part."""
    converted = convert(item)
    ids = np.asarray(converted.ids)
    segments = measure_segments(ids, converted.segments)
    with atomic_write(_claim(png_dir, converted.png_name, parts, own_files)) as file:
        Image.fromarray(ids_to_rgb(ids)).save(file, format="PNG")
    height, width = ids.shape
    part = {
        "image": {**converted.image, "file_name": converted.file_name, "height": height, "width": width},
        "file_name": converted.png_name,
        "segments_info": segments,
        "instances": instance_annotations(ids, segments, thing_ids),
    }
    write_json(parts / _part_name(key), part)


def _is_finished(panoptic_json: Path, instance_json: Path | None, png_dir: Path, fingerprint: str) -> bool:
    """Return whether all files of a data set with this fingerprint exist."""
    if not panoptic_json.is_file() or (instance_json is not None and not instance_json.is_file()):
        return False
    try:
        with open(panoptic_json, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError:
        return False
    if not isinstance(content, dict) or content.get("info", {}).get("fingerprint") != fingerprint:
        return False
    return all((png_dir / annotation["file_name"]).is_file() for annotation in content["annotations"])


def _find_error(work: Callable[..., None], item_and_key: tuple[Any, str]) -> str | None:
    """Call ``work`` and return the message of an expected error, or None; other exceptions end the run."""
    try:
        work(*item_and_key)
    except (UserError, ValueError, OSError) as error:
        return str(error)
    return None


def _assemble(
    keys: Sequence[str],
    parts: Path,
    panoptic_json: Path,
    instance_json: Path | None,
    categories: list[dict[str, Any]],
    fingerprint: str,
    own_files: frozenset[str],
) -> None:
    """Write the jsons of the data set from the parts, and the record of all its files."""
    images, annotations, instances = [], [], []
    for number, key in enumerate(keys, 1):
        with open(parts / _part_name(key), encoding="utf-8") as file:
            part = json.load(file)
        image = {"id": number, **part["image"]}
        images.append(image)
        annotations.append(
            {"image_id": image["id"], "file_name": part["file_name"], "segments_info": part["segments_info"]}
        )
        for instance in part["instances"]:
            instances.append({"id": len(instances) + 1, "image_id": image["id"], **instance})
    for what, names in (("PNG", [a["file_name"] for a in annotations]), ("image id", [i["id"] for i in images])):
        repeated = _first_repeated(names)
        if repeated is not None:
            raise UserError(f"{panoptic_json}: two images would share the {what} {repeated}; rename one of the images")
    info = {"fingerprint": fingerprint}
    names = {path.name for path in (panoptic_json, instance_json) if path is not None}
    write_json(_record_path(panoptic_json), sorted(own_files | names | {a["file_name"] for a in annotations}))
    if instance_json is not None:
        write_json(
            instance_json,
            {"info": info, "images": images, "annotations": instances, "categories": thing_categories(categories)},
        )
    write_json(panoptic_json, {"info": info, "images": images, "annotations": annotations, "categories": categories})
