"""Videos are H.264 that browsers play, whole or not there."""

import shutil
import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from seamless_d2.errors import UserError
from seamless_d2.prediction.batch.video_file import join_videos, write_video

from ...helpers.images import make_image
from ...helpers.videos import serve_folder

NTSC = Fraction(30000, 1001)


def write_parts(folder: Path, *counts: int, size: tuple[int, int] = (71, 51), fps: Fraction = NTSC) -> list[Path]:
    """Videos of so many frames each: red on the left, and of the frame's number on the right."""
    parts, number = [], 0
    for k, count in enumerate(counts):
        parts.append(folder / f"{k}.part")
        with write_video(parts[-1], fps) as encoder:
            for _ in range(count):
                image = np.full((size[1], size[0], 3), 5 * number, np.uint8)
                image[:, : size[0] // 2] = (220, 20, 60)
                encoder.write(image)
                number += 1
    return parts


def test_joined_videos_are_what_browsers_play(tmp_path: Path) -> None:
    join_videos(write_parts(tmp_path, 7, 1, 20), tmp_path / "deep" / "a:b.mp4", NTSC)
    content, boxes, place = (tmp_path / "deep" / "a:b.mp4").read_bytes(), [], 0
    while place < len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        boxes.append(kind)
        place += size
    assert boxes.index(b"moov") < boxes.index(b"mdat")
    with av.open(f"file:{tmp_path}/deep/a:b.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames, stream.start_time) == (NTSC, 28, 0)
        assert (stream.width, stream.height) == (70, 50)  # the codec wants even sides
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)  # BT.709, limited
        assert stream.duration * stream.time_base == 28 / NTSC
        frames = list(container.decode(stream))
    assert [Fraction(f.pts) * f.time_base for f in frames] == [k / NTSC for k in range(28)]
    images = [f.to_ndarray(format="rgb24").astype(int) for f in frames]
    assert [round(image[:, 40:].mean() / 5) for image in images] == list(range(28))
    assert np.abs(images[9][:, :30] - (220, 20, 60)).mean() < 3


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (64, 48), (333, 17)])
def test_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    (part,) = write_parts(tmp_path, 2, size=size)
    with av.open(str(part)) as container:
        shapes = [(f.width, f.height) for f in container.decode(video=0)]
    assert shapes == [tuple(max(2, side // 2 * 2) for side in size)] * 2


def test_a_video_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyError), write_video(tmp_path / "out.mp4", NTSC) as encoder:
        encoder.write(make_image(51, 71))
        encoder.write(make_image(70, 30))  # of another size: resized
        assert encoder.size == (70, 50) and not (tmp_path / "out.mp4").exists()
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_video_that_the_disk_does_not_take_is_no_result(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs limits of the operating system")
    part, limits = write_parts(tmp_path, 20, size=(640, 480)), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # a full disk, as far as the encoder can see
        for count in (2, 60):  # it shows at the end, or before
            with pytest.raises(UserError, match=r"out\.mp4 cannot be written \(File too large\); check the free disk"):
                with write_video(tmp_path / "out.mp4", NTSC) as encoder:
                    for k in range(count):
                        encoder.write(make_image(120, 160, k))
        with pytest.raises(UserError, match=r"out\.mp4 cannot be written"):
            join_videos(part, tmp_path / "out.mp4", NTSC)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == part


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"out\.mp4 needs PyAV.* pip install seamless_d2\[video\]"):
        with write_video(tmp_path / "out.mp4", NTSC):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_browser_plays_it(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium (for instance the package chromium of Debian)")
    join_videos(write_parts(tmp_path, 5, 15, fps=Fraction(20)), tmp_path / "out.mp4", Fraction(20))
    (tmp_path / "index.html").write_text("<video src='out.mp4' muted></video>")
    with serve_folder(tmp_path) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{address}/index.html")
        if not page.evaluate("""document.querySelector('video').canPlayType('video/mp4; codecs="avc1.64001f"')"""):
            pytest.skip("this Chromium was built without H.264")
        page.evaluate("document.querySelector('video').play()")
        page.wait_for_function("document.querySelector('video').ended", timeout=30_000)
        shown = page.evaluate(
            """() => {
                const video = document.querySelector('video'), canvas = document.createElement('canvas');
                [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
                const context = canvas.getContext('2d');
                context.drawImage(video, 0, 0);
                const color = (x) => Array.from(context.getImageData(x, 25, 1, 1).data).slice(0, 3);
                return [video.videoWidth, video.videoHeight, video.duration, color(10), color(60)];
            }"""
        )
        browser.close()
    assert shown[:2] == [70, 50] and shown[2] == pytest.approx(1.0, abs=0.01)
    assert np.abs(np.subtract(shown[3], (220, 20, 60))).max() < 8  # the colors that were written
    assert np.abs(np.subtract(shown[4], 5 * 19)).max() < 4  # the last frame
