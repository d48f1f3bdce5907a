"""torchvision's ResNets compute the same features after conversion."""

import pytest
import torch
import torchvision
from detectron2.layers import ShapeSpec

from seamless_d2 import get_config
from seamless_d2.checkpoint import SeamlessCheckpointer
from seamless_d2.checkpoint.torchvision_resnet import convert_torchvision
from seamless_d2.errors import UserError
from seamless_d2.modeling import build_seamless_resnet_fpn_backbone

pytestmark = pytest.mark.slow


class Trunk(torch.nn.Module):
    """The backbone where a model has it."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        cfg = get_config("Base-Seamless.yaml")
        cfg.MODEL.RESNETS.DEPTH = depth
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256 if depth >= 50 else 64
        cfg.MODEL.SEAMLESS.ACTIVATION = "relu"
        self.backbone = build_seamless_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize("depth", [18, 50])
def test_features_are_equal(tmp_path, depth: int) -> None:
    torch.manual_seed(depth)
    reference = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    for name, tensor in reference.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.8, 1.2)
        elif "running_mean" in name:
            tensor.normal_(0, 0.1)
    torch.save(reference.state_dict(), tmp_path / "r.pth")
    assert convert_torchvision(str(tmp_path / "r.pth"), tmp_path / "out.pth") == depth
    trunk = Trunk(depth).eval()
    SeamlessCheckpointer(trunk).load(str(tmp_path / "out.pth"))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        y = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        features = trunk.backbone.bottom_up(x)
        for i in range(1, 5):
            y = getattr(reference, f"layer{i}")(y)
            assert torch.allclose(features[f"res{i + 1}"], y, rtol=1e-5, atol=1e-5 * float(y.abs().max()))


def test_mistakes(tmp_path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r18.pth")
    torch.save(torchvision.models.wide_resnet50_2(weights=None).state_dict(), tmp_path / "wide.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    for source, depth, words in (
        (tmp_path / "r18.pth", 50, "is a ResNet-18, not a ResNet-50"),
        (tmp_path / "wide.pth", None, "wide"),
        (tmp_path / "other.pth", None, "not a torchvision ResNet"),
        (tmp_path / "none.pth", None, "none.pth"),
        ("resnet20", None, "resnet18, 34, 50"),
    ):
        with pytest.raises(UserError, match=words):
            convert_torchvision(str(source), tmp_path / "out.pth", depth)
    assert not (tmp_path / "out.pth").exists()
