"""A snapshot as the original saves it, converted by the command a user types, against the original's outputs."""

import configparser
import io
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from PIL import Image

from seamless_d2 import add_seamless_config
from seamless_d2.checkpoint import load_weights
from seamless_d2.seamseg.dataset import read_metadata
from seamless_d2.seamseg.weights import MODULES, convert

from ..helpers.reference import fill


def write_snapshot(folder: Path, path: Path) -> dict:
    """Rebuild the described snapshot; returns the description."""
    description = json.loads((folder / "snapshot" / "model_r18_fpn64_small.pth.tar.json").read_text())
    parser = configparser.ConfigParser()
    parser.read_string(json.loads((folder / "cases" / "cityscapes_r18_384x512.json").read_text())["config"])
    for section, key, value in description["overrides"]:
        parser[section][key] = value
    text = io.StringIO()
    parser.write(text)
    content: dict = {"config": text.getvalue(), "state_dict": {}, "training_meta": {"epoch": 64}}
    for module in MODULES:
        content["state_dict"][module] = {
            name.removeprefix(f"{module}."): torch.from_numpy(fill(name, shape, "snap64", description["rules"]))
            for name, (shape, _) in description["params"].items()
            if name.startswith(f"{module}.")
        }
    content["state_dict"]["optimizer"] = {"state": {}, "param_groups": description["param_groups"]}
    content["state_dict"].update(description["meters"])
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return description


@pytest.mark.slow
def test_snapshot_gives_the_originals_outputs(shared: Path, tmp_path: Path) -> None:
    description = write_snapshot(shared, tmp_path / "m.pth.tar")
    convert(tmp_path / "m.pth.tar", tmp_path / "m.pth")
    cfg = get_cfg()
    add_seamless_config(cfg)
    cfg.merge_from_file(str(tmp_path / "m.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    load_weights(model, tmp_path / "m.pth")
    assert model.num_stuff == description["num_stuff"]
    expected = np.load(shared / "snapshot" / "model_r18_fpn64_small.pth.tar.expected.npz")
    pixels = np.asarray(Image.open(shared / "snapshot" / "crop_256x256.png").convert("RGB"))
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    detections, logits = model.inference([{"image": image}], do_postprocess=False)
    stride = logits.shape[-1] // expected["sem_logits_sub"].shape[-1]
    difference = np.abs(logits[:, :, ::stride, ::stride].numpy() - expected["sem_logits_sub"]).max()
    assert difference <= 1e-4 * np.abs(expected["sem_logits_sub"]).max()
    boxes = detections[0].pred_boxes.tensor[:, [1, 0, 3, 2]].numpy()
    assert np.abs(boxes - expected["bbx_pred"]).max() <= 0.02
    assert np.array_equal(detections[0].pred_classes.numpy(), expected["cls_pred"])
    assert np.abs(detections[0].scores.numpy() - expected["obj_pred"]).max() <= 1e-3
    labels = model([{"image": image}])[0]["sem_seg"].argmax(0).numpy()
    assert (labels != expected["sem_pred"]).mean() < 1e-4


def test_metadata_files(shared: Path) -> None:
    for file in sorted((shared / "snapshot").glob("metadata_*.bin")):
        classes, images = read_metadata(file.read_bytes(), file.name)
        expected = json.loads(file.with_suffix(".json").read_text())
        assert json.loads(msgspec.json.encode(images)) == expected["images"]
        meta = expected["meta"]
        assert (classes.num_stuff, classes.num_things) == (meta["num_stuff"], meta["num_thing"])
        assert [classes.names, list(map(list, classes.colors)), classes.dataset_ids] == [
            meta[key] for key in ("categories", "palette", "original_ids")
        ]
