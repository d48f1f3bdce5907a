"""Safe and atomic checkpoints."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from seamless_d2.checkpoint import SeamlessCheckpointer, load_weights
from seamless_d2.checkpoint.checkpointer import load_file
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


def test_detectron2_pickle_of_arrays_loads(tmp_path) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": {"0.weight": np.ones((2, 3), np.float32)}}))
    assert load_file(path)["model"]["0.weight"].shape == (2, 3)
    model = small_model()
    SeamlessCheckpointer(model).load(str(path))
    assert torch.equal(model[0].weight, torch.ones(2, 3))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_code_in_a_checkpoint_is_refused(tmp_path, suffix: str, capsys) -> None:
    path = tmp_path / f"evil{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": Evil()}))
    else:
        torch.save({"model": Evil()}, path)
    with pytest.raises(UserError, match="evil"):
        load_file(path)
    assert "code ran" not in capsys.readouterr().out


def test_damaged_files_are_named(tmp_path) -> None:
    path = tmp_path / "cut.pth"
    torch.save(small_model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="cut.pth"):
        load_file(path)
    with pytest.raises(UserError, match="none.pth"):
        load_file(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="list.pth"):
        load_file(tmp_path / "list.pth")


def test_weights_that_are_no_numbers(tmp_path) -> None:
    model = nn.Linear(2, 2)
    spoilt = {name: torch.full_like(value, float("nan")) for name, value in model.state_dict().items()}
    torch.save({"model": spoilt}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a.pth: 2 weights of the checkpoint are NaN or infinite \(weight, bias"):
        load_weights(model, tmp_path / "a.pth")


def test_weights_that_cannot_be_downloaded() -> None:
    with pytest.raises(UserError, match="http://127.0.0.1:9/a.pth cannot be downloaded .* give the path of the file"):
        SeamlessCheckpointer(nn.Linear(2, 2)).load("http://127.0.0.1:9/a.pth")


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


def test_missing_initial_weights_name_the_remedy(tmp_path) -> None:
    with pytest.raises(UserError, match="MODEL.WEIGHTS"):
        SeamlessCheckpointer(small_model()).load(str(tmp_path / "R-50.pkl"))
