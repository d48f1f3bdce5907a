"""Videos are predicted in parts; what was interrupted ends as if it had not been."""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import av
import pytest

from seamless_d2 import Predictor
from seamless_d2.errors import UserError
from seamless_d2.io import remove_temporaries
from seamless_d2.prediction.batch import video_job
from seamless_d2.prediction.batch.run import predict_files
from seamless_d2.prediction.batch.video_job import VideoJob
from seamless_d2.prediction.frames import Frames, Selection

from ...helpers.processes import run_forked
from ...helpers.videos import interrupt_at, serve_folder, write_clip, write_drive

FORMATS = ("overlay", "ids")


def make_job(output: Path, part_seconds: float = 0.5, **made_of: object) -> VideoJob:
    return VideoJob(output, "deep/drive", FORMATS, made_of, part_seconds)


def read_results(output: Path) -> dict[str, bytes]:
    remove_temporaries(output)  # as a prediction of files does at its beginning
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in output.rglob("*") if p.is_file()}


def track_ids(output: Path) -> list[list[int]]:
    files = sorted(output.rglob("*_ids.json"))
    return [[s["track_id"] for s in json.loads(f.read_text())["segments"] if s["isthing"]] for f in files]


def kill_at(predictor: Predictor, output: Path, video: Path, frame: int, **options: object) -> None:
    """Predict, and be killed while the network has this frame."""
    network, seen = predictor.run_network, []

    def run_network(prepared: list) -> list:
        seen.extend(prepared)
        if len(seen) >= frame:
            os.kill(os.getpid(), signal.SIGKILL)
        return network(prepared)

    predictor.run_network = run_network
    make_job(output).run(predictor, Frames(video, Selection(**options)))


@pytest.fixture
def whole(predictor: Predictor, tmp_path: Path) -> dict[str, bytes]:
    """The results of an undisturbed prediction of a video."""
    write_drive(tmp_path / "drive.mp4")
    job = make_job(tmp_path / "whole")
    assert job.run(predictor, Frames(tmp_path / "drive.mp4")) == (24, None)
    job.remove_parts()
    return read_results(tmp_path / "whole")


