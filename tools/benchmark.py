#!/usr/bin/env python
"""Measure speed, always against something else in the same run.

    python tools/benchmark.py fusion --against detectron2
    python tools/benchmark.py all --against detectron2 --json benchmark.json

The json holds, per case, `ours`, `other` (medians) and `ratio` = other / ours.
"""

import argparse
import platform

import torch

from seamless_d2.benchmark import BENCHMARKS
from seamless_d2.benchmark.measure import format_cases
from seamless_d2.errors import UserError, run_tool
from seamless_d2.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--against", choices=["detectron2"], help="what to compare with")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("this PyTorch sees no GPU; use --device cpu")
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{platform.machine()} CPU"
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    content = {}
    for name in BENCHMARKS if args.what == "all" else [args.what]:
        cases = BENCHMARKS[name](args.device, args.against, args.quick)
        print(f"\n{name}\n{format_cases(cases)}", flush=True)
        content[name] = {case.name: case.to_json() for case in cases}
    if args.json:
        write_json(args.json, content, indent=2)


if __name__ == "__main__":
    run_tool(main)
