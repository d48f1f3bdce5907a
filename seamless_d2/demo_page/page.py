"""A local web page that shows the segments of an uploaded image and offers its COCO files for download.

All content comes from this process: a content security policy forbids the browser to load fonts and scripts of other
hosts, and Gradio's telemetry is off.
"""

import base64
import html
import io
import json
import os
import socket
import tempfile
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
from ..visualization import segment_color

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
    rows = []
    for segment in sorted(result.segments, key=lambda s: -s.area):
        color = "rgb({}, {}, {})".format(*segment_color(segment.info(), result.classes))
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


def build_app(predictor: Predictor, max_megabytes: int = 20) -> Any:
    """Build the page as a FastAPI application.

    Args:
        predictor: The predictor.
        max_megabytes: The size of the largest upload in megabytes (2^20 bytes).

    Raises:
        UserError: Gradio is not installed.
    """
    gradio = _import_gradio()
    from fastapi import FastAPI

    def predict(file: str | None) -> tuple[str, str, str | None]:
        if file is None:
            return "", "", None
        try:
            height, width = read_image_size(file)
            if height * width > _MAX_PIXELS:
                raise UserError(
                    f"the image has {height * width / 1e6:.0f} megapixels; at most {_MAX_PIXELS / 1e6:.0f} here"
                )
            result = predictor.predict(file)
        except UserError as error:
            # The visitor must not see the path of the file on the server.
            raise gradio.Error(str(error).replace(file, Path(file).name)) from None
        name = Path(file).stem
        archive = Path(tempfile.mkdtemp(dir=folder.name)) / f"{name}_coco.zip"
        write_archive(result, archive, name)
        return make_figure(result), make_table(result), str(archive)

    folder = tempfile.TemporaryDirectory(prefix="seamless_d2_")
    fonts = ["system-ui", "sans-serif"]  # plain names, because Gradio's own fonts come from another host
    theme = gradio.themes.Soft(font=fonts, font_mono=["ui-monospace", "monospace"])
    with gradio.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gradio.Markdown(
            f"## Panoptic segmentation\n{len(predictor.classes.names)} classes: " + ", ".join(predictor.classes.names)
        )
        with gradio.Row():
            with gradio.Column(scale=1):
                upload = gradio.File(label="Image", file_types=list(IMAGE_SUFFIXES), type="filepath", height=140)
                segments = gradio.HTML(elem_id="segments")
                download = gradio.File(label="COCO files", interactive=False, height=80)
            with gradio.Column(scale=3):
                overlay = gradio.HTML(elem_id="overlay")
        upload.change(predict, upload, [overlay, segments, download], api_name="predict", concurrency_limit=1)

    app = FastAPI()

    @app.middleware("http")
    async def forbid_other_hosts(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        return response

    script = (Path(__file__).parent / "hover.js").read_text(encoding="utf-8")
    return gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        max_file_size=max_megabytes * 2**20,
        allowed_paths=[folder.name],
        theme=theme,
        css=_STYLE,
        head=f"<script>{script}</script>",
        ssr_mode=False,
        pwa=False,
        footer_links=[],
        enable_monitoring=False,
    )


def serve(predictor: Predictor, host: str = "127.0.0.1", port: int = 7860, max_megabytes: int = 20) -> None:
    """Serve the page until Ctrl-C.

    Args:
        predictor: The predictor.
        host: The address on which the server listens.
        port: The port, 1..65535.
        max_megabytes: The size of the largest upload in megabytes (2^20 bytes).

    Raises:
        UserError: Gradio is not installed, the port is taken, or a number is out of range.
    """
    if not 0 < port < 65536 or max_megabytes < 1:
        raise UserError(f"port {port} (--port) must be 1 to 65535, {max_megabytes} (--max-megabytes) at least 1")

    app = build_app(predictor, max_megabytes)
    import uvicorn

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} of {host} cannot be used ({error.strerror}); choose another with --port"
            ) from None
    print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning")
