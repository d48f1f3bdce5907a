"""Folders of images into files: broken ones, restarts, kills, other settings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seamless_d2 import Predictor
from seamless_d2.config import load_config
from seamless_d2.errors import UserError
from seamless_d2.prediction.batch.run import predict_files, predict_files_on
from seamless_d2.prediction.options import PredictionOptions

from ...helpers.images import make_image
from ...helpers.processes import start_command


def test_folder_structure_is_kept_and_finished_files_are_skipped(predictor, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    Image.fromarray(make_image()).save(source / "a.png")
    Image.fromarray(make_image()).save(source / "a.jpg")
    Image.fromarray(make_image()).save(source / "deep" / "B.JPG", format="JPEG")
    (source / "notes.md").write_text("not an image")
    summary = predict_files(predictor, [source], output)
    assert [p.relative_to(output).as_posix() for p in summary.written] == [
        "a_labelled.jpg",
        "a_png_labelled.jpg",
        "deep/B_labelled.jpg",
    ]
    assert all(p.is_file() for p in summary.written) and not summary.failures
    times = [p.stat().st_mtime_ns for p in summary.written]
    again = predict_files(predictor, [source], output)
    assert again.skipped == 3 and [p.stat().st_mtime_ns for p in again.written] == times
    # A format that is not there yet is added.
    assert predict_files(predictor, [source], output, ["labelled", "ids"]).skipped == 0
    predict_files(predictor, [source], output, overwrite=True)
    assert all(p.stat().st_mtime_ns > t for p, t in zip(summary.written, times, strict=True))


def bad_files(folder: Path) -> list[str]:
    """Ten kinds of files that are no good images."""
    folder.mkdir(parents=True)
    good = folder / "good.jpg"
    Image.fromarray(make_image(200, 300)).save(good)
    whole = good.read_bytes()
    Image.fromarray(make_image(200, 300)).save(folder / "good.png")
    png = (folder / "good.png").read_bytes()
    (folder / "good.png").unlink()
    good.unlink()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "header.jpg").write_bytes(whole[:20])
    (folder / "truncated.png").write_bytes(png[: len(png) // 2])
    (folder / "crc.png").write_bytes(png[:60] + b"\0\0\0\0" + png[64:])
    (folder / "pdf.png").write_bytes(b"%PDF-1.4\n")
    (folder / "zeros.webp").write_bytes(bytes(1000))
    (folder / "gone.tif").symlink_to(folder / "nowhere.tif")
    bomb = Image.new("1", (20_000, 20_000))
    bomb.save(folder / "bomb.bmp.png")
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.slow
def test_ten_kinds_of_bad_files(predictor, tmp_path: Path) -> None:
    names = bad_files(tmp_path / "in")
    assert len(names) == 10
    odd = tmp_path / "in" / "odd"
    odd.mkdir()
    grey = Image.fromarray(make_image()[:, :, 0])
    grey.save(odd / "grey.png")
    Image.fromarray(make_image()[:, :, 0].astype(np.uint16) * 257).save(odd / "deep.png")
    grey.convert("RGBA").save(odd / "alpha.png")
    grey.convert("P").save(odd / "palette.bmp")
    Image.fromarray(make_image()).save(odd / "float.tiff")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(make_image(50, 70)).save(odd / "turned.jpg", exif=exif)
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join([*(f"in/{n}" for n in names), "in/odd/grey.png"]))
    summary = predict_files(predictor, [listing, odd], tmp_path / "out", ["ids"])
    assert len(summary.failures) == 10
    for name in names:
        assert any(name in sentence for sentence in summary.failures), name
    assert len(summary.written) == 2 * 7
    assert Image.open(tmp_path / "out" / "turned_ids.png").size == (50, 70)
    assert not list((tmp_path / "out").rglob("*bomb*"))


def test_other_settings_are_not_mixed_in(model_files, predictor, tmp_path: Path) -> None:
    Image.fromarray(make_image()).save(tmp_path / "a.png")
    predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
    cfg = predictor.cfg.clone()
    cfg.MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH = 0.25
    other = Predictor(cfg, model_files[1], "cpu", amp=True)
    with pytest.raises(UserError, match=r"other settings \(amp, model, thresholds\)"):
        predict_files(other, [tmp_path / "a.png"], tmp_path / "out")
    assert predict_files(other, [tmp_path / "a.png"], tmp_path / "out", overwrite=True).skipped == 0


def test_an_output_that_cannot_be_written(predictor, tmp_path: Path) -> None:
    Image.fromarray(make_image()).save(tmp_path / "a.png")
    (tmp_path / "file").touch()
    with pytest.raises((UserError, OSError)):
        predict_files(predictor, [tmp_path / "a.png"], tmp_path / "file" / "out")


@pytest.mark.slow
def test_two_processes_give_the_files_of_one(
    model_files, predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The number of threads decides in which order numbers are summed.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for k in range(3):
        Image.fromarray(make_image(seed=k)).save(tmp_path / f"{k}.png")
    inputs = [tmp_path / f"{k}.png" for k in range(3)] + [tmp_path / "3.png"]
    (tmp_path / "3.png").write_bytes(b"")
    predict_files(predictor, inputs, tmp_path / "one", ["coco"])
    summary = predict_files_on(
        ["cpu", "cpu"],
        load_config(model_files[0], ["MODEL.WEIGHTS", str(model_files[1])]),
        PredictionOptions(),
        inputs,
        tmp_path / "two",
        ["coco"],
    )
    assert len(summary.failures) == 1 and len(summary.written) == 6
    for name in ("panoptic.json", "instances.json", "panoptic/2.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    # One process goes on where two were.
    assert predict_files(predictor, inputs, tmp_path / "two", ["coco"]).skipped == 3


def start(request: pytest.FixtureRequest, model_files: tuple[Path, Path], folder: Path, count: int) -> subprocess.Popen:
    """The tool on so many images, all formats."""
    if not (folder / "in").is_dir():
        (folder / "in").mkdir()
        for k in range(count):
            Image.fromarray(make_image(120, 160, k)).save(folder / "in" / f"{k}.png")
    arguments = ["--config-file", model_files[0], "--weights", model_files[1], "--device", "cpu"]
    arguments += ["--input", folder / "in", "--output", folder / "out", "--format", "overlay,labelled,coco,ids,raw"]
    return start_command(
        [sys.executable, "-W", "ignore", request.config.rootpath / "tools" / "predict.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def check_whole(folder: Path) -> int:
    """Every file that is there can be read to its end; returns their number."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix in (".png", ".jpg"):
            Image.open(path).load()
    return len(files)


