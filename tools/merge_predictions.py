#!/usr/bin/env python
"""Join what the shards of tools/predict.py, or a job on Ray, have written into one COCO panoptic set.

    python tools/merge_predictions.py predictions
    python tools/merge_predictions.py s3://bucket/predictions --output merged

Of shards, the tool writes panoptic.json and instances.json (COCO results) into their folder, whose folder panoptic has
the PNGs. Of a job on Ray, it writes both and the PNGs into --output. It ends with an error if inputs are pending or
failed, unless --partial is given.
"""

import argparse
from pathlib import Path

from seamless_d2.errors import UserError, run_tool
from seamless_d2.prediction.batch.merge import merge_predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="the --output of the shards or of the job")
    parser.add_argument("--output", type=Path, help="folder for the files of a job on Ray")
    parser.add_argument("--partial", action="store_true", help="merge what is there")
    args = parser.parse_args()
    if args.output:
        from seamless_d2.prediction.batch.merge_parts import is_job, merge_parts

        if not is_job(args.root):
            raise UserError(f"{args.root} holds no job on Ray; shards are merged in their folder, without --output")
        files = merge_parts(args.root, args.output, partial=args.partial)
    elif "://" in args.root or (Path(args.root) / "_settings.json").is_file():
        raise UserError(f"{args.root} is the output of a job on Ray; name a folder for its COCO files with --output")
    else:
        files = merge_predictions(args.root, partial=args.partial)
    print(f"written: {', '.join(map(str, files))}")


if __name__ == "__main__":
    run_tool(main)
