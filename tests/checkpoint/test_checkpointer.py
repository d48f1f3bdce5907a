"""Safe and atomic checkpoints."""

import pytest
import torch
from torch import nn

from seamless_d2.checkpoint import SeamlessCheckpointer, load_weights
from seamless_d2.errors import UserError


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_save_and_load_round_trip(tmp_path) -> None:
    model, other = small_model(), small_model()
    SeamlessCheckpointer(model, str(tmp_path)).save("model_0000009", iteration=9)
    checkpointer = SeamlessCheckpointer(other, str(tmp_path))
    assert checkpointer.get_checkpoint_file().endswith("model_0000009.pth")
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 9
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000009.pth"]


def test_best_checkpoint_is_not_where_resume_starts(tmp_path) -> None:
    checkpointer = SeamlessCheckpointer(small_model(), str(tmp_path))
    checkpointer.save("model_0000009")
    checkpointer.save("model_best")
    assert checkpointer.get_checkpoint_file().endswith("model_0000009.pth")


def test_weights_that_are_no_numbers(tmp_path) -> None:
    model = nn.Linear(2, 2)
    spoilt = {name: torch.full_like(value, float("nan")) for name, value in model.state_dict().items()}
    torch.save({"model": spoilt}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a.pth: 2 weights of the checkpoint are NaN or infinite \(weight, bias"):
        load_weights(model, tmp_path / "a.pth")


def test_weights_of_another_model(tmp_path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match="another architecture"):
        load_weights(small_model(), path)
    state = small_model().state_dict()
    state["0.weight"] = torch.zeros(5, 3)
    torch.save({"model": state}, path)
    with pytest.raises(UserError, match="0.weight"):
        load_weights(small_model(), path)
    # Starting a training from partly fitting weights is fine: that is fine-tuning on other classes.
    SeamlessCheckpointer(small_model()).load(str(path))
    with pytest.raises(UserError, match="no weights"):
        load_weights(small_model(), "")


def test_initial_weights_of_another_model(tmp_path) -> None:
    """The sentence names the file and what to do, in a training too; heads alone leave the network as it was."""
    path = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="other.pth: the checkpoint shares no weight with this model; .*use the config"):
        SeamlessCheckpointer(small_model()).load(str(path))
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": small_model()}), "head": small_model()})
    torch.save({k: v for k, v in model.state_dict().items() if k.startswith("head")}, path)
    with pytest.raises(UserError, match="other.pth: the checkpoint shares no weight with this backbone"):
        SeamlessCheckpointer(model).load(str(path))
    torch.save({k: v for k, v in model.state_dict().items() if k.startswith("backbone")}, path)
    SeamlessCheckpointer(model).load(str(path))


def test_missing_initial_weights_name_the_remedy(tmp_path) -> None:
    with pytest.raises(UserError, match="MODEL.WEIGHTS"):
        SeamlessCheckpointer(small_model()).load(str(tmp_path / "R-50.pkl"))
