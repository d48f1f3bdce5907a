"""A message lists the first failures and the number of the others; a file has all of them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seamless_d2.data.prepare.polygons import prepare_polygons
from seamless_d2.data.prepare.writer import PanopticImage, write_panoptic_dataset
from seamless_d2.errors import UserError
from seamless_d2.io import MAX_LISTED, summarize_failures
from seamless_d2.prediction.batch.run import Summary

from ..helpers.panoptic_files import write_dataset

NAMES = [f"{number:03}" for number in range(25)]


def fail(name: str) -> PanopticImage:
    raise UserError(f"{name} is broken")


def test_the_summary(tmp_path: Path) -> None:
    file = tmp_path / "failures.txt"
    assert summarize_failures(NAMES[:MAX_LISTED], file) == "\n  ".join(NAMES[:MAX_LISTED]) and not file.exists()
    assert summarize_failures(NAMES, file).splitlines()[-2:] == ["  009", f"  and 15 more, all listed in {file}"]
    assert file.read_text().splitlines() == NAMES


def test_preparation(tmp_path: Path) -> None:
    output = tmp_path / "panoptic.json"
    with pytest.raises(
        UserError, match=r"25 of 25 images (.*\n)*  and 15 more, all listed in .*failures\.txt"
    ) as error:
        write_panoptic_dataset(
            NAMES,
            NAMES,
            fail,
            inputs=[[]] * 25,
            png_dir=tmp_path / "panoptic",
            panoptic_json=output,
            instance_json=None,
            categories=[{"id": 1, "name": "road", "isthing": 0}],
            workers=1,
        )
    assert len(str(error.value).splitlines()) == 11
    listed = Path(str(error.value).rsplit(" ", 1)[1]).read_text().splitlines()
    assert listed == [f"{name}: {name} is broken" for name in NAMES]


def test_missing_images(tmp_path: Path) -> None:
    content = {
        "images": [{"id": n, "file_name": f"{name}.jpg", "height": 4, "width": 4} for n, name in enumerate(NAMES)],
        "annotations": [{"image_id": 0, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]]}],
        "categories": [{"id": 1, "name": "car"}],
    }
    (tmp_path / "export.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="25 images .*\n  000.jpg(\n.*)*\n  and 15 more$"):
        prepare_polygons(tmp_path / "export.json", [], tmp_path / "panoptic.json", tmp_path, workers=1)


def test_prediction(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"25 inputs failed:\n  000\n(.*\n)*  and 15 more, all listed in .*failures"):
        Summary(failures=NAMES).report(tmp_path)
    assert (tmp_path / "failures.txt").read_text().splitlines() == NAMES


@pytest.mark.slow
def test_validation(tmp_path: Path) -> None:
    segment = {"id": 1, "category_id": 3, "iscrowd": 0, "area": 5}
    files = write_dataset(tmp_path / "d", {name: (np.ones((4, 4), int), [segment]) for name in NAMES})
    tool = Path(__file__).parents[2] / "tools" / "prepare_dataset.py"
    command = [sys.executable, "-W", "ignore", tool, "validate", files["panoptic_json"]]
    command += ["--images", files["image_dir"], "--workers", "1"]
    for report in ([], ["--report", tmp_path / "all.jsonl"]):
        done = subprocess.run([*command, *report], capture_output=True, text=True)
        assert done.returncode == 1 and "  and 15 more" in done.stdout.splitlines()
        assert done.stdout.count("has area 5, its pixels say 16") == 10
        assert ("all are listed in" if report else "--report FILE lists all") in done.stderr
    levels = [json.loads(line)["level"] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert levels.count("error") == 25
