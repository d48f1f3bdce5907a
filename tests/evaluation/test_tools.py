"""The command lines of tools/evaluate_predictions.py and tools/tune_thresholds.py."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image

from seamless_d2.config import list_keys, load_config
from seamless_d2.data.mapper import SeamlessMapper
from seamless_d2.data.registration import load_panoptic_json
from seamless_d2.data.toy_streets import write_toy_streets
from seamless_d2.evaluation import build_evaluators
from seamless_d2.io import ids_to_rgb

from ..helpers.panoptic_files import scene, unique_name, write_dataset

pytestmark = pytest.mark.slow


def test_evaluate_predictions(tmp_path: Path, tool) -> None:
    ids, segments = scene()
    files = write_dataset(tmp_path, {"a": (ids, segments), "b": (ids, segments)})
    ground_truth = files["panoptic_json"]
    pair = (ground_truth, ground_truth, "--pred-dir", files["panoptic_dir"], "--truth-dir", files["panoptic_dir"])
    code, text = tool("evaluate_predictions.py", *pair, "--json", tmp_path / "a.json")
    assert code == 0 and "road" in text and "Things" in text
    code, text = tool(
        *("evaluate_predictions.py", *pair, "--json", tmp_path / "b.json"),
        *("--output", tmp_path / "report", "--images", files["image_dir"]),
    )
    assert code == 0 and "report.html" in text and "mIoU of the map 100.00" in text
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == [
        *("metrics.json", "per_class.csv", "per_image.csv", "report.html"),
    ]
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab"]
    assert results[0] == results[1] and set(results[0]) == {"All", "Things", "Stuff", "per_class"}
    # The crowd of persons is predicted as a segment, which the crowd excuses.
    assert results[0]["All"] == {"pq": 1, "sq": 1, "rq": 1, "n": 3}
    quality = {"pq": 1, "sq": 1, "rq": 1, "tp": 4, "fp": 0, "fn": 0, "iou": 1}
    assert results[0]["per_class"]["7"] == {"class": "car", "kind": "thing", **quality}
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    digest = hashlib.sha256(ground_truth.read_bytes()).hexdigest()[:16]
    assert report["facts"]["predictions"] == {"file": str(ground_truth), "sha256": digest}
    assert digest in (tmp_path / "report" / "report.html").read_text()
    assert report["per_class"] == results[0]["per_class"]
    for options, words in (
        (("--images", tmp_path), "add --output"),
        (("--workers", "0"), "at least 1"),
        (("--rules", "mine"), "invalid choice"),
    ):
        code, text = tool("evaluate_predictions.py", *pair, *options)
        assert code == 2 and words in text
    code, _ = tool("evaluate_predictions.py", *pair, "--output", tmp_path / "r", "--images", tmp_path / "no")
    assert code.startswith("error: ") and "no of the images does not exist" in code and "\n" not in code
    code, _ = tool("evaluate_predictions.py", tmp_path / "no.json", ground_truth)
    assert code.startswith("error: ") and "no.json does not exist" in code
    files["image_dir"].joinpath("a.png").unlink()
    code, _ = tool("evaluate_predictions.py", *pair, "--output", tmp_path / "r", "--images", files["image_dir"])
    assert code.startswith("error: ") and "a.png does not exist" in code and not (tmp_path / "r/report.html").exists()


@pytest.fixture
def toy_config(tmp_path: Path, toy_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> Path:
    """config.yaml and weights.pth of the tiny model, untrained, whose thresholds let something through."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_toy_streets(tmp_path / "toy", num_train=1, num_val=4, height=64, width=96, workers=1, progress=False)
    name = unique_name()
    cfg = toy_cfg.clone()
    cfg.DATASETS.PANOPTIC = [[name, "toy/val", "toy/panoptic_val", "toy/panoptic_val.json"]]
    cfg.DATASETS.TEST = (name,)
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TEST = 80
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    combine.INSTANCES_CONFIDENCE_THRESH, combine.OVERLAP_THRESH, combine.STUFF_AREA_LIMIT = 0.25, 0.5, 300
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    model = build_model(cfg).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    # An untrained model is right where its own result, at other thresholds, is the ground truth.
    model.combine_instances_score_thresh, model.combine_overlap_thresh, model.combine_stuff_area_thresh = 0.1, 0.3, 0
    file = tmp_path / "toy" / "panoptic_val.json"
    content = json.loads(file.read_text())
    records, classes = load_panoptic_json(tmp_path / "toy" / "val", tmp_path / "toy" / "panoptic_val", file)
    for record, annotation in zip(records, content["annotations"], strict=True):
        panoptic, info = model([SeamlessMapper(cfg, False)(record)])[0]["panoptic_seg"]
        Image.fromarray(ids_to_rgb(panoptic.numpy())).save(record["pan_seg_file_name"])
        annotation["segments_info"] = [
            {
                "id": s["id"],
                "category_id": classes.dataset_ids[s["category_id"] + classes.num_stuff * s["isthing"]],
                "area": s["area"],
                "iscrowd": 0,
            }
            for s in info
        ]
    file.write_text(json.dumps(content))
    return tmp_path / "config.yaml"


