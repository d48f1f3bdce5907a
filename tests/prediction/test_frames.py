"""Frames of files, URLs and cameras, and which of them are read."""

import math
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from seamless_d2.errors import UserError
from seamless_d2.prediction.batch.video_file import write_video
from seamless_d2.prediction.frames import Frames, Selection, parse_time, redact, to_source

from ..helpers.videos import serve_folder, write_clip


def numbers(frames: Frames) -> list[int]:
    """Which frames of ``write_clip`` these are."""
    return [round(frame.mean() / 6) for frame in frames]


def test_frames_of_a_file(tmp_path: Path) -> None:
    write_clip(tmp_path / "a:b.mp4", 20)
    frames = Frames(tmp_path / "a:b.mp4")
    assert frames.fps == 10 and frames.total == 20 and frames.duration == pytest.approx(2) and not frames.is_live
    assert [f.shape for f in Frames(tmp_path / "a:b.mp4")] == [(51, 70, 3)] * 20
    assert numbers(frames) == list(range(20))
    frames.check_complete()
    assert frames.read == 20


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(max_frames=2), [0, 1]),
        (Selection(start=0.5, stop=0.8), [5, 6, 7]),
        (Selection(start=0.45), list(range(5, 40))),
        (Selection(start=3.9), [39]),
        (Selection(stride=15), [0, 15, 30]),
        (Selection(start=1.1, stop=2.2, stride=4), [11, 15, 19]),
        (Selection(start=1.1, stride=9, max_frames=3), [11, 20, 29]),
    ],
)
def test_selected_frames(tmp_path: Path, selection: Selection, expected: list[int]) -> None:
    write_clip(tmp_path / "clip.mp4", 40)
    frames = Frames(tmp_path / "clip.mp4", selection)
    assert frames.total == len(expected) and frames.fps == Fraction(10, selection.stride)
    assert numbers(frames) == expected
    frames.check_complete()
    # What was read in two goes is the same.
    seconds = [t for t, _ in Frames(tmp_path / "clip.mp4", selection).timed()]
    for read in {1, (len(expected) + 1) // 2, len(expected)}:
        second = Frames(tmp_path / "clip.mp4", selection)
        second.resume(read, seconds[read - 1])
        assert numbers(second) == expected[read:] and second.read == len(expected)
        second.check_complete()


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mpg", ".ts"])
def test_other_containers_are_searched_too(tmp_path: Path, suffix: str) -> None:
    write_clip(tmp_path / f"clip{suffix}", 40, codec="mpeg1video" if suffix == ".mpg" else "mpeg4", fps=25)
    frames = Frames(tmp_path / f"clip{suffix}", Selection(start=1.0))
    assert numbers(frames) == list(range(25, 40))
    frames.check_complete()
    cut = Frames(tmp_path / f"clip{suffix}")
    cut.resume(13, [t for t, _ in Frames(tmp_path / f"clip{suffix}", Selection(max_frames=13)).timed()][-1])
    assert numbers(cut) == list(range(13, 40))


def test_selections_out_of_range(tmp_path: Path) -> None:
    for wrong, key in [
        ({"start": -1.0}, "--start"),
        ({"start": math.nan}, "--start"),
        ({"start": 2.0, "stop": 2.0}, "--stop"),
        ({"stride": 0}, "--stride"),
        ({"max_frames": 0}, "--max-frames"),
    ]:
        with pytest.raises(UserError, match=key):
            Selection(**wrong)
    write_clip(tmp_path / "clip.mp4")
    for selection in (Selection(start=9.0), Selection(start=0.41, stop=0.42), Selection(start=0.11, stop=0.12)):
        frames = Frames(tmp_path / "clip.mp4", selection)
        assert not list(frames)
        with pytest.raises(UserError, match=r"clip\.mp4 has no frames from .* change start and stop \(--start"):
            frames.check_complete()


def test_times() -> None:
    assert [parse_time(t) for t in ("90", "1.5", "01:30", "1:02:03.25")] == [90, 1.5, 90, 3723.25]
    for wrong in ("", "-1", "1:2:3:4", "1h", "nan", "1:", ".5:1"):
        with pytest.raises(UserError, match="is no time; write seconds or HH:MM:SS"):
            parse_time(wrong)


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"bad\.mp4 cannot be opened"):
        Frames(tmp_path / "bad.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match=r"sound\.mp4 cannot be opened \(it has no video stream\)"):
        Frames(tmp_path / "sound.mp4")
    with pytest.raises(UserError, match="camera 97 cannot be opened"):
        Frames(97)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"bad\.mp4 needs PyAV.* pip install seamless_d2\[video\]"):
        Frames(tmp_path / "bad.mp4")


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mkv", 40, codec="mpeg4")
    whole = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    for selection in (Selection(), Selection(start=1.0)):
        frames = Frames(tmp_path / "cut.mkv", selection)
        assert 0 < len(list(frames)) < 35
        with pytest.raises(UserError, match=r"cut\.mkv is damaged: it ends at .* s of 4\.0 s; get it again"):
            frames.check_complete()
    frames = Frames(tmp_path / "cut.mkv", Selection(stop=1.0))  # what is asked for is there
    assert len(list(frames)) == 10
    frames.check_complete()


