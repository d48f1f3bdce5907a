"""Tensors of the original and ours, in both directions."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seamless_d2.modeling import SeamlessPanoptic
from seamless_d2.seamseg.names import EPSILON, NormMode, original_names, our_layer, reorder, to_original, to_ours
from seamless_d2.seamseg.weights import Snapshot, convert_snapshot

from ..helpers.original_files import small_model
from ..helpers.reference import ASSETS, load_case

CASES = sorted((ASSETS / "cases").glob("*.json"))


def without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def there_and_back(state: dict[str, Tensor], mode: str = "syncbn") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ours -> original -> ours; returns the original's form, too."""
    parsed = NormMode.parse(mode)
    original = to_original(state, original_names(state, 18), parsed)
    back, unknown = to_ours(original, parsed)
    assert not unknown
    return original, back


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_tensor_of_the_original_has_its_place(path) -> None:
    """Names of real models: nothing is left over, missing or taken twice, and shapes and order fit."""
    case = load_case(path)
    state = {name: torch.empty(shape, device="meta") for name, shape in case.info["params"].items()}
    ours, cfg, _ = convert_snapshot(Snapshot(state, case.info["config"], None, path.stem))
    with torch.device("meta"):
        model = SeamlessPanoptic(cfg)
    expected = without_counters(model.state_dict())
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in expected.items()}
    assert original_names(ours, cfg.MODEL.RESNETS.DEPTH) == list(state)


@pytest.mark.parametrize("mode", ["bn", "syncbn", "syncbn+bn", "gn", "syncbn+gn", "off"])
def test_there_and_back_changes_one_rounding_at_most(mode: str) -> None:
    state = without_counters(small_model(mode).state_dict())
    _, back = there_and_back(state, mode)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        ulp = np.spacing(np.maximum(np.abs(tensor.numpy()), np.float32(1e-30)))
        assert (np.abs(back[name].numpy() - tensor.numpy()) <= ulp).all(), name
        if not (name.endswith("weight") and tensor.dim() == 1):
            assert torch.equal(back[name], tensor), name


@torch.no_grad()
def raw_outputs(model: SeamlessPanoptic) -> dict[str, Tensor]:
    """What every part computes, before anything is selected."""
    images = model.preprocess_image([{"image": torch.rand(3, 64, 96, generator=torch.manual_seed(1)) * 255}])
    features = model.backbone(images.tensor)
    logits, deltas = model.proposal_generator.rpn_head([features[k] for k in model.proposal_generator.in_features])
    rois = torch.randn(5, 32, 14, 14, generator=torch.manual_seed(2))
    heads = model.roi_heads
    scores, boxes = heads.box_predictor(heads.box_head(nn.functional.avg_pool2d(rois, 2)))
    result = dict(features)
    result |= {f"objectness {i}": x for i, x in enumerate(logits)} | {f"deltas {i}": x for i, x in enumerate(deltas)}
    result |= {"scores": scores, "boxes": boxes, "masks": heads.mask_head.layers(rois)}
    result["semantic"] = model.sem_seg_head.layers(features)
    return result


def norm_weights(model: SeamlessPanoptic) -> dict[str, Tensor]:
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm))
    }


ODD = torch.tensor([-0.7, 0.0, 3e-6, -4e-6, EPSILON, -EPSILON, 1.5e-5, -2.0])


def test_scales_that_the_original_cannot_express() -> None:
    """Negative, zero and tiny scales move into the convolution before; the function stays the same."""
    model = small_model()
    with torch.no_grad():
        for weight in norm_weights(model).values():
            weight[: len(ODD)] = ODD
    original, back = there_and_back(without_counters(model.state_dict()))
    norms = [name for name in original if original[name].dim() == 1 and name.endswith("weight")]
    assert len(norms) == len(norm_weights(model)) and all((original[name] >= 0).all() for name in norms)
    other = small_model(seed=1)
    other.load_state_dict(back, strict=False)
    expected, got = raw_outputs(model), raw_outputs(other)
    for name, value in expected.items():
        assert torch.allclose(got[name], value, rtol=0, atol=1e-5 * value.abs().max().item()), name
    # The check can fail: with the absolute values alone it is another model.
    with torch.no_grad():
        for weight in norm_weights(model).values():
            weight.abs_()
    changed = raw_outputs(model)
    assert all(not torch.allclose(changed[name], v, atol=1e-3 * v.abs().max().item()) for name, v in expected.items())


@pytest.mark.parametrize("mode", ["gn", "off"])
def test_other_norms_keep_their_scales(mode: str) -> None:
    model = small_model(mode)
    with torch.no_grad():
        for weight in norm_weights(model).values():
            weight[: len(ODD)] = ODD
    original, back = there_and_back(without_counters(model.state_dict()), mode)
    for name, weight in norm_weights(model).items():
        assert torch.equal(back[name], weight)
    assert torch.equal(original["body.backbone.mod1.bn1.weight"][: len(ODD)], ODD)


