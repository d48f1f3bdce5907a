"""Normalisation that keeps only its output, against the ordinary layers; checkpointed stages."""

import copy

import pytest
import torch
from torch import Tensor

from seamless_d2.errors import UserError
from seamless_d2.modeling.backbone import build_seamless_resnet_fpn_backbone
from seamless_d2.modeling.norm import make_norm_act
from seamless_d2.modeling.ops.inplace_norm import Activation

LEAKY, ELU, IDENTITY = Activation("leaky_relu", 0.01), Activation("elu", 0.7), Activation("identity")


def layers(norm: str, act: Activation) -> tuple[torch.nn.Module, torch.nn.Module]:
    plain, inplace = make_norm_act(norm, 6, act), make_norm_act(norm, 6, act, inplace=True)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([1.0, -0.5, 2, 0.3, -1.5, 0.05]))
        plain.bias.normal_()
        plain.running_mean.normal_()
        plain.running_var.uniform_(0.5, 2)
    inplace.load_state_dict(plain.state_dict())
    return plain, inplace


def gradients(layer: torch.nn.Module, x: Tensor, residual: Tensor | None, weight: Tensor) -> list[Tensor]:
    inputs = [t.clone().requires_grad_() for t in (x, residual) if t is not None]
    # The convolution before gives a fresh tensor.
    output = layer(inputs[0] * 1.0, *inputs[1:])
    (output * weight).sum().backward()
    return [output.detach(), *(i.grad for i in inputs), layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("act", [LEAKY, ELU, IDENTITY], ids=lambda a: a.name)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("norm", ["BN", "SyncBN", "Affine"])
@pytest.mark.parametrize("size", [(3, 6, 5, 7), (4, 6), (1, 6, 2, 2)], ids=str)
def test_same_outputs_and_gradients(size, norm: str, with_residual: bool, act: Activation) -> None:
    plain, inplace = layers(norm, act)
    x = torch.randn(size) * 2 + 1
    residual = torch.randn(size) if with_residual else None
    weight = torch.randn(size)
    expected, found = gradients(plain, x, residual, weight), gradients(inplace, x, residual, weight)
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * a.abs().max().item())
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.allclose(getattr(plain, name), getattr(inplace, name), rtol=1e-5)
    # In evaluation both are the same.
    assert torch.allclose(plain.eval()(x * 1.0), inplace.eval()(x * 1.0), rtol=1e-5, atol=1e-5)


def test_gradients_by_finite_differences() -> None:
    _, layer = layers("BN", ELU)
    layer.double()

    def function(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        from seamless_d2.modeling.ops.inplace_norm import InPlaceNormAct

        with torch.no_grad():
            var, mean = torch.var_mean(x, [0, 2], correction=0)
        return InPlaceNormAct.apply(
            x, weight, bias, residual, mean, (var + 1e-5).rsqrt(), ELU, torch.tensor([12.0]), False
        )

    arguments = torch.randn(3, 6, 4), torch.randn(3, 6, 4), torch.rand(6) + 0.5, torch.randn(6)
    arguments = [a.double().requires_grad_() for a in arguments]
    # Mean and variance depend on x too, so that the numeric derivative is taken of the whole.
    assert torch.autograd.gradcheck(function, arguments, atol=1e-4)


def test_what_is_kept_for_the_backward_pass(toy_cfg) -> None:
    from detectron2.layers import ShapeSpec

    toy_cfg.MODEL.RESNETS.DEPTH = 50
    toy_cfg.MODEL.BACKBONE.FREEZE_AT = 0
    toy_cfg.MODEL.FPN.NORM = "BN"
    kept = {}
    for inplace in (False, True):
        torch.manual_seed(0)
        toy_cfg.MODEL.SEAMLESS.INPLACE_NORM = inplace
        # In float32 the gradients of 50 layers of batch normalisation are no better than to 4 % (against float64; the
        # in-place form: 2 %), which would hide a mistake.
        trunk = build_seamless_resnet_fpn_backbone(toy_cfg, ShapeSpec(channels=3)).train().double()
        storages = {}

        def pack(tensor: Tensor, storages=storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        parameters = {p.untyped_storage().data_ptr() for p in trunk.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            features = trunk(torch.randn(1, 3, 128, 192).double())
        sum(f.square().mean() for f in features.values()).backward()
        gradient = trunk.bottom_up.stem.conv1.weight.grad.clone()
        kept[inplace] = sum(v for k, v in storages.items() if k not in parameters), gradient
    assert kept[True][0] < 0.65 * kept[False][0]
    assert torch.allclose(kept[True][1], kept[False][1], rtol=1e-8, atol=1e-8 * kept[False][1].abs().max().item())


def test_activations_that_cannot_be_inverted_are_refused() -> None:
    for act in (Activation("relu"), Activation("leaky_relu", 0.0)):
        with pytest.raises(UserError, match="INPLACE_NORM"):
            make_norm_act("BN", 4, act, inplace=True)


def test_checkpointed_stages_change_nothing_but_memory(toy_cfg) -> None:
    from detectron2.layers import ShapeSpec

    toy_cfg.MODEL.BACKBONE.FREEZE_AT = 0
    trunk = build_seamless_resnet_fpn_backbone(toy_cfg, ShapeSpec(channels=3)).train()
    other = copy.deepcopy(trunk)
    other.bottom_up.gradient_checkpointing = ("res2", "res4", "res5")
    x = torch.randn(2, 3, 64, 96)
    for model in (trunk, other):
        sum(f.square().mean() for f in model(x).values()).backward()
    for (name, a), (_, b) in zip(trunk.named_parameters(), other.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-7), name
    for (name, a), (_, b) in zip(trunk.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    toy_cfg.MODEL.SEAMLESS.GRADIENT_CHECKPOINTING = ["res6"]
    with pytest.raises(UserError, match="'res6'"):
        build_seamless_resnet_fpn_backbone(toy_cfg, ShapeSpec(channels=3))
