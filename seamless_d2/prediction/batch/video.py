"""Videos: reading frames, following instances from frame to frame, writing an annotated mp4."""

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ...errors import UserError
from ...io import make_temporary
from ...limits import check_pixels
from ..result import PanopticResult, Segment

_DEFAULT_FPS = 25.0


class Frames:
    """The frames of a video file or camera, (H, W, 3) uint8 RGB."""

    def __init__(self, source: Path | int, max_frames: int | None = None) -> None:
        """
        Args:
            source: A file, or the number of a camera.
            max_frames: The number of frames after which to stop; default all.

        Raises:
            UserError: The file or camera cannot be opened, or its frames have more than ``MAX_PIXELS``.
        """
        self.name = f"camera {source}" if isinstance(source, int) else f"video {source}"
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            remedy = "connect it or give another number" if isinstance(source, int) else "replace or remove the file"
            raise UserError(f"{self.name} cannot be opened; {remedy}")
        sides = (self._capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        check_pixels(*map(int, sides), f"a frame of {self.name}")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else _DEFAULT_FPS
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._expected = count if count > 0 and not isinstance(source, int) else None
        self._max_frames = max_frames
        self.read = 0

    @property
    def total(self) -> int | None:
        """The number of frames that there should be; None for a camera."""
        limits = [n for n in (self._expected, self._max_frames) if n is not None]
        return min(limits) if limits else None

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            while self._max_frames is None or self.read < self._max_frames:
                there, frame = self._capture.read()
                if not there:
                    break
                self.read += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            self._capture.release()

    def check_complete(self) -> None:
        """Raise ``UserError`` if frames are missing at the end, as in a file that was cut off.

        Containers count a frame or two too many at times; that is no damage.
        """
        if self.read == 0 or (self.total is not None and self.read < self.total - 2):
            expected = "" if self.total is None else f" of {self.total}"
            raise UserError(f"{self.name} is damaged: {self.read}{expected} frames can be read; get it again")


class VideoFile:
    """An mp4 that appears only when it is whole."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._writer: cv2.VideoWriter | None = None
        self._temporary: Path | None = None
        self._written = 0

    def write(self, image: np.ndarray) -> None:
        """Append an (H, W, 3) uint8 RGB frame; all have the first one's size."""
        height, width = (side // 2 * 2 or 2 for side in image.shape[:2])  # the codec wants even sides
        if self._writer is None:
            self._temporary = make_temporary(self._path, ".mp4")  # OpenCV tells the container from the suffix
            self._size = (width, height)
            self._writer = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter_fourcc(*"mp4v"), self._fps, self._size)
            if not self._writer.isOpened():
                self.discard()
                raise UserError(
                    f"{self._path} cannot be written: OpenCV has no mp4 encoder here; reinstall opencv-python"
                )
        image = cv2.resize(image, self._size) if image.shape[1::-1] != self._size else image
        self._writer.write(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR))
        self._written += 1

    def finish(self) -> None:
        """Close the file and move it to its place.

        Raises:
            UserError: Frames are missing in it, as on a full disk.
        """
        if self._writer is not None:
            self._writer.release()
            there = cv2.VideoCapture(str(self._temporary)).get(cv2.CAP_PROP_FRAME_COUNT)
            if there < self._written:  # the encoder says nothing of failed writes
                self.discard()
                raise UserError(f"{self._path} cannot be written; check the free disk space")
            self._temporary.replace(self._path)
            self._writer = self._temporary = None

    def discard(self) -> None:
        """Delete what has been written so far."""
        if self._writer is not None:
            self._writer.release()
            with suppress(FileNotFoundError):
                self._temporary.unlink()
            self._writer = self._temporary = None


@dataclass
class _Track:
    number: int
    category_id: int
    x0: int
    y0: int
    mask: np.ndarray
    area: int
    last_frame: int
    velocity: tuple[float, float] | None = None  # x, y in pixels per frame; None = not seen twice yet


