#!/usr/bin/env python
"""A soak: the same training twice, once undisturbed, once killed about every minute; both must end alike.

    python tests/soak/soak_training.py /tmp/soak                         # 2,000 steps, evaluation every 250
    python tests/soak/soak_training.py /tmp/soak --steps 300 --kill-every 20 --num-workers 2

Draws a small toy_streets data set into the folder, trains a small model on it in OUTPUT/undisturbed and
OUTPUT/disturbed, and kills the second one in turn with SIGKILL at a random time, with SIGKILL in the middle of writing
a checkpoint, with SIGTERM, and by damaging the newest checkpoint after a SIGKILL. Every start is the same command with
--resume. At the end it compares all tensors of model_final.pth bit for bit, the moving average of the weights, every
evaluation, and the memory in use over time; OUTPUT/soak.json and a table say what was found. Exit code 0 if all is
equal and memory flat. Not collected by pytest: it takes half an hour on a CPU core.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("SIGKILL", "SIGKILL while a checkpoint is written", "SIGTERM", "SIGKILL and a truncated checkpoint")
SETTINGS = """
MODEL.RESNETS.STEM_OUT_CHANNELS 32 MODEL.RESNETS.RES2_OUT_CHANNELS 32 MODEL.FPN.OUT_CHANNELS 32 MODEL.RPN.CONV_DIMS [32]
MODEL.RPN.PRE_NMS_TOPK_TRAIN 300 MODEL.RPN.POST_NMS_TOPK_TRAIN 100 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 32
MODEL.RPN.PRE_NMS_TOPK_TEST 300 MODEL.RPN.POST_NMS_TOPK_TEST 100 MODEL.ROI_BOX_HEAD.FC_DIM 64
MODEL.ROI_MASK_HEAD.CONV_DIM 32 MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT 40
INPUT.MIN_SIZE_TRAIN (80,96) INPUT.MIN_SIZE_TEST 96 SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 50 SOLVER.BASE_LR 0.02
SOLVER.EMA.ENABLED True SOLVER.EMA.DECAY 0.99 SOLVER.CHECKPOINT_PERIOD 50 SOLVER.LOG_PERIOD 20 SEED 7
""".split()


def command(folder: Path, args: argparse.Namespace) -> list[str]:
    """The one command that starts the training and goes on with it."""
    tool = [sys.executable, str(ROOT / "tools" / "train_net.py")]
    length = ["SOLVER.MAX_ITER", str(args.steps), "TEST.EVAL_PERIOD", str(args.eval_period)]
    workers = ["DATALOADER.NUM_WORKERS", str(args.num_workers), "OUTPUT_DIR", str(folder)]
    return [*tool, "--config-file", "toy_streets/seamless_R_18_FPN.yaml", "--resume", *SETTINGS, *length, *workers]


def start(folder: Path, args: argparse.Namespace) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "DETECTRON2_DATASETS": str(args.output), "PYTHONPATH": str(ROOT)}
    with open(folder / "screen.txt", "a") as screen:
        return subprocess.Popen(command(folder, args), stdout=screen, stderr=subprocess.STDOUT, env=environment)


def newest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("model_0*.pth"), default=None)


def steps_saved(folder: Path) -> int:
    newest = newest_checkpoint(folder)
    return 0 if newest is None else int(newest.stem.split("_")[1]) + 1


def disturb(process: subprocess.Popen, folder: Path, kind: str, seconds: float) -> bool:
    """End the process in the way of ``kind`` after about ``seconds``; False if it ended by itself before."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        pass
    if "written" in kind:
        while not any(folder.glob(".model_*.tmp")):
            if process.poll() is not None:
                return False
            time.sleep(0.0005)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
    process.wait()
    newest = newest_checkpoint(folder)
    if "truncated" in kind and newest is not None and steps_saved(folder) > 50:
        os.truncate(newest, newest.stat().st_size * 2 // 3)
    return True


def memory(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line["memory_gb"] for line in lines if "memory_gb" in line]


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--eval-period", type=int, default=250)
    parser.add_argument("--kill-every", type=float, default=60, help="seconds, on average")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--seed", type=int, default=0, help="of the disturbances")
    args = parser.parse_args()
    args.output = args.output.resolve()
    sys.path.insert(0, str(ROOT))
    from seamless_d2.data.toy_streets import write_toy_streets

    write_toy_streets(args.output / "toy_streets", num_train=100, num_val=12, height=96, width=192, workers=1)
    calm, disturbed, rng = args.output / "undisturbed", args.output / "disturbed", random.Random(args.seed)

    begin = time.time()
    if start(calm, args).wait():
        print(f"the undisturbed run failed, see {calm / 'screen.txt'}")
        return 1
    calm_seconds, begin = time.time() - begin, time.time()
    events: list[dict] = []
    failures = 0
    while True:
        kind, seconds = KINDS[len(events) % len(KINDS)], rng.uniform(0.5, 1.5) * args.kill_every
        process, since = start(disturbed, args), time.time()
        if not disturb(process, disturbed, kind, seconds):
            failures += process.returncode != 0
            break
        events.append({"kind": kind, "after": time.time() - since, "code": process.returncode})
        events[-1]["steps_saved"] = steps_saved(disturbed)
        print(f"{time.time() - begin:6.0f} s  {events[-1]}", flush=True)
    files = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (calm, disturbed)]
    evaluations = [json.loads((folder / "evaluations.json").read_text()) for folder in (calm, disturbed)]
    averages = [f["trainer"]["_trainer"]["ema"]["weights"] for f in files]
    used = memory(calm)
    early, late = (statistics.median(part) for part in (used[len(used) // 4 : len(used) // 2], used[-len(used) // 4 :]))
    last = str(args.steps)
    result = {
        "steps": args.steps,
        "seconds": {"undisturbed": calm_seconds, "disturbed": time.time() - begin},
        "disturbances": {kind: sum(e["kind"] == kind for e in events) for kind in KINDS},
        "clean exits after SIGTERM": sum(e["kind"] == "SIGTERM" and e["code"] == 0 for e in events),
        "starts that failed": failures,
        "weights bit-identical": equal(files[0]["model"], files[1]["model"]),
        "moving average bit-identical": equal(*averages),
        "evaluations": len(evaluations[0]),
        # nan != nan: compare as text
        "evaluations identical": json.dumps(evaluations[0]) == json.dumps(evaluations[1]),
        "PQ": [e[last]["panoptic_seg/PQ"] for e in evaluations],
        "PQ of the moving average": [e[last]["ema/panoptic_seg/PQ"] for e in evaluations],
        "memory GB, second quarter and last quarter": [early, late],
        "memory GB, largest in the disturbed run": max(memory(disturbed)),
        "events": events,
    }
    (args.output / "soak.json").write_text(json.dumps(result, indent=2))
    for key, value in result.items():
        if key != "events":
            print(f"{key}: {value}")
    good = all(result[key] for key in result if "identical" in key) and not failures and late < early * 1.05
    good &= result["clean exits after SIGTERM"] == result["disturbances"]["SIGTERM"]
    print("passed" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
