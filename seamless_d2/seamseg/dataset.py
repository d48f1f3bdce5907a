"""Data sets in the original's format, read directly.

metadata.bin (MessagePack), lst/SPLIT.txt (image ids), img/ID.png or .jpg, msk/ID.png (per pixel the index into that
image's lists "cat" and "iscrowd", 0 = void), coco/SPLIT.json.
"""

from pathlib import Path
from typing import Any

import msgspec
from detectron2.data import DatasetCatalog, MetadataCatalog
from msgspec import Struct

from ..data.registration import register_records
from ..errors import UserError
from ..io import read_bytes, read_text
from ..limits import check_pixels
from ..structures.classes import VOID_LABEL, Classes
from ..structures.coco_json import CategoryId, Channel, Color, Flag, Name, Side


class ImageEntry(Struct):
    """An image of metadata.bin: ``cat`` and ``iscrowd`` describe the indices of its mask."""

    id: Name
    cat: list[Channel]
    size: tuple[Side, Side]
    iscrowd: list[Flag]

    def __post_init__(self) -> None:
        check_pixels(self.size[1], self.size[0], f"image {self.id}")


class ClassLists(Struct):
    """The part "meta" of metadata.bin: the classes in the order of their semantic labels."""

    num_stuff: int
    num_thing: int
    categories: list[Name]
    palette: list[Color]
    original_ids: list[CategoryId]

    def __post_init__(self) -> None:
        if self.num_stuff + self.num_thing != len(self.categories):
            raise ValueError("num_stuff and num_thing do not add up to the number of categories")


class Metadata(Struct):
    """The content of a metadata.bin; that of a model has no images."""

    meta: ClassLists
    images: list[ImageEntry] = []


def read_metadata(data: bytes, source: str) -> tuple[Classes, list[ImageEntry]]:
    """Return the classes and the images of the content of a metadata.bin.

    Raises:
        UserError: It is no MessagePack, or does not follow the schema.
    """
    try:
        content = msgspec.msgpack.decode(data, type=Metadata)
        meta = content.meta
        colors = meta.palette[: len(meta.categories)]  # the original pads it
        return Classes(meta.categories, colors, meta.original_ids, meta.num_stuff), content.images
    except (msgspec.DecodeError, RecursionError, UserError) as error:
        raise UserError(
            f"{source} is not seamseg's metadata.bin ({error}); give the file that lies beside the data or model"
        ) from None


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
    file = root / "metadata.bin"
    classes, described = read_metadata(read_bytes(file, "metadata"), str(file))
    images = {image.id: image for image in described}
    records = []
    for image_id in filter(None, map(str.strip, read_text(list_file, "list of images").splitlines())):
        image = images.get(image_id)
        if image is None:
            raise UserError(
                f"{file} does not describe image {image_id} of {list_file}; take the file that was made with these "
                "images"
            )
        mask = root / "msk" / f"{image_id}.png"
        if not mask.is_file():
            raise UserError(f"{mask} does not exist; the data set is incomplete")
        if (root / "msk" / f"{image_id}.png.1").exists():
            raise UserError(
                f"{mask} has overlapping layers ({image_id}.png.1); panoptic ground truth has one, merge them"
            )
        segments = []
        if len(image.cat) != len(image.iscrowd) or VOID_LABEL in image.cat[1:]:
            raise UserError(
                f"{file}: the lists of image {image_id} have different lengths, or a void class after the first place; "
                "make the file again"
            )
        for index, (label, crowd) in enumerate(zip(image.cat[1:], image.iscrowd[1:], strict=True), 1):
            if label >= len(classes.names):
                raise UserError(
                    f"{file}: image {image_id} has class {label} of {len(classes.names)}; make the file again"
                )
            segments.append({"id": index, **classes.from_label(label), "iscrowd": int(crowd)})
        records.append(
            {
                "file_name": str(_find_image(root, image_id)),
                "image_id": image_id,
                "height": image.size[0],
                "width": image.size[1],
                "pan_seg_file_name": str(mask),
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
    register_records(
        name,
        records,
        classes,
        seamseg_source=(str(root), split),
        image_root=str(root / "img"),
        evaluator_type="coco_panoptic_seg",
    )