@pytest.mark.parametrize("keys", [(), ("MODEL.SEAMLESS.FUSE_AT", "output"), ("TEST.EVAL_RESOLUTION", "input")])
def test_tuned_thresholds_give_what_they_promise(tmp_path: Path, toy_config: Path, tool, keys: tuple) -> None:
    weights = str(tmp_path / "weights.pth")
    grid = ("--scores", 0.1, 0.25, 0.3, "--overlaps", 0.3, "--areas", 0, 300, 1500, "--output", tmp_path / "t.yaml")
    common = ("--config-file", toy_config, "--weights", weights)
    code, text = tool("tune_thresholds.py", *common, *grid, *keys)
    assert code == 0 and "4 images, 18 combinations" in text
    promised = {
        row.split()[0]: float(row.split()[4]) for row in text.splitlines() if row.startswith(("now ", "found "))
    }
    overrides = text.strip().splitlines()[-1].split()
    # The file is a whole config, with the names of the classes.
    tuned = list_keys(load_config(tmp_path / "t.yaml"))
    given = list_keys(load_config(toy_config, [*keys, *overrides, "MODEL.WEIGHTS", weights]))
    different = {key for key in tuned if tuned[key] != given[key] and not isinstance(tuned[key], CfgNode)}
    assert different <= {f"MODEL.SEAMLESS.CLASS_{part}" for part in ("NAMES", "COLORS", "DATASET_IDS")}, different
    measured = {}
    for name, settings in (("now", []), ("found", overrides)):
        cfg = load_config(toy_config, [*keys, *settings, "MODEL.SEAMLESS.OUTPUTS", "['panoptic_seg']"])
        cfg.TEST.REPORT = False
        model, mapper = build_model(cfg).eval(), SeamlessMapper(cfg, False)
        model.load_state_dict(torch.load(weights, weights_only=True)["model"])
        evaluator = build_evaluators(cfg, cfg.DATASETS.TEST[0], str(tmp_path / "out"))
        evaluator.reset()
        for record in DatasetCatalog.get(cfg.DATASETS.TEST[0]):
            entry = mapper(record)
            evaluator.process([entry], model([entry]))
        measured[name] = evaluator.evaluate()["panoptic_seg"]["PQ"]
    for name, value in promised.items():
        assert measured[name] == pytest.approx(value, abs=0.0051)
    assert promised["found"] > promised["now"] > 0
    assert keys or promised["found"] == 100


def test_mistakes_of_tuning(tmp_path: Path, toy_config: Path, tool) -> None:
    common = ("--config-file", toy_config, "--weights", tmp_path / "weights.pth")
    for options, words in (
        (("--scores", 1.5), "--scores has 1.5; give numbers of 0 to 1"),
        (("--areas", -1), "--areas has -1"),
        (("TEST.EVAL_RESOLUTION", "x"), "EVAL_RESOLUTION"),
        (("MODEL.META_ARCHITECTURE", "PanopticFPN"), "META_ARCHITECTURE"),
    ):
        code, _ = tool("tune_thresholds.py", *common, *options)
        assert str(code).startswith("error: ") and words in code and "\n" not in code
    assert tool("tune_thresholds.py", *common, "--max-images", 0)[0] == 2
    code, _ = tool("tune_thresholds.py", "--config-file", toy_config, "--weights", "none.pth")
    assert code.startswith("error: ") and "none.pth" in code
