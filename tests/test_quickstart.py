"""The notebook, executed from its first cell to its last on a tiny model, as a new user would."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from seamless_d2.data.toy_streets import write_toy_streets
from seamless_d2.structures.classes import Classes

from .conftest import small_config

pytestmark = pytest.mark.slow


@pytest.fixture
def toy_model(tmp_path: Path) -> Path:
    """What `make demo` leaves, untrained."""
    import torch
    from detectron2.modeling import build_model

    data = write_toy_streets(tmp_path / "datasets" / "toy_streets", 1, 6, 64, 128, workers=1, progress=False)
    categories = json.loads((data / "panoptic_val.json").read_text())["categories"]
    cfg = small_config()
    cfg.DATASETS.PANOPTIC = [
        ["quickstart_val", "toy_streets/val", "toy_streets/panoptic_val", "toy_streets/panoptic_val.json"]
    ]
    cfg.DATASETS.TEST = ("quickstart_val",)
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 1
    Classes.from_categories(categories, "toy_streets").to_config(cfg)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return tmp_path


def test_notebook(toy_model: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbconvert and ipykernel")
    execute = pytest.importorskip("nbconvert.preprocessors", reason="needs nbconvert and ipykernel")
    tools = request.config.rootpath / "tools"
    notebook = nbformat.read(tools / "quickstart.ipynb", as_version=4)
    shipped = json.dumps(notebook)
    assert '"output_type": "error"' not in shipped and str(request.config.rootpath) not in shipped
    monkeypatch.setenv("QUICKSTART_MODEL", str(toy_model))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    execute.ExecutePreprocessor(timeout=300, kernel_name="python3").preprocess(
        notebook, {"metadata": {"path": str(tools)}}
    )
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [o["data"]["image/jpeg"] for o in outputs if "image/jpeg" in o.get("data", {})]
    assert len(images) == 3
    for image in images:
        assert min(Image.open(io.BytesIO(base64.b64decode(image))).size) > 100
    text = "".join(o["text"] for o in outputs if o["output_type"] == "stream" and o["name"] == "stdout")
    assert "(64, 128) int32" in text and "PQ_st" in text and "panoptic/street.png" in text
