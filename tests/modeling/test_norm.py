"""Norm + activation layers against PyTorch's own layers."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from seamless_d2.errors import UserError
from seamless_d2.modeling.norm import init_xavier, make_norm_act, norm_act_from_config
from seamless_d2.modeling.ops.inplace_norm import Activation

from ..helpers.processes import run_in_two_processes

CHANNELS = 8
GROUPS = 4
LEAKY = Activation("leaky_relu", 0.1)
SHAPES = [(3, CHANNELS, 5, 4), (6, CHANNELS)]


def randomise(layer: nn.Module) -> nn.Module:
    """Weights and statistics away from 1 and 0; some scales are negative."""
    with torch.no_grad():
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5 if name.endswith("var") else torch.randn_like(tensor))
    return layer


def batch_norm_like(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """PyTorch's batch normalisation for inputs of ``shape``, with the same weights and mode."""
    stock = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(CHANNELS)
    stock.load_state_dict(layer.state_dict(), strict=False)
    return stock.train(layer.training)


@pytest.mark.parametrize(
    "act, expected",
    [
        (Activation("leaky_relu", 0.1), lambda x: torch.where(x > 0, x, 0.1 * x)),
        (Activation("elu", 0.5), lambda x: torch.where(x > 0, x, 0.5 * (x.exp() - 1))),
        (Activation("relu"), lambda x: x.clamp(min=0)),
        (Activation("identity"), lambda x: x),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_activations(act: Activation, expected) -> None:
    x = torch.randn(4, 7)
    assert torch.allclose(act(x.clone()), expected(x))


def test_gain_keeps_the_scale() -> None:
    # He et al. 2015: leaky_relu halves the second moment of a symmetric input, but for slope^2.
    x = torch.randn(100_000)
    for act in (Activation("leaky_relu", 0.3), Activation("relu"), Activation("identity")):
        assert act.gain**2 * act(x.clone()).square().mean() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_batch_norm(norm: str, shape: tuple[int, ...], training: bool, residual: bool) -> None:
    layer = randomise(make_norm_act(norm, CHANNELS, LEAKY)).train(training)
    stock = batch_norm_like(layer, shape)
    x, other = torch.randn(shape), torch.randn(shape)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    y = layer(ours, other) if residual else layer(ours)
    expected = F.leaky_relu(stock(theirs) + other if residual else stock(theirs), 0.1)
    assert torch.allclose(y, expected, atol=1e-6)
    weight = torch.randn(shape)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)
    assert torch.allclose(layer.weight.grad, stock.weight.grad, atol=1e-5)
    assert torch.allclose(layer.bias.grad, stock.bias.grad, atol=1e-5)
    assert torch.allclose(layer.running_mean, stock.running_mean)
    assert torch.allclose(layer.running_var, stock.running_var)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_group_norm(shape: tuple[int, ...], residual: bool) -> None:
    layer = randomise(make_norm_act("GN", CHANNELS, LEAKY, GROUPS))
    x, other = torch.randn(shape), torch.randn(shape)
    groups = x.reshape(len(x), GROUPS, -1)
    mean, var = groups.mean(dim=2, keepdim=True), groups.var(dim=2, keepdim=True, unbiased=False)
    normalised = ((groups - mean) / (var + 1e-5).sqrt()).reshape(shape)
    per_channel = [1, -1] + [1] * (len(shape) - 2)
    expected = normalised * layer.weight.view(per_channel) + layer.bias.view(per_channel)
    expected = F.leaky_relu(expected + other if residual else expected, 0.1)
    assert torch.allclose(layer(x, other if residual else None), expected, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", ["FrozenBN", "Affine"])
def test_fixed_statistics(norm: str, shape: tuple[int, ...], training: bool, residual: bool) -> None:
    layer = randomise(make_norm_act(norm, CHANNELS, LEAKY)).train(training)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x, other = torch.randn(shape), torch.randn(shape)
    expected = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=1e-5)
    expected = F.leaky_relu(expected + other if residual else expected, 0.1)
    y = layer(x, other if residual else None)
    assert torch.allclose(y, expected, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert [k for k, p in layer.named_parameters() if p.requires_grad] == (
        ["weight", "bias"] if norm == "Affine" else []
    )


def test_affine_gradient() -> None:
    layer = randomise(make_norm_act("Affine", CHANNELS, Activation("identity"))).train()
    x = torch.randn(SHAPES[0])
    layer(x).sum().backward()
    normalised = (x - layer.running_mean.view(1, -1, 1, 1)) / (layer.running_var.view(1, -1, 1, 1) + 1e-5).sqrt()
    assert torch.allclose(layer.weight.grad, normalised.sum(dim=(0, 2, 3)), atol=1e-5)
    assert torch.allclose(layer.bias.grad, torch.full((CHANNELS,), 60.0))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, CHANNELS, 3, 2), (0, CHANNELS)], ids=str)
