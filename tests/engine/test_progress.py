"""What a training tells: its lines, images for TensorBoard, curves, Weights & Biases."""

import json
import logging
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from detectron2.utils.events import EventStorage
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seamless_d2 import get_config
from seamless_d2.engine import run
from seamless_d2.engine.plots import plot_metrics, read_metrics
from seamless_d2.engine.progress import ProgressPrinter, WandbWriter, build_writers, resident_memory
from seamless_d2.errors import UserError


def test_a_line_of_progress(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "seamless_d2")
    printer = ProgressPrinter(max_iter=100, period=5)
    with EventStorage() as storage:
        printer.write()  # nothing is known yet
        for k in range(10):
            scalars = {"loss_cls": 1.0 + k, "loss_mask": 2.0, "time": 0.5, "data_time": 0.1, "images": 8}
            storage.put_scalars(total_loss=3.0 + k, lr=0.01, **scalars)
            if k in (4, 9):
                printer.write()
                printer.write()  # not twice
            storage.step()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    # Median of the last five: 1 + 7; 90 steps of half a second; 8 images in half a second.
    assert lines[1].startswith("step 10/100  0:00:45 left  loss 10 (cls 8, mask 2)  lr 0.01  16 images/s (20% waiting")
    assert lines[1].endswith(" GB") and storage.latest()["images_per_second"][0] == 16
    assert storage.latest()["memory_gb"][0] == pytest.approx(resident_memory(), rel=0.5)


def test_resident_memory_grows_with_what_is_held() -> None:
    before = resident_memory()
    held = np.ones(50_000_000)
    assert resident_memory() - before == pytest.approx(held.nbytes / 1e9, rel=0.2)


@pytest.mark.slow
def test_tensorboard_has_scalars_and_images(tmp_path: Path, arguments) -> None:
    run(arguments("SOLVER.MAX_ITER", "2", "SOLVER.LOG_PERIOD", "1", "TEST.NUM_VISUALIZED_IMAGES", "1"))
    events = EventAccumulator(str(tmp_path / "out"))
    events.Reload()
    assert {"total_loss", "loss_mask", "lr", "memory_gb", "panoptic_seg/PQ"} <= set(events.Tags()["scalars"])
    (tag,) = events.Tags()["images"]
    assert tag.startswith("image, ground truth, prediction/")
    image = events.Images(tag)[0]
    # Three images side by side, enlarged by a whole factor for their labels.
    assert image.width == 3 * 1.5 * image.height and image.height % 64 == 0


def write_history(folder: Path) -> None:
    folder.mkdir(parents=True)
    with open(folder / "metrics.json", "w") as file:
        for k in range(0, 200, 20):
            entry = {"iteration": k + 19, "total_loss": 5 / (k + 20), "loss_cls": 2 / (k + 20), "lr": 0.01}
            file.write(json.dumps({**entry, "images_per_second": 8.0, "memory_gb": 1.5}) + "\n")
        file.write('{"iteration": 39, "total_loss": 7.0}\n{"iterat')
    (folder / "evaluations.json").write_text('{"100": {"panoptic_seg/PQ": 20.0}, "200": {"panoptic_seg/PQ": 30.5}}')


@pytest.mark.slow
def test_curves(tmp_path: Path) -> None:
    write_history(tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.json")
    assert [e["iteration"] for e in lines] == list(range(19, 200, 20))
    assert lines[1]["total_loss"] == 7.0 and lines[1]["lr"] == 0.01  # the later line counts
    assert plot_metrics(tmp_path / "run") == tmp_path / "run" / "curves.png"
    with Image.open(tmp_path / "run" / "curves.png") as image:
        assert image.size == (1320, 770) and len(image.convert("RGB").getcolors(2**20)) > 100
    assert plot_metrics(tmp_path / "run", tmp_path / "x.svg").read_text().startswith("<?xml")


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="metrics.json does not exist"):
        plot_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "x": 2}\n')
    with pytest.raises(UserError, match="no line of a training"):
        plot_metrics(tmp_path)
    with pytest.raises(UserError, match=r"x.gif: curves are written as .png"):
        plot_metrics(tmp_path, "x.gif")


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = get_config("Base-Seamless")
    cfg.OUTPUT_DIR, cfg.WANDB.ENABLED = str(tmp_path / "my run"), True
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install seamless_d2\[wandb\]"):
        build_writers(cfg, 0)
    told, finished = [], []
    fake = types.SimpleNamespace(
        log=lambda scalars, step: told.append((step, scalars)), finish=lambda: finished.append(True)
    )
    settings = {}
    module = types.SimpleNamespace(init=lambda **kwargs: settings.update(kwargs) or fake)
    monkeypatch.setitem(sys.modules, "wandb", module)
    writer = WandbWriter(cfg)
    assert settings["project"] == "seamless_d2" and settings["name"] == "my run" and settings["resume"] == "allow"
    assert settings["config"]["SOLVER"]["IMS_PER_BATCH"] == 8 and "/" not in settings["id"]
    with EventStorage() as storage:
        storage.put_scalars(total_loss=1.0)
        writer.write()
        storage.step()
        writer.write()  # nothing new
        storage.put_scalars(total_loss=2.0, lr=0.1)
        writer.write()
    writer.close()
    assert told == [(0, {"total_loss": 1.0}), (1, {"total_loss": 1.5, "lr": 0.1})] and finished == [True]
