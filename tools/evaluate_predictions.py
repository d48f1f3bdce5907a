#!/usr/bin/env python
"""Judge COCO-panoptic predictions of any program.

    python tools/evaluate_predictions.py predictions.json truth.json [--pred-dir D] [--truth-dir D] [--json result.json]

The folders of the PNGs default to the jsons' paths without ".json". Numbers equal panopticapi's.
"""

import argparse
from pathlib import Path

from tabulate import tabulate

from seamless_d2.errors import run_tool
from seamless_d2.evaluation.from_files import evaluate_files
from seamless_d2.evaluation.panoptic_quality import RULES
from seamless_d2.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prediction", type=Path, help="json of the predictions")
    parser.add_argument("truth", type=Path, help="json of the truth")
    parser.add_argument("--pred-dir", type=Path, help="folder of the predicted PNGs")
    parser.add_argument("--truth-dir", type=Path, help="folder of the true PNGs")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--rules", choices=RULES, default=RULES[0], help="void and crowd rules")
    parser.add_argument("--workers", type=int, help="processes; default one per CPU")
    args = parser.parse_args()
    result, categories = evaluate_files(
        args.prediction, args.truth, args.pred_dir, args.truth_dir, rules=args.rules, workers=args.workers
    )
    rows = [[c["name"], *_row(result["per_class"][c["id"]])] for c in categories]
    print(tabulate(rows, ["class", "PQ", "SQ", "RQ", "TP", "FP", "FN"], floatfmt=".2f"))
    print()
    rows = [
        [name, *(100 * result[name][k] for k in ("pq", "sq", "rq")), result[name]["n"]]
        for name in ("All", "Things", "Stuff")
    ]
    print(tabulate(rows, ["", "PQ", "SQ", "RQ", "classes"], floatfmt=".2f"))
    if args.json:
        write_json(args.json, result, indent=2)


def _row(values: dict[str, float]) -> list[float]:
    return [*(100 * values[k] for k in ("pq", "sq", "rq")), *(values[k] for k in ("tp", "fp", "fn"))]


if __name__ == "__main__":
    run_tool(main)
