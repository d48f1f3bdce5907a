"""Data preparation makes again what has changed, keeps the rest, and says both."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seamless_d2.data.prepare.writer import PanopticImage, write_panoptic_dataset
from seamless_d2.io import read_id_map

CATEGORIES = [{"id": 1, "name": "road", "isthing": 0}, {"id": 2, "name": "car", "isthing": 1}]


def convert(path: Path, category: int = 1) -> PanopticImage:
    ids = np.asarray(Image.open(path)).astype(np.int32)
    segments = [{"id": int(i), "category_id": category, "iscrowd": 0} for i in np.unique(ids)]
    return PanopticImage(f"{path.stem}.jpg", f"{path.stem}.png", ids, segments)


def save_labels(path: Path, value: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(path)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    for number, name in enumerate("abc", 1):
        save_labels(tmp_path / "labels" / f"{name}.png", number)
    return tmp_path / "labels"


def write(labels: Path, capsys: pytest.CaptureFixture, converter=convert, output: Path | None = None, **options) -> str:
    """Write the data set; returns what was said."""
    files = sorted(labels.glob("*.png"))
    output = output or labels.parent / "panoptic.json"
    write_panoptic_dataset(
        files,
        [f.stem for f in files],
        converter,
        inputs=[[f] for f in files],
        png_dir=output.with_suffix(""),
        panoptic_json=output,
        instance_json=None,
        categories=CATEGORIES,
        workers=1,
        **options,
    )
    return capsys.readouterr().out


def read_ids(labels: Path) -> list[int]:
    """The id of each image, in the PNGs and in the json."""
    annotations = json.loads((labels.parent / "panoptic.json").read_text())["annotations"]
    ids = [int(read_id_map(labels.parent / "panoptic" / a["file_name"])[0, 0]) for a in annotations]
    assert ids == [a["segments_info"][0]["id"] for a in annotations]
    return ids


def test_a_corrected_label(labels: Path, capsys: pytest.CaptureFixture) -> None:
    write(labels, capsys)
    save_labels(labels / "b.png", 9)
    said = write(labels, capsys)
    assert "2 of 3 images were already done, 1 made again because its labels changed (b)" in said
    assert read_ids(labels) == [1, 9, 3]


def test_labels_of_another_folder(labels: Path, capsys: pytest.CaptureFixture) -> None:
    write(labels, capsys)
    other = labels.with_name("other")
    shutil.copytree(labels, other)
    save_labels(other / "a.png", 7)
    assert "0 of 3 images were already done, 3 made again" in write(other, capsys)
    assert read_ids(labels) == [7, 2, 3]


@pytest.mark.parametrize("damage", ["truncated", "removed", "others"])
def test_a_damaged_output(labels: Path, capsys: pytest.CaptureFixture, damage: str) -> None:
    write(labels, capsys)
    png = labels.parent / "panoptic" / "c.png"
    if damage == "truncated":
        png.write_bytes(png.read_bytes()[:40])
    elif damage == "removed":
        png.unlink()
    else:
        shutil.copy(png.with_name("a.png"), png)
    assert "1 made again because its PNG was changed or removed (c)" in write(labels, capsys)
    assert read_ids(labels) == [1, 2, 3]


def test_other_settings_and_another_converter(
    labels: Path, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(labels, capsys)
    assert "3 made again because the converter, its settings" in write(labels, capsys, partial(convert, category=2))
    assert (
        json.loads((tmp_path / "panoptic.json").read_text())["annotations"][0]["segments_info"][0]["category_id"] == 2
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = "from seamless_d2.data.prepare.writer import PanopticImage\nimport numpy as np\n" + (
        "def convert(path):\n    ids = np.full((2, 2), VALUE)\n"
        "    return PanopticImage(path.name, path.name, ids, [{'id': VALUE, 'category_id': 1, 'iscrowd': 0}])\n"
    )
    for value in (5, 6):
        (tmp_path / "converter.py").write_text(source.replace("VALUE", str(value)))
        sys.modules.pop("converter", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        import converter

        assert "3 made again" in write(labels, capsys, converter.convert)
        assert read_ids(labels) == [value] * 3
        assert "3 of 3 images were already done\n" in write(labels, capsys, converter.convert)


def test_content_is_compared_on_request(labels: Path, capsys: pytest.CaptureFixture) -> None:
    write(labels, capsys)
    file = labels / "a.png"
    status = file.stat()
    before = file.read_bytes()
    save_labels(file, 4)
    assert file.stat().st_size == len(before)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copy with old times
    assert "3 of 3 images were already done" in write(labels, capsys)
    assert "1 made again because its labels changed (a)" in write(labels, capsys, check_content=True)
    assert read_ids(labels) == [4, 2, 3]
    os.utime(file)  # another time, the same content
    assert "3 of 3 images were already done" in write(labels, capsys)


def test_a_moved_data_set_is_kept(labels: Path, capsys: pytest.CaptureFixture) -> None:
    write(labels, capsys)
    moved = labels.parent.with_name("moved")
    shutil.move(labels.parent, moved)
    assert "3 of 3 images were already done\n" in write(moved / "labels", capsys)


def test_overwrite(labels: Path, capsys: pytest.CaptureFixture) -> None:
    write(labels, capsys)
    assert "3 made again because --overwrite was given" in write(labels, capsys, overwrite=True)


@pytest.mark.slow
def test_the_worked_example_sees_another_folder_of_labels(tmp_path: Path) -> None:
    for folder in ("images", "semantic", "other", "instance"):
        save_labels(tmp_path / folder / "a.png", {"other": 2}.get(folder, 1))
    (tmp_path / "classes.txt").write_text("1 road stuff\n2 sky stuff\n")
    tool = Path(__file__).parents[2] / "tools" / "label_pngs_to_panoptic.py"
    for semantic, category in (("semantic", 1), ("other", 2)):
        options = [f"--{name}={tmp_path / name}" for name in ("images", "instance")]
        options += [f"--semantic={tmp_path / semantic}", f"--classes={tmp_path / 'classes.txt'}"]
        output = tmp_path / "out" / "panoptic.json"
        subprocess.run([sys.executable, "-W", "ignore", tool, *options, f"--output={output}"], check=True)
        assert json.loads(output.read_text())["annotations"][0]["segments_info"][0]["category_id"] == category
