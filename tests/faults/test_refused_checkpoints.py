"""What is said of a refused file of tensors is no advice to read it unsafely."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from seamless_d2.checkpoint import SeamlessCheckpointer
from seamless_d2.checkpoint.torchvision_resnet import convert_torchvision
from seamless_d2.errors import UserError
from seamless_d2.seamseg.raw import load_raw
from seamless_d2.seamseg.weights import convert
from seamless_d2.tensor_files import load_file


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


CONTENTS = {
    "code": ({"model": Evil()}, "refers to print, which is no tensor"),
    "module": ({"model": torch.nn.Linear(1, 1)}, r"refers to torch.nn.modules.linear.Linear"),
    "numpy": ({"score": np.float64(1)}, "refers to numpy"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(
    "read",
    [
        load_file,
        load_raw,
        lambda file: SeamlessCheckpointer(torch.nn.Linear(1, 1)).load(str(file)),
        lambda file: convert(file, file.with_name("out.pth")),
        lambda file: convert_torchvision(str(file), file.with_name("out.pth")),
    ],
)
def test_content_that_is_refused(
    tmp_path: Path, read: Callable[[Path], object], content: str, zipped: bool, capsys: pytest.CaptureFixture
) -> None:
    value, words = CONTENTS[content]
    torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    check(tmp_path / "a.pth", read, words)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "data", [b"", b"hello", bytes(1000), b"\x80\x02", b"\x80\x02}q\x00.", b"PK\x03\x04aaaa", b"\x80\x02\x95" + bytes(9)]
)
def test_damaged_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(data)
    check(tmp_path / "a.pth", load_file, "cannot be read as tensors|holds no dictionary")


def check(file: Path, read: Callable[[Path], object], words: str) -> None:
    with pytest.raises(UserError, match=rf"a\.pth .*({words})") as error:
        read(file)
    assert "weights_only" not in str(error.value) and "\n" not in str(error.value)
    assert "trust" not in str(error.value) and "torch.load" not in str(error.value)