def test_frames_are_upright_and_of_the_right_colors(tmp_path: Path) -> None:
    image = np.zeros((48, 80, 3), np.uint8)
    image[:24, :40], image[24:] = (255, 0, 0), (0, 80, 200)
    with write_video(tmp_path / "lying.mp4", Fraction(10)) as encoder:
        encoder.write(image)
    content = (tmp_path / "lying.mp4").read_bytes()
    place = content.index(b"tkhd") + 44
    for turns, (a, b, c, d) in enumerate([(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)]):
        matrix = (np.array([a, b, 0, c, d, 0, 0, 0, 0x4000]) * 0x10000).astype(">i4")
        (tmp_path / "turned.mp4").write_bytes(content[:place] + matrix.tobytes() + content[place + 36 :])
        (frame,) = Frames(tmp_path / "turned.mp4")
        assert np.abs(frame.astype(int) - np.rot90(image, turns)).mean() < 4, turns


def test_urls(tmp_path: Path) -> None:
    with write_video(tmp_path / "clip.mp4", Fraction(10)) as encoder:
        for k in range(30):
            encoder.write(np.full((50, 70, 3), 6 * k, np.uint8))
    write_clip(tmp_path / "clip.mkv", 30, codec="mpeg4")
    with serve_folder(tmp_path) as address:
        assert numbers(Frames(f"{address}/clip.mkv")) == list(range(30))
        frames = Frames(f"{address}/clip.mkv?key=1", Selection(start=1.0, stride=10))
        assert not frames.is_live and numbers(frames) == [10, 20]
        frames.check_complete()
        with pytest.raises(UserError, match=r"/none\.mp4 cannot be opened \(.*Not Found\); check the address"):
            Frames(f"{address}/none.mp4")
    with pytest.raises(UserError, match="cannot be opened .*; check the address and the connection"):
        Frames(f"{address}/clip.mkv")


def test_lost_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "clip.mkv", 40, codec="mpeg4")
    with serve_folder(tmp_path, share=0.6) as address:
        frames = Frames(f"{address}/clip.mkv")
        assert 5 < len(list(frames)) < 35
        with pytest.raises(UserError, match=r"connection to video http.*mkv was lost.* after \d+ frames; check it"):
            frames.check_complete()

    monkeypatch.setattr("seamless_d2.prediction.frames._TIMEOUT", 0.5)
    with serve_folder(tmp_path, share=0.6, then="stall") as address:
        frames = Frames(f"{address}/clip.mkv")
        assert len(list(frames)) > 5
        with pytest.raises(UserError, match=r"was lost \(nothing came for 0\.5 s\) after"):
            frames.check_complete()


def test_a_stream_without_end(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.ts", 10, codec="mpeg4")
    with serve_folder(tmp_path, then="repeat") as address:
        for selection in (Selection(max_frames=10), Selection(start=0.3, max_frames=5)):
            stream = Frames(f"{address}/clip.ts", selection)
            assert stream.is_live and stream.total == selection.max_frames
            first = round(10 * selection.start)
            assert numbers(stream) == list(range(first, first + selection.max_frames))


def test_schemes() -> None:
    assert to_source("rtsp://cam/1") == "rtsp://cam/1" and to_source("HTTPS://a/B.mp4") == "https://a/B.mp4"
    assert to_source("a:b.mp4") == Path("a:b.mp4") and to_source("C:/a.mp4") == Path("C:/a.mp4") and to_source(0) == 0
    for wrong in ("s3://bucket/a.mp4", "foo+x://a", "file:///a.mp4"):
        with pytest.raises(UserError, match=r"its scheme is none of http, https, rtsp, rtsps; download"):
            to_source(wrong)
    assert (
        redact("rtsp://me:secret@cam:554/1?a=@") == "rtsp://cam:554/1?a=@" and redact("rtsp://cam/1") == "rtsp://cam/1"
    )
    with pytest.raises(UserError) as error:
        Frames("http://me:secret@127.0.0.1:9/a.mp4")
    assert "secret" not in str(error.value)


def test_time_goes_on_where_recordings_were_put_together(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.ts", 20, codec="mpeg4")
    (tmp_path / "twice.ts").write_bytes((tmp_path / "clip.ts").read_bytes() * 2)
    whole = list(Frames(tmp_path / "twice.ts").timed())
    times = [seconds for seconds, _ in whole]
    assert len(whole) == 40 and (np.diff(times) > 0).all()
    rest = Frames(tmp_path / "twice.ts")
    rest.resume(13, times[12])
    assert [seconds for seconds, _ in rest.timed()] == times[13:]
