"""Prediction from arrays, files and lists with a tiny untrained model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from PIL import Image

from seamless_d2 import PanopticResult, Predictor
from seamless_d2.errors import UserError

from ..helpers.images import make_image
from ..helpers.videos import write_drive


def test_array_file_and_list_agree(predictor, tmp_path) -> None:
    Image.fromarray(make_image()).save(tmp_path / "a.png")
    single = predictor.predict(make_image())
    assert isinstance(single, PanopticResult)
    assert single.panoptic_seg.shape == (50, 70) and single.panoptic_seg.dtype == np.int32
    assert single.segments and sum(s.area for s in single.segments) == (single.panoptic_seg > 0).sum()
    for other in predictor.predict([make_image(), tmp_path / "a.png", str(tmp_path / "a.png")]):
        assert np.array_equal(other.panoptic_seg, single.panoptic_seg)
    assert single.classes.names == ["road", "sky", "car", "person"]
    assert single.overlay().shape[1] / single.overlay().shape[0] == pytest.approx(70 / 50)


def test_other_forms_of_images(predictor) -> None:
    image = make_image()
    expected = predictor.predict(image)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    for other in (tensor, tensor.contiguous(), Image.fromarray(image), Image.fromarray(image).convert("RGBA")):
        assert predictor.predict(other) == expected
    lazy = predictor.predict(iter([image, tensor]))
    assert not isinstance(lazy, list) and list(lazy) == [expected, expected]
    asked = []
    lazy = predictor.predict(asked.append(k) or image for k in range(3))
    assert not asked and next(lazy) == expected and asked == [0]
    assert predictor.predict((image,)) == [expected] and predictor.predict([]) == []
    for wrong in (tensor.float(), torch.zeros(2, 50, 70, dtype=torch.uint8), None, {"image": image}, 3):
        with pytest.raises(UserError, match="an image must be a file, an image of Pillow, .*; convert it"):
            predictor.predict(wrong)


def test_default_predictor_gives_the_same_map(predictor) -> None:
    cfg = predictor.cfg.clone()
    cfg.MODEL.SEAMLESS.OUTPUTS = ["panoptic_seg", "instances", "sem_seg"]
    default = DefaultPredictor(cfg)
    output = default(make_image()[:, :, ::-1])  # BGR
    # Ours has its norms folded into the convolutions: other roundings.
    assert (output["panoptic_seg"][0].numpy() == predictor.predict(make_image()).panoptic_seg).mean() > 0.999
    assert output["sem_seg"].shape == (4, 50, 70)
    assert default.metadata.thing_classes == ["car", "person"]


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(predictor, image) -> None:
    with pytest.raises(UserError, match="uint8 RGB"):
        predictor.predict(image)


def test_weights_of_another_model_are_refused(model_files, tmp_path) -> None:
    config, weights = model_files
    state = torch.load(weights, weights_only=True)["model"]
    state["sem_seg_head.predictor.bias"] = torch.zeros(9)
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="sem_seg_head.predictor.bias"):
        Predictor(config, tmp_path / "other.pth")
    with pytest.raises(UserError, match="none.pth"):
        Predictor(config, tmp_path / "none.pth")
    with pytest.raises(UserError, match="none.yaml"):
        Predictor(tmp_path / "none.yaml", weights)


def test_options(model_files) -> None:
    small = Predictor(*model_files, device="cpu", short_side=32)
    assert small.prepare(make_image(50, 70)).tensor.shape == (3, 32, 45)
    assert small.cfg.INPUT.MAX_SIZE_TEST * 2 == pytest.approx(
        Predictor(*model_files, "cpu").cfg.INPUT.MAX_SIZE_TEST, abs=1
    )
    reduced = Predictor(*model_files, device="cpu", amp=True).predict(make_image())
    full = Predictor(*model_files, device="cpu").predict(make_image())
    assert reduced.panoptic_seg.shape == full.panoptic_seg.shape
    assert (reduced.panoptic_seg == full.panoptic_seg).mean() > 0.5  # an untrained model is sure of nothing
    for options, message in [
        ({"batch_size": 0}, "--batch-size"),
        ({"short_side": 0}, "--short-side"),
        ({"tile": (64, 64), "overlap": 64}, "overlap"),
    ]:
        with pytest.raises(UserError, match=message):
            Predictor(*model_files, device="cpu", **options)
    with pytest.raises(UserError, match="'gpu' is not known"):
        Predictor(*model_files, device="gpu")


def test_images_too_narrow_for_the_network(predictor) -> None:
    with pytest.raises(UserError, match="3000 x 1 pixels is too narrow"):
        predictor.predict(make_image(1, 3000))
    assert predictor.predict(make_image(1, 1)).panoptic_seg.shape == (1, 1)
    overlay = predictor.predict(make_image(2, 6)).overlay()
    assert overlay.shape == (480, 1440, 3)


def test_devices_that_are_not_there(model_files) -> None:
    for device in ("xpu", "mps", "meta"):
        with pytest.raises(UserError, match=f"device '{device}' is not there"):
            Predictor(*model_files, device)


def test_objects_of_a_video_are_tracked(model_files, predictor, tmp_path: Path) -> None:
    write_drive(tmp_path / "drive.mp4", 12)
    results = list(predictor.track(tmp_path / "drive.mp4"))
    ids = [{s.track_id for s in r.segments if s.isthing} for r in results]
    assert len(ids) == 12 and all(None not in i for i in ids) and ids[0] and ids[0] & ids[1]
    assert all(s.track_id is None for r in results for s in r.segments if not s.isthing)
    assert np.array_equal(results[7].panoptic_seg, predictor.predict(results[7].image).panoptic_seg)
    # Arrays of any iterable, in batches.
    batched = Predictor(*model_files, device="cpu", batch_size=5)
    again = list(batched.track(r.image for r in results))
    assert [{s.track_id for s in r.segments if s.isthing} for r in again] == ids
    part = list(predictor.track(str(tmp_path / "drive.mp4"), start=0.2, stop=0.9, stride=3))
    assert [np.array_equal(r.image, results[k].image) for r, k in zip(part, (2, 5, 8), strict=True)] == [True] * 3


def test_tracking_reads_no_more_than_it_needs_and_names_what_is_wrong(predictor, tmp_path: Path) -> None:
    def endless() -> Iterator[np.ndarray]:
        yield make_image()
        yield make_image()
        raise AssertionError

    stream = predictor.track(endless())
    assert next(stream).segments and next(stream).segments
    for video, selection, sentence in [
        (tmp_path / "none.mp4", {}, "none.mp4 cannot be opened"),
        ("s3://bucket/a.mp4", {}, "its scheme is none of"),
        (97, {}, "camera 97 cannot be opened"),
        ([make_image()], {"stride": 2}, "stride can be given for files, URLs and cameras; slice the images"),
        (tmp_path / "none.mp4", {"stride": 0}, "--stride"),
    ]:
        with pytest.raises(UserError, match=sentence):  # before the first frame is asked for
            predictor.track(video, **selection)
    write_drive(tmp_path / "drive.mp4", 3)
    with pytest.raises(UserError, match="has no frames from 9"):
        list(predictor.track(tmp_path / "drive.mp4", start=9))
