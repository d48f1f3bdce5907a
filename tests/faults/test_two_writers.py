"""Two programs do not mix their files in one folder: the second is told which one is there."""

import os
from pathlib import Path

import pytest
from PIL import Image

from seamless_d2.data.prepare.polygons import prepare_polygons
from seamless_d2.engine import run
from seamless_d2.errors import UserError
from seamless_d2.locks import lock_output
from seamless_d2.prediction.batch.run import predict_files

from ..helpers.images import make_image
from .test_data_loss import make_photos, write_export

HELD = rf"is being written by a training \(process {os.getpid()} on"


def list_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--eval-only",)])
def test_training_and_evaluation(tmp_path: Path, arguments, flags: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    with lock_output(out / ".lock", "a training"):
        with pytest.raises(UserError, match=HELD):
            run(arguments("MODEL.WEIGHTS", "", flags=flags))
    assert not list_files(out)


def test_prediction(tmp_path: Path, predictor) -> None:
    Image.fromarray(make_image()).save(tmp_path / "a.png")
    out = tmp_path / "out"
    with lock_output(out / ".lock", "a training"):
        with pytest.raises(UserError, match=HELD):
            predict_files(predictor, [tmp_path / "a.png"], out)
    assert not list_files(out)
    assert len(predict_files(predictor, [tmp_path / "a.png"], out).written) == 1


def test_preparation(tmp_path: Path) -> None:
    make_photos(tmp_path)
    output = tmp_path / "out" / "panoptic.json"
    with lock_output(output.with_name(".panoptic.lock"), "a training"):
        with pytest.raises(UserError, match=HELD):
            prepare_polygons(write_export(tmp_path, "a.png"), [], output, tmp_path / "images", workers=1)
    assert not output.exists()
    # Another data set in the same folder is written meanwhile.
    with lock_output(output.with_name(".panoptic.lock"), "a training"):
        other = output.with_name("val.json")
        prepare_polygons(write_export(tmp_path, "a.png"), [], other, tmp_path / "images", workers=1)
