"""Data preparation stops at Ctrl-C and SIGTERM: no process and no partial file stays, and a second run resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
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
        names, names, convert, png_dir=OUTPUT.with_suffix(""), panoptic_json=OUTPUT, instance_json=None,
        categories=categories, workers=2,
    )

run_tool(main)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_preparation_stops_and_resumes(tmp_path: Path, number: int, code: int) -> None:
    script, output, log = tmp_path / "prepare.py", tmp_path / "out" / "panoptic.json", tmp_path / "log"
    script.write_text(SCRIPT)
    log.mkdir()
    process = subprocess.Popen([sys.executable, script, output, "0.5"], start_new_session=True, stderr=subprocess.PIPE)
    parts = output.parent / ".panoptic.parts"  # one json for each image that is done
    while len(list(parts.glob("*.json"))) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    # A terminal sends Ctrl-C to the whole group, a scheduler SIGTERM to the process.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == code
    assert b"Traceback" not in errors
    with pytest.raises(ProcessLookupError):  # no member of the group is left
        os.killpg(process.pid, 0)
    done = len(list(parts.glob("*.json")))
    assert 3 <= done <= len(list(log.iterdir())) < 20
    assert not list(output.parent.rglob("*.tmp*")) and not output.exists()

    for path in log.iterdir():
        path.unlink()
    subprocess.run([sys.executable, script, output, "0"], check=True, timeout=120)
    assert len(json.loads(output.read_text())["annotations"]) == 40
    assert len(list(log.iterdir())) == 40 - done  # what was done is not done again