def test_inplace_abn_takes_the_absolute_value() -> None:
    weight = torch.tensor([0.5, -0.25, 0.0])
    state = {"rpn_head.bn1.weight": weight, "sem_head.output.0.bn1.weight": weight, "rpn_head.bn1.bias": -weight}
    absolute = [0.5 + 1e-5, 0.25 + 1e-5, 1e-5]
    for mode, dynamic, static in [("syncbn", 1, 1), ("syncbn+gn", 0, 1), ("off", 0, 0), ("gn", 0, 0), ("bn", 1, 1)]:
        ours, _ = to_ours(state, NormMode.parse(mode))
        for name, abn in (
            ("proposal_generator.rpn_head.conv.norm.weight", dynamic),
            ("sem_seg_head.levels.0.norm.weight", static),
        ):
            assert ours[name].tolist() == pytest.approx(absolute if abn else weight.tolist(), rel=1e-7, abs=0)
        assert torch.equal(ours["proposal_generator.rpn_head.conv.norm.bias"], -weight)


def test_box_deltas_change_their_order() -> None:
    # Two anchors (or classes), each dy, dx, dh, dw there and dx, dy, dw, dh here.
    theirs = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13])
    ours = torch.tensor([1, 0, 3, 2, 11, 10, 13, 12])
    for layer in ("rpn_head.conv_bbx", "roi_head.roi_bbx"):
        assert torch.equal(reorder(layer, theirs, to_ours=True), ours)
        assert torch.equal(reorder(layer, ours, to_ours=False), theirs)
        weight = theirs[:, None, None, None].expand(8, 3, 1, 1)
        assert torch.equal(reorder(layer, weight, to_ours=True)[:, 2, 0, 0], ours)


def test_background_moves_to_the_end() -> None:
    theirs = torch.tensor([[9.0], [1], [2], [3]])
    ours = torch.tensor([[1.0], [2], [3], [9]])
    assert torch.equal(reorder("roi_head.roi_cls", theirs, to_ours=True), ours)
    assert torch.equal(reorder("roi_head.roi_cls", ours, to_ours=False), theirs)
    for layer in ("roi_head.roi_msk", "sem_head.conv_sem", "rpn_head.conv_obj"):
        assert torch.equal(reorder(layer, theirs, to_ours=True), theirs)


def test_unknown_names_are_reported() -> None:
    state = {
        "body.backbone.mod1.conv1.weight": torch.zeros(1),
        "body.backbone.mod1.bn1.num_batches_tracked": torch.zeros(()),  # of some versions; without effect
        "body.backbone.mod6.pool.weight": torch.zeros(1),
        "body.classifier.num_batches_tracked": torch.zeros(()),
        "sem_head.output.0.conv1_9x9.weight": torch.zeros(1),
        "optimizer.weight": torch.zeros(1),
    }
    ours, unknown = to_ours(state, NormMode.parse("syncbn"))
    assert list(ours) == ["backbone.bottom_up.stem.conv1.weight"]
    assert unknown == [
        "body.backbone.mod6.pool.weight",
        "body.classifier.num_batches_tracked",
        "sem_head.output.0.conv1_9x9.weight",
        "optimizer.weight",
    ]


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("body.backbone.mod2.block1.convs.conv3", "backbone.bottom_up.res2.0.conv3"),
        ("body.backbone.mod4.block23.convs.bn2", "backbone.bottom_up.res4.22.conv2.norm"),
        ("body.backbone.mod5.block1.proj_bn", "backbone.bottom_up.res5.0.shortcut.norm"),
        ("body.fpn.lateral.0.conv", "backbone.fpn_lateral2"),
        ("body.fpn.output.3.bn", "backbone.fpn_output5.norm"),
        ("body.fpn.extra.1.conv", "backbone.top_block.p7"),
        ("roi_head.conv.conv_up", "roi_heads.mask_head.deconv"),
        ("sem_head.output.2.conv1_glb", "sem_seg_head.levels.2.pooled"),
        ("body.fpn.lateral.0.conv.weight", None),
        ("xbody.fpn.lateral.0.conv", None),
    ],
)
def test_layer_names(theirs: str, ours: str | None) -> None:
    assert our_layer(theirs) == ours


def test_half_precision_and_inputs() -> None:
    """The result is float32, and what was given stays as it was."""
    weight = torch.tensor([-0.5, 0.25]).half()
    ours, _ = to_ours({"body.backbone.mod1.bn1.weight": weight}, NormMode.parse("bn"))
    assert ours["backbone.bottom_up.stem.conv1.norm.weight"].dtype == torch.float32
    assert weight.tolist() == [-0.5, 0.25]
    state = without_counters(small_model().state_dict())
    state["backbone.bottom_up.stem.conv1.norm.weight"][0] = -1
    before = {k: v.clone() for k, v in state.items()}
    there_and_back(state)
    assert all(torch.equal(v, before[k]) for k, v in state.items())
