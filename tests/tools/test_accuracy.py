"""The comparison of accuracies: both models train and are judged by the same program, and a call can be repeated."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks.accuracy import ROWS, Comparison, StockPanopticFPN, benchmark_accuracy, format_table
from detectron2.modeling import build_model

from seamless_d2.config import get_config
from seamless_d2.data.toy_streets import write_toy_streets
from seamless_d2.errors import UserError

from ..helpers.batches import STUFF, THINGS, make_batch, make_image

pytestmark = pytest.mark.slow


def stock_model() -> StockPanopticFPN:
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "StockPanopticFPN", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
            *("MODEL.FPN.NORM", "", "MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "MODEL.RPN.HEAD_NAME", "StandardRPNHead"),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
            *("MODEL.ROI_BOX_HEAD.NORM", "", "MODEL.ROI_MASK_HEAD.NORM", ""),
            *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", "MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"),
            *("MODEL.SEM_SEG_HEAD.NORM", "GN", "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "1"),
        ]
    )
    return build_model(cfg)


def test_labels_of_the_stock_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training stuff k is k + 1 and things are 0; in inference stuff is k again."""
    model = stock_model()
    record, *_ = make_batch("usual", "ours")
    seen = {}

    def keep(features: dict, targets: torch.Tensor | None) -> tuple:
        seen["targets"] = targets
        raise StopIteration

    monkeypatch.setattr(model.sem_seg_head, "forward", keep)
    with pytest.raises(StopIteration):
        model.train()([record])
    labels, targets = record["sem_seg"], seen["targets"][0, :64, :96]
    assert (targets[labels == 255] == 255).all() and (targets[labels == 0] == 1).all()
    assert (targets[labels == 1] == 2).all() and (targets[(labels >= STUFF) & (labels != 255)] == 0).all()
    model = stock_model().eval()
    assert model.sem_seg_head.predictor.out_channels == STUFF + 1
    with torch.no_grad():
        for k in range(STUFF):
            model.sem_seg_head.predictor.bias.zero_()
            model.sem_seg_head.predictor.bias[k + 1] = 1000
            (output,) = model([{"image": make_image()}])
            stuff = [s["category_id"] for s in output["panoptic_seg"][1] if not s["isthing"]]
            assert stuff == [k]
    assert model.roi_heads.num_classes == THINGS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy streets in the folders of photo data sets."""
    root = write_toy_streets(tmp_path_factory.mktemp("accuracy") / "toy", num_train=3, num_val=2, height=64, width=128)
    (root / "images").mkdir()
    for part in ("train", "val"):
        (root / part).rename(root / "images" / part)
    return root


def test_training_table_and_curves(data: Path, tmp_path: Path) -> None:
    settings = {"iterations": 2, "batch": 1, "size": 64, "rois": 8, "seeds": 1}
    small = """
    MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.FPN.OUT_CHANNELS 32
    MODEL.RPN.CONV_DIMS [32] MODEL.RPN.POST_NMS_TOPK_TEST 20
    MODEL.RPN.POST_NMS_TOPK_TRAIN 50 MODEL.ROI_BOX_HEAD.FC_DIM 32
    MODEL.ROI_MASK_HEAD.CONV_DIM 32 MODEL.SEM_SEG_HEAD.CONVS_DIM 32"""
    comparison = Comparison(data, "", tmp_path / "out", "cpu", **settings, overrides=tuple(small.split()))
    found = benchmark_accuracy(comparison)
    assert set(found) == {"stock", "ours"}
    assert all(len(runs) == 1 and [step for step, _ in runs[0]["curve"]] == [1, 2] for runs in found.values())
    assert all(0 <= runs[0]["results"]["PQ"] <= 100 for runs in found.values())
    for (run,) in found.values():
        (first, pq), *others = run["thresholds"]
        assert first == 0.5 and pq == run["results"]["PQ"] and [t for t, _ in others] == [0.7, 0.9]
        assert all(0 <= value <= 100 for _, value in others)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "2 iterations of batch 1 at 64 px" in text and text.count("\n| ") == 3
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
    assert json.loads((tmp_path / "out" / "accuracy.json").read_text()) == found
    # A finished training is not repeated, and one of other settings is not taken for it.
    checkpoint = tmp_path / "out" / "ours_seed0" / "model_final.pth"
    before = checkpoint.stat().st_mtime_ns
    assert benchmark_accuracy(comparison) == found and checkpoint.stat().st_mtime_ns == before
    # Interrupted after the training, in the evaluations: these are done, and the training is not repeated.
    (tmp_path / "out" / "ours_seed0" / "accuracy.json").unlink()
    assert benchmark_accuracy(comparison) == found
    evaluations = json.loads((tmp_path / "out" / "ours_seed0" / "evaluations.json").read_text())
    assert sorted(map(int, evaluations)) == [1, 2]
    with pytest.raises(UserError, match="stock_seed0 holds a training with other settings"):
        benchmark_accuracy(Comparison(data, "", tmp_path / "out", "cpu", **{**settings, "batch": 2}))
    # The same settings of a facade config that was changed since.
    finished = tmp_path / "out" / "ours_seed0" / "accuracy.json"
    content = json.loads(finished.read_text())
    assert content["config"]["MODEL.FPN.NORM"] == "Affine"
    content["config"]["MODEL.FPN.NORM"] = "GN"
    finished.write_text(json.dumps(content))
    with pytest.raises(UserError, match="ours_seed0 holds a training with other settings"):
        benchmark_accuracy(comparison)


def test_settings_of_the_rows(data: Path, tmp_path: Path) -> None:
    """All rows have the same data, schedule and seed; only what a row is about differs."""
    comparison = Comparison(data, "", tmp_path, "cpu")
    plain = comparison.settings("ours", 3, tmp_path)
    for row, changes in ROWS.items():
        settings = comparison.settings(row, 3, tmp_path)
        if row == "stock":
            assert settings[: len(plain) - 2] == plain[:-2] and "StockPanopticFPN" in settings
        else:
            assert settings == [*plain, *changes]
    assert comparison.settings("ours", 4, tmp_path) != plain


def test_means_and_ranges() -> None:
    others = {"PQ_th": 1.0, "PQ_st": 2.0, "SQ": 3.0, "RQ": 4.0}
    runs = [
        {"results": {"PQ": pq, **others}, "thresholds": [[0.5, pq], [0.7, pq + 1], [0.9, 5.0]], "curve": []}
        for pq in (10, 12)
    ]
    assert format_table({"ours": runs}).splitlines()[-1].split() == (
        "| ours | 2 | 11.0 | 1.0 | 2.0 | 3.0 | 4.0 | 10.0 | 12.0 | 12.0 | 5.0 |".split()
    )


def test_mistakes(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rows has no 'our'; the rows are: stock; ours"):
        benchmark_accuracy(Comparison(data, "", tmp_path, "cpu", rows=("our",)))
    with pytest.raises(UserError, match=r"panoptic_train.json does not exist; give --data"):
        benchmark_accuracy(Comparison(tmp_path, "", tmp_path, "cpu"))
