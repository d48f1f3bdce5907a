"""The facts at the head of a report."""

import hashlib
import json
import re
from pathlib import Path

import torch

from seamless_d2 import __version__, get_config
from seamless_d2.evaluation.facts import describe_files, describe_model


def test_facts_of_a_model(tmp_path: Path) -> None:
    cfg = get_config("cityscapes/seamless_R_50_FPN")
    weights = tmp_path / "model.pth"
    weights.write_bytes(b"weights")
    cfg.MODEL.WEIGHTS = str(weights)
    cfg.MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH = 0.375
    facts = json.loads(json.dumps(describe_model(cfg)))
    assert facts["model"] == {
        **{"architecture": "SeamlessPanoptic", "backbone": "build_seamless_resnet_fpn_backbone", "depth": 50},
    }
    assert facts["weights"] == {"file": str(weights), "sha256": hashlib.sha256(b"weights").hexdigest()[:16]}
    assert facts["thresholds"]["overlap"] == 0.375 and set(facts["thresholds"]) == {"score", "overlap", "stuff area"}
    assert facts["config"]["MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH"] == 0.375 and "MODEL" not in facts["config"]
    assert facts["versions"]["torch"] == torch.__version__ and facts["versions"]["seamless_d2"] == __version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", facts["run"]["date"])
    # Weights that are in no local file have no hash; a model of timm is named.
    cfg.MODEL.WEIGHTS = "detectron2://model.pkl"
    assert describe_model(cfg)["weights"] == {"file": "detectron2://model.pkl", "sha256": None}
    cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "", "build_timm_fpn_backbone", "convnext_tiny"
    facts = describe_model(cfg)
    assert facts["weights"]["file"] is None and facts["model"]["backbone"] == "convnext_tiny"


def test_facts_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    facts = describe_files(ground_truth=tmp_path / "a.json")
    digest = hashlib.sha256(b"{}").hexdigest()[:16]
    assert facts["ground truth"] == {"file": str(tmp_path / "a.json"), "sha256": digest}
    assert list(facts) == ["ground truth", "run", "versions"]
