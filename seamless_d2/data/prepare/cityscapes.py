"""Cityscapes' official layout -> COCO panoptic, where Detectron2's builtin data sets look for it.

Same segments as cityscapesScripts' createPanopticImgs; the label table is read from that package.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...errors import UserError
from .writer import PanopticImage, write_panoptic_dataset

SPLITS = ("train", "val", "test")
COARSE_SPLITS = ("train", "train_extra", "val")


@dataclass(frozen=True)
class Label:
    """One row of cityscapesScripts' label table."""

    has_instances: bool
    ignored: bool


def label_table() -> tuple[dict[int, Label], list[dict[str, Any]]]:
    """Labels by id, and the categories of the json: all labels that are evaluated, ids as in the official tools.

    Raises:
        UserError: cityscapesScripts is not installed.
    """
    try:
        from cityscapesscripts.helpers.labels import labels
    except ImportError:
        raise UserError(
            "Cityscapes needs the package cityscapesScripts; run `python -m pip install cityscapesscripts`"
        ) from None
    categories = [
        {
            "id": label.id,
            "name": label.name,
            "color": list(label.color),
            "supercategory": label.category,
            "isthing": int(label.hasInstances),
        }
        for label in labels
        if not label.ignoreInEval
    ]
    return {label.id: Label(label.hasInstances, label.ignoreInEval) for label in labels}, categories


def read_instance_png(path: Path) -> np.ndarray:
    """(H, W) int32 of a 16-bit (or 8-bit) PNG.

    Raises:
        UserError: missing, corrupt, or with colours instead of numbers.
    """
    try:
        with Image.open(path) as image:
            array = np.asarray(image)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the release is incomplete") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); get it again") from None
    if array.ndim != 2:
        raise UserError(f"{path} has {array.shape[-1]} channels; an instance map has one")
    return array.astype(np.int32)


def convert_frame(path: Path, labels: dict[int, Label], suffix: str, photo_dir: Path) -> PanopticImage:
    """One ``*_instanceIds.png``: pixel = label id, or 1000 * label id + instance.

    A thing's pixels without instance are a crowd region ("group"). Ignored labels are void.
    """
    ids = read_instance_png(path)
    name = path.name.removesuffix(f"_{suffix}_instanceIds.png")
    photo = f"{path.parent.name}/{name}_leftImg8bit.png"
    if not (photo_dir / photo).is_file():
        raise UserError(f"{photo_dir / photo}, the photo of {path.name}, does not exist")
    segments = []
    void = np.zeros(0, np.int32)
    for value in np.unique(ids).tolist():
        label_id = value if value < 1000 else value // 1000
        label = labels.get(label_id)
        if label is None:
            raise UserError(f"{path} holds value {value}, which is no Cityscapes label")
        if label.ignored:
            void = np.append(void, value)
            continue
        crowd = int(value < 1000 and label.has_instances)
        segments.append({"id": value, "category_id": label_id, "iscrowd": crowd})
    ids[np.isin(ids, void)] = 0
    return PanopticImage(photo, f"{name}_{suffix}_panoptic.png", ids, segments, {"id": name})


def prepare_cityscapes(root: str | Path, coarse: bool = False, workers: int | None = None) -> list[Path]:
    """Write gtFine/cityscapes_panoptic_SPLIT.json, the folder of that name and cityscapes_instances_SPLIT.json.

    Args:
        root: folder with leftImg8bit/ and gtFine/ (or gtCoarse/).
        coarse: convert gtCoarse/ instead.
        workers: processes; default one per CPU.

    Returns:
        The panoptic jsons; splits without annotations (the test set) are left out.

    Raises:
        UserError: layout not found, or files that are wrong.
    """
    root = Path(root)
    suffix = "gtCoarse" if coarse else "gtFine"
    labels, categories = label_table()
    if not (root / suffix).is_dir() or not (root / "leftImg8bit").is_dir():
        raise UserError(f"{root} has no {suffix}/ and leftImg8bit/; give the folder into which Cityscapes was unpacked")
    written = []
    for split in COARSE_SPLITS if coarse else SPLITS:
        files = sorted((root / suffix / split).glob(f"*/*_{suffix}_instanceIds.png"))
        if not files:
            continue
        output = root / suffix / f"cityscapes_panoptic_{split}.json"
        write_panoptic_dataset(
            files,
            [f.name for f in files],
            partial(convert_frame, labels=labels, suffix=suffix, photo_dir=root / "leftImg8bit" / split),
            png_dir=output.with_suffix(""),
            panoptic_json=output,
            instance_json=root / suffix / f"cityscapes_instances_{split}.json",
            categories=categories,
            workers=workers,
            description=f"{suffix} {split}",
        )
        written.append(output)
    if not written:
        raise UserError(f"{root / suffix} holds no *_{suffix}_instanceIds.png; the release is incomplete")
    return written
