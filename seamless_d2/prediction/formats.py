"""The files that a prediction is written as, and the COCO json files of a whole folder of predictions."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..io import atomic_write, ids_to_rgb, save_image, save_png, write_json
from ..seamseg.raw import SUFFIX as RAW_SUFFIX
from ..structures.id_maps import instance_annotations
from .result import PanopticResult

FORMATS = ("overlay", "labelled", "coco", "raw", "ids")
# Ids of an "ids" PNG are 16-bit numbers.
_MAX_ID = 65535


def check_formats(formats: Iterable[str]) -> tuple[str, ...]:
    """``formats`` without repetition.

    Raises:
        UserError: an unknown one, or none.
    """
    formats = tuple(dict.fromkeys(formats))
    unknown = [f for f in formats if f not in FORMATS]
    if unknown or not formats:
        raise UserError(f"format {unknown[0] if unknown else ''!r} is not known; choose from {', '.join(FORMATS)}")
    return formats


def format_files(folder: Path, name: str, formats: Iterable[str]) -> dict[str, list[Path]]:
    """The files of each format for the image ``name`` (without suffix, may contain folders)."""
    endings = {
        "overlay": ["{}_overlay.jpg"],
        "labelled": ["{}_labelled.jpg"],
        "coco": ["panoptic/{}.png", "panoptic/{}.json"],
        "raw": ["{}" + RAW_SUFFIX],
        "ids": ["{}_ids.png", "{}_ids.json"],
    }
    return {f: [folder / ending.format(name) for ending in endings[f]] for f in formats}


def write_formats(result: PanopticResult, folder: Path, name: str, formats: Iterable[str]) -> list[Path]:
    """Write a prediction in several formats; every file appears whole or not at all.

    Raises:
        UserError: an unknown format, or more segments than a format can hold.
    """
    files = format_files(folder, name, check_formats(formats))
    for format, paths in files.items():
        _WRITERS[format](result, name, *paths)
    return [path for paths in files.values() for path in paths]


def coco_json(result: PanopticResult, file_name: str, image_id: int) -> dict[str, Any]:
    """A COCO-panoptic json of one image; ``file_name`` is the PNG's."""
    height, width = result.panoptic_seg.shape
    segments = []
    for segment in result.segments:
        info = segment.info()
        entry = {k: info[k] for k in ("id", "area", "bbox", "score", "track_id") if k in info}
        segments.append({**entry, "category_id": segment.dataset_id, "iscrowd": 0})
    return {
        "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
        "annotations": [{"image_id": image_id, "file_name": file_name, "segments_info": segments}],
        "categories": result.classes.to_categories(),
    }


def _write_overlay(result: PanopticResult, name: str, path: Path) -> None:
    save_image(result.overlay(labels=False), path)


def _write_labelled(result: PanopticResult, name: str, path: Path) -> None:
    save_image(result.overlay(), path)


def _write_coco(result: PanopticResult, name: str, png: Path, sidecar: Path) -> None:
    content = coco_json(result, f"{name}.png", 1)
    segments = content["annotations"][0]["segments_info"]
    things = {c["id"] for c in content["categories"] if c["isthing"]}
    scores = {s["id"]: s.get("score", 1.0) for s in segments}
    scored = [scores[s["id"]] for s in segments if s["category_id"] in things]
    instances = instance_annotations(result.panoptic_seg, segments, things)
    content["instances"] = [
        {k: i[k] for k in ("category_id", "bbox", "segmentation")} | {"score": score}
        for i, score in zip(instances, scored, strict=True)
    ]
    save_png(ids_to_rgb(result.panoptic_seg), png)
    write_json(sidecar, content)


def _write_raw(result: PanopticResult, name: str, path: Path) -> None:
    if result.raw is None:
        raise UserError("this result has no raw outputs; make the Predictor with raw=True")
    # A stored tensor takes its whole storage along.
    content = {k: v if v is None else v.clone() for k, v in result.raw.items()}
    buffer = io.BytesIO()  # torch.save hides what the system says of a failed write
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def _write_ids(result: PanopticResult, name: str, png: Path, description: Path) -> None:
    if len(result.segments) > _MAX_ID:
        raise UserError(f"{name} has {len(result.segments)} segments; 16 bits hold {_MAX_ID}: choose --format coco")
    save_png(result.panoptic_seg.astype(np.uint16), png)
    height, width = result.panoptic_seg.shape
    segments = [
        {
            "id": s.id,
            "class": s.class_name,
            "class_id": s.dataset_id,
            "isthing": s.isthing,
            "area": s.area,
            "box": list(s.box),
            "score": s.score,
        }
        | ({} if s.track_id is None else {"track_id": s.track_id})
        for s in result.segments
    ]
    write_json(description, {"png": png.name, "height": height, "width": width, "void": 0, "segments": segments}, 2)


_WRITERS = {
    "overlay": _write_overlay,
    "labelled": _write_labelled,
    "coco": _write_coco,
    "raw": _write_raw,
    "ids": _write_ids,
}


def read_image_ids(gt_json: str | Path) -> dict[str, int | str]:
    """Image ids by the image's name without suffix, from the ``images`` of a COCO json.

    Raises:
        UserError: missing file or another content.
    """
    try:
        images = json.loads(Path(gt_json).read_text(encoding="utf-8"))["images"]
        return {Path(i["file_name"]).with_suffix("").as_posix(): i["id"] for i in images}
    except FileNotFoundError:
        raise UserError(f"{gt_json} does not exist; check the path") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{gt_json} is no COCO json with images ({error!r}); give the data set's json") from None


def number_images(names: Sequence[str], image_ids: dict[str, int | str] | None = None) -> dict[str, int | str]:
    """Ids of images: those of a data set where given, else numbers in the names, else 1, 2, ...

    Args:
        names: without suffix, may contain folders.
        image_ids: as ``read_image_ids`` returns them; looked up by the whole name, then by the last part.

    Raises:
        UserError: an image that ``image_ids`` lacks, or for which it has several; one id for two images.
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
        folder: of the predictions.
        names: of the images; those without a finished file are left out.
        image_ids: see ``number_images``.

    Returns:
        The two files, or None where no image is finished.
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
