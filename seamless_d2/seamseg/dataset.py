"""Data sets in the original's format, read directly.

metadata.bin (MessagePack), lst/SPLIT.txt (image ids), img/ID.png or .jpg, msk/ID.png (per pixel the index into that
image's lists "cat" and "iscrowd", 0 = void), coco/SPLIT.json.
"""

from pathlib import Path
from typing import Any

import msgpack
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from ..structures.classes import VOID_LABEL, Classes


def read_metadata(data: bytes, source: str) -> dict[str, Any]:
    """Parse the content of a metadata.bin; "images" may be missing.

    Raises:
        UserError: It is no MessagePack, or its "meta" part lacks keys of the original.
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
    """Return the classes that the "meta" part describes."""
    return Classes(
        names=[str(n) for n in meta["categories"]],
        colors=[tuple(int(v) for v in c) for c in meta["palette"][: len(meta["categories"])]],
        dataset_ids=[int(i) for i in meta["original_ids"]],
        num_stuff=int(meta["num_stuff"]),
    )


def _find_image(root: Path, image_id: str) -> Path:
    for suffix in (".png", ".jpg"):
        path = root / "img" / f"{image_id}{suffix}"
        if path.is_file():
            return path
    raise UserError(f"{root / 'img' / image_id}.png or .jpg does not exist; the data set is incomplete")


def list_splits(root: Path) -> list[str]:
    """Return the names of the splits.

    Raises:
        UserError: ``root`` is no data set of the original.
    """
    for name in ("metadata.bin", "img", "msk", "lst"):
        if not (root / name).exists():
            raise UserError(f"{root} has no {name}; it is not a data set in seamseg's format")
    return sorted(p.stem for p in (root / "lst").glob("*.txt"))


def read_split(root: Path, split: str) -> tuple[list[dict[str, Any]], Classes]:
    """Read the records of a split in Detectron2's format, and the classes.

    Raises:
        UserError: Files are missing, overlapping layers, an id that metadata.bin does not know, class out of range.
    """
    list_file = root / "lst" / f"{split}.txt"
    if not list_file.is_file():
        raise UserError(f"{list_file} does not exist; the splits are {', '.join(list_splits(root)) or 'none'}")
    content = read_metadata((root / "metadata.bin").read_bytes(), str(root / "metadata.bin"))
    classes = metadata_classes(content["meta"])
    images = {image["id"]: image for image in content.get("images", [])}
    records = []
    for image_id in filter(None, map(str.strip, list_file.read_text(encoding="utf-8").splitlines())):
        image = images.get(image_id)
        if image is None:
            raise UserError(
                f"{root / 'metadata.bin'} does not describe image {image_id} of {list_file}; take the file that was "
                "made with these images"
            )
        mask = root / "msk" / f"{image_id}.png"
        if not mask.is_file():
            raise UserError(f"{mask} does not exist; the data set is incomplete")
        if (root / "msk" / f"{image_id}.png.1").exists():
            raise UserError(
                f"{mask} has overlapping layers ({image_id}.png.1); panoptic ground truth has one, merge them"
            )
        segments = []
        if len(image["cat"]) != len(image["iscrowd"]) or VOID_LABEL in image["cat"][1:]:
            raise UserError(
                f"{root / 'metadata.bin'}: the lists of image {image_id} have different lengths, or a void class after "
                "the first place; make the file again"
            )
        for index, (label, crowd) in enumerate(zip(image["cat"][1:], image["iscrowd"][1:], strict=True), 1):
            if not 0 <= label < len(classes.names):
                raise UserError(
                    f"{root / 'metadata.bin'}: image {image_id} has class {label} of {len(classes.names)}; make the "
                    "file again"
                )
            segments.append({"id": index, **classes.from_label(label), "iscrowd": int(crowd)})
        height, width = image["size"]
        records.append(
            {
                "file_name": str(_find_image(root, image_id)),
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
        name: The name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        root: The folder that holds metadata.bin, img/, msk/ and lst/.
        split: The name of a list lst/SPLIT.txt.

    Raises:
        UserError: ``read_split`` raises it, or ``name`` is already taken.
    """
    root = Path(root)
    list_splits(root)
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("seamseg_source") == (str(root), split):
            return
        raise UserError(f"a data set called {name!r} is already registered; choose another name")
    records, classes = read_split(root, split)
    if not records:
        raise UserError(f"{root / 'lst' / split}.txt lists no image; nothing can be trained or evaluated on it")
    DatasetCatalog.register(name, lambda: records)
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "thing_classes"):
        metadata.set(**classes.to_metadata())
    metadata.set(
        seamseg_source=(str(root), split),
        image_root=str(root / "img"),
        evaluator_type="coco_panoptic_seg",
    )
