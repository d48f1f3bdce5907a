#!/usr/bin/env python
"""An example of a conversion: label PNGs (one semantic, one instance map per image) to COCO panoptic.

    python tools/label_pngs_to_panoptic.py --images images --semantic labels --instance instances \
        --classes classes.txt --output mine/panoptic.json

For IMAGE.jpg, labels/IMAGE.png has the class number of each pixel, and instances/IMAGE.png has, for things, the number
of the object (pixels of things with 0 become a crowd region). classes.txt has a line "NUMBER NAME thing" or
"NUMBER NAME stuff" for each class; numbers without a line are void. To read other files, change `convert`;
`write_panoptic_dataset` does everything else, including parallel work and resuming, and makes again
what has changed.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seamless_d2.data.prepare.writer import (
    PanopticImage,
    add_writer_options,
    get_writer_options,
    write_panoptic_dataset,
)
from seamless_d2.errors import UserError, run_tool


def convert(image: Path, semantic: Path, instance: Path, kinds: dict[int, bool]) -> PanopticImage:
    """Convert the two maps of one image.

    Args:
        image: The image.
        semantic, instance: The folders of the maps.
        kinds: Whether each class number is a thing.
    """
    png = f"{image.stem}.png"
    for folder in (semantic, instance):
        if not (folder / png).is_file():
            raise UserError(f"{folder / png} does not exist")
    labels = np.asarray(Image.open(semantic / png)).astype(np.int64)
    objects = np.asarray(Image.open(instance / png)).astype(np.int64)
    if labels.ndim != 2 or labels.shape != objects.shape:
        raise UserError(f"{semantic / png} and {instance / png} must have one channel and the same size")
    ids = np.zeros(labels.shape, np.int32)
    segments: list[dict[str, Any]] = []
    for number, isthing in kinds.items():
        inside = labels == number
        for object_number in np.unique(objects[inside]) if isthing else [0]:
            mask = inside & (objects == object_number) if isthing else inside
            if mask.any():
                segments.append(
                    {"id": len(segments) + 1, "category_id": number, "iscrowd": int(isthing and object_number == 0)}
                )
                ids[mask] = len(segments)
    return PanopticImage(image.name, png, ids, segments)


def read_classes(path: Path) -> list[dict[str, Any]]:
    """Read the categories of the json from classes.txt."""
    categories = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            fields = line.split()
            if len(fields) != 3 or not fields[0].isdigit() or fields[2] not in ("thing", "stuff"):
                raise UserError(f"{path}: line {line!r} is not 'NUMBER NAME thing' or 'NUMBER NAME stuff'")
            categories.append({"id": int(fields[0]), "name": fields[1], "isthing": int(fields[2] == "thing")})
    return categories


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "semantic", "instance", "classes", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    add_writer_options(parser)
    args = parser.parse_args()
    if not args.classes.is_file():
        raise UserError(f"{args.classes} does not exist; write a line 'NUMBER NAME thing|stuff' per class")
    categories = read_classes(args.classes)
    images = sorted(p for p in args.images.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not images:
        raise UserError(f"{args.images} holds no images (.jpg, .jpeg, .png)")
    kinds = {c["id"]: bool(c["isthing"]) for c in categories}
    write_panoptic_dataset(
        images,
        [p.name for p in images],
        partial(convert, semantic=args.semantic, instance=args.instance, kinds=kinds),
        inputs=[[folder / f"{p.stem}.png" for folder in (args.semantic, args.instance)] for p in images],
        png_dir=args.output.with_suffix(""),
        panoptic_json=args.output,
        instance_json=None,
        categories=categories,
        input_dirs=[args.images, args.semantic, args.instance],
        **get_writer_options(args),
    )
    print(f"wrote {args.output}; check it: tools/prepare_dataset.py validate {args.output} --images {args.images}")


if __name__ == "__main__":
    run_tool(main)
