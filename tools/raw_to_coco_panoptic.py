#!/usr/bin/env python
"""Convert raw predictions (.pth.tar files, also those of the original program) to COCO panoptic files.

    python tools/raw_to_coco_panoptic.py raw/ coco/ --config model.yaml --images images/
    python tools/raw_to_coco_panoptic.py raw/ coco/ --metadata metadata.bin --images images/

The tool writes panoptic.json, panoptic/NAME.png and instances.json (COCO results). Raw files contain neither the
classes nor the sizes of the images: the classes come from --metadata or --config, the sizes from --images (without it,
maps keep the resolution of the network). The thresholds are those of the config, else those of the original. Finished
files are skipped; --overwrite converts them again.
"""

import argparse
from pathlib import Path

from seamless_d2.errors import run_tool
from seamless_d2.seamseg.raw_to_coco import convert_raw, read_classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw_dir", type=Path, help="folder of .pth.tar files")
    parser.add_argument("output_dir", type=Path, help="folder for the results")
    parser.add_argument("--metadata", type=Path, help="the original's metadata.bin")
    parser.add_argument("--config", type=Path, help="yaml of the model")
    parser.add_argument("--images", type=Path, help="folder of the images, of the same structure")
    parser.add_argument("--score-thresh", type=float, help="least score of an instance, 0..1")
    parser.add_argument("--overlap-thresh", type=float, help="largest hidden share of an instance, 0..1")
    parser.add_argument("--stuff-area-thresh", type=int, help="least pixels of a stuff segment at network resolution")
    parser.add_argument("--image-ids", type=Path, metavar="JSON", help="COCO json whose image ids the files use")
    parser.add_argument("--overwrite", action="store_true", help="do finished files again")
    args = parser.parse_args()
    classes, cfg = read_classes(args.metadata, args.config)
    thresholds = {"score_thresh": 0.5, "overlap_thresh": 0.5, "stuff_area_thresh": 4096}
    if cfg is not None:
        combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
        thresholds["score_thresh"] = combine.INSTANCES_CONFIDENCE_THRESH
        thresholds["overlap_thresh"] = combine.OVERLAP_THRESH
        thresholds["stuff_area_thresh"] = combine.STUFF_AREA_LIMIT
    thresholds |= {k: v for k in thresholds if (v := getattr(args, k)) is not None}
    summary = convert_raw(
        args.raw_dir,
        args.output_dir,
        classes,
        images=args.images,
        image_ids=args.image_ids,
        overwrite=args.overwrite,
        **thresholds,
    )
    summary.report(args.output_dir)


if __name__ == "__main__":
    run_tool(main)
