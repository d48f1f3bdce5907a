"""Metadata, sizes and engines of exported files; nothing is exported here."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seamless_d2.config import get_config
from seamless_d2.data.transforms import build_resize
from seamless_d2.errors import UserError
from seamless_d2.export.session import ExportedModel, Metadata, choose_engine
from seamless_d2.structures.classes import Classes

METADATA = Metadata(
    classes=Classes(["road", "car"], [(1, 2, 3), (4, 5, 6)], [7, 8], 1),
    min_size=65,
    max_size=(2048, 4096),
    short_side=800,
    long_side=1333,
    truncate=False,
    thresholds={"score": 0.5, "overlap": 0.5, "stuff_area": 4096},
    config="MODEL: {}",
    weights_sha256="ab",
    versions={"torch": "2"},
)


def test_metadata_survive_the_file() -> None:
    assert Metadata.from_json(METADATA.to_json(), Path("model.onnx")) == METADATA


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"classes": 1, "fuse_at": "input"}', "not json"])
def test_foreign_metadata_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="model.onnx is no model that tools/export_model.py has written"):
        Metadata.from_json(text, Path("model.onnx"))


@pytest.mark.parametrize("truncate", [False, True])
def test_sizes_are_those_of_the_predictor(truncate: bool) -> None:
    cfg = get_config("cityscapes/seamless_R_50_FPN")
    cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS = truncate
    draw = random.Random(0)
    for _ in range(300):
        short = draw.choice((0, 64, 333, 800))
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = short, draw.choice((900, 1333, 4000))
        height, width = draw.randint(20, 700), draw.randint(20, 700)
        if draw.random() < 0.1:
            width = height
        metadata = replace(METADATA, short_side=short, long_side=cfg.INPUT.MAX_SIZE_TEST, truncate=truncate)
        transform = build_resize(cfg, is_train=False).get_transform(np.empty((height, width, 3), np.uint8))
        expected = getattr(transform, "new_h", height), getattr(transform, "new_w", width)
        assert metadata.get_network_size(height, width) == expected, (height, width, short)


def test_the_engine_of_a_file() -> None:
    assert choose_engine(Path("a.onnx"), "openvino") == "openvino"
    assert choose_engine(Path("a.pt2"), None) == "torch"
    with pytest.raises(UserError, match=r"'torch' does not read .onnx files; use onnxruntime or openvino"):
        choose_engine(Path("a.onnx"), "torch")
    with pytest.raises(UserError, match=r"a.pth is no exported model; their suffixes are .onnx, .xml, .pt2"):
        choose_engine(Path("a.pth"), None)


def test_a_file_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="the exported model nowhere.onnx does not exist"):
        ExportedModel("nowhere.onnx", "onnxruntime")


@pytest.mark.parametrize(("name", "engine"), [("a.onnx", "onnxruntime"), ("a.onnx", "openvino"), ("a.pt2", "torch")])
def test_a_damaged_file(tmp_path: Path, name: str, engine: str) -> None:
    pytest.importorskip(engine)
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(UserError, match=f"{name} cannot be read by"):
        ExportedModel(tmp_path / name, engine)


def test_a_missing_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.onnx").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(UserError, match="the engine openvino is not installed; run `python -m pip install openvino`"):
        ExportedModel(tmp_path / "a.onnx", "openvino")


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_bfloat16_where_there_is_none(tmp_path: Path, engine: str) -> None:
    file = tmp_path / ("a.pt2" if engine == "torch" else "a.onnx")
    file.write_bytes(b"")
    with pytest.raises(UserError, match=f"the engine {engine} has no bfloat16"):
        ExportedModel(file, engine, amp=True)
