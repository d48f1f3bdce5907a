#!/usr/bin/env python
"""Run the whole system on the toy data set: generate it, train, evaluate and predict.

    python tools/demo.py [--output output/demo] [KEY VALUE ...]

It takes a few minutes on two CPU cores. The same command resumes an interrupted run.
"""

import argparse
import os
import time
from pathlib import Path

from detectron2.engine import default_argument_parser

from seamless_d2 import Predictor
from seamless_d2.data.registration import datasets_root
from seamless_d2.data.toy_streets import write_toy_streets
from seamless_d2.engine import run
from seamless_d2.errors import UserError, run_tool
from seamless_d2.io import read_image, save_image
from seamless_d2.prediction.batch.run import predict_files
from seamless_d2.visualization import contact_sheet

CONFIG = "toy_streets/seamless_R_18_FPN.yaml"
NUM_IMAGES = 12


def run_demo(output: Path, opts: list[str]) -> None:
    """Draw toy streets, train on them, evaluate on unseen scenes, and write overlays and a contact sheet.

    Args:
        output: The folder for everything that is written.
        opts: KEY VALUE overrides of the config.
    """
    start = time.perf_counter()
    try:
        data = write_toy_streets(datasets_root() / "toy_streets")
    except FileExistsError as error:  # of another version or size
        raise UserError(str(error)) from None
    args = default_argument_parser().parse_args(["--config-file", CONFIG, "--resume", "OUTPUT_DIR", str(output), *opts])
    results = run(args)
    predictor = Predictor(output / "config.yaml", output / "model_final.pth")
    scenes = sorted((data / "val").iterdir())[:NUM_IMAGES]
    overlays = predict_files(predictor, scenes, output / "predictions", overwrite=True).written
    sheet = output / "predictions" / "contact_sheet.jpg"
    save_image(contact_sheet([read_image(file) for file in overlays], columns=3), sheet)
    quality = results.get("panoptic_seg", {})
    print()
    print("  ".join(f"{key} {quality[key]:.1f}" for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st") if key in quality))
    print(f"{time.perf_counter() - start:.0f} s; overlays: {output / 'predictions'} (all in {sheet.name})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder for checkpoints and images")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    args = parser.parse_args()
    os.environ.setdefault("DETECTRON2_DATASETS", str(args.output / "datasets"))
    run_demo(args.output, args.opts)


if __name__ == "__main__":
    run_tool(main)
