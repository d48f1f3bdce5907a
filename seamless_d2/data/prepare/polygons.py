"""Conversion of a COCO detection json with polygons or RLE (Roboflow, CVAT, Label Studio, ...) to COCO panoptic.

Regions in such exports belong to things and stuff, overlap and have no depth order. Larger regions are painted below
smaller ones, and all regions of one stuff class are one segment.
"""

from collections import Counter, defaultdict
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

from ...errors import UserError
from ...io import open_image, read_image_size, summarize_failures
from ...structures.coco_json import DetectionJson, read_json_as
from .class_list import read_class_list
from .outputs import first_repeated
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


def convert_image(
    item: tuple[dict[str, Any], list[dict[str, Any]]], image_dir: Path, things: set[int]
) -> PanopticImage:
    """Paint the regions of one image, the largest first.

    Args:
        item: A ``CocoImage`` and the ``CocoRegion`` of its annotations, as dicts.
        image_dir: The folder of the images.
        things: The category ids of the things.

    Raises:
        UserError: The image has another size than the json says.
        ValueError: See ``region_mask``.
    """
    image, annotations = item
    name, height, width = image["file_name"], image["height"], image["width"]
    _check_size(image_dir / name, height, width)
    # Masks are decoded twice instead of kept, because an image may have hundreds.
    regions = [a for a in annotations if a["segmentation"]]
    areas = [int(np.count_nonzero(region_mask(a["segmentation"], height, width))) for a in regions]
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
    visible = (np.bincount(ids.ravel(), minlength=len(segments) + 1) > 0).tolist()
    left_out = {
        "regions without polygons or runs": len(annotations) - len(regions),
        "regions without a pixel in their image": areas.count(0),
        "things hidden by smaller regions": sum(
            not visible[segment["id"]] and areas[key] > 0 for key, segment in segments.items() if isinstance(key, int)
        ),
        "images without a region, which are void": int(not any(visible[1:])),
    }
    png = Path(name).with_suffix(".png").as_posix()
    return PanopticImage(name, png, ids, list(segments.values()), left_out=left_out)


def _check_size(path: Path, height: int, width: int) -> None:
    """Raise ``UserError`` if an image, as stored or rotated as its EXIF data say, has another size."""
    with open_image(path) as image:
        stored = image.size[::-1]
    if (height, width) not in (stored, read_image_size(path)):
        raise UserError(
            f"{path} is {stored[1]} x {stored[0]} pixels, but the json says {width} x {height}; mend the json"
        )


def _find_image(image_dir: Path, name: str) -> str:
    r"""Return the path of an image below its folder.

    Label Studio writes names such as ``..\..\media\upload\1\a.jpg``, of which a part is found in the folder.
    """
    parts = name.split("\\")
    if len(parts) > 1 and not (image_dir / name).is_file():
        for start in range(len(parts)):
            part = "/".join(parts[start:])
            if ".." not in parts[start:] and not part.startswith("/") and (image_dir / part).is_file():
                return part
    return name


def _choose_categories(
    content: DetectionJson, things: Collection[str], class_list: Path | None, source: Path
) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """Return the categories of the data set, and the id of each category of the export that has regions.

    Raises:
        UserError: A thing is no category, two categories have one name, or a class is not in the list.
    """
    used = {region.category_id for region in content.annotations if region.segmentation}
    if not used:
        raise UserError(f"{source} has no annotations with a segmentation; export the data set with polygons or masks")
    if class_list is not None:
        categories = read_class_list(class_list)
        ids = {category["name"]: category["id"] for category in categories}
        unknown = [c.name for c in content.categories if c.id in used and c.name not in ids]
        if unknown:
            raise UserError(f"{source} has regions of {unknown[0]!r}, which {class_list} does not list; add a line")
        return categories, {c.id: ids[c.name] for c in content.categories if c.id in used}
    names = Counter(category.name for category in content.categories)
    unknown = [name for name in things if name not in names]
    if unknown:
        raise UserError(f"{source} has no category {unknown[0]!r}; its categories are {', '.join(sorted(names))}")
    # Roboflow writes the name of the data set as a category above the others, which may be called like one of them.
    roots = {category.supercategory for category in content.categories}
    kept = [c for c in content.categories if c.id in used or not (c.name in roots or names[c.name] > 1)]
    repeated = first_repeated([category.name for category in kept])
    if repeated is not None:
        raise UserError(f"{source} has two categories called {repeated!r}; rename one")
    categories = [
        {"id": c.id, "name": c.name, "isthing": int(c.name in things)}
        | ({"color": list(c.color)} if isinstance(c.color, tuple) else {})
        for c in kept
    ]
    return categories, {id: id for id in used}


def _read(source: Path) -> DetectionJson:
    """Read and check a detection json."""
    content = read_json_as(source, "detection json", DetectionJson)
    repeated = first_repeated([image.id for image in content.images])
    if repeated is not None:
        raise UserError(f"{source} lists two images with id {repeated}; make the ids distinct")
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
    things: Collection[str],
    output: str | Path,
    image_dir: str | Path,
    *,
    class_list: str | Path | None = None,
    **options: Unpack[WriterOptions],
) -> Path:
    """Write OUTPUT.json (panoptic), the folder OUTPUT/ of PNGs and OUTPUT_instances.json.

    Args:
        source: The detection json.
        things: The names of the countable classes; all others are stuff.
        output: The panoptic json.
        image_dir: The folder of the images, which must exist.
        class_list: A file of classes (see ``read_class_list``) that several splits share, in place of ``things`` and of
            the json's categories, to which it is matched by names.
        options: See ``write_panoptic_dataset``.

    Returns:
        The path of the panoptic json.

    Raises:
        UserError: The json is malformed, classes do not agree, or images are missing.
    """
    source, output, image_dir = Path(source), Path(output), Path(image_dir)
    if output.suffix != ".json" or output.resolve() == source.resolve():
        raise UserError(f"the output {output} must be another file than {source} and end in .json; choose another name")
    content = _read(source)
    categories, ids = _choose_categories(content, things, class_list and Path(class_list), source)
    by_image = defaultdict(list)
    for region in content.annotations:
        region.category_id = ids.get(region.category_id, region.category_id)
        by_image[region.image_id].append(region)
    for image in content.images:
        image.file_name = _find_image(image_dir, image.file_name)
    lacking = [i.file_name for i in content.images if not (image_dir / i.file_name).is_file()]
    if lacking:
        raise UserError(
            f"{len(lacking)} images of {source} are not in {image_dir} (check --images):\n  "
            f"{summarize_failures(lacking)}"
        )
    twin = first_repeated([Path(i.file_name).with_suffix("").as_posix() for i in content.images])
    if twin is not None:
        raise UserError(f"{source} lists two images called {twin}; their PNGs would be one file, rename one")
    write_panoptic_dataset(
        msgspec.to_builtins([(image, by_image[image.id]) for image in content.images]),
        [image.file_name for image in content.images],
        partial(convert_image, image_dir=image_dir, things={c["id"] for c in categories if c["isthing"]}),
        inputs=[[image_dir / image.file_name] for image in content.images],
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
