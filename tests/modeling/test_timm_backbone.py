"""Networks of timm as backbones."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model

from seamless_d2.config import load_config
from seamless_d2.engine.solver import build_optimizer, layer_factors
from seamless_d2.errors import UserError
from seamless_d2.modeling.timm_backbone import build_timm_backbone, resume_without_pretrained

from ..helpers.batches import make_batch, make_image
from .test_swap import check_output, take_step

timm = pytest.importorskip("timm", reason="timm is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors, which timm needs, is not installed")

# One of each kind: patchified convolutions, residual convolutions with norms that are activations, inverted
# bottlenecks with features in the middle, windows and channels last, parallel resolutions, plain transformers.
HIERARCHICAL = {
    "test_convnext": [24, 32, 48, 64],
    "test_resnet": None,
    "test_efficientnet": [24, 32, 48, 64],
    "swin_tiny_patch4_window7_224": [96, 192, 384, 768],
    "hrnet_w18_small": [128, 256, 512, 1024],
}
PLAIN = ("test_vit", "vit_small_patch16_dinov3")


def timm_config(cfg: CfgNode, name: str, **keys: object) -> CfgNode:
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_fpn_backbone", name
    for key, value in keys.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


@pytest.mark.parametrize(
    "name", [n if n.startswith("test_") else pytest.param(n, marks=pytest.mark.slow) for n in (*HIERARCHICAL, *PLAIN)]
)
def test_feature_maps(toy_cfg: CfgNode, name: str) -> None:
    """The pyramid has the strides 4 to 64 of the padded image, whatever the network."""
    backbone = build_backbone(timm_config(toy_cfg, name))
    assert backbone.size_divisibility == 32
    shapes = backbone.output_shape()
    with torch.no_grad():
        features = backbone.eval()(torch.randn(2, 3, 64, 96))
    assert list(features) == list(shapes) == ["p2", "p3", "p4", "p5", "p6"]
    for level, (key, feature) in enumerate(features.items(), 2):
        assert shapes[key].stride == 2**level and shapes[key].channels == 16
        assert feature.shape == (2, 16, -(-64 // 2**level), -(-96 // 2**level)) and torch.isfinite(feature).all()
    channels = HIERARCHICAL.get(name)
    if channels:
        assert [backbone.bottom_up.output_shape()[f"res{k}"].channels for k in (2, 3, 4, 5)] == channels


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_training_and_inference(toy_cfg: CfgNode, name: str) -> None:
    cfg = timm_config(toy_cfg, name, DROP_PATH_RATE=0.1, GRAD_CHECKPOINTING=True)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 8
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.0
    model = build_model(cfg)
    take_step(model, make_batch("usual", "ours"))
    outputs = model.eval()([{"image": make_image(67, 101)}, {"image": make_image(50, 61), "height": 80, "width": 90}])
    check_output(outputs[0], 67, 101)
    check_output(outputs[1], 80, 90)


def test_feature_maps_are_those_of_timm(toy_cfg: CfgNode) -> None:
    toy_cfg = timm_config(toy_cfg, "test_efficientnet")
    bottom_up = build_timm_backbone(toy_cfg).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = bottom_up(image), bottom_up.net(image)
    assert list(ours) == ["res1", "res2", "res3", "res4", "res5"]
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs, strict=True))
    swin = build_timm_backbone(timm_config(toy_cfg, "swin_tiny_patch4_window7_224")).eval()
    with torch.no_grad():
        assert torch.equal(swin(image)["res3"], swin.net(image)[1].permute(0, 3, 1, 2))


@pytest.mark.parametrize(("freeze_at", "first"), [(0, "stem"), (1, "stages_0"), (2, "stages_1"), (4, "stages_3")])
def test_frozen_stages(toy_cfg: CfgNode, freeze_at: int, first: str) -> None:
    toy_cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    named = dict(build_timm_backbone(timm_config(toy_cfg, "test_convnext")).net.named_parameters())
    trained = [name for name, p in named.items() if p.requires_grad]
    assert trained[0].startswith(first)
    assert trained == list(named)[-len(trained) :]


def test_frozen_transformer(toy_cfg: CfgNode) -> None:
    cfg = timm_config(toy_cfg, "test_vit")
    cfg.MODEL.BACKBONE.FREEZE_AT = 5
    assert not any(p.requires_grad for p in build_timm_backbone(cfg).parameters())
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    with pytest.raises(UserError, match="as a plain ViT has none; use 0, or 5 for all"):
        build_timm_backbone(cfg)


@pytest.mark.slow
def test_stages_that_cannot_be_frozen(toy_cfg: CfgNode) -> None:
    """All maps of an HRNet come from its end; the sentence names what is possible."""
    toy_cfg.MODEL.BACKBONE.FREEZE_AT = 2
    with pytest.raises(UserError, match="FREEZE_AT is 2, but the network has no stage .*; use 0, .*or 5 for all of it"):
        build_timm_backbone(timm_config(toy_cfg, "hrnet_w18_small"))


def test_norms(toy_cfg: CfgNode) -> None:
    cfg = timm_config(toy_cfg, "test_efficientnet", NORM="FrozenBN")
    net = build_timm_backbone(cfg).net.train()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    synced = build_timm_backbone(timm_config(toy_cfg, "test_efficientnet", NORM="SyncBN")).net
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in synced.modules())


def test_pretrained_weights_from_a_file(toy_cfg: CfgNode, tmp_path: Path) -> None:
    whole = timm.create_model("test_convnext")
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    cfg = timm_config(toy_cfg, "test_convnext", PRETRAINED=str(tmp_path / "whole.pth"))
    net = build_timm_backbone(cfg).net
    wanted = {k.replace(".", "_"): v for k, v in whole.state_dict().items()}
    assert all(torch.equal(v, wanted[k.replace(".", "_")]) for k, v in net.state_dict().items())
    # They are not kept beside the network, where each copy of the model would have them again.
    assert not any("state_dict" in getattr(m, "pretrained_cfg", {}) for m in net.modules())
    # As timm's hub and its training write them, and with another number of classes.
    state = {k: v for k, v in whole.state_dict().items() if not k.startswith("head.fc")}
    safetensors.save_file(state, tmp_path / "whole.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "training.pth")
    for name in ("whole.safetensors", "training.pth"):
        cfg.MODEL.TIMM.PRETRAINED = str(tmp_path / name)
        again = build_timm_backbone(cfg).net
        assert all(torch.equal(v, wanted[k.replace(".", "_")]) for k, v in again.state_dict().items())
    # A checkpoint has the weights of the network, so that they are not looked for.
    cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.PRETRAINED = "model.pth", str(tmp_path / "none.pth")
    build_timm_backbone(cfg)
    cfg.MODEL.WEIGHTS = ""
    with resume_without_pretrained():
        build_timm_backbone(cfg)
    with pytest.raises(UserError, match="there is no file"):
        build_timm_backbone(cfg)


def test_reading_pretrained_weights_draws_no_random_number_more(toy_cfg: CfgNode, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "whole.pth")
    drawn = []
    for source in ("", str(tmp_path / "whole.pth")):
        torch.manual_seed(0)
        build_timm_backbone(timm_config(toy_cfg, "test_vit", PRETRAINED=source))
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("case", ["no name in common", "a layer less", "one of our checkpoints"])
def test_weights_of_another_network(toy_cfg: CfgNode, tmp_path: Path, case: str) -> None:
    """timm itself passes over what does not fit, and over what is missing."""
    state = timm.create_model("test_vit").state_dict()
    if case == "no name in common":
        state = timm.create_model("test_convnext").state_dict()
    elif case == "a layer less":
        del state["blocks.5.mlp.fc1.weight"]
    else:
        state = {"model": build_model(timm_config(toy_cfg, "test_vit")).state_dict()}
    torch.save(state, tmp_path / "weights.pth")
    count = "it lacks 1 of 76 .*blocks.5.mlp.fc1.weight" if case == "a layer less" else "it lacks 76 of 76"
    with pytest.raises(UserError, match=f"weights.pth does not hold weights of test_vit, {count}.*; give a file of"):
        build_timm_backbone(timm_config(toy_cfg, "test_vit", PRETRAINED=str(tmp_path / "weights.pth")))


def test_mistakes(toy_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: str, name: str, **keys: object) -> None:
        with pytest.raises(UserError, match=words):
            build_backbone(timm_config(toy_cfg.clone(), name, **keys))

    fail("no model 'convnext_tinny'; did you mean convnext_tiny", "convnext_tinny")
    fail("needs MODEL.TIMM.NAME", "")
    fail("convnext_tiny has no weights called 'nonsense'; they are: .*fb_in22k", "convnext_tiny.nonsense")
    fail("there is no file .*gone.pth", "test_convnext", PRETRAINED=str(tmp_path / "gone.pth"))
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "other.pth")
    fail("other.pth does not hold weights of test_convnext", "test_convnext", PRETRAINED=str(tmp_path / "other.pth"))
    (tmp_path / "junk.pth").write_bytes(b"junk")
    fail("junk.pth cannot be read as tensors", "test_convnext", PRETRAINED=str(tmp_path / "junk.pth"))
    spoilt = {k: v * torch.nan for k, v in timm.create_model("test_convnext").state_dict().items()}
    torch.save(spoilt, tmp_path / "spoilt.pth")
    fail("spoilt.pth: .* are NaN or infinite", "test_convnext", PRETRAINED=str(tmp_path / "spoilt.pth"))
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    fail("empty.pth has no weights", "test_convnext", PRETRAINED=str(tmp_path / "empty.pth"))
    fail("timm has no weights of botnet50ts_256; choose another network", "botnet50ts_256", PRETRAINED="hub")
    fail("have 14 pixels", "eva02_tiny_patch14_224")
    fail("has batch normalization, whose statistics", "test_efficientnet", GRAD_CHECKPOINTING=True)
    fail("cannot recompute its activations", "hrnet_w18_small", GRAD_CHECKPOINTING=True, NORM="FrozenBN")
    fail("takes images of one size only", "hiera_tiny_224")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fail("cannot be downloaded .*; without a network, set MODEL.TIMM.PRETRAINED", "test_convnext", PRETRAINED="hub")
    monkeypatch.setitem(sys.modules, "timm", None)
    fail("needs timm, which cannot be imported", "test_convnext")


def test_missing_strides(toy_cfg: CfgNode) -> None:
    cfg = timm_config(toy_cfg, "test_convnext")
    cfg.MODEL.FPN.IN_FEATURES = ["res1", "res2", "res3", "res4"]
    with pytest.raises(UserError, match=r"the backbone has the feature maps res2, res3, res4, res5"):
        build_backbone(cfg)
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res4", "res5"]
    words = r"strides \[4, 16, 32\] do not double .*res2 \(4\), res3 \(8\), res4 \(16\), res5 \(32\)"
    for name in ("build_timm_fpn_backbone", "build_seamless_resnet_fpn_backbone"):
        cfg.MODEL.BACKBONE.NAME = name
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        with pytest.raises(UserError, match=words):
            build_backbone(cfg)


@pytest.mark.slow
def test_a_classifier_in_the_file_of_a_network_without_one(toy_cfg: CfgNode, tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_small_patch16_dinov3", num_classes=10).state_dict(), tmp_path / "tuned.pth")
    build_timm_backbone(timm_config(toy_cfg, "vit_small_patch16_dinov3", PRETRAINED=str(tmp_path / "tuned.pth")))


@pytest.mark.slow
def test_a_network_for_images_of_some_sizes_only(toy_cfg: CfgNode) -> None:
    with pytest.raises(UserError, match="halonet26t cannot take images of any size, such as 96x160 .*; choose another"):
        build_backbone(timm_config(toy_cfg, "halonet26t"))


@pytest.mark.slow
def test_maps_of_another_size_than_their_strides_say(toy_cfg: CfgNode) -> None:
    """The convolutions of this network have no padding, so that positions in its maps are not those of the image."""
    with pytest.raises(UserError, match="the feature map res2 of inception_v3 has .* boxes would be misplaced"):
        build_backbone(timm_config(toy_cfg, "inception_v3"))


def test_description_of_the_images() -> None:
    """Mean, standard deviation and resizing are those of the weights, unless the config has others."""
    base = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME"]
    cfg = load_config("Base-Seamless.yaml", [*base, "vit_base_patch16_224.augreg_in21k"])
    assert np.allclose(cfg.MODEL.PIXEL_MEAN, 127.5) and np.allclose(cfg.MODEL.PIXEL_STD, 127.5)
    cfg = load_config("Base-Seamless.yaml", [*base, "convnext_tiny.fb_in22k", "INPUT.FORMAT", "BGR"])
    assert np.allclose(cfg.MODEL.PIXEL_MEAN, [103.53, 116.28, 123.675])
    assert np.allclose(cfg.MODEL.PIXEL_STD, [57.375, 57.12, 58.395])
    assert cfg.INPUT.INTERPOLATION == "bicubic"
    said = ["MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]", "INPUT.INTERPOLATION", "bilinear"]
    cfg = load_config("Base-Seamless.yaml", [*base, "vit_base_patch16_224.augreg_in21k", *said])
    assert cfg.MODEL.PIXEL_MEAN == [1, 2, 3] and cfg.INPUT.INTERPOLATION == "bilinear"
    assert np.allclose(cfg.MODEL.PIXEL_STD, [58.395, 57.12, 57.375])  # the pair is never mixed
    assert load_config("Base-Seamless.yaml").INPUT.INTERPOLATION == "bilinear"
    with pytest.raises(UserError, match="has no model 'nothing'"):
        load_config("Base-Seamless.yaml", [*base, "nothing"])


# --- the optimizer ------------------------------------------------------------------------------------------------


def _slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


def rates(model: torch.nn.Module, decay: float, depth: int) -> dict[str, float]:
    return {k.removeprefix("backbone."): v for k, v in layer_factors(model, decay, depth).items()}


@pytest.mark.parametrize(
    ("name", "blocks", "stem", "last"),
    [
        ("test_vit", 6, "net.net.model.pos_embed", "net.net.model.blocks.5.mlp.fc2.weight"),
        _slow("vit_small_patch16_dinov3", 12, "net.net.model.cls_token", "net.net.model.blocks.11.mlp.fc2.weight"),
        ("test_convnext", 12, "bottom_up.net.stem_0.weight", None),
        ("test_efficientnet", 5, "bottom_up.net.conv_stem.weight", None),
        _slow("regnetx_002", 13, "bottom_up.net.stem.conv.weight", None),
    ],
)
def test_layer_decay(toy_cfg: CfgNode, name: str, blocks: int | None, stem: str, last: str | None) -> None:
    model = build_model(timm_config(toy_cfg, name))
    factors = rates(model, 0.5, 1000)
    depth = max(round(-np.log2(f)) for f in factors.values()) - 1
    assert depth == blocks or blocks is None
    assert factors[stem] == 0.5 ** (depth + 1)
    assert factors[last or list(factors)[-1]] == 0.5
    trained = {n for n, _ in model.named_parameters() if n.startswith(("backbone.bottom_up.", "backbone.net."))}
    assert {f"backbone.{n}" for n in factors} == trained
    assert list(factors.values()) == sorted(factors.values()) or name.startswith(("hrnet", "vit", "test_vit"))
    # Fewer layers than blocks: each has its share, in the same order.
    few = rates(model, 0.5, 3)
    assert sorted(set(few.values())) == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert rates(model, 1.0, 12) == {}


def test_layer_decay_of_our_resnet(toy_cfg: CfgNode) -> None:
    factors = rates(build_model(toy_cfg), 0.5, 1000)
    assert factors["bottom_up.stem.conv1.weight"] == 0.5**9  # 8 basic blocks
    assert factors["bottom_up.res2.0.conv1.weight"] == 0.5**8
    assert factors["bottom_up.res5.1.conv2.norm.bias"] == 0.5


def test_groups_of_the_optimizer(toy_cfg: CfgNode) -> None:
    """Norms, biases, embeddings and scales do not decay; rates follow the layers."""
    cfg = timm_config(toy_cfg, "vit_small_patch16_dinov3")
    solver = cfg.SOLVER
    solver.OPTIMIZER, solver.BASE_LR, solver.LAYER_DECAY = "AdamW", 1.0, 0.5
    solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_BIAS = 0.05, 0.0, 0.0
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    found = {name: settings[id(p)] for name, p in model.named_parameters()}
    block = "backbone.net.net.model.blocks.11."
    assert found[block + "mlp.fc1.weight"] == (0.5, 0.05)
    assert found[block + "norm1.weight"] == found[block + "mlp.fc1.bias"] == (0.5, 0.0)
    assert found[block + "gamma_1"] == (0.5, 0.0)
    assert found["backbone.net.net.model.cls_token"] == found["backbone.net.net.model.reg_token"] == (0.5**13, 0.0)
    assert found["backbone.simfp_2.0.weight"] == (1.0, 0.05)
    assert found["backbone.simfp_2.1.weight"] == (1.0, 0.0)  # Detectron2's layer norm over channels
    assert found["sem_seg_head.predictor.weight"] == (1.0, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), [("fastvit_t8", ".gamma"), ("tiny_vit_5m_224", ".attention_biases")])
def test_scales_and_biases_of_positions_do_not_decay(toy_cfg: CfgNode, name: str, scale: str) -> None:
    cfg = timm_config(toy_cfg, name)
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = "AdamW", 0.05, 0.0
    model = build_model(cfg)
    decays = {id(p): g["weight_decay"] for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
    found = [decays[id(p)] for key, p in model.named_parameters() if key.endswith(scale)]
    assert found and set(found) == {0.0}


def test_clipping_by_the_norm_of_all_gradients(toy_cfg: CfgNode) -> None:
    clip = toy_cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "full_model", 0.5
    toy_cfg.SOLVER.BASE_LR, toy_cfg.SOLVER.MOMENTUM, toy_cfg.SOLVER.NESTEROV = 1.0, 0.0, False
    toy_cfg.SOLVER.WEIGHT_DECAY = toy_cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(toy_cfg, model)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 10
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    optimizer.step()
    moved = torch.cat([(b - p).flatten() for b, p in zip(before, model.parameters(), strict=True)])
    assert torch.allclose(moved, 0.5 * gradients / gradients.norm(), atol=1e-6)