def test_killed_and_resumed_is_the_same(predictor: Predictor, tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert len(whole) == 1 + 24 * 2
    ids = track_ids(tmp_path / "whole")
    assert sum(bool(set(a) & set(b)) for a, b in zip(ids, ids[1:], strict=False)) > 12, "nothing is tracked"
    output, video = tmp_path / "out", tmp_path / "drive.mp4"
    # Killed three times: in the second part, the third, and in the one that was to be done next.
    for frame in (9, 7, 3):
        assert run_forked(partial(kill_at, predictor, output, video, frame)) == [-signal.SIGKILL]
        assert not (output / "deep" / "drive_overlay.mp4").exists()
    parts = output / "deep" / ".drive.parts"
    assert sorted(p.name for p in parts.iterdir() if not p.name.startswith(".")) == [
        "000000.npz",
        "000000_overlay.part",
        "000001.npz",
        "000001_overlay.part",
        "plan.json",
    ]
    job = make_job(output)
    assert job.run(predictor, Frames(video)) == (24, None)
    # Killed after all was joined: it is joined again.
    (output / "deep" / "drive_overlay.mp4").unlink()
    assert job.run(predictor, Frames(video)) == (24, None)
    job.remove_parts()
    assert read_results(output) == whole


def test_parts_of_something_else_are_not_continued(
    predictor: Predictor, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    output, video = tmp_path / "out", tmp_path / "drive.mp4"
    for change in ({"made_of": 2}, {}):
        assert run_forked(partial(kill_at, predictor, output, video, 9)) == [-signal.SIGKILL]
        record = output / "deep" / ".drive.parts" / "000000.npz"
        before = record.stat().st_mtime_ns
        job = make_job(output, **change)
        with interrupt_at(predictor, 25) as seen:
            assert job.run(predictor, Frames(video))[0] == 24
        assert len(seen) == (24 if change else 19) and (record.stat().st_mtime_ns != before) == bool(change)
        job.remove_parts()
    assert read_results(output) == whole


def test_selected_frames_are_resumed(predictor: Predictor, tmp_path: Path, whole: dict[str, bytes]) -> None:
    selection = {"start": 0.3, "stop": 2.2, "stride": 3}  # frames 3, 6, ..., 21
    for output, kills in ((tmp_path / "once", ()), (tmp_path / "twice", (4, 3))):
        for frame in kills:
            kill = partial(kill_at, predictor, output, tmp_path / "drive.mp4", frame, **selection)
            assert run_forked(kill) == [-signal.SIGKILL]
        job = make_job(output)
        assert job.run(predictor, Frames(tmp_path / "drive.mp4", Selection(**selection))) == (7, None)
        job.remove_parts()
    assert read_results(tmp_path / "once") == read_results(tmp_path / "twice")
    once = (tmp_path / "once" / "deep" / "drive" / "000002_ids.png").read_bytes()
    assert once == whole["deep/drive/000007_ids.png"]  # the seventh frame is number 6
    with av.open(str(tmp_path / "once" / "deep" / "drive_overlay.mp4")) as container:
        assert container.streams.video[0].frames == 7 and container.streams.video[0].average_rate * 3 == 10


def test_videos_are_predicted_beside_images(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_job, "PART_SECONDS", 0.2)
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    write_clip(source / "clip.mp4")
    (source / "bad.mp4").write_bytes(b"no video")
    summary = predict_files(predictor, [source], output, ["overlay", "coco"])
    assert len(summary.failures) == 1 and "bad.mp4" in summary.failures[0]
    assert len(list(Frames(output / "clip_overlay.mp4"))) == 5
    assert sorted(p.name for p in (output / "panoptic" / "clip").glob("*.png")) == [f"{k:06d}.png" for k in range(1, 6)]
    assert predict_files(predictor, [source / "clip.mp4"], output, ["overlay", "coco"]).skipped == 1
    assert not list(output.rglob(".*.parts"))
    # Without PyAV, videos fail with its name, and the rest goes on.
    monkeypatch.setitem(sys.modules, "av", None)
    (failure,) = predict_files(predictor, [source / "clip.mp4"], tmp_path / "none").failures
    assert "clip.mp4 needs PyAV" in failure


def test_results_are_those_of_the_selected_frames(predictor: Predictor, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 20)
    arguments = predictor, [tmp_path / "clip.mp4"], tmp_path / "out", ["overlay", "coco"]
    assert predict_files(*arguments, start=0.5).skipped == 0
    assert predict_files(*arguments, start=0.5).skipped == 1
    for other, frames in (({"start": 0.5, "stop": 1.5}, 10), ({"stride": 6}, 4), ({}, 20), ({"start": 1.5}, 5)):
        assert predict_files(*arguments, **other).skipped == 0
        assert len(list(Frames(tmp_path / "out" / "clip_overlay.mp4"))) == frames
        assert len(json.loads((tmp_path / "out" / "panoptic.json").read_text())["images"]) == frames
        assert predict_files(*arguments, **other).skipped == 1
    (failure,) = predict_files(*arguments, start=5.0).failures
    assert "clip.mp4 has no frames from 5.0 s on" in failure
    with pytest.raises(UserError, match="stop"):
        predict_files(*arguments, start=2.0, stop=1.0)


def test_an_interrupted_video_goes_on_and_overwrite_begins_again(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_job, "PART_SECONDS", 0.5)
    write_clip(tmp_path / "clip.mp4", 20)
    arguments = predictor, [tmp_path / "clip.mp4"], tmp_path / "out", ["overlay"]
    with interrupt_at(predictor, 13) as seen, pytest.raises(KeyboardInterrupt):
        predict_files(*arguments)
    assert len(seen) == 13 and not list((tmp_path / "out").glob("*.mp4"))
    with interrupt_at(predictor, 13) as seen:
        assert len(predict_files(*arguments).written) == 1
    assert len(seen) == 10
    for overwrite, expected in ((True, 12), (True, 12), (False, 10)):
        with interrupt_at(predictor, 12) as seen:
            try:
                predict_files(*arguments, overwrite=overwrite)
            except KeyboardInterrupt:
                assert overwrite
        assert len(seen) == expected
    assert len(list(Frames(tmp_path / "out" / "clip_overlay.mp4"))) == 20


def test_a_stream_without_end_is_kept_as_far_as_it_came(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_job, "PART_SECONDS", 0.5)
    write_clip(tmp_path / "clip.ts", 10)
    output = tmp_path / "out"
    with serve_folder(tmp_path, then="repeat") as address:
        with interrupt_at(predictor, 8):  # in the second part
            summary = predict_files(predictor, [f"{address}/clip.ts"], output, ["overlay", "ids"])
        assert not summary.failures and [p.name for p in summary.written] == ["127.0.0.1_clip.ts_overlay.mp4"]
        count = len(list(Frames(summary.written[0])))
        assert 5 <= count <= 7 and len(list((output / "127.0.0.1_clip.ts").glob("*_ids.png"))) == count
        # It has other frames each time.
        with interrupt_at(predictor, 8) as seen:
            assert predict_files(predictor, [f"{address}/clip.ts"], output, ["overlay", "ids"]).skipped == 0
        assert len(seen) == 8
        with interrupt_at(predictor, 1), pytest.raises(KeyboardInterrupt):  # nothing to keep
            predict_files(predictor, [f"{address}/clip.ts"], output, ["overlay", "ids"])
    with serve_folder(tmp_path, then="reset") as address:
        summary = predict_files(predictor, [f"{address}/clip.ts"], tmp_path / "lost")
    (failure,) = summary.failures
    assert "the connection to video http://127.0.0.1" in failure and "was lost (Connection reset by peer)" in failure
    assert 5 <= len(list(Frames(tmp_path / "lost" / "127.0.0.1_clip.ts_labelled.mp4"))) <= 10


def test_videos_from_the_network(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "clip.mkv", tmp_path / "other" / "clip.mkv"):
        write_clip(path)
    output = tmp_path / "out"
    with serve_folder(tmp_path) as address:
        assert len(predict_files(predictor, [f"{address}/clip.mkv"], output).written) == 1
        assert len(list(Frames(output / "127.0.0.1_clip_labelled.mp4"))) == 5
        assert predict_files(predictor, [f"{address}/clip.mkv"], output).skipped == 1
        with pytest.raises(UserError, match=r"holds predictions of another file called 127\.0\.0\.1_clip \(http"):
            predict_files(predictor, [f"{address}/other/clip.mkv"], output)
        assert not predict_files(predictor, [f"{address}/other/clip.mkv"], output, overwrite=True).failures
    write_clip(tmp_path / "clip.mkv", 40)
    with serve_folder(tmp_path, share=0.6) as address:
        (failure,) = predict_files(predictor, [f"{address}/clip.mkv"], tmp_path / "cut").failures
        assert "was lost" in failure and not list((tmp_path / "cut").glob("*.mp4"))


def test_outputs_are_folders(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4")
    for output in ("s3://bucket/out", Path("s3://bucket/out")):
        with pytest.raises(UserError, match="the output s3:/.*bucket/out is no folder of this computer; give one"):
            predict_files(predictor, ["clip.mp4"], output)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
