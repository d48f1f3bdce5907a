"""Nothing of the user's is overwritten: data preparation writes inside its output only, and over its own files only."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seamless_d2.checkpoint.torchvision_resnet import convert_torchvision
from seamless_d2.data.prepare.polygons import prepare_polygons
from seamless_d2.data.prepare.writer import PanopticImage, write_panoptic_dataset
from seamless_d2.errors import UserError
from seamless_d2.io import check_output_file
from seamless_d2.prediction.batch.run import predict_files
from seamless_d2.seamseg.dataset_to_coco import write_seamseg
from seamless_d2.seamseg.weights import convert as convert_weights
from seamless_d2.seamseg.weights import convert_config

from ..helpers.images import make_image

CATEGORIES = [{"id": 1, "name": "road", "isthing": 0}]


def write_export(root: Path, file_name: str) -> Path:
    """A detection json of one image of 8x8 pixels."""
    polygon = [0, 0, 8, 0, 8, 8, 0, 8]
    content = {
        "images": [{"id": 1, "file_name": file_name, "height": 8, "width": 8}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [polygon]}],
        "categories": [{"id": 1, "name": "road"}],
    }
    (root / "export.json").write_text(json.dumps(content))
    return root / "export.json"


def make_photos(root: Path) -> dict[Path, bytes]:
    """Images of the user in ``root``/images and ``root``/elsewhere, with their content."""
    for folder in ("images", "elsewhere"):
        (root / folder).mkdir()
        for name in ("a.png", "b.png"):
            Image.fromarray(np.random.randint(0, 255, (8, 8, 3), np.uint8)).save(root / folder / name)
    return {path: path.read_bytes() for path in root.rglob("*.png")}


@pytest.mark.parametrize("kind", ["absolute", "parent", "link"])
def test_names_that_leave_the_output_are_refused(tmp_path: Path, kind: str) -> None:
    originals = make_photos(tmp_path)
    name = {"absolute": str(tmp_path / "elsewhere" / "b.png"), "parent": "../elsewhere/b.png", "link": "link/b.png"}[
        kind
    ]
    (tmp_path / "out").mkdir()
    if kind == "link":
        (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "out" / "panoptic").mkdir()
        (tmp_path / "out" / "panoptic" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="outside of .*panoptic; make the file name relative"):
        prepare_polygons(
            write_export(tmp_path, name), [], tmp_path / "out" / "panoptic.json", tmp_path / "images", workers=1
        )
    assert {path: path.read_bytes() for path in originals} == originals
    assert not (tmp_path / "out" / "panoptic.json").exists()


@pytest.mark.parametrize("output", ["images.json", "images/deep.json"])
def test_the_folder_that_is_read_is_not_written(tmp_path: Path, output: str) -> None:
    originals = make_photos(tmp_path)
    with pytest.raises(UserError, match="in the folder .*images that is read; choose another output"):
        prepare_polygons(write_export(tmp_path, "a.png"), [], tmp_path / output, tmp_path / "images", workers=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == originals


@pytest.mark.slow
def test_the_worked_example_does_not_write_over_labels(tmp_path: Path) -> None:
    for folder in ("images", "semantic", "instance"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / folder / "a.png")
    (tmp_path / "classes.txt").write_text("1 road stuff\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    tool = Path(__file__).parents[2] / "tools" / "label_pngs_to_panoptic.py"
    options = [f"--{name}={tmp_path / name}" for name in ("images", "semantic", "instance")]
    options += [f"--classes={tmp_path / 'classes.txt'}", f"--output={tmp_path / 'semantic.json'}"]
    run = subprocess.run([sys.executable, "-W", "ignore", tool, *options], capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and "semantic that is read" in run.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def convert(name: str) -> PanopticImage:
    segments = [{"id": 1, "category_id": 1, "iscrowd": 0}]
    return PanopticImage(f"{name}.jpg", f"{name}.png", np.ones((4, 5), np.int32), segments)


def write(root: Path, names: list[str], convert=convert) -> None:
    options = {"instance_json": root / "instances.json", "categories": CATEGORIES, "workers": 1}
    options["inputs"] = [[] for _ in names]
    write_panoptic_dataset(
        names, names, convert, png_dir=root / "panoptic", panoptic_json=root / "panoptic.json", **options
    )


@pytest.mark.parametrize("name", ["panoptic/a.png", "panoptic.json", "instances.json"])
def test_files_of_others_are_not_replaced(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"{}")
    with pytest.raises(
        UserError, match=f"{file.name} exists and was not written by this program; choose another output"
    ):
        write(tmp_path, ["a", "b"])
    assert file.read_bytes() == b"{}"


def test_own_files_are_replaced_after_any_interruption(tmp_path: Path) -> None:
    def stop(name: str) -> PanopticImage:
        if name == "b":
            raise KeyboardInterrupt
        return convert(name)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, ["a", "b"], stop)
    assert (tmp_path / "panoptic" / "a.png").is_file()
    write(tmp_path, ["a", "b", "c"])  # other items: everything is made again
    (tmp_path / "panoptic.json").write_text("{")  # damaged
    write(tmp_path, ["a", "b", "c"])
    write(tmp_path, ["b"])
    write(tmp_path, ["a", "b"])
    assert len(json.loads((tmp_path / "panoptic.json").read_text())["images"]) == 2


def test_a_folder_with_files_gets_no_data_set_of_the_original(tmp_path: Path) -> None:
    make_photos(tmp_path)
    panoptic = prepare_polygons(
        write_export(tmp_path, "a.png"), [], tmp_path / "p.json", tmp_path / "images", workers=1
    )
    splits = {"train": (tmp_path / "images", panoptic.with_suffix(""), panoptic)}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="images already holds files; choose a folder that does not exist yet"):
        write_seamseg(tmp_path / "images", splits)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # An interrupted run goes on, and does not keep what it wrote of another image.
    (tmp_path / "new" / "img").mkdir(parents=True)
    (tmp_path / "new" / ".unfinished").touch()
    (tmp_path / "new" / "img" / "a.png").write_bytes(b"half")
    write_seamseg(tmp_path / "new", splits)
    assert (tmp_path / "new" / "img" / "a.png").read_bytes() == (tmp_path / "images" / "a.png").read_bytes()
    assert not (tmp_path / "new" / ".unfinished").exists()


def test_predictions_do_not_replace_files_of_others(tmp_path: Path, predictor) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for name in "ab":
        Image.fromarray(make_image()).save(tmp_path / "in" / f"{name}.png")
    mine = tmp_path / "out" / "b_labelled.jpg"
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match="b_labelled.jpg exists and was not written by this program"):
        predict_files(predictor, [tmp_path / "in"], tmp_path / "out", overwrite=True)
    assert mine.read_bytes() == b"mine" and not (tmp_path / "out" / "a_labelled.jpg").exists()
    mine.unlink()
    for overwrite in (False, True):
        predict_files(predictor, [tmp_path / "in"], tmp_path / "out", overwrite=overwrite)


def test_named_outputs_are_new_and_no_inputs(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text("mine")
    with pytest.raises(UserError, match="model.yaml exists already; choose another name, or move it away"):
        check_output_file(file)
    with pytest.raises(UserError, match="model.yaml is a file that is read; choose another name"):
        check_output_file(tmp_path / "x" / ".." / "model.yaml", None, file, may_exist=True)
    with pytest.raises(UserError, match="exists already"):
        check_output_file(tmp_path, may_exist=True)
    check_output_file(file, may_exist=True)
    for convert in (convert_weights, convert_config):
        with pytest.raises(UserError, match="model.yaml exists already"):
            convert(tmp_path / "missing", file.with_suffix(".pth") if convert is convert_weights else file)
    with pytest.raises(UserError, match="exists already"):
        convert_torchvision("resnet18", file)
    assert file.read_text() == "mine"
