"""The original's data format (see ``..seamseg_format``) -> COCO panoptic, and back."""

import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import msgspec
import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.prepare.class_list import print_unlabelled
from ..data.prepare.writer import PanopticImage, WriterOptions, write_panoptic_dataset
from ..data.registration import load_panoptic_json
from ..errors import UserError
from ..io import atomic_write, read_id_map, write_json
from ..structures.classes import VOID_LABEL, Classes
from ..structures.id_maps import instance_annotations, measure_segments, present_ids, replace_ids, thing_categories
from .dataset import list_splits, read_split

IMAGE_SUFFIXES = {".png": ".png", ".jpg": ".jpg", ".jpeg": ".jpg"}


def _convert_record(record: dict[str, Any], image_root: Path, classes: Classes) -> PanopticImage:
    ids = read_id_map(record["pan_seg_file_name"])
    segments = [
        {"id": s["id"], "category_id": classes.dataset_ids[classes.to_label(s)], "iscrowd": s["iscrowd"]}
        for s in record["segments_info"]
    ]
    image = Path(record["file_name"]).relative_to(image_root).as_posix()
    png = Path(image).with_suffix(".png").as_posix()
    return PanopticImage(image, png, ids, segments, {"id": record["image_id"]})


def prepare_seamseg(root: str | Path, **options: Unpack[WriterOptions]) -> list[Path]:
    """Write ROOT/panoptic_SPLIT.json, the folder of that name and instances_SPLIT.json for every split.

    Args:
        root: The folder of the data set.
        options: See ``write_panoptic_dataset``.
    """
    root = Path(root)
    written, images = [], set()
    for split in list_splits(root):
        records, classes = read_split(root, split)
        output = root / f"panoptic_{split}.json"
        write_panoptic_dataset(
            records,
            [r["image_id"] for r in records],
            partial(_convert_record, image_root=root / "img", classes=classes),
            inputs=[[Path(r["pan_seg_file_name"])] for r in records],
            png_dir=output.with_suffix(""),
            panoptic_json=output,
            instance_json=root / f"instances_{split}.json",
            categories=classes.to_categories(),
            input_dirs=[root / "img", root / "msk"],
            description=split,
            **options,
        )
        written.append(output)
        images |= {Path(r["file_name"]).relative_to(root / "img").as_posix() for r in records}
    print_unlabelled(root / "img", images)  # which all splits share
    return written


def write_seamseg(
    root: str | Path, splits: dict[str, tuple[str | Path, str | Path, str | Path]], link: bool = False
) -> None:
    """Write a data set in the original's format from COCO-panoptic ones with the same categories.

    Args:
        root: The folder to write.
        splits: The (image folder, PNG folder, json) of each split by its name.
        link: Whether to link the images instead of copying them.

    Raises:
        UserError: There are images that are neither PNG nor JPEG, two images of one name, different categories, or
            files in ``root`` already, except those of an interrupted run of this function.
    """
    root = Path(root)
    unfinished = root / ".unfinished"
    if root.exists() and not unfinished.is_file() and any(path.name != ".lock" for path in root.iterdir()):
        raise UserError(f"{root} already holds files; choose a folder that does not exist yet, or an empty one")
    loaded = {split: load_panoptic_json(*map(Path, source)) for split, source in splits.items()}
    (_, classes), *others = loaded.values()
    if any(other != classes for _, other in others):
        jsons = ", ".join(str(source[2]) for source in splits.values())
        raise UserError(f"{jsons} have different categories; a data set has one list, make them equal")
    files = [Path(record["file_name"]) for records, _ in loaded.values() for record in records]
    for stem, count in Counter(file.stem for file in files).items():
        if count > 1:
            raise UserError(f"two images are called {stem}; in seamseg's format names must be distinct, rename one")
    for file in files:
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"{file} is neither PNG nor JPEG, which is all that seamseg reads; convert it")
    for folder in ("img", "msk", "lst", "coco"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    described = []
    for split, (records, _) in loaded.items():
        images, instances = [], []
        for record in tqdm(records, desc=split, unit="image"):
            entry, annotations = _write_image(root, record, classes, link)
            described.append(entry)
            images.append({"id": entry["id"], "height": record["height"], "width": record["width"]})
            for annotation in annotations:
                instances.append({"id": len(instances) + 1, "image_id": entry["id"], **annotation})
        with atomic_write(root / "lst" / f"{split}.txt", "w") as file:
            file.write("".join(f"{image['id']}\n" for image in images))
        # The original numbers the classes of these files by their labels.
        categories = [{**c, "id": label} for label, c in enumerate(classes.to_categories())]
        content = {"images": images, "annotations": instances, "categories": thing_categories(categories)}
        write_json(root / "coco" / f"{split}.json", content)
    meta = {
        "num_stuff": classes.num_stuff,
        "num_thing": classes.num_things,
        "categories": classes.names,
        "palette": [list(c) for c in classes.colors],
        "original_ids": classes.dataset_ids,
    }
    with atomic_write(root / "metadata.bin") as file:
        file.write(msgspec.msgpack.encode({"images": described, "meta": meta}))
    unfinished.unlink()


def _write_image(
    root: Path, record: dict[str, Any], classes: Classes, link: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Image and mask of one image; returns its entry of metadata.bin and its instance annotations."""
    image, png = Path(record["file_name"]), record["pan_seg_file_name"]
    if not image.is_file():
        raise UserError(f"image {image} does not exist; check the path")
    ids, segments = read_id_map(png), record["segments_info"]
    if len(segments) > 65535:
        raise UserError(f"{png} has {len(segments)} segments, but a mask of 16 bits holds 65535")
    places = {segment["id"]: k for k, segment in enumerate(segments, 1)}
    strange = set(present_ids(ids)) - {0, *places}
    if strange:
        raise UserError(f"{png} holds id {min(strange)}, which its json does not list; mend one of them")
    labels = [classes.to_label(s) for s in segments]
    mask = replace_ids(ids, places).astype(np.uint8 if len(places) < 256 else np.uint16)
    with atomic_write(root / "msk" / f"{image.stem}.png") as file:
        Image.fromarray(mask).save(file, format="PNG")
    target = root / "img" / f"{image.stem}{IMAGE_SUFFIXES[image.suffix.lower()]}"
    target.unlink(missing_ok=True)  # of an interrupted run, perhaps with other images
    if link:
        target.symlink_to(image.resolve())
    else:
        with open(image, "rb") as source, atomic_write(target) as file:
            shutil.copyfileobj(source, file)
    entry = {
        "id": image.stem,
        "cat": [VOID_LABEL, *labels],
        "size": [record["height"], record["width"]],
        "iscrowd": [0, *(s["iscrowd"] for s in segments)],
    }
    measured = measure_segments(
        mask,
        [
            {"id": k, "category_id": label, "iscrowd": s["iscrowd"]}
            for k, (label, s) in enumerate(zip(labels, segments, strict=True), 1)
        ],
    )
    return entry, instance_annotations(mask, measured, set(range(classes.num_stuff, len(classes.names))))
