"""The frames of videos, streams and cameras: PyAV reads files and URLs, OpenCV cameras."""

import math
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import cv2
import numpy as np

from ..errors import UserError
from ..limits import check_pixels

URL_SCHEMES = ("http", "https", "rtsp", "rtsps")
_DEFAULT_FPS = Fraction(25)
# Seconds without any data after which a connection counts as lost.
_TIMEOUT = 10.0
# Containers count a frame or two too many at times; that is no damage.
_MISSING_FRAMES = 2.5


def import_av(what: str) -> ModuleType:
    """Return the package av (PyAV); raise ``UserError`` if it is not installed. ``what`` names the video."""
    try:
        import av
    except ImportError:
        raise UserError(
            f"{what} needs PyAV, which is not installed: pip install seamless_d2[video], or pip install av"
        ) from None
    return av


def parse_time(text: str) -> float:
    """Return the seconds of a time that is written as seconds, MM:SS or HH:MM:SS, with or without decimals.

    Raises:
        UserError: It is no time.
    """
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d*)?", text, re.ASCII):
        raise UserError(f"{text!r} is no time; write seconds or HH:MM:SS, for instance 90 or 00:01:30")
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


@dataclass(frozen=True)
class Selection:
    """Which frames of a video are predicted.

    Attributes:
        start: The time of the first frame in seconds from the beginning.
        stop: The time in seconds from the beginning at which the frames end; default the end of the video.
        stride: Of so many frames, the first is taken.
        max_frames: The largest number of frames that are taken; default all.

    Raises:
        UserError: A value is out of range.
    """

    start: float = 0.0
    stop: float | None = None
    stride: int = 1
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise UserError(f"max_frames (--max-frames) must be at least 1, not {self.max_frames}")
        if self.stride < 1:
            raise UserError(f"stride (--stride) must be at least 1, not {self.stride}")
        if not 0 <= self.start < math.inf:
            raise UserError(f"start (--start) must be a time from 0 s on, not {self.start}")
        if self.stop is not None and not self.start < self.stop:
            raise UserError(f"stop (--stop) must be later than start (--start, {self.start} s), not {self.stop} s")


def to_source(given: str | Path | int) -> Path | int | str:
    """Return what ``Frames`` takes: URLs stay text, other texts are paths.

    Raises:
        UserError: It is a URL of a scheme that cannot be read.
    """
    if isinstance(given, str) and (scheme := find_scheme(given)):
        if scheme not in URL_SCHEMES:
            raise UserError(
                f"{redact(given)} cannot be read: its scheme is none of {', '.join(URL_SCHEMES)}; download it, and "
                "give the path of the file"
            )
        return scheme + given[len(scheme) :]
    return given if isinstance(given, int) else Path(given)


def find_scheme(text: str | Path) -> str | None:
    """Return the scheme of a URL in lower case, or None for a path.

    A ``Path`` has lost one of the slashes. One letter is a drive of Windows.
    """
    match = re.match(r"([a-z][a-z0-9+.-]+):/" if isinstance(text, Path) else r"([a-z][a-z0-9+.-]+)://", str(text), re.I)
    return match[1].lower() if match else None


def redact(source: Path | int | str) -> str:
    """Return a file, camera or URL as text, a URL without its user name and password."""
    return re.sub(r"(?<=://)[^/?#]*@", "", source) if isinstance(source, str) else str(source)


class _Reader(Protocol):
    """What ``Frames`` needs of a file, URL or camera."""

    fps: Fraction
    duration: float | None  # seconds; None = not known, or without end
    error: str | None  # why reading has ended before the end

    def read(self, start: float) -> Iterator[tuple[float, Any]]:
        """Yield (seconds from the beginning, frame), the first if possible not later than ``start``."""

    def convert(self, frame: Any) -> np.ndarray:
        """Return a frame as (H, W, 3) uint8 RGB."""

    def close(self) -> None: ...


