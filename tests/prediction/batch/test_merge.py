"""Shards: parts of the inputs that processes predict into one folder, and their merge."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from seamless_d2.errors import UserError
from seamless_d2.prediction.batch.merge import merge_predictions
from seamless_d2.prediction.batch.run import predict_files
from seamless_d2.shard import Shard

from ...helpers.images import make_image
from ...helpers.processes import start_command


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for k in range(6):
        path = tmp_path / "in" / ("left", "right")[k % 2] / f"{k // 2}.{('png', 'bmp')[k % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_image(40, 60, k)).save(path)
    return tmp_path / "in"


def test_shards_in_any_order_give_what_one_run_gives(predictor, images: Path, tmp_path: Path) -> None:
    predict_files(predictor, [images], tmp_path / "one", ["coco"])
    for number in (3, 1, 2):
        predict_files(predictor, [images], tmp_path / "many", ["coco"], shard=Shard(number, 3))
        if number != 2:
            with pytest.raises(UserError, match=f"shard {1 if number == 3 else 2}/3 has not begun"):
                merge_predictions(tmp_path / "many")
    merge_predictions(tmp_path / "many")
    for name in ("panoptic.json", "instances.json", "settings.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    pngs = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one" / "panoptic").rglob("*.png"))
    assert len(pngs) == 6
    for name in pngs:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    content = json.loads((tmp_path / "many" / "panoptic.json").read_text())
    assert [i["file_name"] for i in content["images"]] == [f"left/{k}.png" for k in range(3)] + [
        f"right/{k}.bmp" for k in range(3)
    ]
    # Another division finds everything done.
    again = [predict_files(predictor, [images], tmp_path / "many", ["coco"], shard=Shard(k, 2)) for k in (1, 2)]
    assert sum(summary.skipped for summary in again) == 6


def test_failures_are_kept_until_they_are_to_be_tried_again(predictor, images: Path, tmp_path: Path) -> None:
    (images / "left" / "0.png").write_bytes(b"no image")
    output = tmp_path / "out"
    assert len(predict_files(predictor, [images], output, ["coco"]).failures) == 1
    again = predict_files(predictor, [images], output, ["coco"])
    assert again.skipped == 5 and "in an earlier run; --retry-failed tries it again" in again.failures[0]
    with pytest.raises(UserError, match=r"5 inputs are done, 0 pending and 1 failed(.*\n)*.*0\.png"):
        merge_predictions(output)
    assert len(json.loads(merge_predictions(output, partial=True)[0].read_text())["images"]) == 5
    retried = predict_files(predictor, [images], output, ["coco"], retry_failed=True)
    assert len(retried.failures) == 1 and "earlier" not in retried.failures[0]
    # A file that was mended is a new one.
    Image.fromarray(make_image()).save(images / "left" / "0.png")
    assert not predict_files(predictor, [images], output, ["coco"]).failures
    assert len(json.loads(merge_predictions(output)[0].read_text())["images"]) == 6


def test_a_changed_image_that_is_older_than_its_results(predictor, images: Path, tmp_path: Path) -> None:
    output, image = tmp_path / "out", images / "left" / "0.png"
    predict_files(predictor, [images], output, ["coco", "ids"])
    old = (output / "left" / "0_ids.png").read_bytes()
    Image.fromarray(make_image(48, 60, 9)).save(image)
    os.utime(image, (1, 1))  # as unpacking and copying leave it
    assert predict_files(predictor, [images], output, ["ids"]).skipped == 5
    assert (output / "left" / "0_ids.png").read_bytes() != old
    # The results in the other format are gone, too.
    assert not (output / "panoptic" / "left" / "0.png").exists()
    predict_files(predictor, [images], output, ["coco"])
    heights = {i["file_name"]: i["height"] for i in json.loads((output / "panoptic.json").read_text())["images"]}
    assert len(heights) == 6 and heights["left/0.png"] == 48


def test_one_folder_is_one_growing_result(predictor, images: Path, tmp_path: Path) -> None:
    for part in ("left", "right"):
        (tmp_path / f"{part}.json").write_text(
            json.dumps({"images": [{"id": f"{part}{k}", "file_name": f"{k}.jpg"} for k in range(3)]})
        )
    output = tmp_path / "out"
    predict_files(predictor, [images / "left"], output, ["coco"], image_ids=tmp_path / "left.json")
    (images / "right").rename(tmp_path / "other")
    for k in range(3):
        (tmp_path / "other" / f"{k}.bmp").rename(tmp_path / "other" / f"{k + 3}.bmp")
    predict_files(predictor, [tmp_path / "other"], output, ["coco"])
    content = json.loads((output / "panoptic.json").read_text())
    assert {(i["id"], i["file_name"]) for i in content["images"]} == {
        *((f"left{k}", f"{k}.jpg") for k in range(3)),
        *((k + 3, f"{k + 3}.bmp") for k in range(3)),
    }
    assert {a["image_id"] for a in content["annotations"]} == {i["id"] for i in content["images"]}


def test_what_shards_refuse(predictor, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--overwrite would take the results of other shards away"):
        predict_files(predictor, [images], tmp_path / "out", shard=Shard(1, 2), overwrite=True)
    with pytest.raises(UserError, match="does not exist"):
        merge_predictions(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no predictions; give the --output"):
        merge_predictions(images)
    predict_files(predictor, [images], tmp_path / "out")
    with pytest.raises(UserError, match="no predictions in the format coco"):
        merge_predictions(tmp_path / "out")


@pytest.mark.slow
def test_processes_at_the_same_time(model_files, images: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = request.config.rootpath / "tools"
    arguments = ["--config-file", model_files[0], "--weights", model_files[1], "--device", "cpu", "--format", "coco"]
    arguments += ["--input", images, "--output", tmp_path / "out"]
    processes = [
        start_command(
            [sys.executable, "-W", "ignore", root / "predict.py", *arguments, "--shard", f"{k}/2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in (1, 2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
    done = subprocess.run(
        [sys.executable, "-W", "ignore", root / "merge_predictions.py", tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "panoptic.json" in done.stdout, done.stderr
    assert len(json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]) == 6


@pytest.mark.parametrize("root", ["folder", "s3://bucket/job"])
def test_the_tool_names_what_a_job_on_ray_needs(root: str, tmp_path: Path, tool) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "_settings.json").write_text("{}")
    code, _ = tool("merge_predictions.py", root if "://" in root else tmp_path / root)
    assert "is the output of a job on Ray; name a folder for its COCO files with --output" in str(code)
