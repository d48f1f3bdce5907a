#!/usr/bin/env python
"""Measure speed and memory, in comparison with another implementation in the same run.

    python tools/benchmark.py fusion --against detectron2
    python tools/benchmark.py all --against detectron2 --json benchmark.json

    fusion      instances and labels to one panoptic map, against Detectron2's post-processing
    inference   image to panoptic map with 100 detections, against Detectron2's stock PanopticFPN R50
    training    one step with its optimizer, against PanopticFPN in fp32
    loss        the semantic loss and its gradient, against interpolation + cross entropy + topk
    memory      what autograd keeps of the trunk, a Vistas-size image, matching of anchors
    evaluation  panoptic quality, against COCOPanopticEvaluator and panopticapi

Both sides run in turn after a warm-up. The json holds, per case, `ours` and `other` (medians of seconds, or bytes),
`ratio` = other / ours, `unit`, `spread` and `other_spread` ((max - min) / median), `target` (the ratio aimed at, or
null) and `note`. `all` takes some 12 minutes on two cores and 14 GB of memory.
"""

import argparse
import platform
import sys
from pathlib import Path

import torch
from benchmarks import BENCHMARKS
from benchmarks.measure import format_cases

from seamless_d2.errors import UserError, run_tool
from seamless_d2.io import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--against", choices=["detectron2"], help="what to compare with")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the GPU if there is one")
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that everything runs")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("this PyTorch sees no GPU; use --device cpu")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UserError(f"the folder of {args.json} (--json) does not exist; create it")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    content = {}
    for what in BENCHMARKS if args.what == "all" else [args.what]:
        print(f"{what} ...", file=sys.stderr, flush=True)
        cases = BENCHMARKS[what](device, args.against, args.quick)
        print(f"\n{what}\n{format_cases(cases)}", flush=True)
        content[what] = {case.name: case.to_json() for case in cases}
        if args.json:  # after each, so that an interrupted run has results, too
            write_json(args.json, content, indent=2)


if __name__ == "__main__":
    run_tool(main)
