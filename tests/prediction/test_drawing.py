"""How results are drawn: alpha, legend, format of images, and what they mean for results of earlier runs."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seamless_d2 import Predictor
from seamless_d2.errors import UserError
from seamless_d2.prediction.batch.run import predict_files
from seamless_d2.prediction.formats import Drawing
from seamless_d2.prediction.frames import Frames

from ..helpers.images import make_image
from ..helpers.videos import write_clip
from .test_formats import result


def test_overlay_takes_its_own_values_or_those_of_the_result() -> None:
    plain = result()
    assert np.array_equal(plain.overlay(alpha=0.5), plain.overlay())
    faint = replace(plain, drawing=Drawing(alpha=0.2, legend=True))
    assert np.array_equal(faint.overlay(labels=False), plain.overlay(0.2, labels=False, legend=True))
    assert np.array_equal(faint.overlay(0.5, labels=False, legend=False), plain.overlay(labels=False))
    legend = faint.overlay(labels=False)
    assert legend.shape[0] > 50 and legend.shape[1] == 70
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="--alpha"):
            plain.overlay(wrong)
    with pytest.raises(UserError, match="jpg or png"):
        Drawing(image_format="gif")


def test_png_keeps_every_pixel(tmp_path: Path) -> None:
    drawn = replace(result(), drawing=Drawing(image_format="png"))
    files = drawn.save(tmp_path, "a", ["overlay", "labelled", "ids"])
    assert [f.name for f in files] == ["a_overlay.png", "a_labelled.png", "a_ids.png", "a_ids.json"]
    assert np.array_equal(np.asarray(Image.open(files[0])), drawn.overlay(labels=False))


def test_other_drawings_make_earlier_results_stale(model_files: tuple[Path, Path], tmp_path: Path) -> None:
    Image.fromarray(make_image()).save(tmp_path / "a.png")
    inputs, output = [tmp_path / "a.png"], tmp_path / "out"
    first, fainter = (Predictor(*model_files, "cpu", **options) for options in ({}, {"alpha": 0.25, "legend": True}))
    predict_files(first, inputs, output)
    # Versions before this option have recorded nothing of it.
    record = output / "settings.json"
    settings, time = json.loads(record.read_text()), record.stat().st_mtime_ns
    del settings["drawing"]
    record.write_text(json.dumps(settings))
    os.utime(record, ns=(time, time))
    assert predict_files(first, inputs, output).skipped == 1
    before = (output / "a_labelled.jpg").read_bytes()
    with pytest.raises(UserError, match=r"other settings \(drawing\)"):
        predict_files(fainter, inputs, output)
    predict_files(fainter, inputs, output, overwrite=True)
    assert (output / "a_labelled.jpg").read_bytes() != before
    # Another format of images has files of its own.
    first.options = replace(fainter.options, image_format="png")
    assert [p.name for p in predict_files(first, inputs, output).written] == ["a_labelled.png"]
    (output / "a_labelled.jpg").unlink()
    assert predict_files(first, inputs, output).skipped == 1


def test_the_tool_and_videos(model_files: tuple[Path, Path], tmp_path: Path, tool) -> None:
    Image.fromarray(make_image()).save(tmp_path / "a.png")
    write_clip(tmp_path / "clip.mp4", frames=2, size=(70, 50))
    config, weights = model_files
    command = ["predict.py", "--config-file", config, "--weights", weights, "--output", tmp_path / "out"]
    command += ["--format", "overlay", "--alpha", "0.25", "--legend", "--image-format", "png"]
    code, text = tool(*command, "--input", tmp_path / "a.png", tmp_path / "clip.mp4")
    assert code == 0, text
    expected = Predictor(*model_files, "cpu").predict(tmp_path / "a.png").overlay(0.25, labels=False, legend=True)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a_overlay.png")), expected)
    # The frames of a video have one size, whatever occurs in them.
    frame = next(iter(Frames(tmp_path / "out" / "clip_overlay.mp4")))
    assert frame.shape == (50, 70, 3)
    code, text = tool(*command, "--alpha", "3", "--input", tmp_path / "a.png")
    assert code.startswith("error: ") and "--alpha" in code