@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", "FrozenBN", "Affine"])
def test_empty_input(norm: str, shape: tuple[int, ...], training: bool) -> None:
    """An image without proposals is no error, and leaves no parameter without a gradient (of zero)."""
    layer = randomise(make_norm_act(norm, CHANNELS, LEAKY, GROUPS)).train(training)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    y = layer(torch.zeros(shape, requires_grad=True))
    assert y.shape == shape
    y.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("shape", [(1, CHANNELS, 1, 1), (1, CHANNELS)], ids=str)
@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_single_value_per_channel_uses_the_running_statistics(norm: str, shape: tuple[int, ...]) -> None:
    layer = randomise(make_norm_act(norm, CHANNELS, LEAKY))
    x, other = torch.randn(shape), torch.randn(shape)
    expected = layer.eval()(x, other)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    assert torch.allclose(layer.train()(x, other), expected, atol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", "FrozenBN", "Affine"])
def test_inputs_are_not_overwritten(norm: str) -> None:
    layer = randomise(make_norm_act(norm, CHANNELS, LEAKY, GROUPS)).eval()
    for shape in (*SHAPES, (0, CHANNELS)):
        x, residual = torch.randn(shape), torch.randn(shape)
        kept = x.clone(), residual.clone()
        layer(x)
        layer(x, residual)
        assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1])


def test_activation_may_be_replaced() -> None:
    layer = randomise(make_norm_act("BN", CHANNELS, LEAKY)).eval()
    x = torch.randn(SHAPES[0])
    layer.act = Activation("identity")
    assert torch.equal(layer(x), batch_norm_like(layer, x.shape)(x))


@pytest.mark.parametrize(
    "norm, base",
    [
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.BatchNorm2d),
        ("Affine", nn.BatchNorm2d),
        ("GN", nn.GroupNorm),
        ("FrozenBN", FrozenBatchNorm2d),
    ],
)
def test_layers_are_forms_of_the_usual_ones(norm: str, base: type[nn.Module]) -> None:
    """Weight-decay rules go by class and checkpoints by name."""
    layer = make_norm_act(norm, CHANNELS, LEAKY, GROUPS)
    assert isinstance(layer, base)
    assert set(layer.state_dict()) == set((base(GROUPS, CHANNELS) if norm == "GN" else base(CHANNELS)).state_dict())


def test_user_errors() -> None:
    with pytest.raises(UserError, match="activation 'swish' is unknown"):
        Activation("swish")
    with pytest.raises(UserError, match="normalisation 'LN' is unknown"):
        make_norm_act("LN", CHANNELS, LEAKY)
    with pytest.raises(UserError, match="GN_GROUPS=3 needs channels divisible by it, not 8"):
        make_norm_act("GN", CHANNELS, LEAKY, gn_groups=3)
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        make_norm_act("BN", CHANNELS, LEAKY).eval()(torch.zeros(CHANNELS))


def test_config(toy_cfg) -> None:
    toy_cfg.MODEL.SEAMLESS.ACTIVATION, toy_cfg.MODEL.SEAMLESS.ACTIVATION_SLOPE = "elu", 0.7
    layer = norm_act_from_config(toy_cfg, "GN")(16)
    assert layer.act == Activation("elu", 0.7)
    assert (layer.num_groups, layer.num_channels) == (toy_cfg.MODEL.SEAMLESS.GN_GROUPS, 16)


