"""The memory of a process that predicts stays within bounds."""

import ctypes
import sys

import pytest
import torch
from torch import nn

from seamless_d2.modeling.ops.fold import prepare_for_inference

from ..helpers.processes import run_forked


class _Mallinfo2(ctypes.Structure):
    """Of glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or newer"
)
def test_large_tensors_stay_outside_the_heap() -> None:
    """There they would keep the memory between what oneDNN compiles for each image size."""

    def work() -> None:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
        mallinfo2.restype = _Mallinfo2
        prepare_for_inference(nn.Conv2d(1, 1, 1))
        for size in (1, 4, 4, 4):  # glibc changes its mind when one is freed
            outside = mallinfo2().hblkhd
            tensor = torch.empty(size * 2**20, dtype=torch.uint8)
            assert mallinfo2().hblkhd - outside >= tensor.numel()
            del tensor

    assert run_forked(work) == [0]