class Tracker:
    """Follows instances from frame to frame by the overlap of their masks.

    An instance continues the track of its class that it overlaps most, moved on as it moved last, if their intersection
    over union is above ``min_iou``; a track that finds no continuation waits ``patience`` frames. New tracks are moved
    as the others are at the median: most of the motion is the camera's.
    """

    def __init__(self, min_iou: float = 0.1, patience: int = 10) -> None:
        self._min_iou, self._patience = min_iou, patience
        self._tracks: list[_Track] = []
        self._frame, self._count = 0, 0

    def update(self, result: PanopticResult) -> PanopticResult:
        """Return the result of the next frame with a ``track_id`` in every thing segment."""
        self._frame += 1
        self._tracks = [t for t in self._tracks if self._frame - t.last_frame <= self._patience + 1]
        things = {s.id: s for s in result.segments if s.isthing}
        of_segment = self._match(result.panoptic_seg, things)
        segments = []
        for segment in result.segments:
            if segment.isthing:
                track = of_segment.get(segment.id) or self._start(segment)
                self._move(track, result.panoptic_seg, segment)
                segment = dataclasses.replace(segment, track_id=track.number)
            segments.append(segment)
        return dataclasses.replace(result, segments=segments)

    def _match(self, panoptic_seg: np.ndarray, things: dict[int, Segment]) -> dict[int, _Track]:
        pairs = []
        height, width = panoptic_seg.shape
        known = [t.velocity for t in self._tracks if t.velocity is not None and t.last_frame == self._frame - 1]
        median = np.median(known, axis=0) if known else np.zeros(2)
        for k, track in enumerate(self._tracks):
            steps = self._frame - track.last_frame
            shift = np.rint(np.multiply(median if track.velocity is None else track.velocity, steps)).astype(int)
            x0, y0 = track.x0 + int(shift[0]), track.y0 + int(shift[1])
            left, top = max(x0, 0), max(y0, 0)
            window = panoptic_seg[top : y0 + track.mask.shape[0], left : x0 + track.mask.shape[1]]
            mask = track.mask[top - y0 :, left - x0 :][: window.shape[0], : window.shape[1]]
            for number, shared in enumerate(np.bincount(window[mask])):
                segment = things.get(number)
                if shared and segment is not None and segment.category_id == track.category_id:
                    iou = shared / (track.area + segment.area - shared)
                    # The longer a track has waited, the less is known of where it should be.
                    pairs.append((iou * 0.8 ** (steps - 1), k, number))
        matched: dict[int, _Track] = {}
        taken: set[int] = set()
        for iou, k, number in sorted(pairs, reverse=True):
            if iou > self._min_iou and k not in taken and number not in matched:
                matched[number] = self._tracks[k]
                taken.add(k)
        return matched

    def _start(self, segment: Segment) -> _Track:
        self._count += 1
        track = _Track(self._count, segment.category_id, 0, 0, np.zeros((0, 0), bool), 0, 0)
        self._tracks.append(track)
        return track

    def _move(self, track: _Track, panoptic_seg: np.ndarray, segment: Segment) -> None:
        x0, y0, x1, y1 = segment.box
        mask = panoptic_seg[y0:y1, x0:x1] == segment.id
        if track.area:
            # Centres, not corners: a corner jumps with every pixel that comes or goes. An object that the image's
            # border cuts has no centre to compare.
            height, width = track.mask.shape
            inside = min(track.x0, track.y0, x0, y0) > 0
            inside &= max(track.x0 + width, x1) < panoptic_seg.shape[1]
            inside &= max(track.y0 + height, y1) < panoptic_seg.shape[0]
            steps = self._frame - track.last_frame
            moved = (x0 + x1 - 2 * track.x0 - width) / 2 / steps, (y0 + y1 - 2 * track.y0 - height) / 2 / steps
            track.velocity = moved if inside else track.velocity
        track.x0, track.y0, track.area, track.last_frame, track.mask = x0, y0, segment.area, self._frame, mask
