"""Instances followed from frame to frame of a video."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .result import PanopticResult, Segment


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

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all that ``from_arrays`` needs to continue, without Python objects, for ``np.savez``."""
        tracks = [{k: v for k, v in vars(t).items() if k != "mask"} for t in self._tracks]
        state = {"frame": self._frame, "count": self._count, "tracks": tracks}
        masks = {f"mask{k}": track.mask for k, track in enumerate(self._tracks)}
        return {"tracker": np.array(json.dumps(state)), **masks}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Tracker":
        """Return a tracker of the usual settings that continues where ``to_arrays`` was called."""
        tracker, state = cls(), json.loads(arrays["tracker"].item())
        tracker._frame, tracker._count = state["frame"], state["count"]
        tracker._tracks = [_Track(mask=arrays[f"mask{k}"], **track) for k, track in enumerate(state["tracks"])]
        return tracker

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
