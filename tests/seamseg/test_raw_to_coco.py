"""Raw files in the original's layout, fused as the original does, and the tool around it."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from seamless_d2.errors import UserError
from seamless_d2.prediction import Predictor
from seamless_d2.prediction.batch.run import predict_files
from seamless_d2.seamseg.raw import fuse_raw, load_raw
from seamless_d2.seamseg.raw_to_coco import convert_raw, read_classes
from seamless_d2.structures.classes import Classes

from ..helpers.images import make_image
from ..helpers.panoptic_files import CATEGORIES
from ..helpers.reference import fusion_case, load_infos, load_numbers

pytestmark = pytest.mark.slow

CLASSES = Classes.from_categories(CATEGORIES, "test")
EMPTY = dict.fromkeys(["bbx_pred", "cls_pred", "obj_pred", "msk_pred"])


@pytest.mark.parametrize("info", load_infos("fusion_cases"), ids=lambda info: f"{info['case']:02d}")
def test_the_originals_files_give_the_originals_map(info, tmp_path: Path) -> None:
    numbers, expected, _ = fusion_case(info, load_numbers("fusion_cases"))
    raw = EMPTY | {k: torch.from_numpy(v) for k, v in numbers.items() if k.endswith("_pred")}
    raw["sem_pred"] = raw["sem_pred"].long()
    torch.save(raw, tmp_path / "a.pth.tar")
    score_thresh, overlap_thresh, stuff_area_thresh = info["thresholds"]
    panoptic_seg, _ = fuse_raw(
        load_raw(tmp_path / "a.pth.tar"),
        "a.pth.tar",
        num_stuff=info["num_stuff"],
        num_classes=256,
        score_thresh=score_thresh,
        overlap_thresh=overlap_thresh,
        stuff_area_thresh=stuff_area_thresh,
    )
    assert np.array_equal(panoptic_seg.numpy(), expected)


def test_same_files_as_direct_prediction(model_files, tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    for name, size in [("a", (50, 70)), ("deep/b", (90, 64))]:
        Image.fromarray(make_image(*size)).save(images / f"{name}.png")
    predictor = Predictor(*model_files, device="cpu", raw=True)
    predict_files(predictor, [images], tmp_path / "direct", ["raw", "coco"])
    raw = load_raw(tmp_path / "direct" / "deep" / "b.pth.tar")
    assert raw["sem_pred"].dtype == torch.int64 and raw["sem_pred"].shape == (90, 64)  # at the network's resolution
    assert raw["msk_pred"].shape[1:] == (28, 28) and raw["bbx_pred"].shape == (len(raw["obj_pred"]), 4)
    assert raw["bbx_pred"][:, [1, 3]].max() <= 64 < raw["bbx_pred"][:, [0, 2]].max()  # y first
    classes, cfg = read_classes(None, model_files[0])
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    thresholds = {
        "score_thresh": combine.INSTANCES_CONFIDENCE_THRESH,
        "overlap_thresh": combine.OVERLAP_THRESH,
        "stuff_area_thresh": combine.STUFF_AREA_LIMIT,
    }
    summary = convert_raw(tmp_path / "direct", tmp_path / "fused", classes, images=images, **thresholds)
    assert not summary.failures
    for name in ("panoptic.json", "instances.json", "panoptic/a.png", "panoptic/deep/b.png"):
        assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "fused" / name).read_bytes()
    # A restart has nothing to do.
    assert convert_raw(tmp_path / "direct", tmp_path / "fused", classes, images=images, **thresholds).skipped == 2
    # Without the images maps keep the network's size.
    convert_raw(tmp_path / "direct", tmp_path / "small", classes, **thresholds)
    assert Image.open(tmp_path / "small" / "panoptic" / "a.png").size == (90, 64)


def run(request: pytest.FixtureRequest, *arguments: str | Path) -> subprocess.CompletedProcess:
    script = request.config.rootpath / "tools" / "raw_to_coco_panoptic.py"
    return subprocess.run([sys.executable, "-W", "ignore", script, *arguments], capture_output=True, text=True)


def test_tool_with_the_originals_metadata(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    meta = {
        "num_stuff": 2,
        "num_thing": 2,
        "categories": ["road", "sky", "car", "person"],
        "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]],
        "original_ids": [3, 11, 7, 90],
    }
    (tmp_path / "metadata.bin").write_bytes(msgspec.msgpack.encode({"meta": meta, "images": []}))
    (tmp_path / "raw" / "deep").mkdir(parents=True)
    sem_seg = torch.zeros(60, 80, dtype=torch.int64)
    sem_seg[:30] = 1
    detection = {
        "bbx_pred": torch.tensor([[35.0, 10.0, 55.0, 50.0]]),
        "cls_pred": torch.tensor([1]),
        "obj_pred": torch.tensor([0.75]),
        "msk_pred": torch.full((1, 28, 28), 9.0),
    }
    torch.save({"sem_pred": sem_seg} | detection, tmp_path / "raw" / "deep" / "a.pth.tar")
    torch.save({"sem_pred": sem_seg} | EMPTY, tmp_path / "raw" / "b.pth.tar")
    arguments = [tmp_path / "raw", tmp_path / "coco", "--metadata", tmp_path / "metadata.bin"]
    done = run(request, *arguments, "--stuff-area-thresh", "1")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "coco" / "panoptic.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["road", "sky", "car", "person"]
    (a, b) = content["annotations"]
    assert (a["file_name"], b["file_name"]) == ("b.png", "deep/a.png")
    assert [(s["category_id"], s["area"]) for s in a["segments_info"]] == [(3, 2400), (11, 2400)]
    assert [(s["category_id"], s["area"]) for s in b["segments_info"]] == [(90, 800), (3, 1600), (11, 2400)]
    (instance,) = json.loads((tmp_path / "coco" / "instances.json").read_text())
    assert instance["bbox"] == [10, 35, 40, 20] and instance["score"] == 0.75
    # Broken files are named, the others done, the exit code 1.
    (tmp_path / "raw" / "broken.pth.tar").write_bytes(b"PK not a zip")
    torch.save({"sem_pred": sem_seg + 4} | EMPTY, tmp_path / "raw" / "foreign.pth.tar")
    torch.save({"sem_pred": sem_seg}, tmp_path / "raw" / "partial.pth.tar")
    (tmp_path / "images").mkdir()
    failed = run(request, *arguments, "--overwrite", "--images", tmp_path / "images")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert "5 inputs failed" in failed.stderr
    for reason in ("broken.pth.tar cannot be read", "beyond the 4 classes", "bbx_pred is missing", "no image"):
        assert reason in failed.stderr


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--metadata"):
        read_classes(None, None)
    with pytest.raises(UserError, match=r"none\.bin does not exist"):
        read_classes(tmp_path / "none.bin", None)
    with pytest.raises(UserError, match="no class names"):
        read_classes(None, "cityscapes/seamless_R_50_FPN.yaml")
    with pytest.raises(UserError, match="nowhere does not exist"):
        convert_raw(tmp_path / "nowhere", tmp_path / "out", CLASSES)
    with pytest.raises(UserError, match="no raw predictions"):
        convert_raw(tmp_path, tmp_path / "out", CLASSES)
    with pytest.raises(UserError, match="of --images does not exist"):
        convert_raw(tmp_path, tmp_path / "out", CLASSES, images=tmp_path / "nowhere")


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_code_in_a_raw_file_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"sem_pred": Evil()}, tmp_path / "evil.pth.tar")
    with pytest.raises(UserError, match="raw prediction .*evil.pth.tar cannot be read as tensors"):
        load_raw(tmp_path / "evil.pth.tar")
    assert "ran" not in capsys.readouterr().out


def test_other_thresholds_are_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    torch.save({"sem_pred": torch.zeros(6, 8, dtype=torch.int64)} | EMPTY, tmp_path / "raw" / "a.pth.tar")
    arguments = tmp_path / "raw", tmp_path / "coco", CLASSES
    convert_raw(*arguments, stuff_area_thresh=1)
    with pytest.raises(UserError, match=r"other settings \(thresholds\)"):
        convert_raw(*arguments, stuff_area_thresh=100)
    convert_raw(*arguments, stuff_area_thresh=100, overwrite=True)
    assert json.loads((tmp_path / "coco" / "panoptic.json").read_text())["annotations"][0]["segments_info"] == []
    with pytest.raises(UserError, match="must be between 0 and 1"):
        convert_raw(*arguments, score_thresh=50)


def test_renamed_files_of_a_prediction_find_their_images(model_files, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k, name in enumerate(("a.jpg", "a.png")):
        Image.fromarray(make_image(50 + k, 70 + k)).save(tmp_path / "in" / name)
    predictor = Predictor(*model_files, device="cpu", raw=True)
    predict_files(predictor, [tmp_path / "in"], tmp_path / "raw", ["raw"])
    assert (tmp_path / "raw" / "a_png.pth.tar").is_file()
    summary = convert_raw(tmp_path / "raw", tmp_path / "coco", predictor.classes, images=tmp_path / "in")
    assert not summary.failures
    images = json.loads((tmp_path / "coco" / "panoptic.json").read_text())["images"]
    assert [(i["file_name"], i["height"]) for i in images] == [("a.jpg", 50), ("a.png", 51)]
