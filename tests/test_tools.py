"""The worked example of preparing data, run as in the README."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seamless_d2.data.registration import load_panoptic_json
from seamless_d2.io import read_id_map


def run(request: pytest.FixtureRequest, cwd: Path, tool: str, *arguments: str) -> subprocess.CompletedProcess:
    script = str(request.config.rootpath / "tools" / tool)
    return subprocess.run([sys.executable, "-W", "ignore", script, *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
def test_label_pngs(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for folder in ("images", "labels", "instances"):
        (tmp_path / folder / "deep").mkdir(parents=True)
    labels = np.full((20, 30), 9, np.uint8)  # no line in classes.txt: void
    labels[5:] = 1
    labels[8:12, 3:20] = 4
    instances = np.zeros((20, 30), np.uint16)
    instances[8:12, 3:8], instances[8:12, 10:14] = 300, 2
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "images" / "deep" / "a.jpg")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "images" / "unlabelled.jpg")
    Image.fromarray(labels).save(tmp_path / "labels" / "deep" / "a.png")
    Image.fromarray(instances).save(tmp_path / "instances" / "deep" / "a.png")
    (tmp_path / "classes.txt").write_text("1 road stuff\n4 big car thing\n")
    arguments = [
        *("--images", "images", "--semantic", "labels", "--instance", "instances"),
        *("--classes", "classes.txt", "--output", "mine/panoptic.json"),
    ]
    result = run(request, tmp_path, "label_pngs_to_panoptic.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert "1 of 2 images in images have no labels and are left out (unlabelled.jpg" in result.stdout
    assert "SEM_SEG_HEAD.NUM_CLASSES 2 MODEL.ROI_HEADS.NUM_CLASSES 1" in result.stdout
    (record,), classes = load_panoptic_json(
        tmp_path / "images", tmp_path / "mine/panoptic", tmp_path / "mine/panoptic.json"
    )
    assert classes.names == ["road", "big car"]
    ids = read_id_map(record["pan_seg_file_name"])
    found = {(s["isthing"], s["iscrowd"], int((ids == s["id"]).sum())) for s in record["segments_info"]}
    assert found == {(False, 0, 450 - 68), (True, 0, 20), (True, 0, 16), (True, 1, 32)}
    assert (ids[:5] == 0).all()
    result = run(request, tmp_path, "prepare_dataset.py", "validate", "mine/panoptic.json", "--images", "images")
    assert result.returncode == 0, result.stderr
    (tmp_path / "labels" / "deep" / "a.png").unlink()
    (tmp_path / "mine" / "panoptic.json").unlink()
    result = run(request, tmp_path, "label_pngs_to_panoptic.py", *arguments)
    assert result.returncode == 1 and "labels/deep/a.png does not exist" in result.stderr.splitlines()[-1]
    Image.fromarray(labels).save(tmp_path / "images" / "deep" / "a.png")
    result = run(request, tmp_path, "label_pngs_to_panoptic.py", *arguments)
    assert result.returncode == 1 and "two images called deep/a; their labels would be one file" in result.stderr
