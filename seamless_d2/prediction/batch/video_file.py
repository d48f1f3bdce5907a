"""Writing of videos: H.264 in mp4 files that browsers play."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...errors import UserError
from ...io import make_temporary
from ..frames import import_av

_BT709 = 1
_LIMITED_RANGE = 1
_ENCODER = {
    "preset": "veryfast",
    "crf": "20",
    # Frames are stored in the order in which they are shown, so that ``join_videos`` only has to count them.
    "bf": "0",
}


class Encoder:
    """Appends frames to a video."""

    def __init__(self, container: Any, fps: Fraction, size: Sequence[int] | None) -> None:
        self._av = import_av("a video")
        self._container, self._fps, self._stream = container, fps, None
        self.size = None if size is None else (size[0], size[1])

    def write(self, image: np.ndarray) -> None:
        """Append an (H, W, 3) uint8 RGB frame; all are brought to the size (width, height) of the video."""
        if self.size is None:
            height, width = (side // 2 * 2 or 2 for side in image.shape[:2])  # the codec wants even sides
            self.size = width, height
        if self._stream is None:
            self._stream = _add_stream(self._container, self._fps, self.size)
        image = cv2.resize(image, self.size) if image.shape[1::-1] != self.size else np.ascontiguousarray(image)
        frame = self._av.VideoFrame.from_ndarray(image, "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE)
        self._container.mux(self._stream.encode(frame))

    def flush(self) -> None:
        """Write what the encoder holds back."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))


def _add_stream(container: Any, fps: Fraction, size: tuple[int, int]) -> Any:
    try:
        stream = container.add_stream("libx264", rate=fps, options=_ENCODER)
    except ValueError:  # UnknownCodecError
        raise UserError(
            "PyAV has no H.264 encoder (libx264) here; install its wheel: pip install --force-reinstall "
            "--only-binary :all: av"
        ) from None
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    # Without these, players guess by the size of the video.
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
    return stream


@contextmanager
def write_video(path: Path, fps: Fraction, size: Sequence[int] | None = None) -> Iterator[Encoder]:
    """Open a video for writing; it appears if the block, which writes at least one frame, ends without an exception.

    Args:
        path: The file. Its folder is created if it does not exist.
        fps: Frames per second.
        size: The (width, height), both even; default the first frame's.

    Raises:
        UserError: PyAV is missing, or the file cannot be written.
    """
    with _open_mp4(path, {}) as container:
        encoder = Encoder(container, fps, size)
        yield encoder
        encoder.flush()


def join_videos(parts: Sequence[Path], path: Path, fps: Fraction) -> None:
    """Join videos of ``write_video`` of one size into a file that can be played while it is loaded.

    Raises:
        UserError: The file cannot be written.
    """
    av = import_av(str(path))
    with _open_mp4(path, {"movflags": "+faststart"}) as joined:
        stream, count = None, 0
        for part in parts:
            with av.open(f"file:{part}") as container:
                source = container.streams.video[0]
                stream = stream or joined.add_stream_from_template(source)
                for packet in container.demux(source):
                    if packet.size:  # the last one is empty
                        packet.stream, packet.time_base = stream, 1 / fps
                        packet.pts = packet.dts = count
                        packet.duration = 1
                        joined.mux(packet)
                        count += 1


@contextmanager
def _open_mp4(path: Path, options: dict[str, str]) -> Iterator[Any]:
    """Open an mp4 for writing; the file appears or is replaced if the block ends without an exception."""
    av = import_av(str(path))
    temporary = make_temporary(path)
    try:
        # The prefix, since a name may look like a URL: a:b.mp4.
        with av.open(f"file:{temporary}", "w", format="mp4", options=options) as container:
            yield container
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except av.error.FFmpegError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); check the free disk space") from None
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
