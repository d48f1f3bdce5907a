"""Conversion of Cityscapes in its official layout to COCO panoptic, where Detectron2's builtin data sets expect it.

The segments are those of createPanopticImgs of cityscapesScripts; the labels are Detectron2's evaluated ones.
"""

from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from PIL import Image

from ...errors import UserError
from ...io import atomic_write, read_instance_png
from ...structures.classes import VOID_LABEL
from ...structures.id_maps import present_ids, replace_ids
from .writer import PanopticImage, WriterOptions, write_panoptic_dataset

SPLITS = ("train", "train_extra", "val", "test")
EVALUATED = {category["id"]: category for category in CITYSCAPES_CATEGORIES}
#: The number of labels, 0..33, of which 19 are evaluated.
NUM_LABELS = 34
#: The label "license plate" (-1) as unsigned numbers: the official tools do not draw it, but other tools do.
LICENSE_PLATE = (255, 65535)


def make_categories() -> list[dict[str, Any]]:
    """Return the categories of the json: the evaluated labels with their official ids."""
    return [{key: c[key] for key in ("id", "name", "color", "isthing")} for c in CITYSCAPES_CATEGORIES]


def convert_frame(path: Path, suffix: str, image_dir: Path) -> PanopticImage:
    """Convert an ``*_instanceIds.png``, whose pixels are label ids, or 1000 * label id + instance.

    Pixels of a thing without an instance are a crowd region ("group"). Labels that are not evaluated are void. If
    ``*_labelTrainIds.png``, which Detectron2's builtin data sets need, is missing, it is written too; one with other
    labels is refused.

    Args:
        path: The PNG.
        suffix: "gtFine" or "gtCoarse".
        image_dir: The folder of the images of the split.

    Raises:
        UserError: The PNG or its image is missing or wrong.
    """
    values = read_instance_png(path)
    name = path.name.removesuffix(f"_{suffix}_instanceIds.png")
    image = f"{path.parent.name}/{name}_leftImg8bit.png"
    if not (image_dir / image).is_file():
        raise UserError(f"{image_dir / image}, the image of {path.name}, does not exist; get leftImg8bit again")
    segments = []
    train_ids = {}
    for value in present_ids(values):
        label = value if value < 1000 else value // 1000
        if label >= NUM_LABELS and value not in LICENSE_PLATE:
            raise UserError(f"{path} holds value {value}, which is no Cityscapes label; get it again")
        category = EVALUATED.get(label)
        train_ids[value] = category["trainId"] if category else VOID_LABEL
        if category:
            crowd = int(value < 1000 and bool(category["isthing"]))
            segments.append({"id": value, "category_id": label, "iscrowd": crowd})
    labels = path.with_name(f"{name}_{suffix}_labelTrainIds.png")
    labels_of_pixels = replace_ids(values, train_ids).astype(np.uint8)
    if not labels.exists():
        with atomic_write(labels) as file:
            Image.fromarray(labels_of_pixels).save(file, format="PNG")
    elif not np.array_equal(read_instance_png(labels), labels_of_pixels):
        raise UserError(f"{labels} contradicts {path.name}; remove it to have it made again")
    ids = replace_ids(values, {segment["id"]: segment["id"] for segment in segments})
    return PanopticImage(image, f"{name}_{suffix}_panoptic.png", ids, segments, {"id": name})


def prepare_cityscapes(root: str | Path, coarse: bool = False, **options: Unpack[WriterOptions]) -> list[Path]:
    """Write gtFine/cityscapes_panoptic_SPLIT.json, the folder of that name and cityscapes_instances_SPLIT.json.

    Args:
        root: The folder with leftImg8bit/ and gtFine/ (or gtCoarse/).
        coarse: Whether gtCoarse/ is converted instead of gtFine/.
        options: See ``write_panoptic_dataset``.

    Returns:
        The paths of the panoptic jsons of the splits that exist.

    Raises:
        UserError: The layout is not found, or files are wrong.
    """
    root = Path(root)
    suffix = "gtCoarse" if coarse else "gtFine"
    for folder in (root / suffix, root / "leftImg8bit"):
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist; give the folder into which Cityscapes was unpacked")
    written = []
    for split in SPLITS:
        files = sorted((root / suffix / split).glob(f"*/*_{suffix}_instanceIds.png"))
        if not files:
            continue
        output = root / suffix / f"cityscapes_panoptic_{split}.json"
        write_panoptic_dataset(
            files,
            [f.name for f in files],
            partial(convert_frame, suffix=suffix, image_dir=root / "leftImg8bit" / split),
            inputs=[[f] for f in files],
            png_dir=output.with_suffix(""),
            panoptic_json=output,
            instance_json=root / suffix / f"cityscapes_instances_{split}.json",
            categories=make_categories(),
            image_dir=root / "leftImg8bit" / split,
            description=f"{suffix} {split}",
            **options,
        )
        written.append(output)
    if not written:
        raise UserError(f"{root / suffix} holds no *_{suffix}_instanceIds.png; the release is incomplete, get it again")
    return written