class _Camera:
    """A camera that the operating system numbers."""

    duration = error = None

    def __init__(self, number: int, name: str) -> None:
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise UserError(f"{name} cannot be opened; connect it or give another number")
        sides = (self._capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        check_pixels(*map(int, sides), f"a frame of {name}")
        self.fps = _check_fps(self._capture.get(cv2.CAP_PROP_FPS))

    def read(self, start: float) -> Iterator[tuple[float, np.ndarray]]:
        begin = time.monotonic()
        while (answer := self._capture.read())[0]:
            yield time.monotonic() - begin, answer[1]

    def convert(self, frame: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        self._capture.release()


class _Container:
    """A video file or the URL of a video or stream."""

    def __init__(self, source: Path | str, name: str) -> None:
        self._av = import_av(name)
        self._source, self._name = source, name
        self.error: str | None = None
        self._open()
        check_pixels(self._stream.width, self._stream.height, f"a frame of {name}")
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = _check_fps(Fraction(rate.numerator, rate.denominator) if rate else 0)
        self.duration: float | None = None
        if self._stream.duration:
            self.duration = float(self._stream.duration * self._stream.time_base)
        elif self._container.duration and len(self._container.streams) == 1:  # sound may be longer
            self.duration = self._container.duration / self._av.time_base
        self.is_live = isinstance(source, str) and not self._container.duration

    def _open(self) -> None:
        if isinstance(self._source, str):
            # Cameras send over UDP what a firewall drops.
            options = {"rtsp_flags": "prefer_tcp"} if self._source.startswith("rtsp") else {}
            url, timeout, remedy = self._source, (_TIMEOUT, _TIMEOUT), "check the address and the connection"
        else:
            # The prefix, since a name may look like a URL: a:b.mp4.
            options, url, timeout, remedy = {}, f"file:{self._source}", None, "replace or remove the file"
        try:
            self._container = self._av.open(url, options=options, timeout=timeout)
        except (self._av.error.FFmpegError, OSError) as error:
            raise UserError(f"{self._name} cannot be opened ({self._explain(error)}); {remedy}") from None
        if not self._container.streams.video:
            self._container.close()
            raise UserError(f"{self._name} cannot be opened (it has no video stream); {remedy}")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        # Files may count time from any number on.
        self._origin = float((self._stream.start_time or 0) * self._stream.time_base)

    def read(self, start: float) -> Iterator[tuple[float, Any]]:
        # In program and transport streams, what is found may have the time of another frame.
        exact = self._container.format.name not in ("mpeg", "mpegts")
        if start > 0 and exact and not self.is_live:
            with suppress(self._av.error.FFmpegError, OSError):  # not every server can be searched
                target = (start + self._origin) / float(self._stream.time_base)
                self._container.seek(int(target), stream=self._stream)
                frames = self._decode()
                first = next(frames, None)
                if first is not None and first[1].pts is not None and first[0] <= start:
                    yield first
                    yield from frames
                    return
            self._container.close()
            self._open()
        yield from self._decode()

    def _decode(self) -> Iterator[tuple[float, Any]]:
        step, origin, self.error = 1 / float(self.fps), self._origin, None
        seconds: float | None = None
        try:
            for packet in self._container.demux(self._stream):
                with suppress(self._av.error.InvalidDataError):  # a damaged frame: as players do, go on with the next
                    for frame in packet.decode():
                        following = 0.0 if seconds is None else seconds + step
                        if frame.pts is None:
                            seconds = following
                        elif seconds is None or frame.time - origin > seconds:
                            seconds = frame.time - origin
                        else:  # recordings that were put together, or a camera that has started again
                            seconds, origin = following, frame.time - following
                        yield seconds, frame
        except (self._av.error.FFmpegError, OSError) as error:
            self.error = self._explain(error)

    def _explain(self, error: Exception) -> str:
        if isinstance(error, self._av.error.ExitError):
            return f"nothing came for {_TIMEOUT:g} s"
        return getattr(error, "strerror", None) or str(error)

    def convert(self, frame: Any) -> np.ndarray:
        image = frame.to_ndarray(format="rgb24")
        # Telephones store images as the sensor lies, and the angle beside them.
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))

    def close(self) -> None:
        self._container.close()


def _check_fps(fps: Fraction | float) -> Fraction:
    return Fraction(fps).limit_denominator(1001) if 0.001 < fps < 1000 else _DEFAULT_FPS


