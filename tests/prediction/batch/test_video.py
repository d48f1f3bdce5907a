"""Videos: frames in, an mp4 out, instances followed by hand-drawn maps."""

import resource
from pathlib import Path

import cv2
import numpy as np
import pytest

from seamless_d2 import PanopticResult
from seamless_d2.errors import UserError
from seamless_d2.prediction.batch.run import predict_files
from seamless_d2.prediction.batch.video import Frames, Tracker, VideoFile
from seamless_d2.visualization import segment_colors

from ...helpers.images import make_image
from ...helpers.panoptic_files import CLASSES


def scene(*boxes: tuple[int, int, int, int, int]) -> PanopticResult:
    """Things as x0, y0, x1, y1, class on a 60 x 100 map, in this order."""
    ids, segments = np.zeros((60, 100), np.int32), []
    for number, (x0, y0, x1, y1, category) in enumerate(boxes, 1):
        ids[max(y0, 0) : y1, max(x0, 0) : x1] = number
        area = int((ids == number).sum())
        segments.append(
            {"id": number, "isthing": True, "category_id": category, "area": area, "score": 0.9, "instance_id": 0}
        )
    return PanopticResult.from_fusion(np.zeros((60, 100, 3), np.uint8), ids, segments, CLASSES)


def tracks(result: PanopticResult) -> list[int]:
    return [s.track_id for s in result.segments]


def test_instances_keep_their_number_whatever_their_order() -> None:
    tracker = Tracker()
    first = tracker.update(scene((10, 10, 30, 30, 0), (50, 10, 70, 30, 0), (10, 40, 30, 55, 1)))
    assert tracks(first) == [1, 2, 3]
    second = tracker.update(scene((54, 12, 74, 32, 0), (12, 41, 32, 56, 1), (14, 12, 34, 32, 0)))
    assert tracks(second) == [2, 3, 1]
    # The colour goes with the track.
    colors = [segment_colors(result.segments_info, CLASSES) for result in (first, second)]
    assert colors[1][1] == colors[0][2] != colors[0][1] == colors[1][3]
    # Another class in the same place is another object.
    assert tracks(tracker.update(scene((54, 12, 74, 32, 1)))) == [4]


def test_motion_carries_on_and_lost_objects_come_back() -> None:
    tracker = Tracker()
    for step in range(4):  # 6 pixels wide, 4 pixels a frame at first, then gone for two frames
        assert tracks(tracker.update(scene((10 + 4 * step, 20, 16 + 4 * step, 40, 0)))) == [1]
    for _ in range(2):
        assert tracks(tracker.update(scene())) == []
    assert tracks(tracker.update(scene((10 + 4 * 6, 20, 16 + 4 * 6, 40, 0)))) == [1]
    patient = Tracker(patience=1)
    patient.update(scene((10, 20, 16, 40, 0)))
    for _ in range(3):
        patient.update(scene())
    assert tracks(patient.update(scene((10, 20, 16, 40, 0)))) == [2]


def write_clip(path: Path, frames: int = 5, size: tuple[int, int] = (70, 51)) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, size)
    for k in range(frames):
        writer.write(np.full((size[1], size[0], 3), 40 * k, np.uint8))
    writer.release()


def test_frames(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    frames = Frames(tmp_path / "clip.mp4")
    assert frames.fps == 10 and frames.total == 5
    means = [frame.mean() for frame in frames]
    assert np.allclose(means, [0, 40, 80, 120, 160], atol=4)
    frames.check_complete()
    assert len(list(Frames(tmp_path / "clip.mp4", max_frames=2))) == 2
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"bad\.mp4 cannot be opened"):
        Frames(tmp_path / "bad.mp4")
    with pytest.raises(UserError, match="camera 97 cannot be opened"):
        Frames(97)


def test_mp4_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = VideoFile(tmp_path / "deep" / "out.mp4", 10)
    file.write(make_image(51, 71))
    assert not (tmp_path / "deep" / "out.mp4").exists()
    file.write(make_image(51, 71))
    file.finish()
    frames = Frames(tmp_path / "deep" / "out.mp4")
    assert [f.shape for f in frames] == [(50, 70, 3)] * 2  # the codec wants even sides
    file = VideoFile(tmp_path / "other.mp4", 10)
    file.write(make_image())
    file.discard()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]


def test_videos_are_predicted_beside_images(predictor, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    write_clip(source / "clip.mp4")
    (source / "bad.mp4").write_bytes(b"no video")
    summary = predict_files(predictor, [source], output, ["overlay", "coco"])
    assert len(summary.failures) == 1 and "bad.mp4" in summary.failures[0]
    assert len(list(Frames(output / "clip_overlay.mp4"))) == 5
    assert sorted(p.name for p in (output / "panoptic" / "clip").glob("*.png")) == [f"{k:06d}.png" for k in range(1, 6)]
    assert predict_files(predictor, [source / "clip.mp4"], output, ["overlay", "coco"]).skipped == 1


def test_an_mp4_that_the_disk_does_not_take_is_no_result(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = VideoFile(tmp_path / "out.mp4", 10)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a full disk, as far as the encoder can see
        for k in range(30):
            file.write(make_image(120, 160, k))
        with pytest.raises(UserError, match=r"out\.mp4 cannot be written; check the free disk space"):
            file.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
