"""The memory of a process that predicts stays within bounds."""

import ctypes
import sys
from pathlib import Path

import pytest

from ..helpers.processes import run_or_dump

# In a process of its own: the heap of this one may have room for anything.
WORK = """
import ctypes
import torch
from torch import nn
from seamless_d2.modeling.ops.fold import prepare_for_inference

class Mallinfo2(ctypes.Structure):  # of glibc's malloc.h
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
prepare_for_inference(nn.Conv2d(1, 1, 1))
for megabytes in (8, 24, 24, 24):  # by default glibc changes its mind when one is freed
    outside = mallinfo2().hblkhd
    tensor = torch.empty(megabytes << 20, dtype=torch.uint8)
    assert mallinfo2().hblkhd - outside >= tensor.numel(), megabytes
    del tensor
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or newer"
)
@pytest.mark.slow
def test_large_tensors_stay_outside_the_heap(tmp_path: Path) -> None:
    """There they would keep the memory between what oneDNN compiles for each image size."""
    run_or_dump([sys.executable, "-X", "faulthandler", "-c", WORK], tmp_path)
