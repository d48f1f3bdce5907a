#!/usr/bin/env python
"""Export a model as one file that runs without Detectron2: ONNX, OpenVINO or torch.export.

    python tools/export_model.py --config-file output/config.yaml --weights output/model_final.pth --output model.onnx
    python tools/export_model.py --config-file output/config.yaml --weights output/model_final.pth \
        --output model.onnx --format onnx,openvino,pt2 --int8 images/

From the image to the panoptic map and the table of segments, everything is in the file; docs/deploy.md tells how to run
it. Every file is run on several images before it gets its name; one that does not predict what the model predicts is
removed. --int8 writes MODEL_int8.onnx, too, which is calibrated by at most 64 images of a folder.
"""

import argparse
from pathlib import Path

from detectron2.utils.logger import setup_logger

from seamless_d2.config import load_config
from seamless_d2.errors import UserError, run_tool
from seamless_d2.export.exporter import SUFFIXES, ExportOptions, export_model
from seamless_d2.prediction import PredictionOptions


def size(text: str) -> tuple[int, int]:
    """Parse a size HxW in pixels; return (height, width)."""
    height, x, width = text.lower().partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write height x width, for instance 2048x4096")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="yaml file, or the name of a shipped config")
    parser.add_argument("--weights", help="checkpoint; default the config's MODEL.WEIGHTS")
    parser.add_argument("--output", required=True, type=Path, help="the file; each format has its own suffix")
    parser.add_argument("--format", help="onnx, openvino, pt2; several with commas; default by the suffix of --output")
    parser.add_argument("--int8", type=Path, metavar="FOLDER", help="images to calibrate 8-bit integers by")
    parser.add_argument(
        "--min-size",
        type=int,
        default=ExportOptions.min_size,
        help="least pixels of a side; default what the model can",
    )
    parser.add_argument("--max-size", type=size, default=ExportOptions.max_size, metavar="HxW", help="largest size")
    parser.add_argument("--opset", type=int, default=ExportOptions.opset, help="version of ONNX, 18 to 20")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    args = parser.parse_args()
    setup_logger(name="seamless_d2")
    formats = args.format
    if formats is None:
        formats = {suffix: name for name, suffix in SUFFIXES.items()}.get(args.output.suffix)
        if formats is None:
            raise UserError(
                f"--output {args.output} has none of the suffixes {', '.join(SUFFIXES.values())}; give it one, or name "
                "the formats (--format)"
            )
    options = ExportOptions(tuple(formats.split(",")), args.min_size, args.max_size, args.opset, args.int8)
    cfg = PredictionOptions().apply(load_config(args.config_file, args.opts), args.weights, "cpu")
    for path, differences in export_model(cfg, args.output, options).items():
        files = [path, path.with_suffix(".bin")] if path.suffix == SUFFIXES["openvino"] else [path]
        print(f"{path}: verified, {sum(file.stat().st_size for file in files) / 2**20:.1f} MB")
        for difference in differences:
            print(f"  {difference}")


if __name__ == "__main__":
    run_tool(main)
