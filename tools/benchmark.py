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

    python tools/benchmark.py accuracy --data datasets/facade --weights weights/R-50.pkl

    accuracy    PQ of ours and of PanopticFPN R50 after the same training on photos; --rows names ablations. --data
                holds images/{train,val}, panoptic_{train,val} and panoptic_{train,val}.json. On a CPU the training is
                short; finished trainings are kept in --output, and an interrupted call goes on.

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
from benchmarks.accuracy import ROWS, Comparison, benchmark_accuracy
from benchmarks.measure import format_cases

from seamless_d2.errors import UserError, run_tool
from seamless_d2.io import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*BENCHMARKS, "accuracy", "all"])
    parser.add_argument("--against", choices=["detectron2"], help="what to compare with")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the GPU if there is one")
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to check that everything runs")
    group = parser.add_argument_group("accuracy")
    group.add_argument("--data", type=Path, help="folder of the data set")
    group.add_argument("--weights", default="", help="initial weights of the ResNet-50; default random")
    group.add_argument("--output", type=Path, default=Path("output/accuracy"), help="folder of the trainings")
    group.add_argument("--rows", nargs="+", default=["stock", "ours"], help=f"of: {'; '.join(ROWS)}")
    group.add_argument("--seeds", type=int, default=2)
    group.add_argument("--jobs", type=int, default=1, help="trainings at a time, for a GPU that one does not fill")
    group.add_argument("--iterations", type=int, help="default 300 on a CPU, 6000 on a GPU")
    group.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings of all rows")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("this PyTorch sees no GPU; use --device cpu")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UserError(f"the folder of {args.json} (--json) does not exist; create it")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    if args.what == "accuracy":
        if args.data is None:
            raise UserError("accuracy needs --data, the folder of a data set")
        size = {} if device == "cpu" else {"iterations": 6000, "batch": 4, "size": 512, "rois": 256, "lr": 0.01}
        size |= {"iterations": args.iterations} if args.iterations else {}
        options = {"rows": tuple(args.rows), "seeds": args.seeds, "overrides": tuple(args.opts), **size}
        found = benchmark_accuracy(Comparison(args.data, args.weights, args.output, device, **options), args.jobs)
        if args.json:
            write_json(args.json, {"accuracy": found}, indent=2)
        return
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
