"""Safe reading of tensors; more in tests/faults/test_refused_checkpoints.py and test_limits.py."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from seamless_d2.checkpoint import SeamlessCheckpointer
from seamless_d2.errors import UserError
from seamless_d2.tensor_files import load_file


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


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


def test_weights_that_cannot_be_downloaded() -> None:
    with pytest.raises(UserError, match="http://127.0.0.1:9/a.pth cannot be downloaded .* give the path of the file"):
        SeamlessCheckpointer(nn.Linear(2, 2)).load("http://127.0.0.1:9/a.pth")
