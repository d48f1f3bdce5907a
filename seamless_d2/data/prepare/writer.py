"""Writes a COCO-panoptic data set from a list of items: in parallel, with progress, resumable.

Each finished image leaves its PNG and a small json "part"; the data set's json is written last, from the parts. Both
appear only whole, so that a run that was stopped anywhere goes on where it was.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from ...errors import UserError
from ...files import atomic_write, write_json
from ..images import ids_to_rgb
from ..mapper import label_boxes

Item = TypeVar("Item")


@dataclass
class PanopticImage:
    """One converted image.

    Attributes:
        file_name: of the photo, relative to the image folder.
        png_name: of the id PNG, relative to the PNG folder.
        ids: (H, W) integers, 0 = void, otherwise one of the segments' ids, below 2^24.
        segments: dicts with id, category_id (the data set's) and iscrowd; area and bbox are added by the writer, and
            segments without a pixel are left out.
        image: further keys for the json's image entry.
    """

    file_name: str
    png_name: str
    ids: np.ndarray
    segments: list[dict[str, Any]]
    image: dict[str, Any] = field(default_factory=dict)


def measure_segments(ids: np.ndarray, segments: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The segments that have pixels, with their area and bbox (x, y, width, height).

    Raises:
        ValueError: the map holds an id that no segment has.
    """
    values, labels, areas = np.unique(ids, return_inverse=True, return_counts=True)
    boxes = label_boxes(labels.reshape(ids.shape), len(values))
    position = {value: k for k, value in enumerate(values.tolist())}
    measured = []
    for segment in segments:
        k = position.pop(segment["id"], None)
        if k is not None:
            x0, y0, x1, y1 = (int(v) for v in boxes[k])
            measured.append({**segment, "area": int(areas[k]), "bbox": [x0, y0, x1 - x0, y1 - y0]})
    unknown = set(position) - {0}
    if unknown:
        raise ValueError(f"id {min(unknown)} is in the map but not among the segments")
    return measured


def instance_annotations(
    ids: np.ndarray, segments: Iterable[dict[str, Any]], thing_ids: set[int]
) -> list[dict[str, Any]]:
    """COCO instance annotations (compressed RLE) of the thing segments, without id and image_id."""
    result = []
    for segment in segments:
        if segment["category_id"] in thing_ids:
            rle = coco_mask.encode(np.asfortranarray(ids == segment["id"]))
            result.append(
                {
                    "category_id": segment["category_id"],
                    "iscrowd": segment["iscrowd"],
                    "area": segment["area"],
                    "bbox": segment["bbox"],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    return result


def thing_categories(categories: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The categories of an instance json."""
    return [{"id": c["id"], "name": c["name"], "supercategory": c["name"]} for c in categories if c["isthing"]]


def _part_name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:24] + ".json"


def _convert_one(
    convert: Callable[[Item], PanopticImage], item: Item, key: str, png_dir: Path, parts: Path, thing_ids: set[int]
) -> None:
    """Convert one item in a worker: PNG first, then its part."""
    converted = convert(item)
    ids = np.asarray(converted.ids)
    segments = measure_segments(ids, converted.segments)
    with atomic_write(png_dir / converted.png_name) as file:
        Image.fromarray(ids_to_rgb(ids)).save(file, format="PNG")
    part = {
        "image": {
            **converted.image,
            "file_name": converted.file_name,
            "height": int(ids.shape[0]),
            "width": int(ids.shape[1]),
        },
        "file_name": converted.png_name,
        "segments_info": segments,
        "instances": instance_annotations(ids, segments, thing_ids),
    }
    write_json(parts / _part_name(key), part)


def write_panoptic_dataset(
    items: Sequence[Item],
    keys: Sequence[str],
    convert: Callable[[Item], PanopticImage],
    *,
    png_dir: Path,
    panoptic_json: Path,
    instance_json: Path | None,
    categories: list[dict[str, Any]],
    workers: int | None = None,
    description: str = "images",
) -> None:
    """Convert all items and write the data set.

    Args:
        items: what ``convert`` takes; both must be picklable.
        keys: a distinct name per item, stable between runs; images get the ids 1, 2, ... in this order unless the
            converted image brings an "id".
        convert: makes one ``PanopticImage``; a ``UserError`` from it is collected, the others go on.
        png_dir: folder of the id PNGs.
        panoptic_json: the json, written last; an existing one of the same items means that nothing is to do.
        instance_json: where to write COCO instance annotations of the things; None = nowhere.
        categories: of the json.
        workers: processes; default one per available CPU.
        description: of the progress bar.

    Raises:
        UserError: some items failed (all are named), or the disk is full.
    """
    if len(set(keys)) != len(keys):
        raise UserError(f"{description}: a name occurs twice; names must be distinct")
    fingerprint = hashlib.sha256(json.dumps([list(keys), categories]).encode()).hexdigest()
    if _is_finished(panoptic_json, fingerprint) and (instance_json is None or instance_json.is_file()):
        return
    parts = panoptic_json.with_name(f".{panoptic_json.stem}.parts")
    if (parts / "fingerprint").is_file() and (parts / "fingerprint").read_text() != fingerprint:
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    png_dir.mkdir(parents=True, exist_ok=True)
    with atomic_write(parts / "fingerprint", "w") as file:
        file.write(fingerprint)
    todo = [(i, k) for i, k in zip(items, keys, strict=True) if not (parts / _part_name(k)).is_file()]
    thing_ids = {c["id"] for c in categories if c["isthing"]}
    work = partial(_convert_one, convert, png_dir=png_dir, parts=parts, thing_ids=thing_ids)
    failures = _run(work, todo, workers, description, total=len(keys))
    if failures:
        listed = "; ".join(failures[:20]) + ("; ..." if len(failures) > 20 else "")
        raise UserError(f"{len(failures)} of {len(keys)} {description} failed, the others are done: {listed}")
    _assemble(keys, parts, panoptic_json, instance_json, categories, fingerprint)
    shutil.rmtree(parts)


def _is_finished(panoptic_json: Path, fingerprint: str) -> bool:
    try:
        with open(panoptic_json, encoding="utf-8") as file:
            return json.load(file).get("info", {}).get("fingerprint") == fingerprint
    except (OSError, ValueError, AttributeError):
        return False


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(
    work: Callable[..., None], todo: list[tuple[Any, str]], workers: int | None, description: str, total: int
) -> list[str]:
    """Run ``work(item, key)`` for all; one sentence per failure, in the order of the items."""
    workers = min(workers or available_cpus(), max(len(todo), 1))
    failures: dict[int, str] = {}
    with tqdm(total=total, initial=total - len(todo), desc=description, unit="image") as bar:
        if workers == 1:
            for number, (item, key) in enumerate(todo):
                try:
                    work(item, key)
                except (UserError, ValueError) as error:
                    failures[number] = f"{key}: {error}"
                bar.update()
        else:
            with ProcessPoolExecutor(workers) as pool:
                futures = {pool.submit(work, item, key): n for n, (item, key) in enumerate(todo)}
                try:
                    for future in as_completed(futures):
                        number = futures[future]
                        try:
                            future.result()
                        except (UserError, ValueError) as error:
                            failures[number] = f"{todo[number][1]}: {error}"
                        bar.update()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    return [failures[n] for n in sorted(failures)]


def _assemble(
    keys: Sequence[str],
    parts: Path,
    panoptic_json: Path,
    instance_json: Path | None,
    categories: list[dict[str, Any]],
    fingerprint: str,
) -> None:
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
    info = {"fingerprint": fingerprint}
    if instance_json is not None:
        write_json(
            instance_json,
            {"info": info, "images": images, "annotations": instances, "categories": thing_categories(categories)},
        )
    write_json(panoptic_json, {"info": info, "images": images, "annotations": annotations, "categories": categories})
