"""The demo page in a real browser (where Gradio, Playwright and Chromium are installed), and its parts."""

import contextlib
import dataclasses
import html
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seamless_d2 import PanopticResult
from seamless_d2.demo_page.page import DemoPage, make_figure, make_table, serve, write_archive
from seamless_d2.errors import UserError

from ..helpers.images import make_image
from ..prediction.test_formats import result


def test_parts(tmp_path: Path) -> None:
    markup = make_figure(result())
    segments = json.loads(html.unescape(re.search(r'data-segments="(.*?)"', markup)[1]))
    assert segments == {"1": "car 88%", "2": "person 62%", "3": "road"}
    rows = re.findall(r"<tr>.*?</tr>", make_table(result()))
    assert len(rows) == 4 and "road" in rows[1] and "52.2%" in rows[1] and "car" in rows[2]
    write_archive(result(), tmp_path / "a.zip", "a")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        content = json.loads(archive.read("panoptic.json"))
        assert content["annotations"][0]["file_name"] == "a.png"
        assert set(archive.namelist()) == {"panoptic/a.png", "panoptic.json", "a_labelled.jpg"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_a_port_that_is_taken(predictor) -> None:
    pytest.importorskip("gradio", reason="needs Gradio (the extra 'page')")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="--port"):
            serve(predictor, port=taken.getsockname()[1])


@pytest.fixture
def address(predictor) -> Iterator[str]:
    """A running page."""
    pytest.importorskip("gradio", reason="needs Gradio (the extra 'page')")
    port = free_port()
    with DemoPage(predictor, port=port, max_megabytes=1):
        yield f"http://127.0.0.1:{port}"


def ask(address: str, path: str, body: dict | None = None, **headers: str) -> tuple[int, str]:
    """Status and text of the answer to a GET, or a POST of a json."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


def test_names_are_text() -> None:
    plain = result()
    names = ["'\"><img src=x onerror=alert(1)>" + name for name in plain.classes.names]
    classes = dataclasses.replace(plain.classes, names=names)
    hostile = PanopticResult.from_fusion(plain.image, plain.panoptic_seg, plain.segments_info, classes)
    for markup in (make_figure(hostile), make_table(hostile)):
        assert "onerror" in markup and "<img src=x" not in markup


@pytest.mark.slow
def test_files_of_the_server_are_not_read(address: str, tmp_path: Path) -> None:
    """Only what was uploaded is predicted or served, and only under the server's own name."""
    Image.fromarray(make_image(20, 30)).save(tmp_path / "private.png")
    secret = str(tmp_path / "private.png")
    status, config = ask(address, "/config")
    assert status == 200 and "components" in config
    body = {"data": [{"path": secret, "meta": {"_type": "gradio.FileData"}}]}
    status, text = ask(address, "/gradio_api/call/predict", body)
    assert status == 200
    _, events = ask(address, f"/gradio_api/call/predict/{json.loads(text)['event_id']}")
    assert "event: error" in events and "seamless-figure" not in events
    for path in (f"/gradio_api/file={secret}", "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd"):
        assert ask(address, path)[0] in (403, 404)
    # A name that an attacker's page resolves to this computer.
    assert ask(address, "/config", Host="evil.example")[0] == 400
    assert ask(address, "/config", Host="localhost")[0] == 200


@pytest.mark.slow
def test_results_are_deleted_when_the_server_ends(predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="needs Gradio (the extra 'page')")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Image.fromarray(make_image(20, 30)).save(tmp_path / "a.png")
    with DemoPage(predictor, port=free_port()) as page:
        for _ in range(2):
            _, _, archive = page._predict(str(tmp_path / "a.png"))
            assert Path(archive).is_file()
        assert len(list(tmp_path.glob("seamless_d2_*/results/*"))) == 1
    assert not list(tmp_path.glob("seamless_d2_*"))


SERVER = """
import sys
from seamless_d2 import Predictor
from seamless_d2.demo_page import serve
serve(Predictor(sys.argv[1], sys.argv[2], device="cpu"), port=int(sys.argv[3]))
"""


@pytest.mark.slow
def test_nothing_is_left_of_a_killed_server(model_files: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="needs Gradio (the extra 'page')")
    port = str(free_port())
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", SERVER, *model_files, port]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as server:
        assert port.encode() in server.stdout.readline()
        (folder,) = tmp_path.glob("seamless_d2_*")
        status, text = upload(f"http://127.0.0.1:{port}", b"an image")
        assert status == 200 and Path(json.loads(text)[0]).is_relative_to(folder)
        server.kill()
    limit = time.monotonic() + 20
    while folder.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    assert not folder.exists()


def upload(address: str, content: bytes) -> tuple[int, str]:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    request = urllib.request.Request(f"{address}/gradio_api/upload", head + content + b"\r\n--x--\r\n")
    request.add_header("Content-Type", "multipart/form-data; boundary=x")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except (urllib.error.URLError, ConnectionError):
        return 0, "the server has closed the connection"


@pytest.mark.slow
def test_too_much_is_refused_and_the_server_goes_on(address: str) -> None:
    assert upload(address, bytes(1000))[0] == 200
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    before = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert upload(address, bytes(100 * 2**20))[0] in (0, 413)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) == before
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /config HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2**22 + b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100).split()[1:2] != [b"200"]
    assert ask(address, "/config")[0] == 200


@pytest.mark.slow
def test_in_a_browser(address: str, tmp_path: Path, predictor) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium (for instance the package chromium of Debian)")
    Image.fromarray(make_image(120, 160)).save(tmp_path / "street.png")
    (tmp_path / "broken.jpg").write_text("no image")
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (800, 800, 3), np.uint8)).save(tmp_path / "large.bmp")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("input[type=file]", state="attached", timeout=60_000)
        page.set_input_files("input[type=file]", tmp_path / "street.png")
        page.wait_for_selector(".seamless-overlay", timeout=60_000)
        expected = predictor.predict(tmp_path / "street.png")
        # Under the pointer: the segment of that very pixel.
        box = page.locator(".seamless-overlay").bounding_box()
        names = {s.id: s.class_name for s in expected.segments} | {0: "void"}
        for x, y in [(80, 60), (10, 10), (150, 110)]:
            spot = (box["x"] + (x + 0.5) / 160 * box["width"], box["y"] + (y + 0.5) / 120 * box["height"])
            page.mouse.move(*spot)
            page.wait_for_function("document.querySelector('.seamless-figure').seamlessIds", timeout=10_000)
            page.mouse.move(spot[0] + 0.1, spot[1])
            shown = page.locator(".seamless-tip").text_content()
            assert shown.startswith(names[int(expected.panoptic_seg[y, x])])
        with page.expect_download(timeout=30_000) as download:
            page.locator("a[download]").last.click()
        with zipfile.ZipFile(download.value.path()) as archive:
            content = json.loads(archive.read("panoptic.json"))
        assert len(content["annotations"][0]["segments_info"]) == len(expected.segments)
        # A broken file and one above the limit are refused in a sentence.
        for name, sentence in [("broken.jpg", "broken.jpg cannot be read"), ("large.bmp", "size")]:
            page.reload()
            page.wait_for_selector("input[type=file]", state="attached", timeout=60_000)
            page.set_input_files("input[type=file]", tmp_path / name)
            page.wait_for_selector(".toast-body", timeout=60_000)
            toast = page.locator(".toast-body").first.text_content()
            assert sentence in toast and str(tmp_path) not in toast and "/tmp" not in toast
        browser.close()
    foreign = [u for u in asked if not u.startswith((address, "data:", "blob:", address.replace("http", "ws")))]
    assert not foreign and not errors
