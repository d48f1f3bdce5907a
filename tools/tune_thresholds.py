#!/usr/bin/env python
"""Find the fusion thresholds with the highest PQ on a validation set, with one forward pass per image.

    python tools/tune_thresholds.py --config-file out/config.yaml --weights out/model_final.pth --output tuned.yaml
    python tools/tune_thresholds.py --config-file ... --weights ... --max-images 200 --scores 0.3 0.5 0.7 KEY VALUE ...

All combinations of score threshold, overlap threshold and smallest stuff area are tried; the PQ of each is that of an
evaluation with it. The data set is the first of DATASETS.TEST; report final numbers on another one.
"""

import argparse
from pathlib import Path

import numpy as np
from detectron2.modeling import build_model
from tabulate import tabulate

from seamless_d2.checkpoint import load_weights
from seamless_d2.engine.setup import load_and_check
from seamless_d2.errors import run_tool
from seamless_d2.evaluation.tune import KEYS, make_grid, tune_thresholds
from seamless_d2.io import atomic_write, check_output_file

SCORES = [round(s, 2) for s in np.arange(0.1, 0.96, 0.05).tolist()]
OVERLAPS = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
AREAS = [0, 256, 512, 1024, 2048, 4096, 8192, 16384]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="yaml of the model")
    parser.add_argument("--weights", help="checkpoint; default MODEL.WEIGHTS of the config")
    parser.add_argument("--scores", type=float, nargs="+", default=SCORES, help="least scores of an instance to try")
    parser.add_argument("--overlaps", type=float, nargs="+", default=OVERLAPS, help="hidden shares to try")
    parser.add_argument("--areas", type=int, nargs="+", default=AREAS, help="least pixels of a stuff segment to try")
    parser.add_argument("--max-images", type=int, help="take so many images, spread evenly; default all")
    parser.add_argument("--output", type=Path, help="yaml for the config with the thresholds found")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    args = parser.parse_args()
    if args.max_images is not None and args.max_images < 1:
        parser.error("--max-images must be at least 1")
    if args.output:
        check_output_file(args.output, args.config_file, args.weights, may_exist=True)
    # load_and_check needs this argument of tools/train_net.py.
    args.eval_only = True
    args.opts = [*args.opts, *(["MODEL.WEIGHTS", args.weights] if args.weights else [])]
    cfg = load_and_check(args)
    grid = make_grid(cfg, args.scores, args.overlaps, args.areas)
    model = build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    tuned = tune_thresholds(cfg, model, cfg.DATASETS.TEST[0], grid, args.max_images)
    for key in KEYS:
        print(f"\n{key} (the others as found)")
        rows = [[f"{value:g}", pq, "found" if value == tuned.after[key] else ""] for value, pq in tuned.table[key]]
        print(tabulate(rows, ["value", "PQ", ""], floatfmt=".2f"))
    rows = [
        [name, *(point[key] for key in (*KEYS, "PQ"))]
        for name, point in (("now", tuned.before), ("found", tuned.after))
    ]
    print(f"\n{tabulate(rows, ['', 'overlap', 'score', 'stuff area', 'PQ'], floatfmt=('', 'g', 'g', 'g', '.2f'))}")
    gain = tuned.after["PQ"] - tuned.before["PQ"]
    print(f"\n{tuned.images} images, {np.prod(grid.shape)} combinations: PQ {gain:+.2f}\n{tuned.to_overrides()}")
    if args.output:
        with atomic_write(args.output, "w") as file:
            file.write(tuned.to_yaml(cfg))


if __name__ == "__main__":
    run_tool(main)
