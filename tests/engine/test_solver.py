"""Learning-rate schedules against the original's formulas, step by step, and the optimiser's groups."""

import pytest
import torch
from torch import nn

from seamless_d2 import get_config
from seamless_d2.engine.solver import build_lr_scheduler, build_optimizer, norm_parameter_names
from seamless_d2.errors import UserError
from seamless_d2.modeling.norm import make_norm_act
from seamless_d2.modeling.ops.inplace_norm import Activation


def rates(steps: int, iterations_per_epoch: int = 1, **solver) -> list[float]:
    cfg = get_config("Base-Seamless.yaml")
    for key, value in {"MAX_ITER": steps, "BASE_LR": 0.01, **solver}.items():
        cfg.SOLVER[key] = value
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer, iterations_per_epoch)
    result = []
    for _ in range(steps):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return result


def burn_in(it: int, start: float, steps: int) -> float:
    return start + it * (1 - start) / steps


@pytest.mark.parametrize("warmup", [0, 7])
def test_poly(warmup: int) -> None:
    count = 40
    got = rates(count, LR_SCHEDULER_NAME="Poly", POLY_LR_POWER=0.9, WARMUP_ITERS=warmup, WARMUP_FACTOR=0.333)
    for it, lr in enumerate(got, 1):
        assert lr == pytest.approx(0.01 * (burn_in(it, 0.333, warmup) if it <= warmup else (1 - it / count) ** 0.9))


def test_multistep_changes_on_the_milestone_counting_from_one() -> None:
    got = rates(30, LR_SCHEDULER_NAME="MultiStep", GAMMA=0.1, STEPS=[10, 20], WARMUP_ITERS=4, WARMUP_FACTOR=0.5)
    for it, lr in enumerate(got, 1):
        expected = burn_in(it, 0.5, 4) if it <= 4 else 0.1 ** ((it >= 10) + (it >= 20))
        assert lr == pytest.approx(0.01 * expected)


def test_linear_and_step() -> None:
    for it, lr in enumerate(rates(20, LR_SCHEDULER_NAME="Linear", LINEAR_RANGE=[1.0, 0.2], WARMUP_ITERS=0), 1):
        assert lr == pytest.approx(0.01 * (1 + (0.2 - 1) * it / 20))
    for it, lr in enumerate(rates(20, LR_SCHEDULER_NAME="Step", GAMMA=0.5, STEP_SIZE=6, WARMUP_ITERS=0), 1):
        assert lr == pytest.approx(0.01 * 0.5 ** (it // 6))


def test_schedule_by_epoch_counts_epochs_in_warm_up_too() -> None:
    got = rates(
        20, 5, LR_SCHEDULER_NAME="Step", GAMMA=0.5, STEP_SIZE=2, WARMUP_ITERS=1, SCHEDULE_BY="epoch", WARMUP_FACTOR=0.1
    )
    for batch, lr in enumerate(got):
        epoch = batch // 5 + 1
        expected = burn_in(epoch, 0.1, 1) if epoch <= 1 else 0.5 ** (epoch // 2)
        assert lr == pytest.approx(0.01 * expected)


def test_detectron2s_schedules_stay_available() -> None:
    got = rates(10, LR_SCHEDULER_NAME="WarmupCosineLR", WARMUP_ITERS=0)
    assert got[0] == pytest.approx(0.01) and got[-1] < 0.001


class Net(nn.Module):
    def __init__(self, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 1)
        self.norm = make_norm_act(norm, 16, Activation())


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", "Affine"])
def test_norm_parameters_have_their_own_group(norm: str) -> None:
    cfg = get_config("Base-Seamless.yaml")
    cfg.SOLVER.NORM_LR_FACTOR = 0.5
    model = Net(norm)
    assert norm_parameter_names(model) == {"norm.weight", "norm.bias"}
    groups = {}
    for group in build_optimizer(cfg, model).param_groups:
        for name, parameter in model.named_parameters():
            if any(parameter is p for p in group["params"]):
                assert name not in groups
                groups[name] = (group["lr"], group["weight_decay"], group["nesterov"])
    assert groups == {
        "conv.weight": (0.01, 0.0001, True),
        "conv.bias": (0.01, 0.0001, True),
        "norm.weight": (0.005, 0.0, True),
        "norm.bias": (0.005, 0.0, True),
    }


def test_factor_zero_freezes_norms_while_statistics_go_on() -> None:
    cfg = get_config("Base-Seamless.yaml")
    cfg.SOLVER.NORM_LR_FACTOR = 0.0
    model = Net("BN")
    optimizer = build_optimizer(cfg, model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.norm(model.conv(torch.randn(2, 3, 4, 4))).square().sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert torch.equal(before["norm.weight"], after["norm.weight"])
    assert not torch.equal(before["conv.weight"], after["conv.weight"])
    assert not torch.equal(before["norm.running_mean"], after["norm.running_mean"])


@pytest.mark.parametrize("name", ["AdamW", "adamw"])
@pytest.mark.parametrize("clip", [False, True])
def test_adamw_has_the_same_groups_and_clipping(name: str, clip: bool) -> None:
    cfg = get_config("Base-Seamless.yaml")
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.NORM_LR_FACTOR, cfg.SOLVER.CLIP_GRADIENTS.ENABLED = name, 0.5, clip
    model, reference = Net("BN"), Net("BN")
    reference.load_state_dict(model.state_dict())
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    expected = torch.optim.AdamW(
        [
            {"params": list(reference.conv.parameters()), "lr": 0.01, "weight_decay": 0.0001},
            {"params": list(reference.norm.parameters()), "lr": 0.005, "weight_decay": 0.0},
        ]
    )
    for step in range(3):
        torch.manual_seed(step)
        image = torch.randn(2, 3, 4, 4)
        for net in (model, reference):
            net.norm(net.conv(image)).square().sum().backward()
        if clip:
            torch.nn.utils.clip_grad_value_(reference.parameters(), cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE)
        for either in (optimizer, expected):
            either.step()
            either.zero_grad()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_optimizer_is_found_in_any_case_or_refused() -> None:
    cfg = get_config("Base-Seamless.yaml")
    cfg.SOLVER.OPTIMIZER = "sgd"
    assert isinstance(build_optimizer(cfg, Net("BN")), torch.optim.SGD)
    cfg.SOLVER.OPTIMIZER = "Lion"
    with pytest.raises(UserError, match="SOLVER.OPTIMIZER is 'Lion'; use SGD or AdamW"):
        build_optimizer(cfg, Net("BN"))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("clip", [False, True])
def test_a_fused_step_is_the_same_step(toy_cfg, clip: bool, optimizer: str) -> None:
    toy_cfg.SOLVER.CLIP_GRADIENTS.ENABLED, toy_cfg.SOLVER.OPTIMIZER = clip, optimizer
    weights = {}
    for fused in (False, True):
        torch.manual_seed(0)
        toy_cfg.SOLVER.FUSED_OPTIMIZER = fused
        # No gradient is zero but for rounding, which AdamW would normalize to whole steps.
        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        optimizer = build_optimizer(toy_cfg, model)
        for _ in range(3):
            model(torch.randn(2, 3, 8, 8)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights[fused] = [p.detach() for p in model.parameters()]
    for a, b in zip(weights[False], weights[True], strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
