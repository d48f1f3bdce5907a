"""Several views of an image averaged."""

import numpy as np
import pytest
import torch

from seamless_d2 import Predictor
from seamless_d2.errors import UserError
from seamless_d2.prediction.tta import average_views

from ..helpers.images import make_image


def test_one_mirrored_pair_is_symmetric(predictor) -> None:
    """Seen at one scale with its mirror image, an image and its mirror image have mirrored results."""
    model, image = predictor.model, make_image(64, 96)
    output = average_views(model, image, (64, 96), (1.0,), "RGB")
    mirrored = average_views(model, np.ascontiguousarray(image[:, ::-1]), (64, 96), (1.0,), "RGB")
    assert output.logits.shape == (1, 4, 16, 24)
    assert torch.allclose(output.logits.flip(3), mirrored.logits, atol=1e-4)
    assert output.logits.exp().sum(dim=1).allclose(torch.ones(16, 24), atol=1e-4)
    a, b = output.detections, mirrored.detections
    assert len(a) == len(b) > 0
    assert torch.allclose(a.scores.sort().values, b.scores.sort().values, atol=1e-4)
    assert (0 <= a.scores).all() and (a.scores <= 1).all()
    assert a.pred_boxes.tensor[:, 2].max() <= 96 and a.pred_boxes.tensor[:, 3].max() <= 64


def test_a_image_that_equals_its_mirror_image(predictor) -> None:
    """For it, semantic scores of the one view and of the average agree where the network is symmetric in itself."""
    half = make_image(64, 48)
    image = np.ascontiguousarray(np.concatenate([half, half[:, ::-1]], axis=1))
    output = average_views(predictor.model, image, (64, 96), (1.0,), "RGB")
    assert torch.allclose(output.logits, output.logits.flip(3), atol=1e-4)


def test_scales(model_files) -> None:
    several = Predictor(*model_files, device="cpu", tta=(0.5, 1.0))
    result = several.predict(make_image(50, 70))
    assert result.panoptic_seg.shape == (50, 70) and result.segments
    for options in ({"tta": (9.0,)}, {"tta": (1.0,), "tile": (64, 64)}, {"tta": (1.0,), "raw": True}):
        with pytest.raises(UserError, match="tta"):
            Predictor(*model_files, device="cpu", **options)


def test_no_detections(model_files) -> None:
    config, weights = model_files
    blind = Predictor(config, weights, "cpu", tta=(1.0,))
    blind.model.roi_heads.box_predictor.test_score_thresh = 2.0
    assert not [s for s in blind.predict(make_image()).segments if s.isthing]
