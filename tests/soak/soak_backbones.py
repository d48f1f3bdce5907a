#!/usr/bin/env python
"""Train networks of timm from random weights on toy streets, beside the demo's ResNet-18: PQ and time of each.

    python tests/soak/soak_backbones.py [OUTPUT] [--names resnet10t tiny_vit_5m_224] [--iterations 300]

Each takes about as long as `make demo`, some six minutes on two CPU cores. The demo's model is trained with its own
recipe, the others with AdamW. Exit code 1 if one is more than 5 points of PQ behind the demo.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tabulate import tabulate

from seamless_d2.data.toy_streets import write_toy_streets

ROOT = Path(__file__).resolve().parents[2]
DEMO = "demo: ResNet-18"
ADAMW = """
MODEL.BACKBONE.NAME build_timm_fpn_backbone SOLVER.OPTIMIZER AdamW SOLVER.BASE_LR 0.002 SOLVER.WARMUP_ITERS 30
SOLVER.WEIGHT_DECAY 0.05 SOLVER.WEIGHT_DECAY_BIAS 0.0 SOLVER.CLIP_GRADIENTS.ENABLED True
SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model SOLVER.CLIP_GRADIENTS.CLIP_VALUE 5.0
""".split()


def train(name: str, output: Path, iterations: int) -> tuple[float, float, float, float]:
    """Return PQ, PQ of things and of stuff in percent, and the seconds of training and evaluation."""
    folder = output / name.replace(": ", "_").replace(".", "_")
    command = [sys.executable, str(ROOT / "tools" / "train_net.py")]
    command += ["--config-file", "toy_streets/seamless_R_18_FPN.yaml", "OUTPUT_DIR", str(folder)]
    if name != DEMO:
        command += [*ADAMW, "MODEL.TIMM.NAME", name, "SOLVER.MAX_ITER", str(iterations)]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(output), "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "screen.txt", "w") as screen:
        subprocess.run(command, stdout=screen, stderr=subprocess.STDOUT, env=environment, check=True)
    seconds = time.perf_counter() - start
    quality = list(json.loads((folder / "evaluations.json").read_text()).values())[-1]
    return (*(quality[f"panoptic_seg/{key}"] for key in ("PQ", "PQ_th", "PQ_st")), seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, default=Path("output/soak_backbones"))
    parser.add_argument("--names", nargs="*", default=["resnet10t", "tiny_vit_5m_224"])
    parser.add_argument("--iterations", type=int, default=300, help="of the networks of timm; the demo's are 300")
    parser.add_argument("--without-demo", action="store_true", help="only the named networks")
    args = parser.parse_args()
    write_toy_streets(args.output / "toy_streets")
    rows = []
    for name in [*([] if args.without_demo else [DEMO]), *args.names]:
        rows.append([name, *(round(x, 1) for x in train(name, args.output, args.iterations))])
        print(tabulate(rows, ["", "PQ", "things", "stuff", "s"]), flush=True)
    return int(any(row[1] < rows[0][1] - 5 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
