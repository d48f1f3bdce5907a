"""Snapshots of the original: conversion, every way of being wrong, and the way back."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import GeneralizedRCNN, build_model

from seamless_d2 import add_seamless_config
from seamless_d2.checkpoint import load_weights
from seamless_d2.errors import UserError
from seamless_d2.seamseg.dataset import read_metadata
from seamless_d2.seamseg.weights import convert, export

from ..helpers.original_files import ini_text, metadata_bytes, partial_ini, save, small_model, snapshot_content

pytestmark = pytest.mark.slow


def load_converted(path):
    """The model of the two files, built as a stranger would: get_cfg, add_seamless_config, merge_from_file."""
    cfg = get_cfg()
    add_seamless_config(cfg)
    cfg.merge_from_file(str(path.with_suffix(".yaml")))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    load_weights(model, path)
    return model, cfg


def run(model) -> dict:
    image = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (3, 64, 96)).astype(np.float32))
    with torch.no_grad():
        return model([{"image": image}])[0]


@pytest.mark.parametrize("legacy", [True, False])
def test_conversion_gives_the_same_model(tmp_path, legacy: bool) -> None:
    model = small_model()
    snapshot = save(snapshot_content(model), tmp_path / "m.pth.tar", legacy)
    (tmp_path / "metadata.bin").write_bytes(metadata_bytes())
    notes = convert(snapshot, tmp_path / "m.pth", metadata=tmp_path / "metadata.bin")
    assert any("val_interval" in note for note in notes)
    converted, cfg = load_converted(tmp_path / "m.pth")
    expected, got = run(model), run(converted)
    assert torch.allclose(got["sem_seg"], expected["sem_seg"], rtol=0, atol=1e-5)
    assert torch.equal(got["panoptic_seg"][0], expected["panoptic_seg"][0])
    seamless = cfg.MODEL.SEAMLESS
    assert seamless.CLASS_NAMES[3:] == ["class-3", "class-4"] and len(seamless.CLASS_NAMES) == 5
    assert seamless.CLASS_COLORS[4] == [4, 8, 12] and seamless.CLASS_DATASET_IDS == [10, 11, 12, 13, 14]
    assert seamless.ORIGINAL_CONVENTIONS
    assert cfg.MODEL.PIXEL_MEAN == pytest.approx([255 * m for m in (0.41738699, 0.45732192, 0.46886091)])
    assert cfg.INPUT.MIN_SIZE_TEST == 64 and cfg.INPUT.MAX_SIZE_TEST > 100_000


def test_released_zip(tmp_path) -> None:
    content = snapshot_content(small_model())
    text = content.pop("config")
    save(content, tmp_path / "w.pth.tar")
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        archive.write(tmp_path / "w.pth.tar", "release/weights.pth.tar")
        archive.writestr("release/config.ini", text)
        archive.writestr("release/metadata.bin", metadata_bytes())
    convert(tmp_path / "release.zip", tmp_path / "m.pth")
    _, cfg = load_converted(tmp_path / "m.pth")
    assert cfg.MODEL.SEAMLESS.CLASS_NAMES[3:] == ["class-3", "class-4"]
    convert(tmp_path / "w.pth.tar", tmp_path / "n.pth", config=write(tmp_path / "c.ini", text))


def write(path, text: str):
    path.write_text(text)
    return path


def drop(module: str, key: str):
    return lambda c: c["state_dict"][module].pop(key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["state_dict"].pop("sem_head"), "no sem_head, but its settings describe a panoptic model"),
        (lambda c: c.pop("state_dict"), "not a seamseg snapshot"),
        (lambda c: c.pop("config"), "--config"),
        (lambda c: c.update(config="[train]\nlr = 1\n"), "'lr'.*not one of seamseg's settings"),
        (lambda c: c.update(config="nothing"), "not an ini file"),
        (lambda c: c.update(config=ini_text(body="resnet34")), r"missing \d+ \(backbone.bottom_up"),
        (lambda c: c.update(config=ini_text(mode="gn")), r"left over \d+"),
        (drop("body", "fpn.lateral.1.conv.weight"), r"missing 1 \(backbone.fpn_lateral3.weight\)"),
        (lambda c: c["state_dict"]["body"].update(strange=torch.zeros(1)), "body.strange"),
        (
            lambda c: c["state_dict"]["roi_head"].update({"roi_msk.bias": torch.zeros(7)}),
            r"of another shape 1 \(roi_heads.mask_head.predictor.bias\)",
        ),
    ],
)
def test_wrong_snapshots(tmp_path, change, words: str) -> None:
    content = snapshot_content(small_model())
    change(content)
    snapshot = save(content, tmp_path / "m.pth.tar")
    with pytest.raises(UserError, match=words) as error:
        convert(snapshot, tmp_path / "out.pth")
    assert "m.pth.tar" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.pth.tar"]


def test_truncated_and_foreign_files(tmp_path) -> None:
    snapshot = save(snapshot_content(small_model()), tmp_path / "m.pth.tar")
    data = snapshot.read_bytes()
    for name, content in (("half.tar", data[: len(data) // 2]), ("empty.tar", b""), ("text.tar", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            convert(tmp_path / name, tmp_path / "out.pth")
    with pytest.raises(UserError, match="none.tar"):
        convert(tmp_path / "none.tar", tmp_path / "out.pth")
    with pytest.raises(UserError, match="end in .pth"):
        convert(snapshot, tmp_path / "out.bin")
    assert not list(tmp_path.glob("out*"))


def test_metadata_of_another_model(tmp_path) -> None:
    snapshot = save(snapshot_content(small_model()), tmp_path / "m.pth.tar")
    (tmp_path / "metadata.bin").write_bytes(metadata_bytes(num_things=5))
    with pytest.raises(UserError, match="5 classes, 2 of them things, but its metadata has 8 and 5"):
        convert(snapshot, tmp_path / "out.pth", metadata=tmp_path / "metadata.bin")
    for data in (b"", b"text that is no MessagePack", b"\x80"):
        with pytest.raises(UserError, match="metadata.bin"):
            read_metadata(data, "x/metadata.bin")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("mode", ["bn", "syncbn+bn", "gn", "syncbn+gn", "off"])
def test_there_and_back_in_every_mode(tmp_path, mode: str) -> None:
    model = small_model(mode)
    convert(save(snapshot_content(model, mode), tmp_path / "m.pth.tar"), tmp_path / "m.pth")
    ini = write(tmp_path / "m.ini", ini_text(mode))
    export(tmp_path / "m.pth", tmp_path / "back.pth.tar", None, ini)
    convert(tmp_path / "back.pth.tar", tmp_path / "again.pth")
    first = torch.load(tmp_path / "m.pth", weights_only=True)["model"]
    second = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) or torch.allclose(tensor, second[name], rtol=1.2e-7, atol=0), name


def test_export_refuses_what_the_original_cannot_hold(tmp_path) -> None:
    convert(save(snapshot_content(small_model()), tmp_path / "m.pth.tar"), tmp_path / "m.pth")
    with pytest.raises(UserError, match="--config"):
        export(tmp_path / "m.pth", tmp_path / "x.tar", None, None)
    other = write(tmp_path / "o.ini", ini_text(mode="gn"))
    with pytest.raises(UserError, match="another model"):
        export(tmp_path / "m.pth", tmp_path / "x.tar", None, other)
    yaml = tmp_path / "m.yaml"
    yaml.write_text(yaml.read_text() + "\n")
    text = yaml.read_text().replace("NORM: SyncBN", "NORM: FrozenBN", 1)
    with pytest.raises(UserError):
        export(tmp_path / "m.pth", tmp_path / "x.tar", write(tmp_path / "f.yaml", text), other)
    assert not (tmp_path / "x.tar").exists()


def test_command_line(tmp_path, request) -> None:
    save(snapshot_content(small_model()), tmp_path / "m.pth.tar")
    script = str(request.config.rootpath / "tools" / "convert_weights.py")
    command = [sys.executable, "-W", "ignore", script, "seamseg", "m.pth.tar", "m.pth"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "wrote m.pth" in result.stdout and "not converted" in result.stdout
    assert (tmp_path / "m.yaml").is_file()


@pytest.mark.parametrize("kind", ["instance_seg", "detection"])
@pytest.mark.parametrize("with_metadata", [False, True])
def test_models_without_a_semantic_head(tmp_path, kind: str, with_metadata: bool) -> None:
    """They become Detectron2's GeneralizedRCNN of our components, and go back."""
    text = partial_ini(kind)
    model = small_model(text=text)
    assert type(model) is GeneralizedRCNN and model.roi_heads.mask_on == (kind == "instance_seg")
    snapshot = save(snapshot_content(model, text=text), tmp_path / "m.pth.tar")
    (tmp_path / "metadata.bin").write_bytes(metadata_bytes())
    convert(snapshot, tmp_path / "m.pth", metadata=tmp_path / "metadata.bin" if with_metadata else None)
    converted, cfg = load_converted(tmp_path / "m.pth")
    assert type(converted) is GeneralizedRCNN and bool(cfg.MODEL.SEAMLESS.CLASS_NAMES) == with_metadata
    expected, got = run(model)["instances"], run(converted)["instances"]
    assert len(expected) and torch.allclose(got.scores, expected.scores, rtol=0, atol=1e-5)
    assert got.has("pred_masks") == (kind == "instance_seg")
    # The same boxes as those of the complete model that has these tensors.
    complete = small_model()
    complete.load_state_dict(model.state_dict(), strict=False)
    complete.roi_heads.box_predictor.load_state_dict(model.roi_heads.box_predictor.state_dict())
    assert torch.equal(run(complete)["instances"].pred_boxes.tensor, expected.pred_boxes.tensor)
    (tmp_path / "m.ini").write_text(text)
    export(tmp_path / "m.pth", tmp_path / "back.pth.tar", None, tmp_path / "m.ini")
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)["state_dict"]
    assert set(back) == {"body", "rpn_head", "roi_head"}


def test_an_ini_of_another_kind_is_told(tmp_path) -> None:
    content = snapshot_content(small_model(text=partial_ini("detection")), text=partial_ini("detection"))
    content["config"] = partial_ini("instance_seg")
    with pytest.raises(UserError, match="loss_weights has 5 numbers; it must have 4"):
        convert(save(content, tmp_path / "m.pth.tar"), tmp_path / "m.pth")
    content["config"] = partial_ini("detection").replace("anchor_scales = 8", "anchor_scales = (8., 16., 32.)")
    with pytest.raises(UserError, match="anchor_scales = .*; the original takes one number, such as 8"):
        convert(save(content, tmp_path / "m.pth.tar"), tmp_path / "m.pth")
