#!/usr/bin/env python
"""An example of a conversion: label PNGs (one semantic, one instance map per image) to COCO panoptic.

    python tools/label_pngs_to_panoptic.py --images images --semantic labels --instance instances \
        --classes classes.txt --output mine/panoptic.json

For images/SUB/IMAGE.jpg, labels/SUB/IMAGE.png has the class number of each pixel, and instances/SUB/IMAGE.png has, for
things, the number of the object (pixels of things with 0 become a crowd region). classes.txt has a line "NUMBER NAME
thing" or "NUMBER NAME stuff" for each class; numbers without a line are void. To read other files, change `convert`;
`write_panoptic_dataset` does everything else, including parallel work and resuming, and makes again what has changed.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from seamless_d2.data.prepare.class_list import describe_classes, list_images, read_class_list
from seamless_d2.data.prepare.outputs import first_repeated
from seamless_d2.data.prepare.writer import (
    PanopticImage,
    add_writer_options,
    get_writer_options,
    write_panoptic_dataset,
)
from seamless_d2.errors import UserError, run_tool
from seamless_d2.io import open_image


def read_numbers(path: Path) -> np.ndarray:
    """Read the numbers of all pixels as int64; those of an image with a palette are its indices."""
    with open_image(path, "label map", "mend it") as image:
        return np.asarray(image).astype(np.int64)


def convert(name: str, semantic: Path, instance: Path, kinds: dict[int, bool]) -> PanopticImage:
    """Convert the two maps of one image.

    Args:
        name: The path of the image below the folder of images.
        semantic, instance: The folders of the maps.
        kinds: Whether each class number is a thing.
    """
    png = Path(name).with_suffix(".png").as_posix()
    labels, objects = read_numbers(semantic / png), read_numbers(instance / png)
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
    return PanopticImage(name, png, ids, segments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "semantic", "instance", "classes", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    add_writer_options(parser)
    args = parser.parse_args()
    categories = read_class_list(args.classes)
    images = [path.relative_to(args.images) for path in list_images(args.images)]
    if not images:
        raise UserError(f"{args.images} holds no images (.jpg, .jpeg, .png)")
    maps = {path: [folder / path.with_suffix(".png") for folder in (args.semantic, args.instance)] for path in images}
    labelled = [path.as_posix() for path in images if any(file.is_file() for file in maps[path])]
    repeated = first_repeated([path.with_suffix("") for path in images])
    if repeated is not None:
        raise UserError(f"{args.images} has two images called {repeated}; their labels would be one file, rename one")
    if not labelled:
        raise UserError(f"{args.semantic} has no {images[0].with_suffix('.png')}; check --semantic and --images")
    kinds = {c["id"]: bool(c["isthing"]) for c in categories}
    write_panoptic_dataset(
        labelled,
        labelled,
        partial(convert, semantic=args.semantic, instance=args.instance, kinds=kinds),
        inputs=[maps[Path(name)] for name in labelled],
        png_dir=args.output.with_suffix(""),
        panoptic_json=args.output,
        instance_json=None,
        categories=categories,
        image_dir=args.images,
        input_dirs=[args.semantic, args.instance],
        **get_writer_options(args),
    )
    print(describe_classes(args.output))
    print(f"wrote {args.output}; check it: tools/prepare_dataset.py validate {args.output} --images {args.images}")


if __name__ == "__main__":
    run_tool(main)
