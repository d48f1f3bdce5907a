"""A data set without things and one without stuff train, evaluate and predict."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from seamless_d2 import Predictor
from seamless_d2.data.prepare.validate import validate
from seamless_d2.engine import run
from seamless_d2.engine.dry_run import dry_run
from seamless_d2.engine.setup import load_and_check
from seamless_d2.io import ids_to_rgb, read_id_map
from seamless_d2.prediction.batch.run import predict_files
from seamless_d2.structures.id_maps import replace_ids

pytestmark = pytest.mark.slow


def keep_kind(root: Path, isthing: int) -> int:
    """Make all pixels of the other kind of class void; return the number of classes that are left."""
    for file in root.glob("panoptic_*.json"):
        content = json.loads(file.read_text())
        content["categories"] = [c for c in content["categories"] if c["isthing"] == isthing]
        kept = {c["id"] for c in content["categories"]}
        for annotation in content["annotations"]:
            segments = [s for s in annotation["segments_info"] if s["category_id"] in kept]
            annotation["segments_info"] = segments
            png = file.with_suffix("") / annotation["file_name"]
            ids = replace_ids(read_id_map(png), {s["id"]: s["id"] for s in segments})
            Image.fromarray(ids_to_rgb(ids)).save(png)
        file.write_text(json.dumps(content))
    return len(kept)


@pytest.mark.parametrize("mode", ["panoptic", "separate"])
@pytest.mark.parametrize("isthing", [0, 1])
def test_a_data_set_of_one_kind(tmp_path: Path, arguments, isthing: int, mode: str) -> None:
    root = tmp_path / "toy_streets"
    count = keep_kind(root, isthing)
    assert validate(root / "panoptic_val.json", root / "val", workers=1)[0].problems == []
    options = [
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(count), "MODEL.ROI_HEADS.NUM_CLASSES", str(count * isthing)),
        *(
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
            "0.1",
            "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
        ),
        *("1", "TEST.EVAL_MODE", mode, "TEST.BOUNDARY_IOU", "True", "SOLVER.MAX_ITER", "2"),
    ]
    results = run(arguments(*options))
    assert torch.tensor(results["panoptic_seg"]["PQ"]).isfinite()
    assert ("bbox" in results) == bool(isthing)
    weights = str(tmp_path / "out" / "model_final.pth")
    again = run(arguments(*options, "MODEL.WEIGHTS", weights, flags=("--eval-only",)))
    assert again["panoptic_seg"]["PQ"] == results["panoptic_seg"]["PQ"]
    predictor = Predictor(tmp_path / "out" / "config.yaml", weights, device="cpu", raw=True)
    summary = predict_files(predictor, [root / "val"], tmp_path / "predictions", ("coco", "labelled", "ids", "raw"))
    assert not summary.failures
    for more in ({"tta": (1.0, 1.5)}, {"tile": (64, 64), "overlap": 16}):
        predictor = Predictor(tmp_path / "out" / "config.yaml", weights, device="cpu", **more)
        assert predictor.predict(next((root / "val").iterdir())).panoptic_seg.shape == (64, 96)
    assert dry_run(load_and_check(arguments(*options)))
    content = json.loads((tmp_path / "predictions" / "panoptic.json").read_text())
    assert len(content["annotations"]) == 2 and len(content["categories"]) == count
    assert any(annotation["segments_info"] for annotation in content["annotations"]) or isthing
