"""A COCO detection json with polygons or RLE (Roboflow, CVAT, Label Studio, ...) -> COCO panoptic.

Such exports mix things and stuff, overlap and know no depth order: larger regions are painted below smaller ones, and
regions of one stuff class are one segment.
"""

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...errors import UserError
from ..register import read_json
from .writer import PanopticImage, write_panoptic_dataset


def region_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(H, W) bool of a COCO segmentation: polygons, or RLE compressed or not.

    Raises:
        ValueError: none of these.
    """
    try:
        if isinstance(segmentation, list):
            polygons = [p for p in segmentation if len(p) >= 6]
            if not polygons:
                return np.zeros((height, width), bool)
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        elif isinstance(segmentation["counts"], list):
            rle = coco_mask.frPyObjects(segmentation, height, width)
        else:
            rle = segmentation
        mask = coco_mask.decode(rle).astype(bool)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"a segmentation is neither polygons nor RLE ({error})") from None
    if mask.shape != (height, width):
        raise ValueError(f"an RLE is {mask.shape[1]} x {mask.shape[0]} pixels, its image {width} x {height}")
    return mask


def convert_image(item: tuple[dict[str, Any], list[dict[str, Any]]], things: set[int]) -> PanopticImage:
    """Paint the regions of one image, the largest first."""
    image, annotations = item
    height, width = int(image["height"]), int(image["width"])
    regions = [(region_mask(a["segmentation"], height, width), a) for a in annotations if a.get("segmentation")]
    # Equal areas keep their order in the file: the later one is on top.
    regions.sort(key=lambda region: -int(region[0].sum()))
    ids = np.zeros((height, width), np.int32)
    segments: dict[Any, dict[str, Any]] = {}
    for number, (mask, annotation) in enumerate(regions):
        category = annotation["category_id"]
        key = number if category in things else ("stuff", category)
        if key not in segments:
            crowd = int(bool(annotation.get("iscrowd", 0))) if category in things else 0
            segments[key] = {"id": len(segments) + 1, "category_id": category, "iscrowd": crowd}
        ids[mask] = segments[key]["id"]
    name = image["file_name"]
    return PanopticImage(name, Path(name).with_suffix(".png").as_posix(), ids, list(segments.values()))


def prepare_polygons(
    source: str | Path, things: list[str], output: str | Path, image_dir: str | Path, workers: int | None = None
) -> Path:
    """Write OUTPUT.json (panoptic), the folder OUTPUT/ of PNGs and OUTPUT_instances.json.

    Args:
        source: the detection json.
        things: names of the countable classes; all others are stuff. Classes that no region has are left out.
        output: the panoptic json.
        image_dir: folder of the photos; they must exist.
        workers: processes; default one per CPU.

    Raises:
        UserError: malformed json, a thing that is no category, photos missing.
    """
    source, output, image_dir = Path(source), Path(output), Path(image_dir)
    content = read_json(source, "detection json")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not content.get(key):
            raise UserError(f"{source} has no {key}; a COCO detection json has images, annotations and categories")
    names = {c["name"]: c["id"] for c in content["categories"]}
    unknown = [name for name in things if name not in names]
    if unknown:
        raise UserError(f"{source} has no category {unknown[0]!r}; its categories are {', '.join(names)}")
    thing_ids = {names[name] for name in things}
    used = {a["category_id"] for a in content["annotations"]}
    strange = used - set(names.values())
    if strange:
        raise UserError(f"{source}: annotations have category {min(strange)}, which is not in categories")
    categories = [
        {"id": c["id"], "name": c["name"], "isthing": int(c["id"] in thing_ids)}
        | ({"color": c["color"]} if isinstance(c.get("color"), list) else {})
        for c in content["categories"]
        if c["id"] in used
    ]
    by_image = defaultdict(list)
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    images = content["images"]
    lacking = [i["file_name"] for i in images if not (image_dir / i["file_name"]).is_file()]
    if lacking:
        raise UserError(f"{len(lacking)} photos of {source} are not in {image_dir}, the first is {lacking[0]}")
    write_panoptic_dataset(
        [(image, by_image[image["id"]]) for image in images],
        [image["file_name"] for image in images],
        partial(convert_image, things=thing_ids),
        png_dir=output.with_suffix(""),
        panoptic_json=output,
        instance_json=output.with_name(f"{output.stem}_instances.json"),
        categories=categories,
        workers=workers,
        description=output.stem,
    )
    return output
