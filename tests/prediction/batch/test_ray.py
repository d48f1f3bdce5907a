"""Prediction on Ray against an object store: actors and drivers are killed, and the result is that of plain predict."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from seamless_d2.errors import UserError
from seamless_d2.locks import lock_output
from seamless_d2.prediction.batch.run import predict_files

from ...helpers.images import make_image
from ...helpers.processes import start_command

for package in ("ray", "pyarrow", "s3fs", "moto"):
    pytest.importorskip(package)
from seamless_d2.prediction.batch.ray_job import (  # noqa: E402
    RayOptions,
    iterate_blocks,
    plan_blocks,
    predict_on_ray,
)
from seamless_d2.prediction.batch.remote_files import Folder  # noqa: E402

pytestmark = pytest.mark.slow
TOOLS = Path(__file__).resolve().parents[3] / "tools"
COUNT = 48


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server on this machine with a bucket; the environment leads to it."""
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = (
        "from moto.server import ThreadedMotoServer; import sys; s = ThreadedMotoServer('127.0.0.1', 0); s.start(); "
        "print(s.get_host_and_port()[1], flush=True, file=sys.stderr); sys.stdin.read()"
    )
    server = start_command(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    port = next(line for line in server.stderr if line.strip().isdecimal()).strip()
    threading.Thread(target=server.stderr.read, daemon=True).start()  # it logs every request
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    import s3fs

    s3fs.S3FileSystem(anon=False, skip_instance_cache=True).mkdir("bucket")
    yield "s3://bucket"
    server.kill()
    server.wait()


def start(model_files: tuple[Path, Path], *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", TOOLS / "predict.py", "--config-file", model_files[0]]
    command += ["--weights", model_files[1], "--ray", *map(str, arguments)]
    return start_command(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output, errors = process.communicate(timeout=240)
    assert process.returncode == code and "Traceback" not in errors, f"{output}\n{errors}"
    return output + errors


def find_actors(driver: subprocess.Popen) -> list[int]:
    """The processes that hold a model."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            environment = (path.parent / "environ").read_bytes()
            if b"ray::MapWorker" in path.read_bytes() and f"TEST_DRIVER={os.getpid()}".encode() in environment:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_for_parts(folder: object, count: int, process: subprocess.Popen) -> None:
    limit = time.monotonic() + 600  # far above what a busy machine takes
    while len([name for name in folder.list(".parquet") if name.startswith("part-")]) < count:
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.05)


def test_killed_actors_and_drivers(
    model_files, predictor, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setenv("TEST_DRIVER", str(os.getpid()))
    bucket = s3fs.S3FileSystem(anon=False, skip_instance_cache=True)
    for k in range(COUNT):
        path = tmp_path / "in" / str(k % 3) / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_image(50, 70, k)).save(path)
        bucket.put_file(str(path), f"bucket/in/{k % 3}/{k}.png")
    bucket.pipe_file("bucket/in/broken.jpg", b"no image")
    arguments = ["--input", f"{store}/in", "--output", f"{store}/out", "--actors", 2, "--block-size", 2]
    folder = Folder(f"{store}/out")
    process = start(model_files, *arguments)
    wait_for_parts(folder, 2, process)
    actors = find_actors(process)
    assert actors
    os.kill(actors[0], signal.SIGKILL)
    wait_for_parts(folder, 6, process)
    process.kill()
    process.communicate()
    before = {name: folder.read(name) for name in folder.list(".parquet")}
    assert 6 <= len([name for name in before if name.startswith("part-")]) < COUNT // 2
    printed = finish(start(model_files, *arguments), code=1)
    assert "1 images failed" in printed and "broken.jpg" in printed and "were finished before" in printed
    assert {name: folder.read(name) for name in before} == before
    # A third start has nothing to do.
    again = finish(start(model_files, *arguments), code=1)
    assert f"0 images in {store}/out" in again and f"{COUNT + 1} were finished before" in again
    assert "broken.jpg" in again and "in an earlier run; --retry-failed tries it again" in again
    # Equal to plain prediction.
    predict_files(predictor, [tmp_path / "in"], tmp_path / "plain", ["coco"])
    merge = [sys.executable, "-W", "ignore", TOOLS / "merge_predictions.py", f"{store}/out", "--output"]
    done = subprocess.run([*merge, tmp_path / "merged"], capture_output=True, text=True)
    assert done.returncode == 1 and "0 of 25 parts are pending, and 1 have failures" in done.stderr
    done = subprocess.run([*merge, tmp_path / "merged", "--partial"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_equal(tmp_path / "plain", tmp_path / "merged")


def check_equal(plain: Path, merged: Path) -> None:
    """Compare PNGs byte by byte, and the jsons up to the order of the images."""
    pngs = sorted(path.relative_to(plain) for path in (plain / "panoptic").rglob("*.png"))
    assert len(pngs) == COUNT == len(list((merged / "panoptic").rglob("*.png")))
    for name in pngs:
        assert (plain / name).read_bytes() == (merged / name).read_bytes()
    for file in ("panoptic.json", "instances.json"):
        one, two = (json.loads((folder / file).read_text()) for folder in (plain, merged))
        one, two = ((x, {}) if isinstance(x, list) else (x.pop("annotations"), x) for x in (one, two))
        assert sort(one[0]) == sort(two[0])
        assert {k: sort(v) for k, v in one[1].items()} == {k: sort(v) for k, v in two[1].items()}


def sort(entries: list[dict]) -> list[str]:
    return sorted(json.dumps(entry, sort_keys=True) for entry in entries)


def test_tar_files(model_files, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for k in range(3):
            buffer = io.BytesIO()
            Image.fromarray(make_image(50, 70, k)).save(buffer, format="PNG")
            member = tarfile.TarInfo(f"{k}.png")
            member.size = buffer.tell()
            archive.addfile(member, io.BytesIO(buffer.getvalue()))
    arguments = ["--output", tmp_path / "out", "--format", "coco", "--input", tmp_path / "in.tar"]
    printed = finish(start(model_files, *arguments))
    assert "3 images in" in printed and "panoptic.json" in printed
    assert [p.name for p in (tmp_path / "out" / "parts").glob("part-*")] == ["part-0000-0000000.parquet"]
    assert len(list((tmp_path / "out" / "panoptic").rglob("*.png"))) == 3
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [i["file_name"] for i in content["images"]] == ["in/0.png", "in/1.png", "in/2.png"]
    printed = finish(start(model_files, "--input", tmp_path, "--output", "s3://x/y", "--format", "coco"), code=1)
    assert "writes COCO files to folders only" in printed


def test_a_growing_job(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "out"))
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.png").write_bytes(b"")
        if name in "ce":
            plan_blocks(folder, [str(tmp_path / "in")], 2)
            plan_blocks(folder, [str(tmp_path / "in")], 4)  # what is planned stays as it is
    assert [(block["block"], block["start"], block["count"]) for block in iterate_blocks(folder)] == [
        ("part-0000-0000000", 0, 2),
        ("part-0000-0000001", 2, 1),
        ("part-0001-0000000", 0, 2),
    ]
    (tmp_path / "in" / "a.png").write_bytes(b"changed")
    with pytest.raises(UserError, match="another file called a .*or changed since"):
        plan_blocks(folder, [str(tmp_path / "in")], 2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="another file called a"):
        plan_blocks(folder, [str(tmp_path / "other")], 2)


def test_mistakes(model_files, predictor, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    common = predictor.cfg, predictor.options, [str(tmp_path)]
    with pytest.raises(UserError, match="with --ray it is parquet or webdataset"):
        predict_on_ray(*common, output, "overlay", RayOptions())
    with pytest.raises(UserError, match="--actors and --block-size must be at least 1"):
        RayOptions(actors=0)
    with pytest.raises(UserError, match="does not exist, or holds no images"):
        predict_on_ray(*common, output, "parquet", RayOptions())
    cfg = predictor.cfg.clone()
    cfg.MODEL.WEIGHTS = str(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.pth does not exist"):
        predict_on_ray(cfg, *common[1:], str(tmp_path / "new"), "parquet", RayOptions())
    assert not (tmp_path / "new").exists()
    with lock_output(tmp_path / "out" / ".lock", "a test"), pytest.raises(UserError, match="is being written by"):
        predict_on_ray(*common, output, "parquet", RayOptions())
    with pytest.raises(UserError, match="holds predictions made with other settings"):
        predict_on_ray(*common, output, "webdataset", RayOptions())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").touch()
    with pytest.raises(UserError, match="holds files that are no predictions of a job"):
        predict_on_ray(*common, str(tmp_path / "mine"), "parquet", RayOptions())
    printed = finish(start(model_files, "--shard=1/2", "--input", tmp_path, "--output", tmp_path / "new"), code=1)
    assert "--shard cannot be used with --ray" in printed
