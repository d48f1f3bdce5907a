"""A local web page that shows the segments of an uploaded image and offers its COCO files for download.

All content comes from this process: a content security policy forbids the browser to load fonts and scripts of other
hosts, and Gradio's telemetry is off.
"""

import base64
import html
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ..errors import UserError
from ..io import ids_to_rgb, read_image_size
from ..prediction import PanopticResult, Predictor
from ..prediction.batch.sources import IMAGE_SUFFIXES
from ..visualization import segment_colors

_CLEANER = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"
_TITLE = "seamless_d2: panoptic segmentation"
_MAX_PIXELS = 64_000_000
# The longest side of images in the page, in pixels; the files keep the original size.
_MAX_SIDE = 1600
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss: data: blob:; "
    "worker-src 'self' blob:"
)
_STYLE = """
footer { display: none !important; }
.seamless-figure { position: relative; margin: 0; line-height: 0; cursor: crosshair; }
.seamless-figure img, .seamless-figure canvas { width: 100%; border-radius: 8px; }
.seamless-figure canvas { position: absolute; left: 0; top: 0; height: 100%; pointer-events: none;
  image-rendering: pixelated; }
.seamless-ids { display: none; }
.seamless-tip { display: none; position: absolute; padding: 4px 10px; border-radius: 6px; background: #111d;
  color: #fff; font: 14px/1.5 system-ui, sans-serif; pointer-events: none; white-space: nowrap; }
.seamless-segments { border-collapse: collapse; width: 100%; font: 14px/1.6 system-ui, sans-serif; }
.seamless-segments td, .seamless-segments th { text-align: left; padding: 2px 6px !important; border: 0 !important;
  border-bottom: 1px solid #8883 !important; }
.seamless-segments .number { text-align: right !important; font-variant-numeric: tabular-nums; }
.seamless-segments span { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; }
"""


def _import_gradio() -> Any:
    """Import Gradio without telemetry, or raise ``UserError`` if it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError(
            'the demo page needs Gradio, which is not installed; run pip install "seamless_d2[page]"'
        ) from None
    return gradio


def _data_url(image: np.ndarray, format: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=format, quality=90)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _describe(segment: Any) -> str:
    return segment.class_name + ("" if segment.score is None else f" {segment.score:.0%}")


def make_figure(result: PanopticResult) -> str:
    """Return the overlay as HTML, which shows the name of the segment under the pointer."""
    overlay, ids = result.overlay(), ids_to_rgb(result.panoptic_seg)
    longest = max(ids.shape[:2])
    if longest > _MAX_SIDE:
        scale = _MAX_SIDE / longest
        size = (max(1, round(ids.shape[1] * scale)), max(1, round(ids.shape[0] * scale)))
        overlay = cv2.resize(overlay, size, interpolation=cv2.INTER_AREA)
        ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST_EXACT)
    segments = {s.id: _describe(s) for s in result.segments}
    return (
        f'<figure class="seamless-figure" data-segments="{html.escape(json.dumps(segments), quote=True)}" '
        'onmousemove="seamlessHover(event)" onmouseleave="seamlessLeave(event)">'
        f'<img class="seamless-overlay" alt="segments" src="{_data_url(overlay, "JPEG")}">'
        f'<img class="seamless-ids" alt="" src="{_data_url(ids, "PNG")}">'
        '<canvas class="seamless-mark" width="1" height="1"></canvas><div class="seamless-tip"></div></figure>'
    )


def make_table(result: PanopticResult) -> str:
    """Return an HTML table of the segments, the largest first."""
    rows, colors = [], segment_colors(result.segments_info, result.classes)
    for segment in sorted(result.segments, key=lambda s: -s.area):
        color = "rgb({}, {}, {})".format(*colors[segment.id])
        score = "" if segment.score is None else f"{segment.score:.0%}"
        share = segment.area / result.panoptic_seg.size
        rows.append(
            f'<tr><td><span style="background: {color}"></span>{html.escape(segment.class_name)}</td>'
            f'<td class="number">{score}</td><td class="number">{share:.1%}</td></tr>'
        )
    head = '<tr><th>class</th><th class="number">score</th><th class="number">share</th></tr>'
    return f'<table class="seamless-segments"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def write_archive(result: PanopticResult, path: Path, name: str) -> None:
    """Write a zip file with the panoptic PNG, its COCO json and the overlay.

    Args:
        result: The result.
        path: The zip file.
        name: The name of the files inside, without suffix.
    """
    png, overlay = io.BytesIO(), io.BytesIO()
    Image.fromarray(ids_to_rgb(result.panoptic_seg)).save(png, format="PNG")
    Image.fromarray(result.overlay()).save(overlay, format="JPEG", quality=92)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"panoptic/{name}.png", png.getvalue())
        archive.writestr("panoptic.json", json.dumps(result.to_coco(f"{name}.png")[1]))
        archive.writestr(f"{name}_labelled.jpg", overlay.getvalue())


class ContentPolicy:
    """ASGI middleware that forbids the browser to load anything from other hosts."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


