#!/usr/bin/env python
"""Train and evaluate.

    python tools/train_net.py --config-file configs/cityscapes/seamless_R_50_FPN.yaml --num-gpus 8
    python tools/train_net.py --config-file ... --resume                      # go on after an interruption
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    python tools/train_net.py --config-file ... MODEL.DEVICE cpu SOLVER.IMS_PER_BATCH 2 OUTPUT_DIR output/try

Logs, TensorBoard events, checkpoints, config.yaml and metrics.json are written to OUTPUT_DIR.
"""

from detectron2.engine import default_argument_parser

from seamless_d2.engine import launch, run
from seamless_d2.errors import run_tool


def main() -> None:
    args = default_argument_parser(epilog=__doc__).parse_args()
    launch(run, args)


if __name__ == "__main__":
    run_tool(main)
