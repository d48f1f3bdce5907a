#!/usr/bin/env python
"""The whole system on the embedded data set: draw it, train, evaluate, predict.

    python tools/demo.py [--output output/demo] [KEY VALUE ...]

Takes a few minutes on two CPU cores; an interrupted run goes on where it stopped.
"""

import argparse
import os
from pathlib import Path

from seamless_d2.engine.demo import run_demo
from seamless_d2.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder for checkpoints and pictures")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    args = parser.parse_args()
    os.environ.setdefault("DETECTRON2_DATASETS", str(args.output / "datasets"))
    run_demo(args.output, args.opts)


if __name__ == "__main__":
    run_tool(main)
