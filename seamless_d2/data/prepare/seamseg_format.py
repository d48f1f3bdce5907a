"""The original's data format, read directly and converted both ways.

metadata.bin (MessagePack), lst/SPLIT.txt (image ids), img/ID.png or .jpg, msk/ID.png (per pixel the index into that
image's lists "cat" and "iscrowd", 0 = void), coco/SPLIT.json.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tqdm import tqdm

from ...errors import UserError
from ...files import atomic_write, write_json
from ..images import read_id_map
from ..metadata import VOID_LABEL, Classes
from ..register import load_panoptic_json, read_json
from .writer import PanopticImage, instance_annotations, measure_segments, thing_categories, write_panoptic_dataset


def read_metadata(data: bytes, source: str) -> dict[str, Any]:
    """Content of metadata.bin; "images" may be missing.

    Raises:
        UserError: not MessagePack, or a "meta" part without the original's keys.
    """
    try:
        content = msgpack.unpackb(data, strict_map_key=False)
        missing = {"num_stuff", "num_thing", "categories", "palette", "original_ids"} - set(content["meta"])
    except Exception:  # msgpack raises half a dozen classes for bytes that are something else
        raise UserError(
            f"{source} is not seamseg's metadata.bin; give the file that lies beside the data or model"
        ) from None
    if missing:
        raise UserError(
            f"{source}: its meta part has no {', '.join(sorted(missing))}; it is not seamseg's metadata.bin"
        )
    return content


def metadata_classes(meta: dict[str, Any]) -> Classes:
    """Names, colours and ids of the "meta" part."""
    return Classes(
        names=[str(n) for n in meta["categories"]],
        colors=[tuple(int(v) for v in c) for c in meta["palette"][: len(meta["categories"])]],
        dataset_ids=[int(i) for i in meta["original_ids"]],
        num_stuff=int(meta["num_stuff"]),
    )


def _find_photo(root: Path, image_id: str) -> Path:
    for suffix in (".png", ".jpg"):
        path = root / "img" / f"{image_id}{suffix}"
        if path.is_file():
            return path
    raise UserError(f"{root / 'img' / image_id}.png or .jpg does not exist; the data set is incomplete")


def list_splits(root: Path) -> list[str]:
    """Names of the splits.

    Raises:
        UserError: ``root`` is no data set of the original.
    """
    for name in ("metadata.bin", "img", "msk", "lst"):
        if not (root / name).exists():
            raise UserError(f"{root} has no {name}; it is not a data set in seamseg's format")
    return sorted(p.stem for p in (root / "lst").glob("*.txt"))


def read_split(root: Path, split: str) -> tuple[list[dict[str, Any]], Classes]:
    """Records in Detectron2's format, and the classes.

    Raises:
        UserError: files missing, overlapping layers, an id that metadata.bin does not know, class out of range.
    """
    list_file = root / "lst" / f"{split}.txt"
    if not list_file.is_file():
        raise UserError(f"{list_file} does not exist; the splits are {', '.join(list_splits(root)) or 'none'}")
    content = read_metadata((root / "metadata.bin").read_bytes(), str(root / "metadata.bin"))
    classes = metadata_classes(content["meta"])
    images = {image["id"]: image for image in content.get("images", [])}
    records = []
    for image_id in list_file.read_text(encoding="utf-8").split():
        image = images.get(image_id)
        if image is None:
            raise UserError(f"{root / 'metadata.bin'} does not describe image {image_id} of {list_file.name}")
        mask = root / "msk" / f"{image_id}.png"
        if not mask.is_file():
            raise UserError(f"{mask} does not exist; the data set is incomplete")
        if (root / "msk" / f"{image_id}.png.1").exists():
            raise UserError(f"{mask} has overlapping layers ({image_id}.png.1); panoptic truth has one layer")
        segments = []
        for index, (label, crowd) in enumerate(zip(image["cat"], image["iscrowd"], strict=True)):
            if index == 0 or label == VOID_LABEL:
                continue
            if not 0 <= label < len(classes.names):
                raise UserError(f"{root / 'metadata.bin'}: image {image_id} has class {label} of {len(classes.names)}")
            isthing = label >= classes.num_stuff
            segments.append(
                {
                    "id": index,
                    "isthing": isthing,
                    "category_id": label - classes.num_stuff if isthing else label,
                    "iscrowd": int(crowd),
                }
            )
        height, width = image["size"]
        records.append(
            {
                "file_name": str(_find_photo(root, image_id)),
                "image_id": image_id,
                "height": int(height),
                "width": int(width),
                "pan_seg_file_name": str(mask),
                "sem_seg_file_name": str(mask),
                "segments_info": segments,
            }
        )
    return records, classes


def register_seamseg(name: str, root: str | Path, split: str) -> None:
    """Register a split of a data set in the original's format; nothing is converted or copied.

    Args:
        name: key for ``DATASETS.TRAIN`` / ``DATASETS.TEST``.
        root: folder with metadata.bin, img/, msk/, lst/.
        split: name of lst/SPLIT.txt.

    Raises:
        UserError: see ``read_split``, or ``name`` already taken.
    """
    root = Path(root)
    list_splits(root)
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("seamseg_root") == str(root):
            return
        raise UserError(f"a data set called {name!r} is already registered; choose another name")
    records, classes = read_split(root, split)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        **classes.to_metadata(),
        seamseg_root=str(root),
        image_root=str(root / "img"),
        evaluator_type="coco_panoptic_seg",
    )


def _convert_record(record: dict[str, Any], image_root: Path, dataset_ids: list[int], num_stuff: int) -> PanopticImage:
    ids = read_id_map(record["pan_seg_file_name"])
    segments = [
        {
            "id": s["id"],
            "category_id": dataset_ids[s["category_id"] + (num_stuff if s["isthing"] else 0)],
            "iscrowd": s["iscrowd"],
        }
        for s in record["segments_info"]
    ]
    ids[~np.isin(ids, [s["id"] for s in segments])] = 0
    photo = Path(record["file_name"]).relative_to(image_root).as_posix()
    png = Path(photo).with_suffix(".png").as_posix()
    return PanopticImage(photo, png, ids, segments, {"id": record["image_id"]})


def export_records(
    records: list[dict[str, Any]],
    classes: Classes,
    image_root: Path,
    panoptic_json: Path,
    instance_json: Path | None = None,
    workers: int | None = None,
) -> None:
    """Write records of any registered data set as COCO panoptic."""
    write_panoptic_dataset(
        records,
        [r["file_name"] for r in records],
        partial(_convert_record, image_root=image_root, dataset_ids=classes.dataset_ids, num_stuff=classes.num_stuff),
        png_dir=panoptic_json.with_suffix(""),
        panoptic_json=panoptic_json,
        instance_json=instance_json,
        categories=classes.to_categories(),
        workers=workers,
        description=panoptic_json.stem,
    )


def prepare_seamseg(root: str | Path, workers: int | None = None) -> list[Path]:
    """Write ROOT/panoptic_SPLIT.json, the folder of that name and instances_SPLIT.json for every split."""
    root = Path(root)
    written = []
    for split in list_splits(root):
        records, classes = read_split(root, split)
        output = root / f"panoptic_{split}.json"
        export_records(records, classes, root / "img", output, root / f"instances_{split}.json", workers)
        written.append(output)
    return written


def write_seamseg(
    root: str | Path, splits: dict[str, tuple[str | Path, str | Path, str | Path]], link: bool = False
) -> None:
    """Write a data set in the original's format from COCO-panoptic ones with the same categories.

    Args:
        root: folder to write.
        splits: name -> (image folder, PNG folder, json).
        link: link the photos instead of copying them.

    Raises:
        UserError: photos that are neither PNG nor JPEG, two photos of one name, different categories.
    """
    root = Path(root)
    for folder in ("img", "msk", "lst", "coco"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    described, first, seen = [], None, set()
    for split, (image_dir, png_dir, panoptic_json) in splits.items():
        records, classes = load_panoptic_json(Path(image_dir), Path(png_dir), Path(panoptic_json))
        if first is not None and classes != first:
            raise UserError(f"{panoptic_json} has other categories than the json before; a data set has one list")
        first = first or classes
        names, images, instances = [], [], []
        for record in tqdm(records, desc=split, unit="image"):
            photo = Path(record["file_name"])
            suffix = {".jpeg": ".jpg"}.get(photo.suffix.lower(), photo.suffix.lower())
            if suffix not in (".png", ".jpg"):
                raise UserError(f"{photo} is neither PNG nor JPEG, which is all that seamseg reads; convert it")
            if photo.stem in seen:
                raise UserError(f"two photos are called {photo.stem}; names must be distinct")
            seen.add(photo.stem)
            names.append(photo.stem)
            described.append(_write_image(root, photo, suffix, record, classes, link))
            ids = read_id_map(record["pan_seg_file_name"])
            label_ids = [
                {**s, "category_id": classes.dataset_ids[s["category_id"] + (classes.num_stuff if s["isthing"] else 0)]}
                for s in record["segments_info"]
            ]
            images.append({"id": photo.stem, "height": record["height"], "width": record["width"]})
            things = set(classes.dataset_ids[classes.num_stuff :])
            for annotation in instance_annotations(ids, measure_segments(ids, label_ids), things):
                instances.append({"id": len(instances) + 1, "image_id": photo.stem, **annotation})
        with atomic_write(root / "lst" / f"{split}.txt", "w") as file:
            file.write("".join(f"{name}\n" for name in names))
        categories = thing_categories(first.to_categories())
        write_json(
            root / "coco" / f"{split}.json",
            {"images": images, "annotations": instances, "categories": categories},
        )
    meta = {
        "num_stuff": first.num_stuff,
        "num_thing": first.num_things,
        "categories": first.names,
        "palette": [list(c) for c in first.colors],
        "original_ids": first.dataset_ids,
    }
    with atomic_write(root / "metadata.bin") as file:
        file.write(msgpack.packb({"images": described, "meta": meta}))


def _write_image(
    root: Path, photo: Path, suffix: str, record: dict[str, Any], classes: Classes, link: bool
) -> dict[str, Any]:
    """Photo and mask of one image; returns its entry of metadata.bin."""
    ids = read_id_map(record["pan_seg_file_name"])
    order = {0: 0, **{s["id"]: k for k, s in enumerate(record["segments_info"], 1)}}
    values, inverse = np.unique(ids, return_inverse=True)
    unknown = [v for v in values.tolist() if v not in order]
    if unknown:
        raise UserError(f"{record['pan_seg_file_name']} holds id {unknown[0]}, which its json does not list")
    index = np.array([order[v] for v in values.tolist()])[inverse].reshape(ids.shape)
    with atomic_write(root / "msk" / f"{photo.stem}.png") as file:
        Image.fromarray(index.astype(np.uint8 if len(order) <= 256 else np.uint16)).save(file, format="PNG")
    target = root / "img" / f"{photo.stem}{suffix}"
    if not target.exists():
        if link:
            target.symlink_to(photo.resolve())
        else:
            with open(photo, "rb") as source, atomic_write(target) as file:
                shutil.copyfileobj(source, file)
    return {
        "id": photo.stem,
        "cat": [VOID_LABEL]
        + [s["category_id"] + (classes.num_stuff if s["isthing"] else 0) for s in record["segments_info"]],
        "size": [record["height"], record["width"]],
        "iscrowd": [0] + [s["iscrowd"] for s in record["segments_info"]],
    }


def describe_json(path: str | Path) -> str:
    """The two class counts that a config needs."""
    classes = Classes.from_categories(read_json(path, "panoptic json")["categories"], str(path))
    return (
        f"{path}: MODEL.SEM_SEG_HEAD.NUM_CLASSES {len(classes.names)} MODEL.ROI_HEADS.NUM_CLASSES {classes.num_things}"
    )
