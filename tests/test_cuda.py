"""Every branch that a GPU takes, against the CPU; skipped where there is no CUDA device."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from seamless_d2 import Predictor
from seamless_d2.engine.random_state import get_random_state, set_random_state
from seamless_d2.modeling.ops.image_seeds import image_seed
from seamless_d2.modeling.ops.roi_pooler import SeamlessROIPooler
from seamless_d2.modeling.ops.semantic_loss import hard_pixel_loss
from seamless_d2.modeling.ops.upsample import upsampled_labels

from .helpers.batches import make_batch, make_image

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's default for convolutions on GPUs rounds to 10 bits, and the models of these tests have random weights.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_labels_of_upsampled_logits() -> None:
    logits = torch.randn(1, 7, 19, 33)
    expected = upsampled_labels(logits, (76, 132), (70, 130))
    found = upsampled_labels(logits.cuda(), (76, 132), (70, 130)).cpu()
    assert found.dtype == expected.dtype and (found != expected).float().mean() < 1e-3


def test_semantic_loss_and_its_gradient() -> None:
    logits, target = torch.randn(1, 7, 19, 33), torch.randint(0, 8, (70, 130))
    target[target == 7] = 255
    results = []
    for device in ("cpu", "cuda"):
        x = logits.to(device).detach().requires_grad_()
        loss = hard_pixel_loss(x, target.to(device), (76, 132), 255, 0.25)
        loss.backward()
        results.append((loss.item(), x.grad.cpu()))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert torch.allclose(results[1][1], results[0][1], atol=1e-6)


def test_roi_features() -> None:
    features = [torch.randn(1, 5, 32, 48), torch.randn(1, 5, 16, 24)]
    corners = torch.rand(90, 2) * 100
    boxes = Boxes(torch.cat([corners, corners + 5 + torch.rand(90, 2) * 50], dim=1))
    pooler = SeamlessROIPooler(7, [4, 8], 2)
    found = pooler([f.cuda() for f in features], [boxes.to("cuda")]).cpu()
    assert torch.allclose(found, pooler(features, [boxes]), atol=1e-4)


def test_seeds_of_images_and_random_states() -> None:
    device = torch.device("cuda", torch.cuda.current_device())

    def draw(seed: int) -> torch.Tensor:
        with image_seed([seed], 0, device):
            return torch.rand(5, device=device)

    state = get_random_state()
    first = torch.rand(3, device=device)
    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))
    set_random_state(state)
    draw(5)
    assert torch.equal(torch.rand(3, device=device), first)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_model_infers_as_on_a_cpu(toy_cfg: CfgNode, channels_last: bool) -> None:
    toy_cfg.MODEL.SEAMLESS.CHANNELS_LAST = channels_last
    toy_cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.3
    toy_cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 1
    model = build_model(toy_cfg).eval()
    inputs = [{"image": make_image(67, 101)}]
    with torch.no_grad():
        expected, found = model(inputs)[0], model.cuda()(inputs)[0]
    assert torch.allclose(found["sem_seg"].cpu(), expected["sem_seg"], atol=1e-3)
    assert (found["panoptic_seg"][0].cpu() != expected["panoptic_seg"][0]).float().mean() < 0.02


@pytest.mark.parametrize("amp", [False, True])
def test_a_training_step(toy_cfg: CfgNode, amp: bool) -> None:
    toy_cfg.MODEL.DEVICE = "cuda"
    model = build_model(toy_cfg).train()
    batch = [{**entry, "seed": 7} for entry in make_batch("usual", "bitmasks")]
    with EventStorage(), torch.autocast("cuda", torch.bfloat16, enabled=amp):
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "options", [{}, {"amp": True}, {"batch_size": 2}, {"tta": (1.0,)}, {"tile": (64, 48), "overlap": 16}]
)
def test_prediction(model_files: tuple[Path, Path], options: dict) -> None:
    images = [make_image(50, 70, seed).permute(1, 2, 0).numpy() for seed in range(2)]
    found = Predictor(*model_files, device="cuda", **options).predict(images)
    expected = Predictor(*model_files, device="cpu", **options).predict(images)
    for a, b in zip(found, expected, strict=True):
        # Ids shift with every segment that only one side has.
        first, second = (np.array([-1, *(s.dataset_id for s in r.segments)])[r.panoptic_seg] for r in (a, b))
        assert np.mean(first != second) < (0.2 if "amp" in options else 0.05)
