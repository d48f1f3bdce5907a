"""From a seed to the pixels and segments of a toy scene, and from many scenes to a data set."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .painting import paint_blocks, paint_ground, paint_objects, paint_sky
from .street import (
    CATEGORIES,
    FIRST_SEED,
    MIN_AREA,
    MIN_HEIGHT,
    MIN_WIDTH,
    SCALE,
    SKY,
    TEXTURE,
    VERSION,
    VOID,
    Scene,
    Street,
)


def _noise(rng: np.random.RandomState, height: int, width: int, bits: int) -> np.ndarray:
    """(height, width) int16 noise, -128..127, interpolated between grid points 2**bits pixels apart, in integers."""
    cell = 1 << bits
    rows, columns = (height >> bits) + 2, (width >> bits) + 2
    grid = np.frombuffer(rng.bytes(rows * columns), np.int8).reshape(rows, columns).astype(np.int16)
    if bits == 0:
        return grid[:height, :width]
    (i, di), (j, dj) = (np.divmod(np.arange(n, dtype=np.int16), cell) for n in (height, width))
    grid = (grid[i] * (cell - di)[:, None] + grid[i + 1] * di[:, None]) >> bits
    return (grid.take(j, 1) * (cell - dj) + grid.take(j + 1, 1) * dj) >> bits


def _develop(street: Street) -> tuple[np.ndarray, np.ndarray]:
    """From the canvas to the image (H, W, 3) uint8 and its ids (H, W) uint8: averaging, texture, clouds, noise."""
    rng, canvas = street.rng, street.canvas
    ids = np.ascontiguousarray(canvas[1::SCALE, 1::SCALE, 3])
    total = canvas[0::2].astype(np.int16) + canvas[1::2]
    image = np.ascontiguousarray((total[:, 0::2] + total[:, 1::2])[..., :3].transpose(2, 0, 1)) >> 2
    height, width = ids.shape
    zoom = max(0, (height // 160).bit_length() - 1)  # textures grow with the image
    grain, blotch = np.array([TEXTURE.get(c, (2, 2)) for c in street.category_of], np.int16).T
    soft = _noise(rng, height, width, 3 + zoom) + _noise(rng, height, width, 4 + zoom)
    texture = (_noise(rng, height, width, zoom) * grain[ids] + soft * blotch[ids]) >> 6
    image += (texture * (image[1] + 40)) >> 7  # stronger where it is bright
    clouds = np.clip(_noise(rng, height, width, 5 + zoom) + (soft >> 3) - rng.randint(-40, 60), 0, 80) * (ids == SKY)
    image += ((np.array(street.light.haze, np.int16)[:, None, None] + 24 - image) * clouds) >> 7
    speckle = np.frombuffer(rng.bytes(image.size), np.int8).astype(np.int16).reshape(image.shape)
    image += (speckle * rng.randint(2, 7)) >> 6
    return np.ascontiguousarray(np.clip(image, 0, 255, out=image).astype(np.uint8).transpose(1, 2, 0)), ids


def _absorb_remains(ids: np.ndarray) -> None:
    """Gives every segment of fewer than MIN_AREA pixels to the one that borders it most, in place."""
    areas = np.bincount(ids.ravel())
    for ident in np.flatnonzero((areas > 0) & (areas < MIN_AREA)).tolist():
        y, x = np.nonzero(ids == ident)
        padded = np.pad(ids, 1, mode="edge")
        around = np.concatenate([padded[y + dy, x + dx] for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2))])
        if ident != VOID:
            ids[y, x] = np.bincount(around[around != ident]).argmax()


def _check_size(height: int, width: int) -> None:
    if height < MIN_HEIGHT or width < MIN_WIDTH:
        least = f"{MIN_HEIGHT}x{MIN_WIDTH}"
        raise ValueError(f"A toy street needs at least {least} pixels (height x width), not {height}x{width}.")


def generate_scene(seed: int, height: int = 160, width: int = 320) -> Scene:
    """Draws the scene of a seed (0 <= seed < 2**32). The same seed at another size is much the same street.

    Raises ValueError if the image would be smaller than 64x96 pixels.
    """
    _check_size(height, width)
    street = Street(seed, height, width)
    for paint in (paint_sky, paint_ground, paint_blocks, paint_objects):
        paint(street)
    image, ids = _develop(street)
    _absorb_remains(ids)
    number, areas = np.zeros(256, np.int32), np.bincount(ids.ravel(), minlength=256)
    segments: list[dict[str, Any]] = []
    for ident in (np.flatnonzero(areas[1:]) + 1).tolist():
        mask = ids == ident
        y, x = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
        number[ident] = len(segments) + 1
        segments.append(
            {
                "id": len(segments) + 1,
                "category_id": street.category_of[ident],
                "iscrowd": int(ident in street.crowds),
                "area": int(areas[ident]),
                "bbox": [x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1],
            }
        )
    return Scene(image, number[ids], segments)


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def _png(rgb: np.ndarray) -> bytes:
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    return cv2.imencode(".png", rgb[..., ::-1], fast)[1].tobytes()


def _file_ids(segments: list[dict[str, Any]]) -> list[int]:
    """Distinct ids for the files, as numbers: the colour of the class, shifted for each further segment of it."""
    ids: list[int] = []
    for segment in segments:
        red, green, blue = CATEGORIES[segment["category_id"] - 1]["color"]
        while (ident := red + (green << 8) + (blue << 16)) in (0, *ids):
            red, green, blue = (red + 23) % 256, (green + 41) % 256, (blue + 61) % 256
        ids.append(ident)
    return ids


def _write_scene(root: Path, split: str, height: int, width: int, index: int) -> dict[str, Any]:
    """Writes those files of one scene that are not there yet and returns its annotation."""
    scene, name = generate_scene(FIRST_SEED[split] + index, height, width), f"{index:06d}.png"
    file_ids = _file_ids(scene.segments)
    if not (root / split / name).exists():
        _write_atomically(root / split / name, _png(scene.image))
    if not (root / f"panoptic_{split}" / name).exists():
        ids = np.array([0, *file_ids])[scene.panoptic]
        colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
        _write_atomically(root / f"panoptic_{split}" / name, _png(colours))
    segments = [{**segment, "id": ident} for segment, ident in zip(scene.segments, file_ids, strict=True)]
    return {"image_id": index, "file_name": name, "segments_info": segments}


def _is_complete(root: Path, split: str, count: int) -> bool:
    folders, names = (root / split, root / f"panoptic_{split}"), {f"{i:06d}.png" for i in range(count)}
    written = (root / f"panoptic_{split}.json").exists() and all(folder.is_dir() for folder in folders)
    return written and all(names <= set(os.listdir(folder)) for folder in folders)


def _write_split(root: Path, split: str, info: dict[str, Any], workers: int, progress: bool) -> None:
    from tqdm import tqdm  # only this needs it

    count, height, width = info[f"num_{split}"], info["height"], info["width"]
    for folder in (root / split, root / f"panoptic_{split}"):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.tmp"):  # of runs that were killed; a recent one may belong to a live run
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink(missing_ok=True)
    write = partial(_write_scene, root, split, height, width)
    bar = partial(tqdm, total=count, desc=f"toy streets, {split}", unit="scene", disable=not progress)
    if workers == 1 or count < 16:
        annotations = list(bar(map(write, range(count))))
    else:
        # A spawned process would import the whole package again, which takes longer than all its scenes.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (0,)) as pool:
            annotations = list(bar(pool.map(write, range(count), chunksize=4)))
    names = ((a["image_id"], a["file_name"]) for a in annotations)
    images = [{"id": index, "file_name": name, "height": height, "width": width} for index, name in names]
    content = {
        "info": {"description": f"Toy streets, {split}", **info},
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    _write_atomically(root / f"panoptic_{split}.json", json.dumps(content).encode())


def write_toy_streets(
    root: str | Path,
    num_train: int = 400,
    num_val: int = 50,
    height: int = 160,
    width: int = 320,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Writes the data set described at the top of this file and returns its folder.

    A complete data set of the same parameters is left alone, an interrupted one is completed. `workers` is the number
    of processes, by default one per available CPU. Raises ValueError for sizes or counts that cannot be and
    FileExistsError if the folder holds something else.
    """
    root, counts = Path(root), {"train": num_train, "val": num_val}
    if not all(1 <= count <= FIRST_SEED["val"] for count in counts.values()):
        raise ValueError(f"Each split needs 1 to {FIRST_SEED['val']} scenes, not {num_train} and {num_val}.")
    _check_size(height, width)
    info = {
        "generator": "toy_streets",
        "version": VERSION,
        "height": height,
        "width": width,
        "num_train": num_train,
        "num_val": num_val,
    }
    marker = root / "toy_streets.json"
    found = json.loads(marker.read_text()) if marker.exists() else None
    foreign = [p for s in counts for p in (root / s, root / f"panoptic_{s}", root / f"panoptic_{s}.json") if p.exists()]
    if found != info and (found or foreign):
        raise FileExistsError(
            f"{root} already holds {f'toy streets made with {found}' if found else foreign[0].name}, "
            f"and {info} was asked for: choose another folder or delete this one."
        )
    todo = [split for split, count in counts.items() if not _is_complete(root, split, count)]
    if todo:
        root.mkdir(parents=True, exist_ok=True)
        _write_atomically(marker, json.dumps(info).encode())
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for split in todo:
        _write_split(root, split, info, workers, progress)
    return root
