"""Parallel work stops at Ctrl-C and SIGTERM: no process and no partial file stays, and a second run resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ..helpers.images import make_image
from ..helpers.processes import start_command

PREPARE = """
import sys, time
from pathlib import Path
import numpy as np
from seamless_d2.data.prepare.writer import PanopticImage, write_panoptic_dataset
from seamless_d2.errors import run_tool

OUTPUT, SECONDS = Path(sys.argv[1]), float(sys.argv[2])

def convert(name):
    (OUTPUT.parent.parent / "log" / name).touch()
    time.sleep(SECONDS)
    segments = [{"id": 1, "category_id": 1, "iscrowd": 0}]
    return PanopticImage(f"{name}.jpg", f"{name}.png", np.ones((8, 8), np.int32), segments)

def main():
    names = [f"{number:03}" for number in range(40)]
    categories = [{"id": 1, "name": "road", "isthing": 0}]
    write_panoptic_dataset(
        names, names, convert, inputs=[[] for _ in names], categories=categories, workers=2,
        png_dir=OUTPUT.with_suffix(""), panoptic_json=OUTPUT, instance_json=None,
    )

run_tool(main)
"""


PREDICT = """
import sys
from seamless_d2.config import load_config
from seamless_d2.errors import run_tool
from seamless_d2.prediction.batch.run import predict_files_on
from seamless_d2.prediction.options import PredictionOptions

def main():
    config, weights, images, output = sys.argv[1:]
    cfg = load_config(config, ["MODEL.WEIGHTS", weights])
    predict_files_on(["cpu", "cpu"], cfg, PredictionOptions(), [images], output, ["ids"])

if __name__ == "__main__":
    run_tool(main)
"""
SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")]


def interrupt(command: list[str | Path], number: int, code: int, has_begun: Callable[[], bool]) -> None:
    """Start a command, and check that a signal in the middle of its work ends it and all its processes."""
    process = start_command([sys.executable, *command], start_new_session=True, stderr=subprocess.PIPE)
    limit = time.monotonic() + 120
    while not has_begun():
        assert process.poll() is None and time.monotonic() < limit, process.communicate()[1]
        time.sleep(0.05)
    # A terminal sends Ctrl-C to the whole group, a scheduler SIGTERM to the process.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == code, errors
    assert b"Traceback" not in errors
    limit = time.monotonic() + 5
    with pytest.raises(ProcessLookupError):  # no member of the group is left
        while time.monotonic() < limit:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


@SIGNALS
def test_interrupted_preparation_stops_and_resumes(tmp_path: Path, number: int, code: int) -> None:
    script, output, log = tmp_path / "prepare.py", tmp_path / "out" / "panoptic.json", tmp_path / "log"
    script.write_text(PREPARE)
    log.mkdir()
    parts = output.parent / ".panoptic.parts"  # one json for each image that is done
    interrupt([script, output, "0.5"], number, code, lambda: len(list(parts.glob("*.json"))) >= 3)
    done = len(list(parts.glob("*.json")))
    assert 3 <= done <= len(list(log.iterdir())) < 20
    assert not list(output.parent.rglob("*.tmp*")) and not output.exists()

    for path in log.iterdir():
        path.unlink()
    subprocess.run([sys.executable, script, output, "0"], check=True, timeout=120)
    assert len(json.loads(output.read_text())["annotations"]) == 40
    assert len(list(log.iterdir())) == 40 - done  # what was done is not done again


@SIGNALS
def test_interrupted_prediction_in_two_processes(
    model_files: tuple[Path, Path], tmp_path: Path, number: int, code: int
) -> None:
    script, images, output = tmp_path / "predict.py", tmp_path / "in", tmp_path / "out"
    script.write_text(PREDICT)
    images.mkdir()
    for k in range(400):
        Image.fromarray(make_image(seed=k)).save(images / f"{k}.png")
    interrupt([script, *model_files, images, output], number, code, lambda: len(list(output.glob("*_ids.png"))) >= 4)
    assert len(list(output.glob("*_ids.png"))) < 400
    assert not list(output.rglob("*.tmp*"))


FORK = """
import os, signal, sys, time
from seamless_d2.parallel import map_parallel

# As if the user pressed Ctrl-C in the very moment of a fork, where Python forgets exceptions.
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    for _ in map_parallel(time.sleep, [0.2] * 20, 2, "killed"):
        pass
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interruption_in_a_fork_is_not_forgotten() -> None:
    process = start_command([sys.executable, "-c", FORK], stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and b"ignored" not in errors, errors
