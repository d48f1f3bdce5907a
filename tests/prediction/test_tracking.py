"""Instances followed through hand-drawn maps."""

import io

import numpy as np

from seamless_d2 import PanopticResult
from seamless_d2.prediction.tracking import Tracker
from seamless_d2.visualization import segment_colors

from ..helpers.panoptic_files import CLASSES


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


def test_a_tracker_continues_from_its_arrays() -> None:
    drive = [scene((10 + 4 * k, 20, 16 + 4 * k, 40, 0), (60 - 3 * k, 5, 80 - 3 * k, 15, 1)) for k in range(8)]
    drive[3] = drive[4] = scene()  # hidden where the state is handed on
    whole, first = Tracker(), Tracker()
    expected = [tracks(whole.update(result)) for result in drive]
    assert expected[5] == [1, 2]
    for result in drive[:4]:
        first.update(result)
    file = io.BytesIO()
    np.savez_compressed(file, **first.to_arrays())
    file.seek(0)
    with np.load(file) as arrays:
        second = Tracker.from_arrays(arrays)
    assert [tracks(second.update(result)) for result in drive[4:]] == expected[4:]
    assert tracks(second.update(scene((0, 50, 5, 60, 0)))) == [3]  # numbers are not given twice
