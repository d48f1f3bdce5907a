#!/usr/bin/env python
"""Evaluate COCO-panoptic predictions of any program.

    python tools/evaluate_predictions.py predictions.json ground_truth.json --json result.json
    python tools/evaluate_predictions.py predictions.json ground_truth.json --output report --images images

The folders of the PNGs default to the paths of the jsons without ".json". The numbers are those of panopticapi, and the
IoU of each class's pixels. With --output, metrics.json, per_class.csv, per_image.csv and report.html are written too;
with --images, the report shows the images. If the predicted segments_info have a "score", the report has a curve of
score thresholds.

The output of a job on Ray (tools/predict.py --ray) is read part by part, here or with --ray in its tasks.

Machines that share a folder divide the images: with --shard 1/8 ... --shard 8/8 and --sums FOLDER each leaves its sums
there, and the same command with --sums alone adds them up, to exactly the numbers of one evaluation.
"""

import argparse
from pathlib import Path

from seamless_d2.errors import UserError, run_tool
from seamless_d2.evaluation.from_files import evaluate_files, read_pairs, report_files, summarize, write_sums
from seamless_d2.evaluation.panoptic_quality import RULES
from seamless_d2.evaluation.tables import format_averages, format_classes
from seamless_d2.io import check_output_file, write_json
from seamless_d2.prediction.batch.merge_parts import is_job
from seamless_d2.shard import Shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prediction", type=str, help="json of the predictions, or output of a job on Ray")
    parser.add_argument("ground_truth", type=Path, help="json of the ground truth")
    parser.add_argument("--pred-dir", type=Path, help="folder of the predicted PNGs")
    parser.add_argument("--truth-dir", type=Path, help="folder of the true PNGs")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--output", type=Path, help="folder for metrics.json, the csv files and report.html")
    parser.add_argument("--images", type=Path, help="folder of the images, for the report")
    parser.add_argument("--shard", metavar="I/N", help="part of the images, 1/8 ... 8/8, or slurm in a SLURM array")
    parser.add_argument("--sums", type=Path, help="folder of the sums of shards")
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="evaluate a job in tasks of Ray")
    parser.add_argument("--rules", choices=RULES, default=RULES[0], help="void and crowd rules")
    parser.add_argument("--workers", type=int, help="threads; default one per CPU")
    args = parser.parse_args()
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")
    if args.images and not args.output:
        parser.error("--images are shown in the report; add --output FOLDER")
    files = (args.prediction, args.ground_truth, args.pred_dir, args.truth_dir)
    if args.json:
        check_output_file(args.json, args.prediction, args.ground_truth, may_exist=True)
    options = {"rules": args.rules, "workers": args.workers}
    if args.shard:
        if not args.sums or args.json or args.output:
            raise UserError("a shard leaves its sums in the folder --sums, and has no --json and --output")
        shard = Shard.parse(args.shard)
        path = write_sums(read_pairs(*files), args.sums, shard, **options)
        print(f"the sums of shard {shard} are in {path}")
        return
    may_be_job = "://" in args.prediction or Path(args.prediction).is_dir()
    if (may_be_job or args.ray is not None) and not (may_be_job and is_job(args.prediction)):
        raise UserError(f"{args.prediction} is no output of a job on Ray; give one, or a json without --ray")
    if may_be_job:
        from seamless_d2.evaluation.from_parts import accumulate_parts

        if args.output or args.sums:
            raise UserError("a job on Ray is evaluated without --output and --sums; merge it first for a report")
        statistics, pairs = accumulate_parts(
            args.prediction, args.ground_truth, args.truth_dir, rules=args.rules, ray_address=args.ray
        )
        result = summarize(statistics, pairs, args.rules)
        print(f"{format_classes(result['per_class'])}\n\n{format_averages(result)}")
    elif args.output:
        result, _, tables = report_files(
            *files, output_dir=args.output, image_dir=args.images, sums=args.sums, **options
        )
        print(tables)
        print(f"\nreport: {args.output / 'report.html'}")
    else:
        result, _ = evaluate_files(*files, class_iou=bool(args.json), sums=args.sums, **options)
        print(format_classes(result["per_class"]))
        print(f"\n{format_averages(result)}")
    if args.json:
        write_json(args.json, result, indent=2)


if __name__ == "__main__":
    run_tool(main)
