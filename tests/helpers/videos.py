"""Videos for tests, and a server that plays them."""

import mimetypes
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np

from seamless_d2 import Predictor


def write_clip(
    path: Path, frames: int = 5, size: tuple[int, int] = (70, 51), codec: str = "mpeg4", fps: int = 10
) -> None:
    """Write gray frames, each 6 brighter than the last, of the size (width, height)."""
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"qmin": "1", "qmax": "2"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for k in range(frames):
            image = np.full((size[1], size[0], 3), 6 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))


def write_drive(path: Path, frames: int = 24) -> None:
    """Noise that moves to the right, 10 frames a second."""
    noise = np.random.RandomState(0).randint(0, 256, (64, 96, 3)).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "5", "g": "7"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for k in range(frames):
            image = np.ascontiguousarray(np.roll(noise, 2 * k, axis=1)[:64, :96])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))


@contextmanager
def serve_folder(folder: Path, share: float = 1.0, then: str = "end") -> Iterator[str]:
    """Serve the files of a folder over HTTP on this machine; yields the address.

    Args:
        folder: The folder.
        share: The share of a file that is sent.
        then: What follows: the "end" of the connection; or, as with a camera, the same again and again ("repeat"), the
            loss of the connection ("reset"), or nothing more ("stall").
    """
    closed = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / self.path.partition("?")[0].lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", mimetypes.guess_type(path.name)[0] or "application/octet-stream")
            if then == "end":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(ConnectionError):
                self.wfile.write(content[: round(len(content) * share)])
                while then == "repeat":
                    self.wfile.write(content)
            if then == "stall":
                closed.wait()
            if then == "reset":
                time.sleep(0.3)  # what is on its way would be lost too
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        closed.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def interrupt_at(predictor: Predictor, image: int) -> Iterator[list]:
    """Raise ``KeyboardInterrupt`` when the network has had so many images; yields the list of those it has had."""
    network, seen = predictor.run_network, []

    def run_network(prepared: list) -> list:
        seen.extend(prepared)
        if len(seen) == image:
            raise KeyboardInterrupt
        return network(prepared)

    predictor.run_network = run_network
    try:
        yield seen
    finally:
        del predictor.run_network
