#!/usr/bin/env python
"""Convert data sets of several formats to COCO panoptic (images, id PNGs, one json), and validate them.

    python tools/prepare_dataset.py cityscapes datasets/cityscapes            # [--coarse]
    python tools/prepare_dataset.py vistas datasets/vistas                    # 1.2 and 2.0, either layout
    python tools/prepare_dataset.py seamseg old_data                          # the original's format -> COCO panoptic
    python tools/prepare_dataset.py seamseg new_data --from train images/ panoptic/ panoptic.json    # and back
    python tools/prepare_dataset.py polygons export.json --things car,person --images images --output mine/panoptic.json
    python tools/prepare_dataset.py validate mine/panoptic.json --images images [--fix] [--other val.json val/]

One process per CPU does the work (--workers). An interrupted run goes on where it was, and a
later one converts only images whose labels, PNG, converter or settings have changed (--check-content, --overwrite).
"""

import argparse
from pathlib import Path

from seamless_d2.config import load_config
from seamless_d2.data.prepare.cityscapes import prepare_cityscapes
from seamless_d2.data.prepare.class_list import describe_classes
from seamless_d2.data.prepare.polygons import prepare_polygons
from seamless_d2.data.prepare.validate import validate
from seamless_d2.data.prepare.validation_report import check_report_file, list_files
from seamless_d2.data.prepare.vistas import prepare_vistas
from seamless_d2.data.prepare.writer import add_writer_options, get_writer_options
from seamless_d2.data.registration import datasets_root, find_entry
from seamless_d2.errors import UserError, run_tool
from seamless_d2.io import summarize_failures
from seamless_d2.seamseg.dataset_to_coco import prepare_seamseg, write_seamseg


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("cityscapes", "vistas", "seamseg"):
        command = commands.add_parser(name)
        command.add_argument("root", type=Path, help="folder of the data set")
        add_writer_options(command)
    commands.choices["cityscapes"].add_argument("--coarse", action="store_true", help="convert gtCoarse/")
    commands.choices["seamseg"].add_argument(
        "--from",
        dest="sources",
        nargs=4,
        action="append",
        metavar=("SPLIT", "IMAGES", "PNGS", "JSON"),
        help="write ROOT in the original's format from this COCO-panoptic split; may be repeated",
    )
    commands.choices["seamseg"].add_argument("--link", action="store_true", help="link images instead of copying them")
    command = commands.add_parser("polygons")
    command.add_argument("json", type=Path, help="COCO detection json")
    classes = command.add_mutually_exclusive_group(required=True)
    classes.add_argument("--things", default="", help="countable classes, separated by commas; the rest is stuff")
    classes.add_argument(
        "--classes", type=Path, help="file with a line 'NUMBER NAME thing|stuff' per class, which several splits share"
    )
    command.add_argument("--images", type=Path, required=True, help="folder of the images")
    command.add_argument("--output", type=Path, required=True, help="panoptic json to write")
    add_writer_options(command)
    command = commands.add_parser("validate")
    command.add_argument("json", type=Path, help="panoptic json, or the name of a data set of --config-file")
    command.add_argument("--images", type=Path, help="folder of the images")
    command.add_argument("--panoptic-dir", type=Path, help="folder of the PNGs; default the json's path without .json")
    command.add_argument("--config-file", help="config whose DATASETS.PANOPTIC names the data set")
    command.add_argument(
        "--other", type=Path, nargs=2, metavar=("JSON", "IMAGES"), help="another split, which must not share images"
    )
    command.add_argument("--fix", action="store_true", help="rewrite areas and boxes")
    command.add_argument("--pictures", type=Path, help="new folder for an image per class and a contact sheet")
    command.add_argument("--workers", type=int, help="processes; default one per CPU")
    command.add_argument("--report", type=Path, help="file for all problems and warnings, one json line each")
    return parser.parse_args()


def run_validate(args: argparse.Namespace) -> None:
    """Validate a data set and print the result.

    Raises:
        UserError: The data set has problems, or the arguments are wrong.
    """
    panoptic_json, images, pngs = args.json, args.images, args.panoptic_dir
    if args.config_file:
        _, *paths = find_entry(load_config(args.config_file), str(args.json))
        if len(paths) != 3:
            root = datasets_root() / paths[0]
            raise UserError(
                f"{args.json} is in the original's format; run `prepare_dataset.py seamseg {root}` and validate the "
                "json that it writes"
            )
        images, pngs, panoptic_json = (datasets_root() / path for path in paths)
    elif images is None:
        raise UserError("give the folder of the images with --images, or the data set's config with --config-file")
    if args.report:
        check_report_file(args.report)
    report, categories = validate(
        panoptic_json, images, pngs, fix=args.fix, other=args.other, gallery=args.pictures, workers=args.workers
    )
    print(report.format_table(categories))
    if report.fixed:
        print(f"{report.fixed} areas and boxes rewritten in {panoptic_json}")
    if args.report:
        report.write(args.report)
    where = f"all are listed in {args.report}" if args.report else "--report FILE lists all"
    if report.warnings:
        files = list_files(report.warnings)
        print(f"{len(report.warnings)} warnings; {where}\n  {summarize_failures(files)}")
    if report.problems:
        files = list_files(report.problems)
        print(f"errors\n  {summarize_failures(files)}")
        raise UserError(f"{len(report.problems)} problems in {len(files)} files of {panoptic_json}; {where}")
    print(f"{report.images} images, no problem")


def main() -> None:
    args = parse_args()
    if args.command == "validate":
        run_validate(args)
        return
    options = get_writer_options(args)
    if args.command == "cityscapes":
        written = prepare_cityscapes(args.root, args.coarse, **options)
    elif args.command == "vistas":
        written = prepare_vistas(args.root, **options)
    elif args.command == "polygons":
        things = [name.strip() for name in args.things.split(",") if name.strip()]
        written = [prepare_polygons(args.json, things, args.output, args.images, class_list=args.classes, **options)]
    elif args.sources:
        write_seamseg(args.root, {split: (images, pngs, file) for split, images, pngs, file in args.sources}, args.link)
        print(f"wrote {args.root}")
        return
    else:
        written = prepare_seamseg(args.root, **options)
    for path in written:
        print(describe_classes(path))


if __name__ == "__main__":
    run_tool(main)
