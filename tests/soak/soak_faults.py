#!/usr/bin/env python
"""A soak: random damages, bad inputs and interruptions; each must be survived, or refused in one sentence.

    python tests/soak/soak_faults.py                        # 100 faults
    python tests/soak/soak_faults.py --faults 1000 --seed 7

Prints a table: of each kind of fault, how often it was survived (the result is right), refused (a ``UserError``) and
failed (any other exception, a crash, or a wrong result). Exit code 0 if nothing failed. Not collected by pytest.
"""

import argparse
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from seamless_d2.checkpoint.checkpointer import load_file  # noqa: E402
from seamless_d2.config import get_config, load_config  # noqa: E402
from seamless_d2.data.prepare.polygons import prepare_polygons  # noqa: E402
from seamless_d2.data.prepare.validate import validate  # noqa: E402
from seamless_d2.data.registration import load_panoptic_json  # noqa: E402
from seamless_d2.errors import UserError  # noqa: E402
from seamless_d2.io import read_id_map, read_image  # noqa: E402
from tests.helpers.panoptic_files import scene, write_dataset  # noqa: E402

VALUES: list[Any] = [None, "", "text", -1, 0, 1.5, 2**24, 2**40, float("nan"), float("inf"), [], {}, [1, [2]], True]
Draw = random.Random


def list_places(node: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values in a json."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, child in children for place in list_places(child, (*path, key)))]


def mutate(content: Any, draw: Draw) -> Any:
    """A copy of a json with one value removed or replaced."""
    content = copy.deepcopy(content)
    *parents, last = draw.choice([place for place in list_places(content) if place])
    node = content
    for key in parents:
        node = node[key]
    if draw.random() < 0.3:
        del node[last]
    else:
        node[last] = draw.choice(VALUES)
    return content


def damage(file: Path, draw: Draw) -> None:
    """Truncate a file, change some of its bytes, or insert some."""
    data = bytearray(file.read_bytes())
    place = draw.randrange(len(data))
    kind = draw.choice(("truncate", "flip", "insert"))
    if kind == "truncate":
        data = data[:place]
    elif kind == "flip":
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    else:
        data[place:place] = draw.randbytes(draw.randint(1, 100))
    file.write_bytes(data)


def panoptic_json(folder: Path, draw: Draw) -> None:
    ids, segments = scene()
    paths = write_dataset(folder / "data", {"a": (ids, segments), "b": (ids, segments)})
    file = paths["panoptic_json"]
    file.write_text(json.dumps(mutate(json.loads(file.read_text()), draw)))
    if draw.random() < 0.5:
        load_panoptic_json(*paths.values())
    else:
        validate(file, paths["image_dir"], paths["panoptic_dir"], workers=1)


def detection_json(folder: Path, draw: Draw) -> None:
    ids, segments = scene()
    images = write_dataset(folder / "data", {"a": (ids, segments)})["image_dir"]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 30, 0, 30, 20, 0, 20]], "iscrowd": 0},
            {"image_id": 1, "category_id": 2, "segmentation": {"size": [40, 60], "counts": [100, 200, 2100]}},
        ],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "road"}],
    }
    (folder / "export.json").write_text(json.dumps(mutate(content, draw)))
    prepare_polygons(folder / "export.json", ["car"], folder / "out" / "p.json", images, workers=1)


def checkpoint(folder: Path, draw: Draw) -> None:
    weights = {"model": {f"layer{k}.weight": torch.full((40, 40), float(k)) for k in range(4)}}
    torch.save(weights, folder / "a.pth")
    damage(folder / "a.pth", draw)
    for name, value in load_file(folder / "a.pth")["model"].items():
        assert torch.equal(value, weights["model"][name]), "a damaged checkpoint was read as if it were whole"


def image(folder: Path, draw: Draw) -> None:
    paths = write_dataset(folder / "data", {"a": scene()})
    image, png = next(paths["image_dir"].iterdir()), next(paths["panoptic_dir"].iterdir())
    damage(image, draw)
    damage(png, draw)
    read = draw.choice((lambda: read_image(image), lambda: read_id_map(png)))
    assert read().ndim in (2, 3)


