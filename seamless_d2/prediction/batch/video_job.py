"""Prediction of one video into files, in parts, so that a long one goes on where it was interrupted.

The parts lie in a hidden folder beside the results: of each, one piece of every video that is written, and a record
with the state of the tracker, which is written last. At the end the pieces are joined, and the folder is removed.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...errors import UserError
from ...io import atomic_write, read_json, write_json
from ..formats import FORMATS, write_formats
from ..frames import Frames
from ..predictor import Predictor
from ..result import PanopticResult
from ..tracking import Tracker
from .pipeline import Job, run_jobs
from .resume import name_frame
from .video_file import join_videos, write_video

#: Seconds of the source in a part.
PART_SECONDS = 30.0


def list_videos(output: Path, name: str, formats: Iterable[str]) -> dict[str, Path]:
    """Return the video of each format that makes one."""
    return {f: output / f"{name}_{f}.mp4" for f in formats if FORMATS[f].is_image}


@dataclass
class _State:
    """What a finished part hands on to the next one."""

    frames: int = 0  # their number so far
    seconds: float = 0.0  # the time of the last one
    sizes: dict[str, Sequence[int]] = field(default_factory=dict)  # of the video of each format


class VideoJob:
    """The prediction of one video."""

    def __init__(
        self,
        output: Path,
        name: str,
        formats: Iterable[str],
        made_of: dict[str, Any],
        part_seconds: float | None = None,
    ) -> None:
        """
        Args:
            output: The output folder.
            name: The name of the outputs.
            formats: Registered formats.
            made_of: All that the results depend on, as json values; parts that were made of something else are not
                continued.
            part_seconds: The length of a part; default ``PART_SECONDS``.
        """
        self._output, self._name, self._part_seconds = output, name, part_seconds or PART_SECONDS
        self.videos = list_videos(output, name, formats)
        self._per_frame = [f for f in formats if f not in self.videos]
        self._made_of = {**made_of, "formats": sorted(formats), "part_seconds": self._part_seconds}
        self._folder = (output / name).with_name(f".{Path(name).name}.parts")

    def run(self, predictor: Predictor, frames: Frames) -> tuple[int, UserError | None]:
        """Predict all frames, after those of the parts that are finished, and write the videos.

        Args:
            predictor: The model.
            frames: The video.

        Returns:
            The number of frames, and why a source without end has ended before the user ended it.

        Raises:
            UserError: The video is damaged, a frame cannot be predicted, or a file cannot be written.
        """
        state, tracker = self._resume(frames)
        parts = groupby(frames.timed(), key=lambda item: item[0] // self._part_seconds)
        try:
            with tqdm(desc=self._name, unit="frame", total=frames.total, initial=state.frames) as bar:
                for number, (_, part) in zip(count(self._count_parts()), parts, strict=False):
                    self._predict_part(predictor, frames, part, number, state, tracker, bar)
        except KeyboardInterrupt:
            # The one way to end a source without end: the frames so far are kept.
            if not frames.is_live or not state.frames:
                raise
        lost = None
        try:
            frames.check_complete()
        except UserError as error:
            if not frames.is_live or not state.frames:
                raise
            lost = error
        for format, path in self.videos.items():
            join_videos([self._pieces(k)[format] for k in range(self._count_parts())], path, frames.fps)
        return state.frames, lost

    def remove_parts(self) -> None:
        """Remove the parts: the results are there, or are not wanted."""
        if self._folder.is_dir():
            shutil.rmtree(self._folder)

    def _resume(self, frames: Frames) -> tuple[_State, Tracker]:
        """Return what the last finished part has left behind, and set ``frames`` after it; remove unusable parts."""
        plan = {**self._made_of, "fps": str(frames.fps), "duration": frames.duration}
        plan = json.loads(json.dumps(plan))  # as it is read
        file = self._folder / "plan.json"
        if frames.is_live or not file.is_file() or read_json(file, "record") != plan:
            self.remove_parts()
            write_json(file, plan)
        parts = self._count_parts()
        if not parts:
            return _State(), Tracker()
        with np.load(self._record(parts - 1)) as arrays:
            state, tracker = _State(**json.loads(arrays["state"].item())), Tracker.from_arrays(arrays)
        frames.resume(state.frames, state.seconds)
        return state, tracker

    def _predict_part(
        self,
        predictor: Predictor,
        frames: Frames,
        part: Iterator[tuple[float, np.ndarray]],
        number: int,
        state: _State,
        tracker: Tracker,
        bar: tqdm,
    ) -> None:
        """Predict and record one part. Ctrl-C ends the part of a source without end, and is raised again after it."""
        reached, interruption = replace(state), None
        with ExitStack() as stack:
            encoders = {
                format: stack.enter_context(write_video(path, frames.fps, state.sizes.get(format)))
                for format, path in self._pieces(number).items()
            }

            def save(result: PanopticResult, frame: int, seconds: float) -> None:
                result = tracker.update(result)
                for format, encoder in encoders.items():
                    # A legend would change the size of the frames with the classes that occur.
                    encoder.write(result.overlay(labels=format == "labelled", legend=False))
                if self._per_frame:
                    write_formats(result, self._output, name_frame(self._name, frame), self._per_frame)
                reached.frames, reached.seconds = frame, seconds

            jobs = (
                Job(f"{frames.name}, frame {k}", partial(lambda i: i, image), partial(save, frame=k, seconds=seconds))
                for k, (seconds, image) in enumerate(part, state.frames + 1)
            )
            try:
                with closing(run_jobs(predictor, jobs, readers=1, writers=1)) as outcomes:
                    for _, error in outcomes:
                        if error is not None:
                            raise error
                        bar.update()
            except KeyboardInterrupt as error:
                if not frames.is_live or reached.frames == state.frames:
                    raise
                interruption = error
            if not frames.is_live:
                frames.check_complete()
        reached.sizes = {format: encoder.size for format, encoder in encoders.items()}
        with atomic_write(self._record(number)) as file:
            np.savez_compressed(file, state=np.array(json.dumps(asdict(reached))), **tracker.to_arrays())
        state.frames, state.seconds, state.sizes = reached.frames, reached.seconds, reached.sizes
        if interruption is not None:
            raise interruption

    def _count_parts(self) -> int:
        """Return the number of finished parts."""
        return next(k for k in count() if not all(p.is_file() for p in (self._record(k), *self._pieces(k).values())))

    def _record(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npz"

    def _pieces(self, number: int) -> dict[str, Path]:
        # No suffix of videos, so that they never become inputs.
        return {format: self._folder / f"{number:06d}_{format}.part" for format in self.videos}
