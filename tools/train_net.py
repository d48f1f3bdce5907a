#!/usr/bin/env python
"""Train and evaluate.

    python tools/train_net.py --config-file configs/cityscapes/seamless_R_50_FPN.yaml --num-gpus 8
    python tools/train_net.py --config-file ... --dry-run                     # check all, estimate memory and time
    python tools/train_net.py --config-file ... --resume                      # resume after an interruption
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    python tools/train_net.py --config-file ... MODEL.DEVICE cpu SOLVER.IMS_PER_BATCH 2 OUTPUT_DIR output/try
    torchrun --standalone --nproc-per-node 8 tools/train_net.py --config-file ... --resume  # the same with restarts

Logs, TensorBoard events, checkpoints, config.yaml, metrics.json and curves.png are written to OUTPUT_DIR. SIGTERM and
SIGUSR1 end a training with a checkpoint; whatever else ends it, --resume continues as if nothing had happened.
"""

import argparse
from typing import Any

from seamless_d2.engine import SeamlessTrainer, build_parser, launch, run
from seamless_d2.errors import run_tool


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Run in every process. A subclass of ``SeamlessTrainer`` with your own data, model or evaluation goes here."""
    return run(args, trainer=SeamlessTrainer)


def main() -> None:
    parser = build_parser(epilog=__doc__)
    launch(train, parser.parse_args())


if __name__ == "__main__":
    run_tool(main)
