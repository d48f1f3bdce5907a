#!/usr/bin/env python
"""Predict pictures.

    python tools/predict.py --config-file output/config.yaml --weights output/model_final.pth \
        --input street.jpg photos/ --output predictions

Writes NAME_overlay.jpg for every picture: class colours, outlined instances, names and scores. Folders are searched
recursively and their structure is kept. Finished pictures are skipped; --overwrite does them again. A picture that
cannot be read is named and the rest goes on; the exit code is then 1.
"""

import argparse
from pathlib import Path

from seamless_d2.config import load_config
from seamless_d2.errors import UserError, run_tool
from seamless_d2.prediction import Predictor, predict_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="yaml file, or the name of a shipped config")
    parser.add_argument("--weights", help="checkpoint; default the config's MODEL.WEIGHTS")
    parser.add_argument("--input", nargs="+", required=True, help="pictures and folders")
    parser.add_argument("--output", required=True, type=Path, help="folder for the results")
    parser.add_argument("--device", help="cpu, cuda, ...; default the config's, or the CPU where there is no GPU")
    parser.add_argument("--score-thresh", type=float, help="least score of an instance, 0..1")
    parser.add_argument("--overlap-thresh", type=float, help="largest hidden share of an instance, 0..1")
    parser.add_argument("--stuff-area-thresh", type=int, help="least pixels of a stuff segment at network resolution")
    parser.add_argument("--overwrite", action="store_true", help="do finished pictures again")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    args = parser.parse_args()
    cfg = load_config(args.config_file, args.opts)
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    for key, value in (
        ("INSTANCES_CONFIDENCE_THRESH", args.score_thresh),
        ("OVERLAP_THRESH", args.overlap_thresh),
        ("STUFF_AREA_LIMIT", args.stuff_area_thresh),
    ):
        if value is not None:
            combine[key] = value
    predictor = Predictor(cfg, args.weights, args.device)
    written, failures = predict_files(predictor, args.input, args.output, args.overwrite)
    print(f"{len(written)} pictures in {args.output}")
    if failures:
        raise UserError(f"{len(failures)} of {len(written) + len(failures)} files failed (named above)")


if __name__ == "__main__":
    run_tool(main)
