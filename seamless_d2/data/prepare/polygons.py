"""Conversion of a COCO detection json with polygons or RLE (Roboflow, CVAT, Label Studio, ...) to COCO panoptic.

Regions in such exports belong to things and stuff, overlap and have no depth order. Larger regions are painted below
smaller ones, and all regions of one stuff class are one segment.
"""

from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from pycocotools import mask as coco_mask

from ...errors import UserError
from ...io import read_json
from .writer import PanopticImage, WriterOptions, write_panoptic_dataset

KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}


def region_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode a COCO segmentation.

    Args:
        segmentation: Polygons (those of fewer than three points have no area), or compressed or uncompressed RLE.
        height, width: The size of the image in pixels.

    Returns:
        (height, width) bool mask.

    Raises:
        ValueError: The segmentation has none of these forms, or another size.
    """
    try:
        if isinstance(segmentation, list):
            polygons = [[float(value) for value in p] for p in segmentation if len(p) >= 6]
            if not polygons:
                return np.zeros((height, width), bool)
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        elif isinstance(segmentation["counts"], list):
            # The decoder would write runs beyond the number of pixels past the end of the mask.
            if sum(segmentation["counts"]) != segmentation["size"][0] * segmentation["size"][1]:
                raise ValueError("its runs do not add up to its size")
            rle = coco_mask.frPyObjects(segmentation, *segmentation["size"])
        else:
            rle = segmentation
        mask = coco_mask.decode(rle).astype(bool)
    except (TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(f"a segmentation is neither polygons nor RLE ({error})") from None
    if mask.shape != (height, width):
        raise ValueError(f"an RLE is {mask.shape[1]} x {mask.shape[0]} pixels, its image {width} x {height}")
    return mask


def convert_image(item: tuple[dict[str, Any], list[dict[str, Any]]], things: set[int]) -> PanopticImage:
    """Paint the regions of one image, the largest first.

    Args:
        item: The image entry of the json and its annotations.
        things: The category ids of the things.
    """
    image, annotations = item
    height, width = int(image["height"]), int(image["width"])
    # Masks are decoded twice instead of kept, because an image may have hundreds.
    regions = [a for a in annotations if a.get("segmentation")]
    areas = [np.count_nonzero(region_mask(a["segmentation"], height, width)) for a in regions]
    ids = np.zeros((height, width), np.int32)
    segments: dict[Any, dict[str, Any]] = {}
    # Of regions with equal areas, the later one in the file is on top.
    for number in sorted(range(len(regions)), key=lambda n: -areas[n]):
        region = regions[number]
        category = region["category_id"]
        isthing = category in things
        key = number if isthing else ("stuff", category)
        if key not in segments:
            crowd = int(isthing and bool(region.get("iscrowd", 0)))
            segments[key] = {"id": len(segments) + 1, "category_id": category, "iscrowd": crowd}
        ids[region_mask(region["segmentation"], height, width)] = segments[key]["id"]
    name = image["file_name"]
    return PanopticImage(name, Path(name).with_suffix(".png").as_posix(), ids, list(segments.values()))


def _read(source: Path) -> dict[str, Any]:
    """Read and check a detection json."""
    content = read_json(source, "detection json")
    for kind, keys in KEYS.items():
        if not isinstance(content, dict) or not content.get(kind):
            raise UserError(f"{source} has no {kind}; a COCO detection json has images, annotations and categories")
        for entry in content[kind]:
            lacking = [key for key in keys if key not in entry]
            if lacking:
                raise UserError(f"{source}: an entry of {kind} has no {lacking[0]}: {str(entry)[:100]}; add it")
    images = {image["id"] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in images:
            raise UserError(f"{source}: an annotation has image id {annotation['image_id']}, which is not in images")
    known = {c["id"] for c in content["categories"]}
    strange = {a["category_id"] for a in content["annotations"]} - known
    if strange:
        raise UserError(f"{source}: annotations have category {min(strange)}, which is not in categories; add it")
    return content


def prepare_polygons(
    source: str | Path,
    things: list[str],
    output: str | Path,
    image_dir: str | Path,
    **options: Unpack[WriterOptions],
) -> Path:
    """Write OUTPUT.json (panoptic), the folder OUTPUT/ of PNGs and OUTPUT_instances.json.

    Args:
        source: The detection json.
        things: The names of the countable classes; all others are stuff. Classes without regions are left out.
        output: The panoptic json.
        image_dir: The folder of the images, which must exist.
        options: See ``write_panoptic_dataset``.

    Returns:
        The path of the panoptic json.

    Raises:
        UserError: The json is malformed, a thing is no category, or images are missing.
    """
    source, output, image_dir = Path(source), Path(output), Path(image_dir)
    if output.suffix != ".json" or output.resolve() == source.resolve():
        raise UserError(f"the output {output} must be another file than {source} and end in .json; choose another name")
    content = _read(source)
    # In exports of Roboflow a name may occur twice, as the root category and as a class below it.
    names = {c["name"] for c in content["categories"]}
    unknown = [name for name in things if name not in names]
    if unknown:
        listed = ", ".join(map(str, sorted(names)))
        raise UserError(f"{source} has no category {unknown[0]!r}; its categories are {listed}")
    used = {a["category_id"] for a in content["annotations"] if a.get("segmentation")}
    if not used:
        raise UserError(f"{source} has boxes but no segmentation; export the data set with polygons or masks")
    categories = [
        {"id": c["id"], "name": c["name"], "isthing": int(c["name"] in things)}
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
        named = ", ".join(lacking[:10]) + (", ..." if len(lacking) > 10 else "")
        raise UserError(f"{len(lacking)} images of {source} are not in {image_dir} (check --images): {named}")
    stems = Counter(Path(i["file_name"]).with_suffix("").as_posix() for i in images)
    twins = [stem for stem, count in stems.items() if count > 1]
    if twins:
        raise UserError(f"{source} lists two images called {twins[0]}; their PNGs would be one file, rename one")
    write_panoptic_dataset(
        [(image, by_image[image["id"]]) for image in images],
        [image["file_name"] for image in images],
        partial(convert_image, things={c["id"] for c in categories if c["isthing"]}),
        inputs=[[] for _ in images],  # the regions are in the items
        png_dir=output.with_suffix(""),
        panoptic_json=output,
        instance_json=output.with_name(f"{output.stem}_instances.json"),
        categories=categories,
        image_dir=image_dir,
        input_dirs=[image_dir],
        description=output.stem,
        **options,
    )
    return output