class Frames:
    """The selected frames of a video file, URL or camera.

    Attributes:
        name: What messages call it.
        fps: The selected frames per second.
        is_live: Whether it has no end of its own, as a camera.
        duration: Its length in seconds; None if that is not known.
        read: The number of selected frames that have been read.
    """

    def __init__(self, source: Path | int | str, selection: Selection | None = None) -> None:
        """
        Args:
            source: A file, the number of a camera, or a URL.
            selection: Which frames are read; default all.

        Raises:
            UserError: The source cannot be opened, or its frames have more than ``MAX_PIXELS``.
        """
        kind = "camera" if isinstance(source, int) else "video"
        self.name = f"{kind} {redact(source)}"
        self._source, self._selection = source, selection or Selection()
        self._reader: _Reader = _Camera(source, self.name) if isinstance(source, int) else _Container(source, self.name)
        self.is_live = getattr(self._reader, "is_live", True)
        self.duration = self._reader.duration
        self.fps = self._reader.fps / self._selection.stride
        self.read = 0
        self._after: float | None = None
        self._end: float | None = None  # the time at which it has ended by itself

    @property
    def total(self) -> int | None:
        """The number of frames that there should be; None if that is not known."""
        chosen = self._selection
        ends = [end for end in (chosen.stop, self.duration) if end is not None]
        limits = [] if chosen.max_frames is None else [chosen.max_frames]
        if ends:
            first, end = (math.ceil(round(t * float(self._reader.fps), 3)) for t in (chosen.start, min(ends)))
            limits.append(max(0, math.ceil((end - first) / chosen.stride)))
        return min(limits) if limits else None

    def resume(self, read: int, after: float) -> None:
        """Continue where ``read`` frames had been read, the last of them at the time ``after``."""
        self.read, self._after = read, after

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames, (H, W, 3) uint8 RGB."""
        return (frame for _, frame in self.timed())

    def timed(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield the frames with their times in seconds from the beginning of the video."""
        chosen = self._selection
        # After a break, the frame that was read last is behind.
        behind = 0 if self._after is None else chosen.stride - 1
        selected = islice(self._select(), behind, None, chosen.stride)
        try:
            while chosen.max_frames is None or self.read < chosen.max_frames:
                if (item := next(selected, None)) is None:
                    break
                self.read += 1
                yield item[0], self._reader.convert(item[1])
        finally:
            self._reader.close()

    def _select(self) -> Iterator[tuple[float, Any]]:
        """Yield what lies between the first frame to be read and ``stop``."""
        chosen, begun, length = self._selection, False, 0.0
        seconds = -math.inf
        for seconds, frame in self._reader.read(chosen.start if self._after is None else self._after):
            if chosen.stop is not None and seconds >= chosen.stop:
                return
            begun = begun or (seconds >= chosen.start if self._after is None else seconds > self._after)
            if begun:
                yield seconds, frame
            length = float((getattr(frame, "duration", 0) or 0) * (getattr(frame, "time_base", 0) or 0))
        self._end = seconds + max(length, 1 / float(self._reader.fps))

    def check_complete(self) -> None:
        """Raise ``UserError`` if there are no frames, or the source has ended too early: it was cut off, or lost.

        To be called after the last frame; after another one, it does nothing.
        """
        missing = self._end is not None and self.duration is not None
        missing = missing and self._end < self.duration - _MISSING_FRAMES / float(self._reader.fps)
        # If all is there, it does not matter what comes behind.
        missing = missing or (self.duration is None and self._reader.error is not None)
        if missing and isinstance(self._source, str):
            reason = f" ({self._reader.error})" if self._reader.error else ""
            raise UserError(
                f"the connection to {self.name} was lost{reason} after {self.read} frames; check it and start again"
            )
        if missing:
            ends = f"ends at {max(self._end, 0):.1f} s" + (f" of {self.duration:.1f} s" if self.duration else "")
            raise UserError(f"{self.name} is damaged: it {ends}; get it again")
        if self.read == 0:
            remedy = "change start and stop (--start, --stop), or get it again"
            raise UserError(f"{self.name} has no frames from {self._selection.start} s on; {remedy}")
