"""Norms folded into convolutions: the same outputs from fewer layers."""

import copy

import pytest
import torch
from detectron2.modeling import build_model

from seamless_d2.modeling.ops.fold import FoldedNorm, compile_network, fold_norms


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "Affine", "FrozenBN", "GN"])
@pytest.mark.parametrize("depth", [18, 50])
def test_same_outputs(toy_cfg, norm: str, depth: int) -> None:
    toy_cfg.MODEL.RESNETS.DEPTH = depth
    toy_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    for node in ("RESNETS", "FPN", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "SEM_SEG_HEAD"):
        toy_cfg.MODEL[node].NORM = norm if node != "RESNETS" or norm != "GN" else "BN"
    if norm == "GN":
        toy_cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = toy_cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    model = build_model(toy_cfg).eval()
    for module in model.modules():  # statistics, scales and shifts that do something
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.2, 0.8)
            module.bias.data.normal_(std=0.2)
    folded = fold_norms(copy.deepcopy(model))
    left = [m for m in folded.modules() if hasattr(m, "running_var")]
    assert not left and any(isinstance(m, FoldedNorm) for m in folded.modules())
    inputs = [{"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)}]
    (a,), (b,) = (m.run_network(inputs, all_outputs=True) for m in (model, folded))
    assert (a.logits - b.logits).abs().max() < 1e-4 * a.logits.abs().max()
    assert len(a.detections) == len(b.detections) > 0
    assert torch.allclose(a.detections.scores, b.detections.scores, atol=1e-4)
    # Equal scores may change places: the masks of one's boxes by the other.
    images = folded.preprocess_image(inputs)
    features = folded.backbone(images.tensor)
    masks = folded.roi_heads.forward_with_given_boxes(features, [copy.deepcopy(a.detections)], (64, 96))[0].pred_masks
    assert torch.allclose(a.detections.pred_masks, masks, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_network_gives_the_same_map(toy_cfg) -> None:
    """Traced and run by PyTorch's own kernels: what a code generator makes of it is not ours to test."""
    toy_cfg.MODEL.SEAMLESS.OUTPUTS = ["panoptic_seg"]
    toy_cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 1
    toy_cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.2
    model = fold_norms(build_model(toy_cfg).eval())
    compiled = compile_network(copy.deepcopy(model), backend="aot_eager")
    for size in ((64, 96), (50, 70)):
        inputs = [{"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8)}]
        expected, found = (m(inputs)[0]["panoptic_seg"][0] for m in (model, compiled))
        assert (expected == found).float().mean() >= 0.995
