#!/usr/bin/env python
"""Dry runs of the shipped configs on a CPU, with drawn streets in place of their data sets and random weights.

    python tests/soak/dry_runs.py [CONFIG ...] [--opts KEY VALUE ...]

The streets have the size and the number of classes of the data set. A config for 8 GPUs is run with the batch of one of
them. Peak memory is that of the whole process, of which Python and its libraries take 0.8 GB. Exit code 1 if a config
fails, or if one of the crops configs, which are for GPUs of 24 GB, needs more. Large networks at full size take more
memory and time than a small machine has; these settings are for one without bfloat16:

    python tests/soak/dry_runs.py --opts INPUT.MAX_SIZE_TRAIN 1024 SOLVER.AMP.ENABLED False
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

from seamless_d2.config import config_file, get_config
from seamless_d2.data.toy_streets import write_toy_streets
from seamless_d2.errors import run_tool
from seamless_d2.io import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
# (height, width) of the images of each data set: Cityscapes, and the most frequent size of Vistas.
SIZES = {"cityscapes": (1024, 2048), "vistas": (2448, 3264)}
LIMIT_GB = 24.0
LINES = {
    "M parameters": r"model +([\d.]+) M",
    "G multiply-adds": r"([\d.]+) G multiply-adds",
    "GB": r"memory +([\d.]+) GB",
    "s a step": r"time +(\S+) s a step",
    "batch": r"forward passes x (\d+)",
    "pixels": r"largest is (\d+ x \d+) pixels",
}


def write_data(folder: Path, size: tuple[int, int], things: int, stuff: int) -> list[str]:
    """Draw streets, give their json further classes that no image has, and return the entry of DATASETS.PANOPTIC."""
    write_toy_streets(folder, num_train=4, num_val=1, height=size[0], width=size[1])
    content = read_json(folder / "panoptic_train.json", "panoptic json")
    for isthing, count in ((1, things), (0, stuff)):
        have = sum(c["isthing"] == isthing for c in content["categories"])
        for _ in range(count - have):
            ident = len(content["categories"]) + 1
            category = {"id": ident, "name": f"class {ident}", "isthing": isthing, "color": [ident, ident, isthing]}
            content["categories"].append(category)
    write_json(folder / "classes.json", content)
    return ["streets", *(str(folder / name) for name in ("train", "panoptic_train", "classes.json"))]


def dry_run(config: str, folder: Path, overrides: list[str]) -> list[str]:
    """Return the row of one config; raise ``RuntimeError`` with what was printed if its dry run fails."""
    cfg = get_config(config)
    things = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    data = folder / config.split("/")[0]
    entry = write_data(data, SIZES[data.name], things, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - things)
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--dry-run"]
    command += ["--config-file", str(config_file(f"{config}.yaml")), "OUTPUT_DIR", str(folder / "out")]
    command += ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.TIMM.PRETRAINED", "", "MODEL.INIT_FROM", ""]
    command += ["DATASETS.PANOPTIC", str([entry]), "DATASETS.TRAIN", "('streets',)", "DATASETS.TEST", "('streets',)"]
    if "crops" not in config:
        command += ["SOLVER.REFERENCE_WORLD_SIZE", "8"]
    finished = subprocess.run([*command, *overrides], capture_output=True, text=True)
    found = [re.search(pattern, finished.stdout) for pattern in LINES.values()]
    if finished.returncode or not all(found):
        raise RuntimeError(f"{config}: exit code {finished.returncode}\n{finished.stdout}\n{finished.stderr}")
    return [config, *(match[1] for match in found)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", help="e.g. cityscapes/seamless_R_50_FPN; default all of both sets")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="settings of all dry runs")
    args = parser.parse_args()
    configs = args.configs or [
        f"{folder}/{path.stem}"
        for folder in SIZES
        for path in sorted((ROOT / "configs" / folder).glob("*.yaml"))
        if "from_vistas" not in path.stem
    ]
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for config in configs:
            try:
                rows.append(dry_run(config, Path(folder), args.opts))
            except RuntimeError as error:
                failed += 1
                print(error, file=sys.stderr, flush=True)
                continue
            failed += "crops" in config and float(rows[-1][3]) > LIMIT_GB
            print(tabulate(rows, ["", *LINES], disable_numparse=True), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    run_tool(lambda: sys.exit(main()))
