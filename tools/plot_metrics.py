#!/usr/bin/env python
"""Draw the curves of a training: losses, quality, learning rate, speed, memory.

    python tools/plot_metrics.py output/cityscapes                       # writes output/cityscapes/curves.png
    python tools/plot_metrics.py output/cityscapes --output curves.pdf

It also works while the training runs. Every training draws its curves at its end.
"""

import argparse
from pathlib import Path

from seamless_d2.engine.plots import plot_metrics
from seamless_d2.errors import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="OUTPUT_DIR of the training")
    parser.add_argument("--output", type=Path, help=".png, .pdf or .svg; default curves.png in the folder")
    args = parser.parse_args()
    print(plot_metrics(args.folder, args.output))


if __name__ == "__main__":
    run_tool(main)