def config(folder: Path, draw: Draw) -> None:
    content = json.loads(json.dumps(get_config("toy_streets/seamless_R_18_FPN"), default=list))
    places = [place for place in list_places(content) if place and not isinstance(place[-1], int)]
    key = ".".join(draw.choice(places))
    load_config("toy_streets/seamless_R_18_FPN", [key, str(draw.choice([*VALUES, "'x'", "-0.5", "1000000000"]))])


PREPARE = """
import sys
from seamless_d2.data.prepare.polygons import prepare_polygons
from seamless_d2.errors import run_tool
run_tool(lambda: prepare_polygons(sys.argv[1], ["car"], sys.argv[2], sys.argv[3], workers=2))
"""


def interrupted_preparation(folder: Path, draw: Draw) -> None:
    """Kill data preparation at a random time, damage one of its files, and finish it: it ends as an undisturbed one."""
    names = [f"{k:03}" for k in range(60)]
    images = write_dataset(folder / "data", {name: scene() for name in names})["image_dir"]
    box = [5, 5, 30, 5, 30, 20, 5, 20]
    content = {
        "images": [{"id": k, "file_name": f"{name}.png", "height": 40, "width": 60} for k, name in enumerate(names)],
        "annotations": [{"image_id": k, "category_id": 1, "segmentation": [box]} for k in range(60)],
        "categories": [{"id": 1, "name": "car"}],
    }
    (folder / "export.json").write_text(json.dumps(content))
    arguments = [folder / "export.json", folder / "out" / "p.json", images]
    command = [sys.executable, "-W", "ignore", "-c", PREPARE, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not (folder / "out" / "p").is_dir() and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(draw.random() * 0.2)
    process.send_signal(draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
    errors = process.communicate(timeout=60)[1].decode()
    assert "Traceback" not in errors, errors
    files = [path for path in (folder / "out").rglob("*") if path.is_file() and path.suffix == ".png"]
    if files:
        damage(draw.choice(files), draw)
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    prepare_polygons(*[arguments[0], ["car"], folder / "calm" / "p.json", images], workers=1)
    for path in sorted((folder / "calm").rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder / "calm").parts):
            found = folder / "out" / path.relative_to(folder / "calm")
            assert found.read_bytes() == path.read_bytes(), f"{found} differs"


FAULTS: list[Callable[[Path, Draw], None]] = [
    panoptic_json,
    detection_json,
    checkpoint,
    image,
    config,
    interrupted_preparation,
]
#: Of this kind there are fewer, because each takes seconds.
RARE = {interrupted_preparation: 0.3}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    outcomes: dict[str, Counter] = {fault.__name__: Counter() for fault in FAULTS}
    failures = []
    for number in tqdm(range(args.faults)):
        fault = draw.choices(FAULTS, [RARE.get(f, 1.0) for f in FAULTS])[0]
        own = random.Random(f"{args.seed} {number}")
        folder = Path(tempfile.mkdtemp(prefix="soak_"))
        # In a child process, so that a crash or an endless loop counts as a failure and nothing more.
        child = os.fork()
        if child == 0:
            os._exit(run_one(fault, folder, own))
        code = wait_for(child, 180)
        outcome = {0: "survived", 3: "refused"}.get(code, "failed")
        outcomes[fault.__name__][outcome] += 1
        if outcome == "failed":
            failures.append(f"{fault.__name__}, --seed {args.seed}, number {number}, code {code}")
        shutil.rmtree(folder, ignore_errors=True)
    rows = [[name, *(counts[k] for k in ("survived", "refused", "failed"))] for name, counts in outcomes.items()]
    print(tabulate(rows, ["fault", "survived", "refused", "failed"]))
    print("\n".join(failures))
    return 1 if failures else 0


def run_one(fault: Callable[[Path, Draw], None], folder: Path, draw: Draw) -> int:
    """0 if the fault was survived, 3 if it was refused in one sentence, else 1."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    try:
        fault(folder, draw)
    except UserError as error:
        return 3 if str(error).strip() and "Traceback" not in str(error) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def wait_for(child: int, seconds: float) -> int:
    """The exit code of a child process, which is killed after so many seconds; negative for a signal."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


if __name__ == "__main__":
    sys.exit(main())
