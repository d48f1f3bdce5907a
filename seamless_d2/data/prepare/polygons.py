"""Conversion of a COCO detection json with polygons or RLE (Roboflow, CVAT, Label Studio, ...) to COCO panoptic.

Regions in such exports belong to things and stuff, overlap and have no depth order. Larger regions are painted below
smaller ones, and all regions of one stuff class are one segment.
"""

from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

from ...errors import UserError
from ...io import summarize_failures
from ...structures.coco_json import DetectionJson, read_json_as
from .writer import PanopticImage, WriterOptions, write_panoptic_dataset

#: The longest outline of a polygon in pixels. The decoder takes 40 bytes for each, and any number for NaN.
MAX_OUTLINE = 10_000_000


def region_mask(segmentation: list[list[float]] | dict[str, Any], height: int, width: int) -> np.ndarray:
    """Decode a COCO segmentation.

    Args:
        segmentation: Polygons (those of fewer than three points have no area), or compressed or uncompressed RLE, as
            ``CocoRegion`` describes them.
        height, width: The size of the image in pixels.

    Returns:
        (height, width) bool mask.

    Raises:
        ValueError: A polygon is not finite or far outside of the image, or an RLE has another size than the image.
    """
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        for polygon in polygons:
            _check_outline(polygon)
        if not polygons:
            return np.zeros((height, width), bool)
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    else:
        size, counts = segmentation["size"], segmentation["counts"]
        if list(size) != [height, width]:
            raise ValueError(f"an RLE is {size[1]} x {size[0]} pixels, its image {width} x {height}")
        counts = _decompress(counts) if isinstance(counts, str) else counts
        # The decoder checks neither that runs cover the mask, nor where a damaged text ends.
        if sum(counts) != height * width or min(counts) < 0:
            raise ValueError("the runs of an RLE do not add up to its size")
        rle = coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)
    return coco_mask.decode(rle).astype(bool)


def _check_outline(polygon: list[float]) -> None:
    if len(polygon) % 2:
        raise ValueError(f"a polygon has {len(polygon)} numbers, an odd count; it needs x and y of each point")
    points = np.array(polygon).reshape(-1, 2)
    length = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() + np.abs(points).max()
    if not length <= MAX_OUTLINE:  # also if it is NaN
        raise ValueError("a polygon is not finite or far outside of the image")


def _decompress(counts: str) -> list[int]:
    """Return the lengths of runs that pycocotools has compressed to a text: differences of signed 5-bit groups."""
    runs: list[int] = []
    value = bits = 0
    for code in counts.encode():
        value |= (code - 48 & 31) << bits
        bits += 5
        if not code - 48 & 32:
            value -= (code - 48 & 16) << bits - 4
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = bits = 0
    return runs


def convert_image(item: tuple[dict[str, Any], list[dict[str, Any]]], things: set[int]) -> PanopticImage:
    """Paint the regions of one image, the largest first.

    Args:
        item: A ``CocoImage`` and the ``CocoRegion`` of its annotations, as dicts.
        things: The category ids of the things.
    """
    image, annotations = item
    height, width = image["height"], image["width"]
    # Masks are decoded twice instead of kept, because an image may have hundreds.
    regions = [a for a in annotations if a["segmentation"]]
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
            crowd = int(isthing and region["iscrowd"])
            segments[key] = {"id": len(segments) + 1, "category_id": category, "iscrowd": crowd}
        ids[region_mask(region["segmentation"], height, width)] = segments[key]["id"]
    name = image["file_name"]
    return PanopticImage(name, Path(name).with_suffix(".png").as_posix(), ids, list(segments.values()))


def _read(source: Path) -> DetectionJson:
    """Read and check a detection json."""
    content = read_json_as(source, "detection json", DetectionJson)
    images = {image.id for image in content.images}
    known = {category.id for category in content.categories}
    for region in content.annotations:
        if region.image_id not in images:
            raise UserError(f"{source}: an annotation has image id {region.image_id}, which is not in images")
        if region.category_id not in known:
            raise UserError(f"{source}: annotations have category {region.category_id}, which is not in categories")
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
    names = {category.name for category in content.categories}
    unknown = [name for name in things if name not in names]
    if unknown:
        raise UserError(f"{source} has no category {unknown[0]!r}; its categories are {', '.join(sorted(names))}")
    used = {region.category_id for region in content.annotations if region.segmentation}
    if not used:
        raise UserError(f"{source} has no annotations with a segmentation; export the data set with polygons or masks")
    categories = [
        {"id": c.id, "name": c.name, "isthing": int(c.name in things)}
        | ({"color": list(c.color)} if isinstance(c.color, tuple) else {})
        for c in content.categories
        if c.id in used
    ]
    by_image = defaultdict(list)
    for region in content.annotations:
        by_image[region.image_id].append(region)
    lacking = [i.file_name for i in content.images if not (image_dir / i.file_name).is_file()]
    if lacking:
        raise UserError(
            f"{len(lacking)} images of {source} are not in {image_dir} (check --images):\n  "
            f"{summarize_failures(lacking)}"
        )
    stems = Counter(Path(i.file_name).with_suffix("").as_posix() for i in content.images)
    twins = [stem for stem, count in stems.items() if count > 1]
    if twins:
        raise UserError(f"{source} lists two images called {twins[0]}; their PNGs would be one file, rename one")
    write_panoptic_dataset(
        msgspec.to_builtins([(image, by_image[image.id]) for image in content.images]),
        [image.file_name for image in content.images],
        partial(convert_image, things={c["id"] for c in categories if c["isthing"]}),
        inputs=[[] for _ in content.images],  # the regions are in the items
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
