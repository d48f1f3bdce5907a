"""What is finished, what must be done again, and what must not be mixed."""

import os
from pathlib import Path

import pytest
from PIL import Image

from seamless_d2.errors import UserError
from seamless_d2.prediction.batch.resume import is_fresh, record_settings
from seamless_d2.prediction.batch.run import predict_files

from ...helpers.images import make_image
from ...helpers.videos import write_clip


def test_an_overwriting_run_that_was_cut_off_leaves_nothing_old_that_counts(tmp_path: Path) -> None:
    source, old, new = tmp_path / "a.png", tmp_path / "out" / "old", tmp_path / "out" / "new"
    source.touch()
    output = tmp_path / "out"
    record_settings(output, {"thresh": 1}, False)
    old.touch()
    os.utime(old, ns=(1, old.stat().st_mtime_ns - 10**9))
    with pytest.raises(UserError, match=r"other settings \(thresh\)"):
        record_settings(output, {"thresh": 2}, False)
    since = record_settings(output, {"thresh": 2}, True)
    new.touch()
    assert record_settings(output, {"thresh": 2}, False) == since  # the restart
    assert is_fresh([new], since) and not is_fresh([new, old], since)
    assert not is_fresh([new, tmp_path / "gone"], since)
    os.utime(source, ns=(1, new.stat().st_mtime_ns + 1))
    assert not is_fresh([new], since, source)  # the image has changed


def test_another_image_of_the_same_name(predictor, tmp_path: Path) -> None:
    for day in "12":
        (tmp_path / day).mkdir()
        Image.fromarray(make_image(seed=int(day))).save(tmp_path / day / "a.png")
    predict_files(predictor, [tmp_path / "1"], tmp_path / "out")
    with pytest.raises(UserError, match="predictions of another file called a "):
        predict_files(predictor, [tmp_path / "2"], tmp_path / "out")
    assert predict_files(predictor, [tmp_path / "2"], tmp_path / "out", overwrite=True).skipped == 0
    # A folder that was moved is still the same.
    (tmp_path / "2").rename(tmp_path / "3")
    assert predict_files(predictor, [tmp_path / "3"], tmp_path / "out").skipped == 1


def test_foreign_settings_are_not_replaced(tmp_path: Path) -> None:
    for text in ("[1]", "{"):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(UserError, match=r"settings\.json was not written by this program"):
            record_settings(tmp_path, {}, True)
        assert (tmp_path / "settings.json").read_text() == text


def test_videos_are_finished_for_the_frames_and_formats_that_were_asked_for(predictor, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    arguments = predictor, [tmp_path / "clip.mp4"], tmp_path / "out"
    pngs = tmp_path / "out" / "panoptic" / "clip"
    predict_files(*arguments, ["overlay"], max_frames=2)
    assert predict_files(*arguments, ["overlay"], max_frames=2).skipped == 1
    assert predict_files(*arguments, ["coco"], max_frames=2).skipped == 0 and len(list(pngs.glob("*.png"))) == 2
    assert predict_files(*arguments, ["coco", "overlay"], max_frames=2).skipped == 1
    assert predict_files(*arguments, ["coco"]).skipped == 0 and len(list(pngs.glob("*.png"))) == 5
    # Frames of a longer run are not part of a shorter one.
    predict_files(*arguments, ["coco"], max_frames=3)
    assert (tmp_path / "out" / "panoptic.json").read_text().count('"image_id"') == 3
    with pytest.raises(UserError, match=r"--max-frames\) must be at least 1, not 0"):
        predict_files(*arguments, ["coco"], max_frames=0)
