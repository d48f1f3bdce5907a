#!/usr/bin/env python
"""Compare two evaluations: their numbers overall, per class and per image, and what was evaluated differently.

    python tools/compare_reports.py output/before/inference output/after/inference --output compare.html

Both are folders in which an evaluation has left its metrics.json and per_image.csv. Differences are B minus A.
"""

import argparse
from pathlib import Path

from seamless_d2.errors import run_tool
from seamless_d2.evaluation.comparison import compare_evaluations, format_comparison, make_comparison_page
from seamless_d2.io import atomic_write, check_output_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, metavar="A", help="folder of the first evaluation")
    parser.add_argument("b", type=Path, metavar="B", help="folder of the second evaluation")
    parser.add_argument("--output", type=Path, help="html file for the differences")
    args = parser.parse_args()
    if args.output:
        inputs = [folder / name for folder in (args.a, args.b) for name in ("metrics.json", "per_image.csv")]
        check_output_file(args.output, *inputs, may_exist=True)
    comparison = compare_evaluations(args.a, args.b)
    print(format_comparison(comparison))
    if args.output:
        with atomic_write(args.output, "w") as file:
            file.write(make_comparison_page(comparison))
        print(f"\npage: {args.output}")


if __name__ == "__main__":
    run_tool(main)