def test_init_xavier() -> None:
    layer = nn.Conv2d(30, 50, 3)
    init_xavier(layer, gain=2.0)
    assert layer.weight.std().item() == pytest.approx(2.0 * (2 / (9 * (30 + 50))) ** 0.5, rel=0.05)
    assert not layer.bias.any()


# Local batches of two processes, in turn: shapes of process 0 and of process 1.
JOINT_BATCHES = {
    "equal": ((2, CHANNELS, 3, 3), (2, CHANNELS, 3, 3)),
    "unequal": ((3, CHANNELS, 4, 5), (1, CHANNELS, 2, 3)),
    "one empty": ((0, CHANNELS, 4, 5), (2, CHANNELS, 4, 5)),
    "fully connected": ((5, CHANNELS), (2, CHANNELS)),
    "single values": ((1, CHANNELS), (1, CHANNELS)),
    "both empty": ((0, CHANNELS), (0, CHANNELS)),
}


def joint_tensors(name: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Input, residual and weight of the output of each process; their mean is far from zero."""
    generator = torch.Generator().manual_seed(sorted(JOINT_BATCHES).index(name))
    return [
        (
            torch.randn(shape, generator=generator) * 2 + 20,
            torch.randn(shape, generator=generator),
            torch.randn(shape, generator=generator),
        )
        for shape in JOINT_BATCHES[name]
    ]


def compute_share(start: dict[str, Tensor], folder: Path) -> None:
    """In one of two processes: every joint batch through the same layer, forwards and backwards."""
    results = {}
    for name in JOINT_BATCHES:
        layer = make_norm_act("SyncBN", CHANNELS, LEAKY)
        layer.load_state_dict(start)
        x, residual, weight = joint_tensors(name)[dist.get_rank()]
        x.requires_grad_()
        y = layer.train()(x, residual)
        (y * weight).sum().backward()
        # Every process has its share of the gradient of the parameters.
        for parameter in layer.parameters():
            dist.all_reduce(parameter.grad)
        results[name] = {
            "y": y.detach(),
            "x.grad": x.grad,
            **{f"{k}.grad": p.grad for k, p in layer.named_parameters()},
            **layer.state_dict(),
        }
    torch.save(results, folder / f"result{dist.get_rank()}.pth")


@pytest.mark.slow
def test_sync_batch_norm_equals_the_joint_batch(tmp_path: Path) -> None:
    start = randomise(make_norm_act("BN", CHANNELS, LEAKY)).state_dict()
    run_in_two_processes(lambda: compute_share(start, tmp_path))
    results = [torch.load(tmp_path / f"result{rank}.pth") for rank in range(2)]
    for name in JOINT_BATCHES:
        ours = [result[name] for result in results]
        for key in start:
            assert torch.equal(ours[0][key], ours[1][key]), (name, key)
        if name == "both empty":
            assert torch.equal(ours[0]["running_mean"], start["running_mean"])
            assert torch.equal(ours[0]["running_var"], start["running_var"])
            assert not ours[0]["weight.grad"].any() and ours[0]["x.grad"].shape == (0, CHANNELS)
            continue
        layer = nn.BatchNorm1d(CHANNELS)
        layer.load_state_dict(start)
        # One long batch of single values: (pixels of both processes, C).
        x, residual, weight = (
            torch.cat([t.transpose(0, 1).flatten(1).T for t in tensors])
            for tensors in zip(*joint_tensors(name), strict=True)
        )
        x.requires_grad_()
        y = F.leaky_relu(layer(x) + residual, LEAKY.slope)
        (y * weight).sum().backward()
        expected = {"y": y, "x.grad": x.grad}
        for key, value in expected.items():
            joint = torch.cat([t[key].transpose(0, 1).flatten(1).T for t in ours])
            assert torch.allclose(joint, value, atol=1e-4), (name, key)
        assert torch.allclose(ours[0]["weight.grad"], layer.weight.grad, atol=1e-4), name
        assert torch.allclose(ours[0]["bias.grad"], layer.bias.grad, atol=1e-4), name
        assert torch.allclose(ours[0]["running_mean"], layer.running_mean, atol=1e-5), name
        assert torch.allclose(ours[0]["running_var"], layer.running_var, atol=1e-4), name
