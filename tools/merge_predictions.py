#!/usr/bin/env python
"""Join what the shards of tools/predict.py have written into one COCO panoptic set.

    python tools/merge_predictions.py predictions

The tool writes panoptic.json and instances.json (COCO results) into the folder; the PNGs are in its folder panoptic. It
ends with an error if inputs are pending or failed, unless --partial is given.
"""

import argparse
from pathlib import Path

from seamless_d2.errors import run_tool
from seamless_d2.prediction.batch.shards import merge_predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the --output of the shards")
    parser.add_argument("--partial", action="store_true", help="merge what is there")
    args = parser.parse_args()
    files = merge_predictions(args.root, partial=args.partial)
    print(f"written: {', '.join(map(str, files))}")


if __name__ == "__main__":
    run_tool(main)
