#!/usr/bin/env python
"""A soak: a large number of small images by shards or by Ray, killed in the middle and started again.

    python tests/soak/soak_scale.py /tmp/scale --how shards --images 100000
    python tests/soak/soak_scale.py /tmp/scale --how ray --images 100000

The images are drawn scenes of 64x96 pixels, each of 200 files linked many times; the model is tiny and untrained. Two
processes predict. Once a third is done all processes are killed, and the same commands finish. Then every image must be
there once. Prints a table: seconds, images/s, and the peak memory of the processes in each quarter. Not collected by
pytest.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from detectron2.modeling import build_model
from PIL import Image
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from seamless_d2.data.toy_streets import CATEGORIES, generate_scene  # noqa: E402
from seamless_d2.structures.classes import Classes  # noqa: E402
from tests.conftest import small_config  # noqa: E402

SIZE = (64, 96)
DISTINCT = 200


def make_images(folder: Path, count: int) -> None:
    """Write ``count`` images in folders of a thousand."""
    if folder.is_dir():
        return
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    (new / "originals").mkdir(parents=True)
    for k in range(DISTINCT):
        Image.fromarray(generate_scene(k, *SIZE).image).save(new / "originals" / f"{k}.png")
    for k in range(count):
        target = new / "images" / f"{k // 1000:04d}" / f"{k:07d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(new / "originals" / f"{k % DISTINCT}.png", target)
    new.rename(folder)


def make_model(folder: Path) -> None:
    """Write model.yaml and model.pth."""
    cfg = small_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = SIZE
    Classes.from_categories(CATEGORIES, "scale").to_config(cfg)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    (folder / "model.yaml").write_text(cfg.dump())


def start(how: str, folder: Path, output: Path) -> list[subprocess.Popen]:
    """Start two shards, or a job on Ray with two actors."""
    tool = [sys.executable, "-W", "ignore", ROOT / "tools" / "predict.py", "--config-file", folder / "model.yaml"]
    tool += ["--weights", folder / "model.pth", "--input", folder / "in" / "images", "--output", output]
    if how == "ray":
        calls = [[*tool, "--ray", "--actors", "2", "--block-size", "256"]]
    else:
        calls = [[*tool, "--device", "cpu", "--format", "coco", "--shard", f"{k}/2"] for k in (1, 2)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = (output.with_suffix(".log")).open("a")
    return [
        subprocess.Popen([str(a) for a in c], env=environment, stdout=log, stderr=log, start_new_session=True)
        for c in calls
    ]


def count_done(how: str, output: Path) -> int:
    """Return about how many images are done."""
    if how == "ray":
        return 256 * len(list(output.glob("part-*")))
    return sum(path.read_bytes().count(b'"outcome": "done"') for path in output.glob("manifest-*.jsonl"))


def measure_memory(processes: list[subprocess.Popen]) -> float:
    """Return the memory of the processes and their children in MiB; shared pages count once for each."""
    total = 0
    for process in processes:
        try:
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            total += sum(p.memory_info().rss - p.memory_info().shared for p in tree)
        except psutil.Error:
            continue
    return total / 2**20


def kill(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(how: str, folder: Path, output: Path, count: int, stop_at: int | None) -> list[object]:
    """Run until ``stop_at`` images are done, or to the end; return a row of the table."""
    before, begin, memory = count_done(how, output), time.monotonic(), []
    processes = start(how, folder, output)
    while any(process.poll() is None for process in processes):
        done = count_done(how, output)
        memory.append((done, measure_memory(processes)))
        if stop_at is not None and done >= stop_at:
            kill(processes)
            break
        time.sleep(10)
    seconds = time.monotonic() - begin
    codes = [process.returncode for process in processes]
    assert stop_at is not None or codes == [0] * len(codes), f"{codes}; see {output.with_suffix('.log')}"
    done = min(count_done(how, output), count)
    high = [max((m for d, m in memory if count * k <= 4 * d <= count * (k + 1)), default=0) for k in range(4)]
    return [how, "killed" if stop_at else "finished", done - before, seconds, (done - before) / seconds, *high]


def check(how: str, folder: Path, output: Path, count: int) -> None:
    """Every image must be there once."""
    merged = folder / "merged" if how == "ray" else output
    shutil.rmtree(folder / "merged", ignore_errors=True)
    where = ["--output", str(merged)] if how == "ray" else []
    tool = [sys.executable, "-W", "ignore", str(ROOT / "tools" / "merge_predictions.py"), str(output), *where]
    begin = time.monotonic()
    subprocess.run(tool, check=True)
    content = json.loads((merged / "panoptic.json").read_text())
    expected = {f"{k // 1000:04d}/{k:07d}.png" for k in range(count)}
    assert {i["file_name"] for i in content["images"]} == expected and len(content["images"]) == count
    assert {a["image_id"] for a in content["annotations"]} == {i["id"] for i in content["images"]}
    assert len(content["annotations"]) == count
    print(f"merged and checked in {time.monotonic() - begin:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--how", choices=("shards", "ray"), default="shards")
    parser.add_argument("--images", type=int, default=100_000)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    make_images(args.folder / "in", args.images)
    if not (args.folder / "model.yaml").is_file():
        make_model(args.folder)
    output = args.folder / args.how
    rows = [run(args.how, args.folder, output, args.images, args.images // 3)]
    rows.append(run(args.how, args.folder, output, args.images, None))
    heads = ["", "", "images", "seconds", "images/s", *(f"MiB, quarter {k}" for k in range(1, 5))]
    print(tabulate(rows, heads, floatfmt=".1f"))
    check(args.how, args.folder, output, args.images)


if __name__ == "__main__":
    main()
