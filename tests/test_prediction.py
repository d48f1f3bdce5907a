"""Prediction from arrays, files and folders with a tiny untrained model."""

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from PIL import Image

from seamless_d2 import Predictor
from seamless_d2.errors import UserError
from seamless_d2.prediction import PanopticResult, find_images, predict_files

from .data.panoptic_files import CATEGORIES


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Yaml and weights of an untrained model: all that a prediction needs."""
    from seamless_d2 import get_config
    from seamless_d2.data.metadata import Classes

    root = tmp_path_factory.mktemp("model")
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2, 4
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 1
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATASETS.TEST = ("prediction_test",)
    Classes.from_categories(CATEGORIES, "test").to_config(cfg)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, root / "model.pth")
    (root / "model.yaml").write_text(cfg.dump())
    return root / "model.yaml", root / "model.pth"


@pytest.fixture(scope="module")
def predictor(files) -> Predictor:
    return Predictor(*files, device="cpu")


def photo(height: int = 50, width: int = 70) -> np.ndarray:
    return np.random.RandomState(3).randint(0, 256, (height, width, 3)).astype(np.uint8)


def test_array_file_and_list_agree(predictor, tmp_path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.png")
    single = predictor.predict(photo())
    assert isinstance(single, PanopticResult)
    assert single.panoptic_seg.shape == (50, 70) and single.panoptic_seg.dtype == np.int32
    assert single.segments and sum(s["area"] for s in single.segments) == (single.panoptic_seg > 0).sum()
    for other in predictor.predict([photo(), tmp_path / "a.png", str(tmp_path / "a.png")]):
        assert np.array_equal(other.panoptic_seg, single.panoptic_seg)
    assert single.classes.names == ["road", "sky", "car", "person"]
    assert single.overlay().shape[1] / single.overlay().shape[0] == pytest.approx(70 / 50)


def test_default_predictor_gives_the_same_map(predictor) -> None:
    cfg = predictor.cfg.clone()
    cfg.MODEL.SEAMLESS.OUTPUTS = ["panoptic_seg", "instances", "sem_seg"]
    default = DefaultPredictor(cfg)
    default.model.load_state_dict(predictor.model.state_dict())
    output = default(photo()[:, :, ::-1])  # BGR
    assert np.array_equal(output["panoptic_seg"][0].numpy(), predictor.predict(photo()).panoptic_seg)
    assert output["sem_seg"].shape == (4, 50, 70)
    assert default.metadata.thing_classes == ["car", "person"]


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(predictor, image) -> None:
    with pytest.raises(UserError, match="uint8 RGB"):
        predictor.predict(image)


def test_folder_structure_is_kept_and_bad_files_are_named(predictor, tmp_path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    Image.fromarray(photo()).save(source / "a.png")
    Image.fromarray(photo()).save(source / "a.jpg")
    Image.fromarray(photo()).save(source / "deep" / "B.JPG", format="JPEG")
    (source / "deep" / "broken.png").write_bytes(b"no picture")
    (source / "notes.txt").write_text("not a picture")
    written, failures = predict_files(predictor, [source], output)
    assert sorted(p.relative_to(output).as_posix() for p in written) == [
        "a_overlay.jpg",
        "a_png_overlay.jpg",
        "deep/B_overlay.jpg",
    ]
    assert all(p.is_file() for p in written)
    assert len(failures) == 1 and "broken.png" in failures[0]
    # Finished pictures are skipped, unless asked for.
    times = [p.stat().st_mtime_ns for p in written]
    predict_files(predictor, [source], output)
    assert [p.stat().st_mtime_ns for p in written] == times
    predict_files(predictor, [source], output, overwrite=True)
    assert all(p.stat().st_mtime_ns > t for p, t in zip(written, times, strict=True))


def test_inputs_that_are_not_there(tmp_path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no pictures"):
        find_images([tmp_path])


def test_weights_of_another_model_are_refused(files, tmp_path) -> None:
    config, weights = files
    state = torch.load(weights, weights_only=True)["model"]
    state["sem_seg_head.predictor.bias"] = torch.zeros(9)
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="sem_seg_head.predictor.bias"):
        Predictor(config, tmp_path / "other.pth")
    with pytest.raises(UserError, match="none.pth"):
        Predictor(config, tmp_path / "none.pth")
    with pytest.raises(UserError, match="none.yaml"):
        Predictor(tmp_path / "none.yaml", weights)
