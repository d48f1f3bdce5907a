"""One training step against the textbook: accumulation, precision, clipping, moving average, numbers that go wrong."""

import copy
import itertools

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from seamless_d2 import get_config
from seamless_d2.engine.ema import WeightAverage
from seamless_d2.engine.solver import build_optimizer
from seamless_d2.engine.step import TrainingStep
from seamless_d2.errors import UserError
from seamless_d2.structures.segment_masks import SegmentMasks


class Net(nn.Module):
    """Two losses of a linear layer and a batch norm; an image is a vector, "poison" is what its loss becomes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 1)

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        y = self.linear(self.norm(torch.stack([x["vector"] for x in batch])))
        poison = sum(x.get("poison", 0.0) for x in batch)
        root = (y * 0 + sum(x.get("root", 1.0) for x in batch)).sqrt().sum()
        return {"loss_a": y.square().mean(), "loss_b": y.mean() + poison + 0 * root}


class Loader(list):
    def state_dict(self) -> dict:
        return {}


def batches(count: int, **extra: float) -> Loader:
    return Loader(
        [{"vector": torch.randn(3), "file_name": f"p{k}_{i}", **extra} for i in range(2)] for k in range(count)
    )


def make(model: nn.Module, data: Loader, **settings) -> TrainingStep:
    return TrainingStep(model, data, torch.optim.SGD(model.parameters(), lr=0.1), **settings)


def take(step: TrainingStep, count: int = 1) -> EventStorage:
    with EventStorage() as storage:
        for step.iter in range(count):  # noqa: B020
            step.run_step()
            storage.step()
    return storage


def image_with_ground_truth(seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(64, 96, dtype=torch.int32)
    labels[:32], labels[10:40, 20:60] = 1, 2
    semantic = torch.full((64, 96), 255)
    semantic[:32], semantic[10:40, 20:60] = 0, 6
    instances = Instances((64, 96), gt_boxes=Boxes(torch.tensor([[20.0, 10, 60, 40]])), gt_classes=torch.tensor([1]))
    instances.gt_masks = SegmentMasks(labels, torch.tensor([2], dtype=torch.int32))
    image = torch.randint(0, 256, (3, 64, 96), generator=generator).to(torch.uint8)
    return {"image": image, "sem_seg": semantic, "instances": instances, "file_name": f"{seed}.png", "seed": seed}


def test_accumulation_is_the_mean_in_one_graph(toy_cfg: CfgNode) -> None:
    toy_cfg.MODEL.RESNETS.NORM = "GN"
    model = build_model(toy_cfg)
    data = Loader([[image_with_ground_truth(k) for k in (a, a + 1)] for a in (1, 3, 5)])
    reference = copy.deepcopy(model)
    with EventStorage():
        losses = [sum(reference(batch).values()) for batch in data]
        (sum(losses) / 3).backward()
    step = make(model, data, accumulate_steps=3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    storage = take(step)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6), name
        assert torch.allclose(ours, before[name] - 0.1 * theirs.grad, atol=1e-6), name
    assert storage.latest()["total_loss"][0] == pytest.approx(float(sum(losses)) / 3, rel=1e-6)
    assert storage.latest()["images"][0] == 6


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_on_the_cpu(toy_cfg: CfgNode, precision: torch.dtype) -> None:
    toy_cfg.MODEL.RESNETS.NORM = "GN"
    model = build_model(toy_cfg)
    reference = copy.deepcopy(model)
    data = Loader([[image_with_ground_truth(1)]] * 8)
    step = make(model, data, precision=precision)
    step.optimizer.param_groups[0]["lr"] = 0.0
    assert (step.grad_scaler is not None) == (precision == torch.float16)
    # The first scales of the loss are too large for float16: such steps are left out, which is no fault.
    storage = take(step, 8)
    full = take(make(reference, data))
    for name in ("loss_sem_seg", "loss_rpn_cls", "loss_cls", "loss_mask"):
        assert storage.latest()[name][0] == pytest.approx(full.latest()[name][0], rel=0.05), name
    # The weights stay in full precision, and gradients are not those of the scaled loss.
    assert all(p.dtype == torch.float32 for p in model.parameters())
    norm, expected = (sum(p.grad.norm() ** 2 for p in m.parameters()) ** 0.5 for m in (model, reference))
    if step.grad_scaler is not None:
        assert step.state_dict()["grad_scaler"]["scale"] == step.grad_scaler.get_scale()
    assert norm == pytest.approx(float(expected), rel=0.2)


@pytest.mark.parametrize(("kind", "value"), [("value", 1e-3), ("norm", 1e-2)])
def test_clipping_by_detectron2s_keys(kind: str, value: float) -> None:
    cfg = get_config("Base-Seamless")
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, kind, value
    model = Net()
    take(TrainingStep.from_config(cfg, model, batches(1), build_optimizer(cfg, model)))
    for parameter in model.parameters():
        largest = parameter.grad.abs().max() if kind == "value" else parameter.grad.norm()
        assert largest <= value * (1 + 1e-5)
    assert model.linear.weight.grad.abs().max() > value / 10


@pytest.mark.parametrize("kind", ["norm", "full_model"])
def test_clipping_of_scaled_gradients(kind: str) -> None:
    """With fp16 a fused optimizer gets gradients times the scale; they are clipped without it."""
    moved = []
    for fused in (False, True):
        torch.manual_seed(0)
        cfg = get_config("Base-Seamless.yaml")
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = True, kind
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE, cfg.SOLVER.FUSED_OPTIMIZER = 0.1, fused
        model = Net()
        before = [p.detach().clone() for p in model.parameters()]
        step = TrainingStep(model, batches(3), build_optimizer(cfg, model), precision=torch.float16)
        step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=64.0)  # no step overflows
        take(step, 3)
        moved.append(torch.cat([(a - b).flatten() for a, b in zip(before, model.parameters(), strict=True)]))
    assert moved[0].abs().max() > 1e-5
    assert torch.allclose(*moved, rtol=1e-3, atol=1e-8)


def test_moving_average() -> None:
    model = Net()
    average, expected = WeightAverage(model, 0.7), model.linear.weight.detach().clone()
    for n in range(12):
        with torch.no_grad():
            model.linear.weight.add_(1.0)
        model.norm.num_batches_tracked += 1
        average.update(model)
        decay = min(0.7, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.linear.weight.detach()
    assert torch.allclose(average.model.linear.weight, expected)
    assert average.model.norm.num_batches_tracked == 12
    other = WeightAverage(Net(), 0.7)
    other.load_state_dict(average.state_dict())
    assert other.updates == 12 and torch.equal(other.model.linear.weight, average.model.linear.weight)
    for entry in (average, other):
        entry.update(model)
    assert torch.equal(other.model.linear.weight, average.model.linear.weight)
    average.restart(model)
    assert average.updates == 0 and torch.equal(average.model.linear.weight, model.linear.weight)


POISONS = {
    "loss": ({"poison": float("nan")}, "loss_b not finite, images p2_0, p2_1"),
    "infinite": ({"poison": float("inf")}, "loss_b not finite, images p2_0, p2_1"),
    "gradient": ({"root": 0.0}, r"gradient of norm.weight not finite, images p2_0, p2_1"),
}


@pytest.mark.parametrize("kind", list(POISONS))
def test_undefined_numbers_stop(kind: str) -> None:
    extra, words = POISONS[kind]
    data = batches(4)
    for entry in data[2]:
        entry.update(extra)
    model = Net()
    step = make(model, data)
    with pytest.raises(UserError, match=f"iteration 2: {words}; lower SOLVER.BASE_LR"):
        take(step, 4)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", list(POISONS))
def test_undefined_numbers_are_skipped(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    extra, words = POISONS[kind]
    data, model = batches(5), Net()
    clean = copy.deepcopy(model)
    take(make(clean, Loader(data[:2] + data[3:]), ema_decay=0.5), 4)
    for entry in data[2]:
        entry.update(extra)
    step = make(model, data, on_nonfinite="skip", max_skipped=1, ema_decay=0.5)
    take(step, 5)
    # As if the batch had never been: weights, running statistics, moving average.
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), clean.state_dict().values(), strict=True))
    assert step.skipped == 1 and step.ema.updates == 4 and f"iteration 2: {words.replace(chr(92), '')}" in caplog.text
    bad = batches(1, poison=float("nan"))[0]
    step = make(Net(), Loader(itertools.repeat(bad, 5)), on_nonfinite="skip", max_skipped=3)
    with pytest.raises(UserError, match="iteration 3: .*skipped step 4, more than SOLVER.MAX_SKIPPED_STEPS 3"):
        take(step, 5)


def test_a_bad_micro_batch_is_named_among_the_others() -> None:
    data = batches(4)
    data[1][0]["poison"] = float("nan")
    with pytest.raises(UserError, match="iteration 0: loss_b not finite, images p1_0, p1_1;"):
        take(make(Net(), data, accumulate_steps=4))