def interrupt(process: subprocess.Popen, folder: Path, signal_number: int, count: int) -> str:
    """Wait for some files, then send the signal; returns what the process said."""
    limit = time.monotonic() + 120
    while time.monotonic() < limit and len(list(folder.rglob("*_ids.json"))) < 5:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal_number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "Traceback" not in errors, f"{output}\n{errors}"
    assert 5 * 7 <= check_whole(folder) < count * 7
    return errors


@pytest.mark.slow
def test_control_c_leaves_only_whole_files(model_files, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    # So many that the signal comes in time, however busy the machine.
    interrupt(start(request, model_files, tmp_path, 400), tmp_path / "out", signal.SIGINT, 400)
    assert not [p for p in (tmp_path / "out").rglob(".*.tmp*") if p.is_file()]


@pytest.mark.slow
def test_killed_anywhere(model_files, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    interrupt(start(request, model_files, tmp_path, 100), tmp_path / "out", signal.SIGKILL, 100)
    (tmp_path / "out" / ".5_ids.json.0123456789abcdef.tmp").write_text("{")  # as a kill leaves them
    (tmp_path / "out" / ".5_overlay.mp4.0123456789abcdef.tmp.mp4").write_text("")
    process = start(request, model_files, tmp_path, 100)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "700 files" in output and "were finished before" in output
    assert check_whole(tmp_path / "out") == 100 * 7 + 4  # and panoptic, instances, settings and the manifest
    assert len(json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]) == 100
    assert not [p for p in (tmp_path / "out").rglob(".*.tmp*") if p.is_file()], (
        "temporary files of the first run are left"
    )