class DemoPage:
    """The page, served from a thread until ``close``; use it as a context manager."""

    def __init__(
        self, predictor: Predictor, host: str = "127.0.0.1", port: int = 7860, max_megabytes: int = 20
    ) -> None:
        """
        Args:
            predictor: The predictor.
            host: The address on which the server listens; requests under other host names are refused, unless it is
                "0.0.0.0" (every address).
            port: The port, 1..65535.
            max_megabytes: The size of the largest upload in megabytes (2^20 bytes).

        Raises:
            UserError: Gradio is not installed, the port is taken, or a number is out of range.
        """
        if not 0 < port < 65536 or max_megabytes < 1:
            raise UserError(f"port {port} (--port) must be 1 to 65535, {max_megabytes} (--max-megabytes) at least 1")
        gradio = _import_gradio()
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        _check_port(host, port)
        self._predictor, self._error = predictor, gradio.Error
        self._folder = Path(tempfile.mkdtemp(prefix="seamless_d2_"))
        self._results = self._folder / "results"
        self._results.mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(self._folder / "uploads")
        # Reads until this process ends, also if it is killed, and then deletes the folder.
        self._cleaner = subprocess.Popen([sys.executable, "-I", "-c", _CLEANER, self._folder], stdin=subprocess.PIPE)
        self._blocks = self._make_blocks(gradio)
        # A foreign host name in a request is how another page reaches servers of this computer (DNS rebinding).
        hosts = ["*"] if host == "0.0.0.0" else [host, "localhost", "127.0.0.1"]
        fonts = ["system-ui", "sans-serif"]  # plain names, because Gradio's own fonts come from another host
        script = (Path(__file__).parent / "hover.js").read_text(encoding="utf-8")
        # Launched and not mounted: only then does Gradio check that files in requests were uploaded.
        self._blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            max_file_size=max_megabytes * 2**20,
            allowed_paths=[str(self._results)],
            app_kwargs={"middleware": [Middleware(ContentPolicy), Middleware(TrustedHostMiddleware, hosts)]},
            theme=gradio.themes.Soft(font=fonts, font_mono=["ui-monospace", "monospace"]),
            css=_STYLE,
            head=f"<script>{script}</script>",
            ssr_mode=False,
            pwa=False,
            footer_links=[],
            enable_monitoring=False,
        )

    def __enter__(self) -> "DemoPage":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server, and delete uploads and results."""
        self._blocks.close(verbose=False)
        self._cleaner.communicate()

    def _make_blocks(self, gradio: Any) -> Any:
        # Uploads and results that Gradio keeps are looked at every 10 minutes and deleted after 45.
        with gradio.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=(600, 2700)) as blocks:
            names = self._predictor.classes.names
            gradio.Markdown(f"## Panoptic segmentation\n{len(names)} classes: {html.escape(', '.join(names))}")
            with gradio.Row():
                with gradio.Column(scale=1):
                    upload = gradio.File(label="Image", file_types=list(IMAGE_SUFFIXES), type="filepath", height=140)
                    segments = gradio.HTML(elem_id="segments")
                    download = gradio.File(label="COCO files", interactive=False, height=80)
                with gradio.Column(scale=3):
                    overlay = gradio.HTML(elem_id="overlay")
            upload.change(self._predict, upload, [overlay, segments, download], api_name="predict", concurrency_limit=1)
        return blocks

    def _predict(self, file: str | None) -> tuple[str, str, str | None]:
        """Return the figure, the table and the archive of an uploaded image."""
        if file is None:
            return "", "", None
        try:
            height, width = read_image_size(file)
            if height * width > _MAX_PIXELS:
                raise UserError(
                    f"the image has {height * width / 1e6:.0f} megapixels; at most {_MAX_PIXELS / 1e6:.0f} here"
                )
            result = self._predictor.predict(file)
        except UserError as error:
            # The visitor must not see the path of the file on the server.
            raise self._error(str(error).replace(file, Path(file).name)) from None
        name = Path(file).stem
        # Gradio serves its own copy of the archive, so that the one before is not needed any more.
        for earlier in self._results.iterdir():
            shutil.rmtree(earlier, ignore_errors=True)
        archive = Path(tempfile.mkdtemp(dir=self._results)) / f"{name}_coco.zip"
        write_archive(result, archive, name)
        return make_figure(result), make_table(result), str(archive)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} of {host} cannot be used ({error.strerror}); choose another with --port"
            ) from None


def serve(predictor: Predictor, host: str = "127.0.0.1", port: int = 7860, max_megabytes: int = 20) -> None:
    """Serve the page until Ctrl-C or SIGTERM; arguments and errors are those of ``DemoPage``."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with DemoPage(predictor, host, port, max_megabytes):
        signal.signal(signal.SIGTERM, stop)
        print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
